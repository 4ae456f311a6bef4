package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/wire"
)

// ociRuntimes are the OCI runtimes that buildkitd can run steps with, best first.
var ociRuntimes = []string{"buildkit-runc", "runc", "crun"}

// bundled is what to do about a program that is missing for buildkitd.
const bundled = "use an executor that has it in its archive (make executor BUNDLE=1), or install "

// A kit is the programs that a buildkitd of our own takes.
type kit struct {
	buildkitd   string
	runtime     string
	rootlesskit string // "" for root, who needs none
}

// buildkit finds the programs for a buildkitd.
func (m machine) buildkit() (k kit, err error) {
	var ok bool
	if k.buildkitd, ok = m.find("buildkitd"); !ok {
		return kit{}, errors.New("there is no buildkitd on this machine: " + bundled + "BuildKit")
	}
	for _, name := range ociRuntimes {
		if k.runtime, ok = m.find(name); ok {
			break
		}
	}
	if !ok {
		return kit{}, fmt.Errorf("%s needs an OCI runtime and none of %s is on this machine: %srunc", k.buildkitd, strings.Join(ociRuntimes, ", "), bundled)
	}
	if m.uid == 0 {
		return k, nil
	}
	if k.rootlesskit, ok = m.find("rootlesskit"); !ok {
		return kit{}, fmt.Errorf("%s needs rootlesskit, because this is user %d and not root, and there is none on this machine: %sit", k.buildkitd, m.uid, bundled)
	}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, ok := m.find(name); !ok {
			return kit{}, fmt.Errorf("%s needs %s, because this is user %d and not root, and there is none on this machine: install Debian's uidmap, "+
				"or what else brings it, and give the user a range in /etc/subuid and /etc/subgid", k.buildkitd, name, m.uid)
		}
	}
	return k, nil
}

// choose chooses among the engines of our own, for builds that ask for asked.
func (m machine) choose(asked *ability.Build) (kind, why string, err error) {
	k, err := m.buildkit()
	if err == nil {
		if why, better := m.dockerdInstead(asked, k); better {
			return KindDockerd, why, nil
		}
		why = fmt.Sprintf("%s and %s are there", k.buildkitd, k.runtime)
		if k.rootlesskit != "" {
			why += fmt.Sprintf(", and %s for user %d, who is not root", k.rootlesskit, m.uid)
		}
		return KindBuildkitd, why, nil
	}
	dockerd, ok := m.find("dockerd")
	switch {
	case !ok:
		return "", "", fmt.Errorf("%w; there is no dockerd either, and no daemon is given (--docker-host)", err)
	case m.uid != 0:
		return "", "", fmt.Errorf("%w; %s must be started by root, and no daemon is given (--docker-host)", err, dockerd)
	}
	missing, _, _ := strings.Cut(err.Error(), ": ")
	return KindDockerd, fmt.Sprintf("%s is there; %s", dockerd, missing), nil
}

// dockerdInstead reports whether a dockerd is there that can do what the buildkitd of
// k cannot do, and says so.
func (m machine) dockerdInstead(asked *ability.Build, k kit) (why string, better bool) {
	if asked == nil || m.uid != 0 {
		return "", false
	}
	lacks := asked.Lacks(ability.Standalone)
	dockerd, ok := m.find("dockerd")
	if len(lacks) == 0 || !ok {
		return "", false
	}
	builders, _ := ability.Of(wire.Engine{Kind: KindDockerd})
	can := slices.ContainsFunc(builders, func(b ability.Builder) bool { return len(asked.Lacks(b)) == 0 })
	return fmt.Sprintf("%s is there; %s cannot do this: %s", dockerd, k.buildkitd, strings.Join(lacks, ", ")), can
}
