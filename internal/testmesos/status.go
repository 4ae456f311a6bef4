package testmesos

import (
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A statusUpdate travels from an agent to its master.
type statusUpdate struct {
	frameworkID string
	status      *mesos.TaskStatus
	latest      mesos.TaskState // the newest state the agent has for the task
}

// now returns a time as TaskStatus has it.
func now() *float64 { return new(float64(time.Now().UnixNano()) / 1e9) }

// masterStatus makes a status of the master's own. Nobody acknowledges it, so
// it has no uuid.
func masterStatus(taskID, agentID string, state mesos.TaskState, reason mesos.TaskStatus_Reason, text string) *mesos.TaskStatus {
	s := &mesos.TaskStatus{
		TaskID:    mesos.TaskID{Value: taskID},
		State:     new(state),
		Source:    new(mesos.SOURCE_MASTER),
		Reason:    new(reason),
		Message:   new(text),
		Timestamp: now(),
	}
	if agentID != "" {
		s.AgentID = &mesos.AgentID{Value: agentID}
	}
	return s
}

// agentStatus makes a status of the agent's own, with a uuid.
func agentStatus(taskID, executorID string, state mesos.TaskState, reason mesos.TaskStatus_Reason, text string) *mesos.TaskStatus {
	id := newUUID()
	s := &mesos.TaskStatus{
		TaskID:    mesos.TaskID{Value: taskID},
		State:     new(state),
		Source:    new(mesos.SOURCE_AGENT),
		Reason:    new(reason),
		Message:   new(text),
		Timestamp: now(),
		UUID:      id[:],
	}
	if executorID != "" {
		s.ExecutorID = &mesos.ExecutorID{Value: executorID}
	}
	return s
}
