package testmesos

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// framework returns the framework of a message, made if it is new.
func (a *Agent) framework(info *mesos.FrameworkInfo) *agentFramework {
	id := info.GetID().GetValue()
	f := a.frameworks[id]
	if f == nil {
		f = &agentFramework{id: id, info: info, caps: capabilitiesOf(info), executors: map[string]*agentExecutor{}}
		a.frameworks[id] = f
	}
	return f
}

// onUpdateFramework takes the news that a scheduler subscribed.
func (a *Agent) onUpdateFramework(info *mesos.FrameworkInfo) {
	f := a.frameworks[info.GetID().GetValue()]
	if f == nil {
		return
	}
	f.info, f.caps = info, capabilitiesOf(info)
	for key, q := range a.updates {
		if key.framework == f.id {
			a.resend(q)
		}
	}
}

// onRunTasks launches tasks. The master says whether it expects a new executor:
// if it is wrong, the tasks are dropped (mesos src/slave/slave.cpp, Slave::__run).
func (a *Agent) onRunTasks(fi *mesos.FrameworkInfo, ex *mesos.ExecutorInfo, tasks []*mesos.TaskInfo, group, fresh bool) {
	exited := func() {
		if ex != nil && fresh {
			a.exited(fi.GetID().GetValue(), ex.ExecutorID.Value, -1)
		}
	}
	if a.state != agentRunning {
		a.log.Warn("tasks ignored, the agent recovers", "tasks", taskIDs(tasks))
		exited()
		return
	}
	f := a.framework(fi)
	if f.terminating {
		a.log.Warn("tasks ignored, the framework is shutting down", "tasks", taskIDs(tasks))
		exited()
		return
	}
	defer a.removeIdle(f)
	drop := func(reason mesos.TaskStatus_Reason, text string) {
		for _, t := range tasks {
			a.onStatus(f.id, agentStatus(t.TaskID.Value, "", f.caps.or(mesos.TASK_DROPPED), reason, text), nil)
		}
	}
	if a.drain != nil {
		drop(mesos.REASON_AGENT_DRAINING, "Task was received while agent was already draining")
		exited()
		return
	}
	command := ex == nil
	info := ex
	if command {
		info = a.commandExecutor(f, tasks[0])
	}
	x := f.executors[info.ExecutorID.Value]
	switch {
	case command && x != nil:
		drop(mesos.REASON_TASK_INVALID, "Cannot reuse an already existing executor for a command task")
		return
	case !command && fresh && x != nil:
		drop(mesos.REASON_EXECUTOR_TERMINATED, "Master wants to launch executor, but one already exists")
		if x.state == executorTerminated {
			exited()
		} else if x.state != executorTerminating {
			a.shutdownExecutor(x)
		}
		return
	case !command && !fresh && x == nil:
		drop(mesos.REASON_EXECUTOR_TERMINATED, "No executor is expected to launch and there is none running")
		return
	case x != nil && x.state == executorTerminating:
		drop(mesos.REASON_EXECUTOR_TERMINATED, "Executor terminating")
		return
	case x != nil && x.state == executorTerminated:
		drop(mesos.REASON_EXECUTOR_TERMINATED, "Executor terminated")
		return
	}
	q := &queuedTasks{tasks: tasks, group: group}
	if x == nil {
		x = a.newExecutor(f, info, command)
		x.queued = append(x.queued, q)
		a.launchExecutor(x)
		return
	}
	x.queued = append(x.queued, q)
	if x.state == executorRunning {
		a.flushQueue(x)
	}
}

// exited tells the master that an executor has gone.
func (a *Agent) exited(frameworkID, executorID string, status int32) {
	a.tell(Message{Type: "EXITED_EXECUTOR", Framework: frameworkID, Executor: executorID}, func(m *master) {
		m.onExecutorExited(a.ID(), frameworkID, executorID, status)
	})
}

func (a *Agent) newExecutor(f *agentFramework, info *mesos.ExecutorInfo, command bool) *agentExecutor {
	x := &agentExecutor{
		framework: f,
		id:        info.ExecutorID.Value,
		info:      info,
		container: uuidString(newUUID()),
		command:   command,
		launched:  map[string]*agentTask{},
		ended:     map[string]*agentTask{},
	}
	f.executors[x.id] = x
	return x
}

// launchExecutor makes the sandbox and starts the executor. The time until it
// subscribes counts from here, so it includes fetching.
func (a *Agent) launchExecutor(x *agentExecutor) {
	timeout := a.c.cfg.RegistrationTimeout
	x.register = a.after(timeout, func() {
		if x.state != executorRegistering || x.framework.terminating {
			return
		}
		x.state = executorTerminating
		x.pending = &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_EXECUTOR_REGISTRATION_TIMEOUT,
			message: "Executor did not register within " + formatDuration(timeout)}
		a.destroy(x)
	})
	if a.cfg.Simulate != nil {
		a.simulate(x)
		return
	}
	dir, err := a.makeSandbox(x)
	if err != nil {
		a.post(func() {
			a.onTerminated(x, -1, &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_CONTAINER_LAUNCH_FAILED,
				message: "Failed to launch container: " + err.Error()})
		})
		return
	}
	x.dir = dir
	a.startContainer(x)
}

// makeSandbox makes the directory of a run and moves the link to the latest.
func (a *Agent) makeSandbox(x *agentExecutor) (string, error) {
	runs := filepath.Join(a.workDir, "slaves", a.ID(), "frameworks", x.framework.id, "executors", x.id, "runs")
	dir := filepath.Join(runs, x.container)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	latest := filepath.Join(runs, "latest")
	if err := os.Remove(latest); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if err := os.Symlink(dir, latest); err != nil {
		return "", err
	}
	a.files.attach(dir, dir)
	a.files.attach("/frameworks/"+x.framework.id+"/executors/"+x.id+"/runs/latest", dir)
	return dir, nil
}

// send delivers an event to an executor. It is lost if the executor is not
// subscribed.
func (a *Agent) send(x *agentExecutor, e *executor.Event) {
	if x.sink == nil {
		a.log.Debug("event dropped, executor is not subscribed", "executor", x.id, "event", e.Type)
		return
	}
	a.c.faults.executorEvent(a, x, e)
}

// flushQueue sends queued tasks to a running executor.
func (a *Agent) flushQueue(x *agentExecutor) {
	queue := x.queued
	x.queued = nil
	for _, q := range queue {
		for _, t := range q.tasks {
			x.launched[t.TaskID.Value] = &agentTask{info: t, state: mesos.TASK_STAGING}
		}
		if !q.group {
			a.send(x, &executor.Event{Type: executor.Event_LAUNCH, Launch: &executor.Event_Launch{Task: *q.tasks[0]}})
			continue
		}
		var tasks []mesos.TaskInfo
		for _, t := range q.tasks {
			tasks = append(tasks, *t)
		}
		a.send(x, &executor.Event{Type: executor.Event_LAUNCH_GROUP, LaunchGroup: &executor.Event_LaunchGroup{
			TaskGroup: mesos.TaskGroupInfo{Tasks: tasks},
		}})
	}
}

// unqueue takes a task off the queue of its executor and returns the tasks
// that were queued with it.
func (x *agentExecutor) unqueue(taskID string) []*mesos.TaskInfo {
	for i, q := range x.queued {
		if slices.ContainsFunc(q.tasks, func(t *mesos.TaskInfo) bool { return t.TaskID.Value == taskID }) {
			x.queued = slices.Delete(x.queued, i, i+1)
			return q.tasks
		}
	}
	return nil
}

func (x *agentExecutor) isQueued(taskID string) bool {
	return slices.ContainsFunc(x.queued, func(q *queuedTasks) bool {
		return slices.ContainsFunc(q.tasks, func(t *mesos.TaskInfo) bool { return t.TaskID.Value == taskID })
	})
}

// executorOf returns the executor that has a task, queued or not.
func (f *agentFramework) executorOf(taskID string) *agentExecutor {
	for _, x := range f.executors {
		if x.launched[taskID] != nil || x.ended[taskID] != nil || x.isQueued(taskID) {
			return x
		}
	}
	return nil
}

// subscribeExecutor handles SUBSCRIBE of an executor.
func (a *Agent) subscribeExecutor(x *agentExecutor, s sink, call *executor.Call_Subscribe) {
	if x.framework.terminating || x.state == executorTerminating || x.state == executorTerminated {
		a.c.faults.executorStream(a, x, s, &executor.Event{Type: executor.Event_SHUTDOWN})
		s.close()
		return
	}
	if x.sink != nil {
		x.sink.close()
	}
	x.register.stop()
	x.state, x.sink, x.met = executorRunning, s, true
	a.beat(x)
	for i := range call.UnacknowledgedUpdates {
		s := &call.UnacknowledgedUpdates[i].Status
		if !validUUID(s.UUID) {
			a.log.Warn("unacknowledged update ignored, it has no valid uuid", "executor", x.id, "task", s.TaskID.Value)
			continue
		}
		a.onStatus(x.framework.id, s, x)
	}
	known := map[string]bool{}
	for _, t := range call.UnacknowledgedTasks {
		known[t.TaskID.Value] = true
	}
	for _, id := range slices.Sorted(maps.Keys(x.launched)) {
		if t := x.launched[id]; t != nil && t.state == mesos.TASK_STAGING && !known[id] {
			a.onStatus(x.framework.id, agentStatus(id, x.id, x.framework.caps.or(mesos.TASK_DROPPED),
				mesos.REASON_AGENT_RESTARTED, "Task launched during agent restart"), nil)
		}
	}
	if !x.everSentTask() && len(x.queued) == 0 {
		a.shutdownExecutor(x)
		return
	}
	a.send(x, &executor.Event{Type: executor.Event_SUBSCRIBED, Subscribed: &executor.Event_Subscribed{
		ExecutorInfo:  *x.info,
		FrameworkInfo: *x.framework.info,
		AgentInfo:     *a.info,
		ContainerID:   &mesos.ContainerID{Value: x.container},
	}})
	a.flushQueue(x)
}

// everSentTask tells whether the executor has a task or has reported on one.
func (x *agentExecutor) everSentTask() bool { return len(x.launched) > 0 || x.spoke }

// beat sends a heartbeat every now and then, the first after one interval.
func (a *Agent) beat(x *agentExecutor) {
	x.beat.stop()
	s := x.sink
	x.beat = a.after(a.c.cfg.ExecutorHeartbeatInterval, func() {
		if x.sink == s && x.state == executorRunning {
			a.send(x, &executor.Event{Type: executor.Event_HEARTBEAT})
			a.beat(x)
		}
	})
}

// sinkEnded is called when the connection of an executor's stream has gone.
func (a *Agent) sinkEnded(s sink) {
	for _, f := range a.frameworks {
		for _, x := range f.executors {
			if x.sink == s {
				x.sink = nil
			}
		}
	}
}

// onKill handles KILL from the master.
func (a *Agent) onKill(frameworkID, taskID string, policy *mesos.KillPolicy) {
	f := a.frameworks[frameworkID]
	if f == nil || f.terminating || a.state == agentRecovering {
		return
	}
	a.kill(f, taskID, policy)
}

func (a *Agent) kill(f *agentFramework, taskID string, policy *mesos.KillPolicy) {
	x := f.executorOf(taskID)
	if x == nil {
		a.onStatus(f.id, agentStatus(taskID, "", f.caps.or(mesos.TASK_DROPPED), mesos.REASON_EXECUTOR_TERMINATED,
			"Cannot find executor"), nil)
		return
	}
	switch x.state {
	case executorTerminating, executorTerminated:
		return
	}
	if !x.isQueued(taskID) {
		a.send(x, &executor.Event{Type: executor.Event_KILL, Kill: &executor.Event_Kill{
			TaskID: mesos.TaskID{Value: taskID}, KillPolicy: policy,
		}})
		return
	}
	text := "Killed before delivery to the executor"
	for _, q := range x.queued {
		if q.group && x.state == executorRegistering {
			text = "A task within the task group was killed before delivery to the executor"
		}
	}
	tasks := x.unqueue(taskID)
	for _, t := range tasks {
		// onStatus wants to find the task with its executor.
		x.launched[t.TaskID.Value] = &agentTask{info: t, state: mesos.TASK_STAGING}
		a.onStatus(f.id, agentStatus(t.TaskID.Value, x.id, mesos.TASK_KILLED, mesos.REASON_TASK_KILLED_DURING_LAUNCH, text), nil)
	}
	if x.state == executorRunning && !x.everSentTask() && len(x.queued) == 0 {
		a.shutdownExecutor(x)
	}
}

// onShutdownExecutor handles SHUTDOWN of one executor.
func (a *Agent) onShutdownExecutor(frameworkID, executorID string) {
	f := a.frameworks[frameworkID]
	if f == nil {
		return
	}
	if x := f.executors[executorID]; x != nil && (x.state == executorRegistering || x.state == executorRunning) {
		a.shutdownExecutor(x)
	}
}

// shutdownExecutor asks an executor to go and sees to it that it does.
func (a *Agent) shutdownExecutor(x *agentExecutor) {
	x.state = executorTerminating
	x.register.stop()
	a.send(x, &executor.Event{Type: executor.Event_SHUTDOWN})
	x.grace = a.after(nanos(x.info.ShutdownGracePeriod, a.c.cfg.ShutdownGrace), func() {
		if x.state != executorTerminated {
			a.destroy(x)
		}
	})
}

// onShutdownFramework shuts all executors of a framework down.
func (a *Agent) onShutdownFramework(id string) {
	f := a.frameworks[id]
	if f == nil || f.terminating {
		return
	}
	f.terminating = true
	for _, x := range f.executors {
		switch x.state {
		case executorRegistering, executorRunning:
			a.shutdownExecutor(x)
		case executorTerminated:
			a.removeExecutor(x)
		}
	}
	a.removeIdle(f)
}

// onMessage passes a framework message on.
func (a *Agent) onMessage(frameworkID, executorID string, e *executor.Event) {
	f := a.frameworks[frameworkID]
	if f == nil || f.terminating || a.state != agentRunning {
		return
	}
	if x := f.executors[executorID]; x != nil && x.state == executorRunning {
		a.send(x, e)
	}
}

// destroy kills the container of an executor.
func (a *Agent) destroy(x *agentExecutor) {
	switch {
	case x.proc != nil:
		x.proc.kill()
	case x.sink != nil:
		x.sink.close() // simulated
	}
}

// fromContainer runs what happened in a container, as soon as the agent is up.
func (a *Agent) fromContainer(f func()) {
	a.post(func() {
		if a.state == agentDown {
			a.held = append(a.held, f)
			return
		}
		f()
	})
}

// onTerminated takes the end of a container. Its status is in the form of
// waitpid, -1 if not known.
func (a *Agent) onTerminated(x *agentExecutor, status int32, t *termination) {
	if x.state == executorTerminated {
		return
	}
	x.state = executorTerminated
	x.stopTimers()
	if x.sink != nil {
		x.sink.close()
		x.sink = nil
	}
	a.log.Info("executor ended", "framework", x.framework.id, "executor", x.id, "status", status)
	if a.frameworks[x.framework.id] != x.framework {
		return // forgotten by a restart of the agent
	}
	why := termination{state: mesos.TASK_FAILED, reason: mesos.REASON_EXECUTOR_TERMINATED}
	var texts []string
	for _, known := range []*termination{x.pending, t} {
		if known != nil {
			if known.state != 0 {
				why.state, why.reason = known.state, known.reason
			}
			why.limited = append(why.limited, known.limited...)
			texts = append(texts, known.message)
		}
	}
	if why.message = strings.Join(texts, "; "); why.message == "" {
		why.message = "Executor terminated"
	}
	if !x.framework.terminating {
		for _, q := range x.queued {
			for _, info := range q.tasks {
				x.launched[info.TaskID.Value] = &agentTask{info: info, state: mesos.TASK_STAGING}
			}
		}
		x.queued = nil
		for _, id := range slices.Sorted(maps.Keys(x.launched)) {
			s := agentStatus(id, x.id, why.state, why.reason, why.message)
			if len(why.limited) > 0 {
				s.Limitation = &mesos.TaskResourceLimitation{Resources: why.limited}
			}
			a.onStatus(x.framework.id, s, nil)
		}
	}
	if !x.command {
		a.exited(x.framework.id, x.id, status)
	}
	if x.framework.terminating || !x.incomplete() {
		a.removeExecutor(x)
	}
	a.removeIdle(x.framework)
}

func (x *agentExecutor) stopTimers() {
	x.register.stop()
	x.grace.stop()
	x.beat.stop()
}

func (x *agentExecutor) incomplete() bool { return len(x.queued)+len(x.launched)+len(x.ended) > 0 }

// removeExecutor forgets an executor; its sandbox stays.
func (a *Agent) removeExecutor(x *agentExecutor) {
	if x.framework.executors[x.id] == x {
		delete(x.framework.executors, x.id)
	}
}

// removeIdle forgets a framework that has nothing here any more.
func (a *Agent) removeIdle(f *agentFramework) {
	if len(f.executors) > 0 || a.frameworks[f.id] != f {
		return
	}
	delete(a.frameworks, f.id)
	for key, q := range a.updates {
		if key.framework == f.id && f.terminating {
			q.timer.stop()
			delete(a.updates, key)
		}
	}
}

// A drain is the state of DRAIN_AGENT.
type drain struct {
	grace *mesos.DurationInfo // at most this, if set
	gone  bool                // the agent is to be marked gone at the end
}

// stopContainers ends all executors and waits for their processes; ctx bounds
// the grace that they are given.
func (a *Agent) stopContainers(ctx context.Context) {
	var procs []*container
	a.call(func() {
		for _, f := range a.frameworks {
			f.terminating = true
			for _, x := range f.executors {
				if x.state == executorTerminated {
					continue
				}
				if x.proc == nil {
					a.destroy(x)
					continue
				}
				procs = append(procs, x.proc)
				switch {
				case a.state == agentDown || !x.met:
					a.destroy(x) // there is nobody to ask it, or nobody to be asked
				case x.state != executorTerminating:
					a.shutdownExecutor(x)
				}
			}
		}
	})
	for _, p := range procs {
		select {
		case <-p.done:
		case <-ctx.Done():
			p.kill()
			<-p.done
		}
	}
}

// commandExecutor makes the ExecutorInfo of the built-in executor for a task
// that has only a CommandInfo.
func (a *Agent) commandExecutor(f *agentFramework, t *mesos.TaskInfo) *mesos.ExecutorInfo {
	short := t.Command.GetValue()
	if len(short) > 15 {
		short = short[:12] + "..."
	}
	return &mesos.ExecutorInfo{
		Type:        mesos.ExecutorInfo_CUSTOM,
		ExecutorID:  mesos.ExecutorID{Value: t.TaskID.Value},
		FrameworkID: &mesos.FrameworkID{Value: f.id},
		Command:     t.Command,
		Container:   t.Container,
		Name:        new(fmt.Sprintf("Command Executor (Task: %s) (Command: sh -c '%s')", t.TaskID.Value, short)),
		Source:      new(t.TaskID.Value),
	}
}
