package testmesos

import (
	"fmt"
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
	for id, since := range r.unreachable {
		m.unreachable[id] = since
	}
	for id := range r.gone {
		m.gone[id] = true
	}
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

// onRegister admits a new agent.
func (m *master) onRegister(a *Agent) {
	id := fmt.Sprintf("%s-S%d", m.id, m.c.nextAgent())
	m.admit(a, id, a.describe(id))
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
	m.tell(rec, Message{Type: "REGISTERED"}, func(agent *Agent) { agent.onRegistered(id) })
	m.allocate(rec)
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
	rec := &agentRecord{}
	// No offers before the tasks are booked.
	rec = m.readmit(a, r)
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
			m.awaitFailover(f)
			if m.frameworks[id] == nil {
				continue
			}
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
			s.Reason, s.Message = ptr(mesos.REASON_AGENT_REREGISTERED), ptr(text)
			s.State = ptr(t.state)
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

// readmit makes the record of an agent that comes back, with nothing on it.
func (m *master) readmit(a *Agent, r *report) *agentRecord {
	contenders := m.frameworks
	m.frameworks = map[string]*framework{} // admit offers to nobody
	rec := m.admit(a, r.id, a.describe(r.id))
	m.frameworks = contenders
	return rec
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
	m.tell(rec, Message{Type: "REGISTERED"}, func(agent *Agent) { agent.onRegistered(rec.id) })
	there := map[string]map[string]bool{}
	for _, t := range r.tasks {
		if there[t.framework] == nil {
			there[t.framework] = map[string]bool{}
		}
		there[t.framework][t.info.TaskID.Value] = true
	}
	executors := map[string]map[string]bool{}
	for _, ex := range r.executors {
		id := ex.FrameworkID.GetValue()
		if executors[id] == nil {
			executors[id] = map[string]bool{}
		}
		executors[id][ex.ExecutorID.Value] = true
	}
	for fid, tasks := range rec.tasks {
		f := m.frameworks[fid]
		for id, t := range tasks {
			if there[fid][id] || isTerminal(t.state) {
				continue
			}
			// It was on its way and never got there.
			s := masterStatus(id, rec.id, f.caps.or(mesos.TASK_DROPPED), mesos.REASON_RECONCILIATION,
				"Task is unknown to the agent: possibly lost during launch")
			m.sendStatus(f, s)
			t.state = s.GetState()
			m.removeTask(t)
		}
	}
	for fid, byID := range rec.executors {
		for id := range byID {
			if !executors[fid][id] {
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
	m.log.Info("agent disconnected", "agent", id)
	for _, o := range sortedByID(rec.offers) {
		m.rescind(o)
	}
	for fid, byID := range rec.tasks {
		f := m.frameworks[fid]
		if f.info.GetCheckpoint() {
			continue
		}
		for _, t := range sortedTasks(byID) {
			if !isTerminal(t.state) {
				s := masterStatus(t.info.TaskID.Value, id, mesos.TASK_LOST, mesos.REASON_AGENT_DISCONNECTED, "Agent "+rec.info.Hostname+" disconnected")
				if t.executorID != "" {
					s.ExecutorID = &mesos.ExecutorID{Value: t.executorID}
				}
				m.sendStatus(f, s)
				t.state = mesos.TASK_LOST
			}
			m.removeTask(t)
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
	for fid, byID := range rec.tasks {
		f := m.frameworks[fid]
		for _, t := range sortedTasks(byID) {
			tid := t.info.TaskID.Value
			if isTerminal(t.state) {
				m.removeTask(t)
				continue
			}
			text := "Agent " + rec.info.Hostname + " removed"
			if state == mesos.TASK_UNREACHABLE {
				text = "Agent " + rec.info.Hostname + " is unreachable: health check timed out"
			}
			s := masterStatus(tid, id, f.caps.or(state), reason, text)
			if t.executorID != "" {
				s.ExecutorID = &mesos.ExecutorID{Value: t.executorID}
			}
			s.UnreachableTime = since
			t.state = s.GetState()
			m.removeTask(t)
			if state == mesos.TASK_UNREACHABLE {
				t.lost = since
				f.unreachable[tid] = t
			}
			m.sendStatus(f, s)
		}
	}
	for fid, byID := range rec.executors {
		for ex := range byID {
			m.removeExecutor(rec, fid, ex)
		}
	}
	for _, o := range sortedByID(rec.offers) {
		m.rescind(o)
	}
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
