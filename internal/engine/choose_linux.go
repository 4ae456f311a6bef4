package engine

import (
	"errors"
	"fmt"
	"strings"
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

// choose chooses among the engines of our own.
func (m machine) choose() (kind, why string, err error) {
	k, err := m.buildkit()
	if err == nil {
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
