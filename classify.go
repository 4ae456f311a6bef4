package portainer

import (
	"errors"

	"github.com/org/portainer/internal/wire"
)

// classify turns a terminal update into the outcome of a success or the failure
// it reports.
func classify(at *attempt, u update) (*wire.Outcome, *BuildError) {
	if u.source == "SOURCE_EXECUTOR" && len(u.data) > 0 {
		outcome, err := wire.DecodeOutcome(u.data)
		switch {
		case err != nil:
			return nil, &BuildError{Phase: PhaseBuild, Class: ClassInvalid, Err: err}
		case outcome.Failure != nil:
			f := outcome.Failure
			class := Class(f.Class)
			if class == ClassCancelled {
				class = ClassPreempted // not by us, or the attempt would be abandoned
			}
			return outcome, &BuildError{
				Phase: Phase(f.Phase), Class: class, Step: f.Step, Line: f.Line, Err: errors.New(f.Message),
			}
		case u.state == "TASK_FINISHED":
			return outcome, nil
		}
	}
	cause := describe(u)
	if u.source == "SOURCE_EXECUTOR" && len(u.data) == 0 {
		cause += "; the executor told no outcome: is it portainer's?"
	}
	return nil, &BuildError{Phase: at.build.phase(), Class: classOf(u), Err: errors.New(cause)}
}

// classOf tells the class of a failure that Mesos reports, by mesos
// docs/task-state-reasons.md.
func classOf(u update) Class {
	switch u.reason {
	case "REASON_CONTAINER_LIMITATION_MEMORY":
		return ClassOOM
	case "REASON_CONTAINER_LIMITATION_DISK":
		return ClassDisk
	case "REASON_CONTAINER_LAUNCH_FAILED", "REASON_EXECUTOR_REGISTRATION_TIMEOUT":
		return ClassLaunch
	case "REASON_AGENT_DRAINING", "REASON_CONTAINER_PREEMPTED":
		return ClassPreempted
	case "REASON_MAX_COMPLETION_TIME_REACHED":
		return ClassTimeout
	case "REASON_TASK_INVALID", "REASON_TASK_UNAUTHORIZED", "REASON_TASK_GROUP_INVALID", "REASON_TASK_GROUP_UNAUTHORIZED":
		return ClassInvalid
	}
	switch {
	case u.state == "TASK_ERROR":
		return ClassInvalid
	case u.state == "TASK_KILLED":
		return ClassPreempted // not by us: an operator, or the executor's shutdown
	case u.state == "TASK_FINISHED", u.state == "TASK_FAILED" && u.source == "SOURCE_EXECUTOR":
		return ClassInvalid // an executor that tells no outcome is not ours
	}
	return ClassLost
}

// describe puts a status update into words.
func describe(u update) string {
	text := u.state
	if u.reason != "" {
		text += " " + u.reason
	}
	if u.message != "" {
		text += ": " + u.message
	}
	if u.reason == "REASON_CONTAINER_LAUNCH_FAILED" {
		text += "; stderr in its sandbox tells more" // of a fetch above all
	}
	return text
}
