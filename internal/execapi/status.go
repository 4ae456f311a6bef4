package execapi

import (
	"crypto/rand"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A Task is what an agent asks an executor to run.
type Task struct {
	ID   string
	Name string
	Data []byte
}

// A State is a state of a task that an executor may report.
type State string

// The states. The last three are terminal.
const (
	Starting State = "TASK_STARTING"
	Running  State = "TASK_RUNNING"
	Killing  State = "TASK_KILLING"
	Finished State = "TASK_FINISHED"
	Failed   State = "TASK_FAILED"
	Killed   State = "TASK_KILLED"
)

// A Status is the state that a task has come to.
type Status struct {
	Task    string // its ID
	State   State
	Message string // for people
	Data    []byte // for the framework
}

// encode makes a status update of s.
func (c *Client) encode(s Status) mesos.TaskStatus {
	state := mesos.TaskState(mesos.TaskState_value[string(s.State)])
	source := mesos.SOURCE_EXECUTOR
	now := float64(time.Now().UnixMicro()) / 1e6
	status := mesos.TaskStatus{
		TaskID:     mesos.TaskID{Value: s.Task},
		State:      &state,
		Source:     &source,
		Data:       s.Data,
		ExecutorID: &mesos.ExecutorID{Value: c.cfg.ExecutorID},
		Timestamp:  &now,
		UUID:       newUUID(),
	}
	if s.Message != "" {
		status.Message = &s.Message
	}
	if c.cfg.AgentID != "" {
		status.AgentID = &mesos.AgentID{Value: c.cfg.AgentID}
	}
	return status
}

// newUUID returns a random UUID; agents refuse what is none.
func newUUID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id)      // never fails
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant of RFC 4122
	return id
}
