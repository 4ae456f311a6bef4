package engine

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/script"
	"github.com/org/portainer/internal/wire"
)

// TestChoose has a machine with some programs, and what is built with there.
func TestChoose(t *testing.T) {
	const rootless = "rootlesskit newuidmap newgidmap"
	squash := &ability.Build{Script: script.Read(nil), Options: wire.Options{Squash: true}}
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
		{name: "both, and what buildkitd cannot do", programs: "dockerd buildkitd runc", cfg: Config{Asked: squash}, kind: KindDockerd,
			why: "/p/dockerd is there; /p/buildkitd cannot do this: squash (a daemon in experimental mode)"},
		{name: "both, and what neither can do", programs: "dockerd buildkitd runc", kind: KindBuildkitd, why: "/p/buildkitd and /p/runc are there",
			cfg: Config{Asked: &ability.Build{Script: script.Read(nil), Options: wire.Options{Squash: true, SBOM: "default"}}}},
		{name: "buildkitd alone, and what it cannot do", programs: "buildkitd runc", cfg: Config{Asked: squash}, kind: KindBuildkitd,
			why: "/p/buildkitd and /p/runc are there"},
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
