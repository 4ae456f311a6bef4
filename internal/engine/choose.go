package engine

import (
	"fmt"
	"os"

	"github.com/org/portainer"
)

// A machine is what the choice of an engine depends on.
type machine struct {
	uid  int
	find func(program string) (path string, ok bool)
}

func thisMachine() machine { return machine{uid: os.Geteuid(), find: find} }

// choose returns the kind of engine that cfg asks for, and why it is that one.
func choose(cfg Config, m machine) (kind, why string, err error) {
	switch cfg.Kind {
	case "", KindAuto:
		if cfg.Host != "" {
			return KindDocker, "a daemon is given", nil
		}
		return m.choose(cfg.Asked)
	case KindDocker:
		if cfg.Host == "" {
			return "", "", misused(`engine "docker" needs the address of a daemon`)
		}
		return cfg.Kind, "asked for", nil
	case KindDockerd:
		if cfg.Host != "" {
			return "", "", misused("engine %q starts a daemon of its own and cannot use the one at %s", cfg.Kind, cfg.Host)
		}
		return cfg.Kind, "asked for", nil
	case KindBuildkitd:
		return cfg.Kind, "asked for", nil
	}
	return "", "", misused("unknown engine %q: it must be auto, docker, dockerd or buildkitd", cfg.Kind)
}

// misused is the error of a Config that nothing can be made of.
func misused(format string, args ...any) error {
	return failure(portainer.PhaseLaunch, portainer.ClassInvalid, fmt.Errorf(format, args...))
}
