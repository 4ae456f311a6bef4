package testmesos

import (
	"fmt"
	"maps"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// A registry is what masters keep in their replicated log: it outlives them.
type registry struct {
	mu          sync.Mutex
	admitted    map[string]bool
	unreachable map[string]*mesos.TimeInfo
	gone        map[string]bool
}

func newRegistry() *registry {
	return &registry{admitted: map[string]bool{}, unreachable: map[string]*mesos.TimeInfo{}, gone: map[string]bool{}}
}

// read fills the memory of a new leader.
func (r *registry) read(m *master) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.admitted {
		m.recovered[id] = m.after(m.c.cfg.AgentReregistrationTimeout, func() {
			if _, ok := m.recovered[id]; ok {
				m.markUnreachable(id)
			}
		})
	}
	maps.Copy(m.unreachable, r.unreachable)
	maps.Copy(m.gone, r.gone)
}

func (r *registry) admit(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.admitted[id] = true
	delete(r.unreachable, id)
}

func (r *registry) lose(id string, since *mesos.TimeInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.admitted, id)
	r.unreachable[id] = since
}

func (r *registry) markGone(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.admitted, id)
	delete(r.unreachable, id)
	r.gone[id] = true
}

// onRegister admits a new agent. One that has not got the answer asks again.
func (m *master) onRegister(a *Agent) {
	for _, rec := range m.agents {
		if rec.agent == a {
			m.tell(rec, Message{Type: "REGISTERED"}, func(agent *Agent) { agent.onRegistered(rec.id, nil) })
			return
		}
	}
	id := fmt.Sprintf("%s-S%d", m.id, m.nextAgent)
	m.nextAgent++
	m.allocate(m.admit(a, id, a.describe(id)))
}

func (m *master) admit(a *Agent, id string, info *mesos.AgentInfo) *agentRecord {
	if _, ok := m.recovered[id]; ok {
		m.recovered[id].stop()
		delete(m.recovered, id)
	}
	delete(m.unreachable, id)
	m.c.registry.admit(id)
	rec := &agentRecord{
		agent:     a,
		id:        id,
		info:      info,
		total:     a.total,
		available: a.total,
		connected: true,
		tasks:     map[string]map[string]*task{},
		executors: map[string]map[string]*mesos.ExecutorInfo{},
		killed:    map[string]map[string]bool{},
		offers:    map[string]*offer{},
	}
	m.agents[id] = rec
	for _, r := range rec.total {
		m.total[r.meta.Name] += r.milli
	}
	m.log.Info("agent registered", "agent", id)
	m.tell(rec, Message{Type: "REGISTERED"}, func(agent *Agent) { agent.onRegistered(id, nil) })
	return rec
}

// onReregister takes an agent back with all that runs on it.
func (m *master) onReregister(a *Agent, r *report) {
	if m.gone[r.id] {
		m.log.Warn("agent refused, it was marked gone", "agent", r.id)
		a.post(a.shutDown)
		return
	}
	if rec := m.agents[r.id]; rec != nil {
		m.reconnect(rec, r)
		return
	}
	_, recovering := m.recovered[r.id]
	text := "Unknown agent reregistered"
	if m.unreachable[r.id] != nil {
		text = "Unreachable agent re-reregistered" // sic, mesos src/master/master.cpp
	}
	rec := m.admit(a, r.id, a.describe(r.id))
	for id, info := range r.frameworks {
		f := m.frameworks[id]
		if f == nil && m.isCompleted(id) {
			m.tell(rec, Message{Type: "SHUTDOWN_FRAMEWORK", Framework: id}, func(agent *Agent) { agent.onShutdownFramework(id) })
			continue
		}
		if f == nil {
			// The agent knows a framework that this master does not: it has not
			// subscribed since the failover.
			f = m.addFramework(id)
			f.configure(clone(info), nil)
		}
	}
	m.book(rec, r)
	for _, t := range r.tasks {
		f := m.frameworks[t.framework]
		if f == nil {
			continue
		}
		id := t.info.TaskID.Value
		delete(f.unreachable, id)
		if !recovering && f.connected() {
			s := f.tasks[id].reconciled()
			s.Reason, s.Message = new(mesos.REASON_AGENT_REREGISTERED), new(text)
			s.State = new(t.state)
			m.sendStatus(f, s)
		}
	}
	m.allocate(rec)
}

func (m *master) isCompleted(id string) bool {
	for _, f := range m.completed {
		if f.id == id {
			return true
		}
	}
	return false
}

// book puts the tasks and executors of a report on the books.
func (m *master) book(rec *agentRecord, r *report) {
	for _, ex := range r.executors {
		f := m.frameworks[ex.FrameworkID.GetValue()]
		if f == nil {
			continue
		}
		if rec.executors[f.id] == nil {
			rec.executors[f.id] = map[string]*mesos.ExecutorInfo{}
		}
		rec.executors[f.id][ex.ExecutorID.Value] = ex
		m.use(f, rec, newResources(ex.Resources))
	}
	for _, rt := range r.tasks {
		f := m.frameworks[rt.framework]
		if f == nil {
			continue
		}
		t := &task{
			info:       rt.info,
			framework:  f,
			agentID:    rec.id,
			executorID: rt.executor,
			resources:  newResources(rt.info.Resources),
			state:      rt.state,
		}
		if rt.status != nil {
			last := *rt.status
			last.Data = nil
			t.last = &last
			t.updated, t.sent, t.sentUUID = true, rt.status.GetState(), rt.status.UUID
		}
		if rt.sent != nil {
			t.updated, t.sent, t.sentUUID = true, rt.sent.GetState(), rt.sent.UUID
		}
		if isTerminal(t.state) {
			t.released = true
		} else {
			m.use(f, rec, t.resources)
		}
		m.addTask(t)
	}
}

// reconnect takes back an agent whose connection had broken.
func (m *master) reconnect(rec *agentRecord, r *report) {
	rec.connected = true
	m.log.Info("agent reconnected", "agent", rec.id)
	rec.lost.stop()
	there := map[taskKey]bool{}
	for _, t := range r.tasks {
		there[taskKey{t.framework, t.info.TaskID.Value}] = true
	}
	executors := map[taskKey]bool{}
	for _, ex := range r.executors {
		executors[taskKey{ex.FrameworkID.GetValue(), ex.ExecutorID.Value}] = true
	}
	var missing []missingTask
	for fid, tasks := range rec.tasks {
		for id := range tasks {
			if !there[taskKey{fid, id}] {
				missing = append(missing, missingTask{fid, id, m.frameworks[fid].caps})
			}
		}
	}
	m.tell(rec, Message{Type: "REGISTERED"}, func(agent *Agent) { agent.onRegistered(rec.id, missing) })
	for fid, byID := range rec.executors {
		for id := range byID {
			if !executors[taskKey{fid, id}] {
				m.removeExecutor(rec, fid, id)
			}
		}
	}
	for fid := range r.frameworks {
		if m.frameworks[fid] == nil {
			m.tell(rec, Message{Type: "SHUTDOWN_FRAMEWORK", Framework: fid}, func(agent *Agent) { agent.onShutdownFramework(fid) })
			continue
		}
		fi := m.frameworks[fid].internalInfo()
		m.tell(rec, Message{Type: "UPDATE_FRAMEWORK", Framework: fid}, func(agent *Agent) { agent.onUpdateFramework(fi) })
	}
	for fid, tasks := range rec.killed {
		for id := range tasks {
			m.tell(rec, Message{Type: "KILL", Framework: fid, Task: id}, func(agent *Agent) { agent.onKill(fid, id, nil) })
		}
	}
	clear(rec.killed)
	m.allocate(rec)
}

// disconnect notes that the connection to an agent broke: its offers are
// rescinded, and what does not checkpoint there is lost.
func (m *master) disconnect(id string) {
	rec := m.agents[id]
	if rec == nil || !rec.connected {
		return
	}
	rec.connected = false
	rec.lost = m.after(m.c.cfg.AgentPingTimeout, func() {
		if m.agents[id] == rec && !rec.connected {
			m.markUnreachable(id)
		}
	})
	m.log.Info("agent disconnected", "agent", id)
	m.rescindAll(rec)
	for fid, byID := range rec.tasks {
		f := m.frameworks[fid]
		if f.info.GetCheckpoint() {
			continue
		}
		for _, t := range sortedTasks(byID) {
			s := t.status(mesos.TASK_LOST, mesos.REASON_AGENT_DISCONNECTED, "Agent "+rec.info.Hostname+" disconnected")
			m.updateTask(t, s, s.GetState())
			m.removeTask(t)
			m.sendStatus(f, s)
		}
		for ex := range rec.executors[fid] {
			m.removeExecutor(rec, fid, ex)
		}
	}
}

// markUnreachable removes an agent that cannot be reached; it may come back.
func (m *master) markUnreachable(id string) {
	since := &mesos.TimeInfo{Nanoseconds: time.Now().UnixNano()}
	if t, ok := m.recovered[id]; ok {
		t.stop()
		delete(m.recovered, id)
	} else if m.agents[id] == nil {
		return
	}
	m.c.registry.lose(id, since)
	m.unreachable[id] = since
	m.removeAgent(id, since, mesos.TASK_UNREACHABLE, mesos.REASON_AGENT_REMOVED)
}

// markGone removes an agent for good, as the operator call MARK_AGENT_GONE.
func (m *master) markGone(id string) {
	if t, ok := m.recovered[id]; ok {
		t.stop()
		delete(m.recovered, id)
	}
	rec := m.agents[id]
	m.c.registry.markGone(id)
	delete(m.unreachable, id)
	m.gone[id] = true
	if rec != nil {
		m.removeAgent(id, nil, mesos.TASK_GONE_BY_OPERATOR, mesos.REASON_AGENT_REMOVED_BY_OPERATOR)
		rec.agent.post(rec.agent.shutDown)
	}
}

// removeAgent takes an agent off the books. The order of the events is that of
// mesos src/master/master.cpp, Master::__removeSlave.
func (m *master) removeAgent(id string, since *mesos.TimeInfo, state mesos.TaskState, reason mesos.TaskStatus_Reason) {
	rec := m.agents[id]
	if rec == nil {
		return
	}
	m.log.Info("agent removed", "agent", id, "state", state)
	rec.lost.stop()
	text := "health check timed out"
	if state == mesos.TASK_GONE_BY_OPERATOR {
		text = "Agent has been marked gone"
	}
	for fid, byID := range rec.tasks {
		f := m.frameworks[fid]
		// A framework that cannot tell the difference is told that the tasks are
		// lost; they may come back all the same.
		fstate, freason := state, reason
		if !f.caps.partitionAware {
			fstate, freason = mesos.TASK_LOST, mesos.REASON_AGENT_REMOVED
		}
		for _, t := range sortedTasks(byID) {
			s := t.status(fstate, freason, text)
			s.UnreachableTime = since
			m.updateTask(t, s, s.GetState())
			m.removeTask(t)
			if fstate != mesos.TASK_GONE_BY_OPERATOR {
				t.lost = since
				f.unreachable[t.info.TaskID.Value] = t
			}
			m.sendStatus(f, s)
		}
	}
	for fid, byID := range rec.executors {
		for ex := range byID {
			m.removeExecutor(rec, fid, ex)
		}
	}
	m.rescindAll(rec)
	for _, r := range rec.total {
		m.total[r.meta.Name] -= r.milli
	}
	delete(m.agents, id)
	for _, f := range m.frameworks {
		for key := range f.filters {
			if key.agent == id {
				delete(f.filters, key)
			}
		}
		m.send(f, &scheduler.Event{Type: scheduler.Event_FAILURE, Failure: &scheduler.Event_Failure{AgentID: &mesos.AgentID{Value: id}}})
	}
}
