package testmesos

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// A RunningExecutor is an executor of an agent that has not ended.
type RunningExecutor struct {
	Framework  string
	ID         string
	Container  string
	Sandbox    string // "" if simulated
	PID        int    // 0 before the start, or if simulated
	Subscribed bool
}

// Executors lists the executors of the agent that have not ended.
func (a *Agent) Executors() []RunningExecutor {
	var out []RunningExecutor
	a.call(func() {
		for _, f := range a.frameworks {
			for _, x := range f.executors {
				if x.state == executorTerminated {
					continue
				}
				e := RunningExecutor{Framework: f.id, ID: x.id, Container: x.container, Sandbox: x.dir, Subscribed: x.sink != nil}
				if x.proc != nil {
					e.PID = x.proc.pid()
				}
				out = append(out, e)
			}
		}
	})
	slices.SortFunc(out, func(a, b RunningExecutor) int { return strings.Compare(a.Framework+"/"+a.ID, b.Framework+"/"+b.ID) })
	return out
}

// KillExecutor sends SIGKILL to the process of an executor, as "kill -9" does.
func (a *Agent) KillExecutor(id string) error {
	for _, e := range a.Executors() {
		if e.ID == id && e.PID != 0 {
			p, err := os.FindProcess(e.PID)
			if err != nil {
				return fmt.Errorf("kill executor %s: %w", id, err)
			}
			return p.Kill()
		}
	}
	return fmt.Errorf("kill executor %s: it has no process on agent %s", id, a.ID())
}

// ExceedMemory ends an executor as the memory isolator does when it uses more
// than it was given.
func (a *Agent) ExceedMemory(id string) error {
	return a.limit(id, mesos.REASON_CONTAINER_LIMITATION_MEMORY, "mem", func(given string) string {
		return "Memory limit exceeded: Requested: " + given + " Maximum Used: " + given + "\n\nMEMORY STATISTICS: \n"
	})
}

// ExceedDisk ends an executor as the disk isolator does when its sandbox has
// grown beyond what it was given.
func (a *Agent) ExceedDisk(id string) error {
	return a.limit(id, mesos.REASON_CONTAINER_LIMITATION_DISK, "disk", func(given string) string {
		return "Disk usage (" + given + ") exceeds quota (" + given + ")"
	})
}

func (a *Agent) limit(id string, reason mesos.TaskStatus_Reason, name string, text func(given string) string) error {
	err := fmt.Errorf("limit executor %s: it does not run on agent %s", id, a.ID())
	a.call(func() {
		for _, f := range a.frameworks {
			x := f.executors[id]
			if x == nil || x.state == executorTerminated {
				continue
			}
			given := newResources(x.info.Resources)
			for _, t := range x.launched {
				given = given.plus(newResources(t.info.Resources))
			}
			given = given.filter(func(r resource) bool { return r.meta.Name == name })
			x.pending = &termination{
				state:   mesos.TASK_FAILED,
				reason:  reason,
				message: text(formatMilli(given.scalar(name)) + "MB"),
				limited: given.proto(),
			}
			a.destroy(x)
			err = nil
		}
	})
	return err
}

// RefuseFiles makes every request for files of the agent fail with an HTTP
// status, such as 403. A negative status breaks the connection instead; 0 ends
// the refusal.
func (a *Agent) RefuseFiles(status int) {
	switch {
	case status == 0:
		a.files.refuse(nil)
	default:
		a.files.refuse(&reply{status: status, text: http.StatusText(status)})
	}
}

// leadingMaster returns the life of the leader, nil if there is none.
func (c *Cluster) leadingMaster() *master {
	if h := c.leader(); h != nil {
		return h.current()
	}
	return nil
}

// Partition loses every message between the agent and the masters from now on,
// before either side notices. The agent's HTTP endpoints stay.
func (a *Agent) Partition() { a.partitioned.Store(true) }

// Disconnect is Partition, and the master notices the broken connection: offers
// are rescinded, tasks of frameworks that do not checkpoint are lost, and after
// Config.AgentPingTimeout the agent is unreachable.
func (a *Agent) Disconnect() {
	a.Partition()
	a.toMaster(func(m *master, id string) { m.disconnect(id) })
}

// Lose is Partition, and the master marks the agent unreachable at once, as it
// does when the agent has not answered its pings.
func (a *Agent) Lose() {
	a.Partition()
	a.toMaster(func(m *master, id string) { m.markUnreachable(id) })
}

// Return ends Partition, Disconnect and Lose: the agent registers again with
// all that still runs on it. It returns when that is done.
func (a *Agent) Return() {
	a.partitioned.Store(false)
	m := a.c.leadingMaster()
	a.call(func() { a.follow(m) })
	if m == nil {
		return
	}
	// The agent's message, the master's answer, and then this.
	m.call(func() {})
	a.call(func() {})
}

// toMaster runs f in the turn of the leading master, and waits for it.
func (a *Agent) toMaster(f func(m *master, id string)) {
	if m := a.c.leadingMaster(); m != nil {
		m.call(func() { f(m, a.ID()) })
	}
}

// Maintain plans a time of unavailability for the agent, as the operator's
// maintenance schedule does: its offers are rescinded, new ones tell of it, and
// whoever uses the agent gets an inverse offer.
// A duration of 0 has no end; a zero start takes the plan back.
func (a *Agent) Maintain(start time.Time, d time.Duration) {
	a.toMaster(func(m *master, id string) {
		rec := m.agents[id]
		if rec == nil {
			return
		}
		if start.IsZero() {
			m.plan(rec, nil)
			return
		}
		u := &mesos.Unavailability{Start: mesos.TimeInfo{Nanoseconds: start.UnixNano()}}
		if d > 0 {
			u.Duration = &mesos.DurationInfo{Nanoseconds: d.Nanoseconds()}
		}
		m.plan(rec, u)
	})
}

// MarkGone removes the agent for good, as the operator call MARK_AGENT_GONE.
// Its executors are shut down.
func (a *Agent) MarkGone() { a.toMaster(func(m *master, id string) { m.markGone(id) }) }

// Drain drains the agent, as the operator call DRAIN_AGENT: nothing is offered
// from it, launches are dropped and its tasks are killed, with at most this
// grace unless it is negative. When all of them have ended, and their updates
// are acknowledged, the agent is marked gone if that is wanted.
func (a *Agent) Drain(grace time.Duration, markGone bool) {
	d := &drain{gone: markGone}
	if grace >= 0 {
		d.grace = &mesos.DurationInfo{Nanoseconds: grace.Nanoseconds()}
	}
	a.toMaster(func(m *master, id string) { m.drainAgent(id, d) })
}

// Reactivate ends Drain, as the operator call REACTIVATE_AGENT.
func (a *Agent) Reactivate() { a.toMaster(func(m *master, id string) { m.drainAgent(id, nil) }) }

// drainAgent starts or, with nil, ends the draining of an agent.
func (m *master) drainAgent(id string, d *drain) {
	rec := m.agents[id]
	if rec == nil {
		return
	}
	rec.drain = d
	m.tell(rec, Message{Type: "DRAIN"}, func(agent *Agent) { agent.onDrain(d) })
	if d == nil {
		m.allocate(rec)
		return
	}
	m.rescindAll(rec)
	m.checkDrained(rec)
}

// checkDrained marks an agent gone that is drained, if that is wanted.
func (m *master) checkDrained(rec *agentRecord) {
	if rec == nil || rec.drain == nil || !rec.drain.gone || len(rec.tasks) > 0 || m.agents[rec.id] != rec || m.gone[rec.id] {
		return
	}
	id := rec.id
	m.post(func() {
		if m.agents[id] == rec && len(rec.tasks) == 0 {
			m.markGone(id)
		}
	})
}

// onDrain kills everything on the agent.
func (a *Agent) onDrain(d *drain) {
	if d == nil || len(a.frameworks) > 0 {
		a.drain = d
	}
	if d == nil {
		return
	}
	for _, f := range a.frameworks {
		for _, x := range f.executors {
			var tasks []*mesos.TaskInfo
			for _, t := range x.launched {
				tasks = append(tasks, t.info)
			}
			for _, q := range x.queued {
				tasks = append(tasks, q.tasks...)
			}
			for _, t := range tasks {
				a.kill(f, t.TaskID.Value, d.policy(t.KillPolicy))
			}
		}
	}
}

// policy shortens the grace of a task's kill policy if it is longer than that
// of the drain.
func (d *drain) policy(p *mesos.KillPolicy) *mesos.KillPolicy {
	if d.grace == nil || p != nil && p.GracePeriod != nil && p.GracePeriod.Nanoseconds <= d.grace.Nanoseconds {
		return nil
	}
	return &mesos.KillPolicy{GracePeriod: d.grace}
}

// shutDown ends all executors because the master told the agent to go.
func (a *Agent) shutDown() {
	for _, f := range a.frameworks {
		a.onShutdownFramework(f.id)
	}
	a.registered = false
	a.master = nil
	a.retry.stop()
}

// Kill ends the agent's process as SIGKILL does: its connections break, and the
// master notices. Its containers run on.
func (a *Agent) Kill() {
	a.call(func() {
		a.state, a.registered = agentDown, false
		a.retry.stop()
		a.recovery.stop()
		for _, f := range a.frameworks {
			for _, x := range f.executors {
				x.stopTimers()
			}
		}
		for _, q := range a.updates {
			q.timer.stop()
		}
	})
	a.server.stopAndWait()
	a.toMaster(func(m *master, id string) { m.disconnect(id) })
}

// Restart starts the agent's process again, after Kill if it is up. Executors
// of frameworks with checkpoint have Config.ReregistrationTimeout to subscribe
// again, those of other frameworks are killed. Then the agent registers.
func (a *Agent) Restart() error {
	down := false
	a.call(func() { down = a.state == agentDown })
	if !down {
		a.Kill()
	}
	m := a.c.leadingMaster()
	a.call(func() {
		a.state, a.master = agentRecovering, m
		a.recover()
	})
	if err := a.server.restart(); err != nil {
		return fmt.Errorf("restart agent %s: %w", a.ID(), err)
	}
	return nil
}

// recover looks at what the previous life of the agent left.
func (a *Agent) recover() {
	waiting := false
	for _, f := range a.frameworks {
		if !f.info.GetCheckpoint() {
			a.forget(f)
			continue
		}
		for _, x := range f.executors {
			if x.state == executorTerminated {
				continue
			}
			waiting = true
			x.state = executorRegistering
			switch s := x.sink.(type) {
			case nil, httpSink:
				x.sink = nil
			default:
				a.resubscribe(x, s)
			}
		}
	}
	held := a.held
	a.held = nil
	for _, f := range held {
		f()
	}
	if !waiting {
		a.recovered()
		return
	}
	a.recovery = a.after(a.c.cfg.ReregistrationTimeout, a.recovered)
}

// forget kills what a framework without checkpoint has here.
func (a *Agent) forget(f *agentFramework) {
	delete(a.frameworks, f.id)
	for _, x := range f.executors {
		a.destroy(x)
	}
	for key, q := range a.updates {
		if key.framework == f.id {
			q.timer.stop()
			delete(a.updates, key)
		}
	}
}

// resubscribe lets an executor in this process do what one with a connection
// does after the restart of its agent.
func (a *Agent) resubscribe(x *agentExecutor, s sink) {
	x.sink = nil
	call := &executor.Call_Subscribe{}
	for _, t := range x.launched {
		call.UnacknowledgedTasks = append(call.UnacknowledgedTasks, *t.info)
	}
	a.subscribeExecutor(x, s, call)
}

// recovered ends the recovery: executors that have not subscribed are killed.
func (a *Agent) recovered() {
	for _, f := range a.frameworks {
		for _, x := range f.executors {
			if x.state != executorRegistering {
				continue
			}
			x.state = executorTerminating
			x.pending = &termination{state: f.caps.or(mesos.TASK_GONE), reason: mesos.REASON_EXECUTOR_REREGISTRATION_TIMEOUT,
				message: "Executor did not reregister within " + formatDuration(a.c.cfg.ReregistrationTimeout)}
			a.destroy(x)
		}
	}
	a.state = agentRunning
	a.follow(a.c.leadingMaster())
}

// RescindOffers rescinds all outstanding offers and returns how many there were.
func (c *Cluster) RescindOffers() int {
	n := 0
	m := c.leadingMaster()
	if m == nil {
		return 0
	}
	m.call(func() {
		for _, o := range sortedByID(m.offers) {
			m.rescind(o)
			n++
		}
	})
	return n
}

// SeverScheduler breaks the connection of a framework's event stream, without
// an end; "" means every framework. The framework has its failover timeout to
// come back.
func (c *Cluster) SeverScheduler(framework string) { c.eachStream(framework, (*stream).sever) }

// FreezeScheduler makes the connection of a framework's event stream half
// open: it stays, and nothing comes any more. "" means every framework.
func (c *Cluster) FreezeScheduler(framework string) { c.eachStream(framework, (*stream).freeze) }

func (c *Cluster) eachStream(framework string, do func(*stream)) {
	m := c.leadingMaster()
	if m == nil {
		return
	}
	m.call(func() {
		for _, f := range m.frameworks {
			if f.stream != nil && (framework == "" || f.id == framework) {
				do(f.stream)
			}
		}
	})
}
