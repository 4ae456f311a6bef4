package engine

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

// TestChoose has a machine with some programs, and what is built with there.
func TestChoose(t *testing.T) {
	const rootless = "rootlesskit newuidmap newgidmap"
	tests := []struct {
		name, programs string
		uid            int
		cfg            Config
		kind, why      string
		class          portainer.Class
		says           []string
	}{
		{name: "a daemon is given", programs: "buildkitd runc dockerd", cfg: Config{Host: "unix:///x"}, kind: KindDocker, why: "a daemon is given"},
		{name: "buildkitd", programs: "buildkitd crun", kind: KindBuildkitd, why: "/p/buildkitd and /p/crun are there"},
		{name: "both", programs: "dockerd buildkitd runc crun", kind: KindBuildkitd, why: "/p/buildkitd and /p/runc are there"},
		{name: "only dockerd", programs: "dockerd runc", kind: KindDockerd, why: "/p/dockerd is there; there is no buildkitd on this machine"},
		{name: "buildkitd without a runtime", programs: "dockerd buildkitd", kind: KindDockerd,
			why: "/p/dockerd is there; /p/buildkitd needs an OCI runtime and none of buildkit-runc, runc, crun is on this machine"},
		{name: "nothing", class: portainer.ClassLaunch,
			says: []string{"no buildkitd", "make executor BUNDLE=1", "install BuildKit", "no dockerd", "--docker-host"}},
		{name: "nothing but buildkitd", programs: "buildkitd", class: portainer.ClassLaunch, says: []string{"OCI runtime", "install runc", "no dockerd"}},
		{name: "not root", programs: "dockerd buildkitd runc " + rootless, uid: 1000, kind: KindBuildkitd,
			why: "/p/buildkitd and /p/runc are there, and /p/rootlesskit for user 1000, who is not root"},
		{name: "not root, no rootlesskit", programs: "dockerd buildkitd runc", uid: 1000, class: portainer.ClassLaunch,
			says: []string{"user 1000", "rootlesskit", "/p/dockerd must be started by root"}},
		{name: "not root, no newgidmap", programs: "buildkitd runc rootlesskit newuidmap", uid: 1000, class: portainer.ClassLaunch,
			says: []string{"newgidmap", "uidmap", "/etc/subuid"}},
		{name: "asked for", programs: "buildkitd runc", cfg: Config{Kind: KindDockerd}, kind: KindDockerd, why: "asked for"},
		{name: "unknown", cfg: Config{Kind: "podman"}, class: portainer.ClassInvalid, says: []string{"podman"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := machine{uid: tt.uid, find: func(program string) (string, bool) {
				for p := range strings.FieldsSeq(tt.programs) {
					if p == program {
						return "/p/" + p, true
					}
				}
				return "", false
			}}
			kind, why, err := choose(tt.cfg, m)
			if tt.class == "" {
				require.NoError(t, err)
				require.Equal(t, tt.kind, kind)
				require.Equal(t, tt.why, why)
				return
			}
			var be *portainer.BuildError
			require.ErrorAs(t, launchError(t.Context(), KindAuto, err), &be)
			require.Equal(t, tt.class, be.Class)
			for _, part := range tt.says {
				require.ErrorContains(t, be, part)
			}
		})
	}
}
