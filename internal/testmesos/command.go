package testmesos

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// A commandRunner is the built-in executor of a task that has only a
// CommandInfo. It lives in this process and takes the place of mesos-executor.
type commandRunner struct {
	a *Agent
	x *agentExecutor
	p *container

	mu     sync.Mutex
	task   *mesos.TaskInfo
	killed bool
	timer  *time.Timer
	launch chan struct{} // closed when the task was launched
	over   bool
}

// deliver takes an event; it is called in the agent's turn.
func (r *commandRunner) deliver(e *executor.Event) {
	switch e.Type {
	case executor.Event_LAUNCH:
		r.mu.Lock()
		r.task = &e.Launch.Task
		r.mu.Unlock()
		close(r.launch)
	case executor.Event_KILL:
		grace := killGrace
		if p := r.task.GetKillPolicy(); p != nil && p.GracePeriod != nil {
			grace = nanos(p.GracePeriod, grace)
		}
		if p := e.Kill.KillPolicy; p != nil && p.GracePeriod != nil {
			grace = nanos(p.GracePeriod, grace)
		}
		r.end(grace)
	case executor.Event_SHUTDOWN:
		r.end(killGrace)
	}
}

func (r *commandRunner) close() {}

// end asks the command to go, and kills it when the grace is over.
func (r *commandRunner) end(grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed || r.over {
		return
	}
	r.killed = true
	if r.task == nil {
		r.p.kill()
		return
	}
	if r.x.framework.caps.killingState {
		r.report(mesos.TASK_KILLING, "")
	}
	r.p.signal(syscall.SIGTERM)
	r.timer = time.AfterFunc(grace, r.p.kill)
}

// report sends a status update for the task.
func (r *commandRunner) report(state mesos.TaskState, text string) {
	id := newUUID()
	s := &mesos.TaskStatus{
		TaskID:    r.task.TaskID,
		State:     new(state),
		Source:    new(mesos.SOURCE_EXECUTOR),
		Timestamp: now(),
		UUID:      id[:],
	}
	if text != "" {
		s.Message = new(text)
	}
	if state == mesos.TASK_RUNNING && r.task.HealthCheck != nil {
		s.Healthy = new(true)
	}
	r.a.fromContainer(func() { r.a.onStatus(r.x.framework.id, s, r.x) })
}

// runCommand runs the only task of a command executor to its end.
func (a *Agent) runCommand(x *agentExecutor, p *container, env []string, stdout, stderr *os.File, end func(int32, *termination)) {
	r := &commandRunner{a: a, x: x, p: p, launch: make(chan struct{})}
	a.fromContainer(func() { a.subscribeExecutor(x, r, &executor.Call_Subscribe{}) })
	if !p.await(r.launch) {
		end(9, nil)
		return
	}
	r.report(mesos.TASK_STARTING, "")
	cmd := buildCommand(r.task.Command, env, x.dir)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := p.start(cmd); err != nil {
		if errors.Is(err, errDestroyed) {
			end(9, nil)
			return
		}
		fmt.Fprintf(stderr, "Failed to launch command: %v\n", err)
		r.report(mesos.TASK_FAILED, "Failed to launch command: "+err.Error())
		end(0, nil)
		return
	}
	r.mu.Lock()
	killed := r.killed
	r.mu.Unlock()
	if killed {
		p.signal(syscall.SIGTERM) // KILL came before there was a process
	}
	r.report(mesos.TASK_RUNNING, "")
	status := p.wait(cmd)
	r.mu.Lock()
	r.over, killed = true, r.killed
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	text, ok := exitText(status)
	switch {
	case killed:
		r.report(mesos.TASK_KILLED, text)
	case ok:
		r.report(mesos.TASK_FINISHED, text)
	default:
		r.report(mesos.TASK_FAILED, text)
	}
	end(0, nil)
}

func itoa(n int) string { return strconv.Itoa(n) }

// signalName names a signal as strsignal does: "Killed", "Terminated".
func signalName(s syscall.Signal) string {
	name := s.String()
	return strings.ToUpper(name[:1]) + name[1:]
}
