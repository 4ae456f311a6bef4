package testmesos

import (
	"context"
	"sync"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// A simulator is an executor without a process: it hands its tasks to
// AgentConfig.Simulate and goes when it has none left.
type simulator struct {
	a *Agent
	x *agentExecutor

	mu    sync.Mutex
	tasks map[string]context.CancelFunc
	live  int
	over  bool
}

// simulate starts an executor without a process.
func (a *Agent) simulate(x *agentExecutor) {
	s := &simulator{a: a, x: x, tasks: map[string]context.CancelFunc{}}
	a.post(func() { a.subscribeExecutor(x, s, &executor.Call_Subscribe{}) })
}

// deliver takes an event; it is called in the agent's turn.
func (s *simulator) deliver(e *executor.Event) {
	switch e.Type {
	case executor.Event_LAUNCH:
		s.run(&e.Launch.Task)
	case executor.Event_LAUNCH_GROUP:
		for i := range e.LaunchGroup.TaskGroup.Tasks {
			s.run(&e.LaunchGroup.TaskGroup.Tasks[i])
		}
	case executor.Event_KILL:
		s.mu.Lock()
		cancel := s.tasks[e.Kill.TaskID.Value]
		s.mu.Unlock()
		if cancel != nil {
			cancel()
		}
	case executor.Event_SHUTDOWN:
		s.close()
	}
}

// close kills all tasks.
func (s *simulator) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cancel := range s.tasks {
		cancel()
	}
	if s.live == 0 {
		s.leave()
	}
}

// leave ends the executor; the lock is held.
func (s *simulator) leave() {
	if s.over {
		return
	}
	s.over = true
	s.a.fromContainer(func() { s.a.onTerminated(s.x, 0, nil) })
}

func (s *simulator) run(task *mesos.TaskInfo) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.tasks[task.TaskID.Value] = cancel
	s.live++
	s.mu.Unlock()
	s.report(task, Outcome{State: mesos.TASK_RUNNING})
	s.a.workers.Go(func() {
		defer cancel()
		out := s.a.cfg.Simulate(ctx, task)
		// TASK_STARTING is the zero value of a TaskState.
		if out.State == mesos.TASK_STAGING || out.State == 0 {
			out.State = mesos.TASK_FINISHED
			if ctx.Err() != nil {
				out.State = mesos.TASK_KILLED
			}
		}
		s.report(task, out)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.tasks, task.TaskID.Value)
		if s.live--; s.live == 0 {
			s.leave()
		}
	})
}

func (s *simulator) report(task *mesos.TaskInfo, out Outcome) {
	id := newUUID()
	status := &mesos.TaskStatus{
		TaskID:    task.TaskID,
		State:     new(out.State),
		Source:    new(mesos.SOURCE_EXECUTOR),
		Timestamp: now(),
		UUID:      id[:],
		Data:      out.Data,
	}
	if out.Message != "" {
		status.Message = new(out.Message)
	}
	s.a.fromContainer(func() { s.a.onStatus(s.x.framework.id, status, s.x) })
}
