package engine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/org/portainer"
)

// A guard watches what the steps of builds use.
type guard interface {
	// watch begins to watch. stop ends it and tells what was amiss.
	watch() (stop func() shortage)
}

// A shortage is what a build was short of.
type shortage struct {
	killed      bool  // processes were killed for want of memory
	limit, peak int64 // of memory, in bytes; 0 if unknown
	suspected   bool  // somewhere on this machine a process was killed for that
	full        bool  // the disk was full
	where       string
}

// explain makes the failure of a step that of a shortage, if there was one.
func (s shortage) explain(err error, lastWords string) error {
	var be *portainer.BuildError
	if !errors.As(err, &be) || be.Phase != portainer.PhaseBuild || be.Class != portainer.ClassUser {
		return err
	}
	out := *be
	switch {
	case s.killed:
		out.Class = portainer.ClassOOM
		bound := ""
		if s.limit > 0 {
			bound = fmt.Sprintf(": the task has %s", megabytes(s.limit))
			if s.peak > 0 {
				bound += fmt.Sprintf(" and the build used %s", megabytes(s.peak))
			}
		}
		out.Err = fmt.Errorf("out of memory%s", bound)
		if !errors.Is(be.Err, errSIGKILL) { // which says no more
			out.Err = fmt.Errorf("%w (%w)", out.Err, be.Err)
		}
	case s.suspected && errors.Is(be.Err, errSIGKILL):
		out.Class = portainer.ClassOOM
		out.Err = errors.New("out of memory: while the step ran the kernel killed a process of it, or of another container on the same machine; " +
			"the daemon does not let the memory of a step be bounded or told")
	case s.full && (diskWords.MatchString(strings.ToLower(lastWords)) || diskWords.MatchString(be.Err.Error())):
		out.Class = portainer.ClassDisk
		out.Err = fmt.Errorf("no space left on the disk of %s (%w)", s.where, be.Err)
	default:
		return err
	}
	return &out
}

// megabytes says an amount as Mesos and docker do.
func megabytes(n int64) string { return fmt.Sprintf("%d MB", n>>20) }
