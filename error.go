package portainer

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Class says why a build made no image, and so what to do about it. Only
// ClassLost, ClassLaunch and ClassPreempted are retried by themselves, and ClassDisk
// when it kept the engine from starting.
type Class string

// The classes of failure.
const (
	ClassUser      Class = "user"      // the Dockerfile: a step failed
	ClassInvalid   Class = "invalid"   // bad input, or refused by Mesos as such
	ClassAuth      Class = "auth"      // a registry refused the credentials
	ClassRegistry  Class = "registry"  // a registry could not be reached, or failed
	ClassOOM       Class = "oom"       // out of memory
	ClassDisk      Class = "disk"      // out of disk space
	ClassTimeout   Class = "timeout"   // a deadline passed
	ClassLost      Class = "lost"      // the agent or the executor was lost
	ClassLaunch    Class = "launch"    // the executor or its engine did not start
	ClassPreempted Class = "preempted" // the agent was drained
	ClassStaging   Class = "staging"   // the staging bucket could not be used
	ClassCancelled Class = "cancelled" // the caller gave up
	ClassContext   Class = "context"   // a base image needs the build context, which was not sent
)

// Retriable reports whether another attempt on another agent can help. Besides its
// class it may be the phase that says so: a build that ran out of disk will do so
// elsewhere, but an agent that had too little to begin with says nothing of others.
func (e *BuildError) Retriable() bool {
	switch e.Class {
	case ClassLost, ClassLaunch, ClassPreempted:
		return true
	case ClassDisk:
		return e.Phase == PhaseLaunch
	}
	return false
}

// sentinel is the error that e wraps.
func (e *BuildError) sentinel() error {
	if e.Retriable() {
		return ErrLost
	}
	switch e.Class {
	case ClassInvalid:
		return ErrInvalid
	case ClassStaging:
		return ErrStaging
	case ClassCancelled:
		return context.Canceled
	case ClassTimeout:
		return context.DeadlineExceeded
	default:
		return ErrFailed
	}
}

// A BuildError reports a build that made no image. errors.Is finds the sentinel
// of its class (ErrFailed, ErrLost, ErrInvalid, ErrStaging, context.Canceled,
// context.DeadlineExceeded) and whatever Err wraps.
type BuildError struct {
	ID       BuildID
	Image    string // "" when it is not known yet
	Phase    Phase
	Class    Class
	Agent    AgentID // "" before the first launch
	Hostname string  // that agent's
	Attempt  int     // 0 before the first launch
	Step     string  // the Dockerfile instruction that failed, if one did
	File     string  // the Dockerfile, and
	Line     int     // the line of the failed instruction; 0 if unknown
	Err      error
}

// Error is one line: file and line, image, phase, step, cause, agent.
func (e *BuildError) Error() string {
	var b strings.Builder
	switch {
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d: ", e.File, e.Line)
	case e.Image != "":
		fmt.Fprintf(&b, "%s: ", e.Image)
	case e.File != "":
		fmt.Fprintf(&b, "%s: ", e.File)
	}
	if e.Step != "" {
		fmt.Fprintf(&b, "%s: ", e.Step)
	}
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.sentinel().Error())
	}
	if e.Attempt > 0 {
		where := e.Hostname
		if where == "" {
			where = string(e.Agent)
		}
		fmt.Fprintf(&b, " (attempt %d on %s)", e.Attempt, where)
	}
	return b.String()
}

// Unwrap returns e.Err and the sentinel of e.Class.
func (e *BuildError) Unwrap() []error {
	if e.Err != nil && errors.Is(e.Err, e.sentinel()) {
		return []error{e.Err}
	}
	if e.Err == nil {
		return []error{e.sentinel()}
	}
	return []error{e.Err, e.sentinel()}
}

// classOfEnd is the class of a build that ends because ctx does.
func classOfEnd(ctx context.Context) Class {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ClassTimeout
	}
	return ClassCancelled
}
