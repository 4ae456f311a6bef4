package testmesos

import (
	"bytes"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// An updateQueue holds the status updates of one task that its scheduler has
// not acknowledged. One at a time is under way, and is sent again until it is
// acknowledged (mesos src/slave/task_status_update_manager.cpp).
type updateQueue struct {
	key      taskKey
	pending  []*mesos.TaskStatus
	received [][]byte // uuids seen, to recognise duplicates
	wait     time.Duration
	timer    *timer
}

// maxRetry is the longest wait before an update is sent again.
const maxRetry = 10 * time.Minute

// onStatus takes a status update: from an executor, which is then told that
// the agent has it, or from the agent itself if by is nil.
func (a *Agent) onStatus(frameworkID string, status *mesos.TaskStatus, by *agentExecutor) {
	f := a.frameworks[frameworkID]
	if f == nil || f.terminating {
		a.log.Warn("status update ignored, framework is gone or going", "task", status.TaskID.Value)
		return
	}
	id := status.TaskID.Value
	s := *status
	s.AgentID = &mesos.AgentID{Value: a.ID()}
	if s.Timestamp == nil {
		s.Timestamp = now()
	}
	if by != nil {
		s.ExecutorID = &mesos.ExecutorID{Value: by.id}
	}
	if a.drain != nil && (s.GetState() == mesos.TASK_KILLING || s.GetState() == mesos.TASK_KILLED) {
		s.Reason = new(mesos.REASON_AGENT_DRAINING)
		if a.drain.gone && f.caps.partitionAware {
			s.State = new(mesos.TASK_GONE_BY_OPERATOR)
		}
	}
	x := f.executorOf(id)
	if x == nil {
		// The task is not known, or ended and was acknowledged: the update goes
		// its way, but no executor hears of it.
		a.enqueue(f.id, &s)
		return
	}
	if by != nil {
		x.spoke = true
	}
	if x.proc != nil && x.proc.pid() != 0 && by != nil {
		s.ContainerStatus = a.containerStatus(x, s.ContainerStatus)
	}
	t := x.launched[id]
	switch {
	case t == nil:
		// Queued, which only the agent itself may end, or terminal already: the
		// update is dropped, yet acknowledged.
		a.log.Warn("status update dropped", "task", id, "state", s.GetState())
	default:
		t.state, t.status = s.GetState(), &s
		if isTerminal(t.state) {
			delete(x.launched, id)
			x.ended[id] = t
		}
		a.enqueue(f.id, &s)
	}
	if by != nil {
		a.send(x, &executor.Event{Type: executor.Event_ACKNOWLEDGED, Acknowledged: &executor.Event_Acknowledged{
			TaskID: s.TaskID, UUID: s.UUID,
		}})
	}
}

// containerStatus completes what an executor tells about its container.
func (a *Agent) containerStatus(x *agentExecutor, told *mesos.ContainerStatus) *mesos.ContainerStatus {
	cs := &mesos.ContainerStatus{}
	if told != nil {
		cs = clone(told)
	}
	cs.ContainerID = &mesos.ContainerID{Value: x.container}
	cs.ExecutorPID = new(uint32(x.proc.pid()))
	if len(cs.NetworkInfos) == 0 {
		cs.NetworkInfos = []mesos.NetworkInfo{{IPAddresses: []mesos.NetworkInfo_IPAddress{{
			IPAddress: new(a.server.address.ip),
		}}}}
	}
	return cs
}

// enqueue stores an update and sends it if none is under way for its task.
func (a *Agent) enqueue(frameworkID string, s *mesos.TaskStatus) {
	key := taskKey{frameworkID, s.TaskID.Value}
	q := a.updates[key]
	if q == nil {
		q = &updateQueue{key: key}
		a.updates[key] = q
	}
	if slices.ContainsFunc(q.received, func(id []byte) bool { return bytes.Equal(id, s.UUID) }) {
		return
	}
	q.received = append(q.received, s.UUID)
	q.pending = append(q.pending, s)
	if len(q.pending) == 1 {
		a.resend(q)
	}
}

// resend sends the update under way, and again after a growing while.
func (a *Agent) resend(q *updateQueue) {
	q.timer.stop()
	if len(q.pending) == 0 {
		return
	}
	q.wait = a.c.cfg.StatusUpdateRetryMin
	a.forward(q)
}

func (a *Agent) forward(q *updateQueue) {
	s := q.pending[0]
	u := &statusUpdate{frameworkID: q.key.framework, status: s, latest: q.pending[len(q.pending)-1].GetState()}
	a.tell(Message{Type: "STATUS_UPDATE", Framework: q.key.framework, Task: q.key.task, State: s.GetState().String()},
		func(m *master) { m.onStatusUpdate(a.ID(), u) })
	q.timer = a.after(q.wait, func() {
		if len(q.pending) > 0 && q.pending[0] == s {
			q.wait = min(2*q.wait, maxRetry)
			a.forward(q)
		}
	})
}

// onAcknowledge takes the scheduler's acknowledgement.
func (a *Agent) onAcknowledge(frameworkID, taskID string, uuid []byte) {
	q := a.updates[taskKey{frameworkID, taskID}]
	if q == nil || len(q.pending) == 0 || !bytes.Equal(q.pending[0].UUID, uuid) {
		a.log.Warn("acknowledgement ignored, it is not for the update under way", "task", taskID)
		return
	}
	q.timer.stop()
	s := q.pending[0]
	q.pending = q.pending[1:]
	if !isTerminal(s.GetState()) {
		a.resend(q)
		return
	}
	delete(a.updates, q.key)
	f := a.frameworks[frameworkID]
	if f == nil {
		return
	}
	for _, x := range f.executors {
		if x.ended[taskID] == nil {
			continue
		}
		delete(x.ended, taskID)
		if x.state == executorTerminated && !x.incomplete() {
			a.removeExecutor(x)
		}
	}
	a.removeIdle(f)
}
