package testmesos

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// maxCompleted is how many removed frameworks, and tasks of each framework, a
// master remembers (mesos --max_completed_frameworks).
const maxCompleted = 50

// A master is one life of a Master: a restart makes a new one with a new id and
// an empty memory. All fields below the actor are its own.
type master struct {
	*actor
	c       *Cluster
	handle  *Master
	id      string
	log     *slog.Logger
	done    chan struct{} // closed when this life ends
	started time.Time

	frameworks    map[string]*framework
	completed     []*framework
	agents        map[string]*agentRecord
	recovered     map[string]*timer // agents of the registry that have not come back yet
	unreachable   map[string]*mesos.TimeInfo
	gone          map[string]bool
	offers        map[string]*offer
	roleShares    map[string]map[string]int64 // role -> resource name -> allocated thousandths
	total         map[string]int64            // resource name -> thousandths of all agents
	nextFramework int
	nextOffer     int
	nextAgent     int
	tick          *timer
}

// An agentRecord is what a master knows of a registered agent.
type agentRecord struct {
	agent     *Agent
	id        string
	info      *mesos.AgentInfo
	total     resources
	available resources // neither used nor offered, as on the agent: not allocated
	connected bool
	drain     *drain
	lost      *timer                                    // marks a disconnected agent unreachable
	tasks     map[string]map[string]*task               // framework -> task
	executors map[string]map[string]*mesos.ExecutorInfo // framework -> executor
	killed    map[string]map[string]bool                // kills to be repeated at re-registration
	offers    map[string]*offer
	maintain  *maintenance // nil: none is planned
}

// An offer is one that is outstanding.
type offer struct {
	id        string
	framework *framework
	agent     *agentRecord
	role      string
	resources resources // allocated to role
	timeout   *timer
}

func newMaster(c *Cluster, handle *Master) *master {
	m := &master{
		actor:       newActor(&c.workers),
		c:           c,
		handle:      handle,
		id:          uuidString(newUUID()),
		done:        make(chan struct{}),
		started:     time.Now(),
		frameworks:  map[string]*framework{},
		agents:      map[string]*agentRecord{},
		recovered:   map[string]*timer{},
		unreachable: map[string]*mesos.TimeInfo{},
		gone:        map[string]bool{},
		offers:      map[string]*offer{},
		roleShares:  map[string]map[string]int64{},
		total:       map[string]int64{},
	}
	m.log = c.cfg.Logger.With("master", m.id)
	return m
}

// lead starts to act as the leader: the registry tells which agents there are.
func (m *master) lead() {
	m.post(func() {
		if m.tick != nil {
			return // leads already
		}
		m.c.registry.read(m)
		m.tick = m.after(m.c.cfg.AllocationInterval, m.onTick)
	})
}

func (m *master) onTick() {
	m.allocate(nil)
	m.tick = m.after(m.c.cfg.AllocationInterval, m.onTick)
}

// info describes this master as events, agents and ZooKeeper nodes do.
func (m *master) info() *mesos.MasterInfo {
	a := m.handle.server.address
	return &mesos.MasterInfo{
		ID:       m.id,
		IP:       a.networkOrder(),
		Port:     new(uint32(a.port)),
		PID:      new(fmt.Sprintf("master@%s:%d", a.ip, a.port)),
		Hostname: new(a.ip),
		Version:  new(version),
		Address:  &mesos.Address{Hostname: new(a.ip), IP: new(a.ip), Port: int32(a.port)},
		Capabilities: []mesos.MasterInfo_Capability{
			{Type: mesos.MasterInfo_Capability_AGENT_UPDATE},
			{Type: mesos.MasterInfo_Capability_AGENT_DRAINING},
			{Type: masterQuotaV2},
		},
	}
}

// send delivers an event to a framework, or drops it if none is connected.
func (m *master) send(f *framework, e *scheduler.Event) {
	if f.stream == nil {
		m.log.Debug("event dropped, framework is not connected", "framework", f.id, "event", eventType(e))
		return
	}
	m.c.faults.event(f.stream, schedulerMessage(f, e), e)
}

// sendStatus delivers an UPDATE.
func (m *master) sendStatus(f *framework, status *mesos.TaskStatus) {
	m.send(f, &scheduler.Event{Type: scheduler.Event_UPDATE, Update: &scheduler.Event_Update{Status: *status}})
}

// subscribe handles a valid SUBSCRIBE call whose answer is the stream s.
func (m *master) subscribe(call *scheduler.Call, s *stream, streamID string) {
	info := call.Subscribe.FrameworkInfo
	refuse := func(text string) {
		m.log.Info("subscription refused", "reason", text)
		m.c.faults.event(s, Message{Direction: MasterToScheduler, Type: "ERROR"}, errorEvent(text))
		s.close()
	}
	if err := validateFramework(info); err != nil {
		refuse(err.Error())
		return
	}
	if err := validateSuppressed(call.Subscribe.SuppressedRoles, rolesOf(info, capabilitiesOf(info))); err != nil {
		refuse(err.Error())
		return
	}
	id := info.GetID().GetValue()
	if slices.ContainsFunc(m.completed, func(f *framework) bool { return f.id == id && id != "" }) {
		refuse("Framework has been removed")
		return
	}
	f := m.frameworks[id]
	switch {
	case f == nil:
		if id == "" {
			id = fmt.Sprintf("%s-%04d", m.id, m.nextFramework)
			m.nextFramework++
		}
		f = m.addFramework(id)
		f.configure(clone(info), call.Subscribe.SuppressedRoles)
	default:
		if f.info != nil {
			if f.info.GetPrincipal() != info.GetPrincipal() {
				refuse("Changing framework's principal is not allowed.")
				return
			}
			info = clone(info)
			info.User, info.Checkpoint = f.info.User, f.info.Checkpoint
		}
		if f.stream != nil {
			m.send(f, errorEvent("Framework failed over"))
		}
		m.detach(f)
		f.failover.stop()
		f.configure(info, call.Subscribe.SuppressedRoles)
	}
	m.log.Info("framework subscribed", "framework", f.id, "name", info.Name)
	f.stream, f.streamID = s, streamID
	m.send(f, &scheduler.Event{Type: scheduler.Event_SUBSCRIBED, Subscribed: &scheduler.Event_Subscribed{
		FrameworkID:              &mesos.FrameworkID{Value: f.id},
		HeartbeatIntervalSeconds: new(m.c.cfg.HeartbeatInterval.Seconds()),
		MasterInfo:               m.info(),
	}})
	m.beat(f)
	// Agents learn about the scheduler and send what it has not acknowledged.
	fi := f.internalInfo()
	for _, a := range m.agents {
		m.tell(a, Message{Type: "UPDATE_FRAMEWORK", Framework: f.id}, func(agent *Agent) { agent.onUpdateFramework(fi) })
	}
	m.allocate(nil)
}

func errorEvent(text string) *scheduler.Event {
	return &scheduler.Event{Type: scheduler.Event_ERROR, Error: &scheduler.Event_Error{Message: text}}
}

func (m *master) addFramework(id string) *framework {
	f := &framework{
		id:          id,
		filters:     map[filterKey][]filter{},
		tasks:       map[string]*task{},
		unreachable: map[string]*task{},
		offers:      map[string]*offer{},
		allocated:   map[string]map[string]int64{},
		registered:  time.Now(),
	}
	m.frameworks[id] = f
	return f
}

// beat sends a heartbeat and plans the next.
func (m *master) beat(f *framework) {
	m.send(f, &scheduler.Event{Type: scheduler.Event_HEARTBEAT})
	s := f.stream
	f.heartbeat = m.after(m.c.cfg.HeartbeatInterval, func() {
		if f.stream == s {
			m.beat(f)
		}
	})
}

// detach ends a subscription: offers are taken back without a word.
func (m *master) detach(f *framework) {
	if f.stream != nil {
		f.stream.close()
		f.stream, f.streamID = nil, ""
	}
	f.heartbeat.stop()
	for _, o := range sortedByID(f.offers) {
		m.removeOffer(o)
	}
	m.eachInverse(f, (*inverseOffer).remove)
}

// streamEnded is called when the connection of a stream has gone.
func (m *master) streamEnded(s *stream) {
	for _, f := range m.frameworks {
		if f.stream != s {
			continue
		}
		m.log.Info("framework disconnected", "framework", f.id)
		m.detach(f)
		m.awaitFailover(f)
		return
	}
}

// awaitFailover removes a framework that does not come back in time.
func (m *master) awaitFailover(f *framework) {
	timeout := f.failoverTimeout()
	if timeout == 0 {
		m.removeFramework(f)
		return
	}
	f.failover = m.after(timeout, func() {
		if f.stream == nil && m.frameworks[f.id] == f {
			m.removeFramework(f)
		}
	})
}

// removeFramework tears a framework down: its executors are shut down and its
// tasks are forgotten without updates.
func (m *master) removeFramework(f *framework) {
	m.log.Info("framework removed", "framework", f.id)
	m.detach(f)
	f.failover.stop()
	for _, a := range m.agents {
		m.tell(a, Message{Type: "SHUTDOWN_FRAMEWORK", Framework: f.id}, func(agent *Agent) { agent.onShutdownFramework(f.id) })
	}
	for _, t := range f.tasks {
		if !isTerminal(t.state) {
			t.state = mesos.TASK_KILLED
		}
		m.removeTask(t)
	}
	for _, a := range m.agents {
		for id := range a.executors[f.id] {
			m.removeExecutor(a, f.id, id)
		}
		delete(a.killed, f.id)
	}
	f.removed = time.Now()
	delete(m.frameworks, f.id)
	m.completed = append(m.completed, f)
	if n := len(m.completed) - maxCompleted; n > 0 {
		m.completed = slices.Delete(m.completed, 0, n)
	}
}

// tell sends a message to an agent.
func (m *master) tell(a *agentRecord, msg Message, f func(*Agent)) {
	msg.Direction, msg.Agent = MasterToAgent, a.id
	agent := a.agent
	m.c.faults.internal(agent, msg, func() { agent.post(func() { agent.fromMaster(m, f) }) })
}

// revive handles REVIVE.
func (m *master) revive(f *framework, roles []string) {
	if !m.knownRoles(f, roles, "REVIVE") {
		return
	}
	if len(roles) == 0 {
		roles = f.roles
	}
	for _, a := range m.agents {
		if a.maintain != nil {
			delete(a.maintain.quiet, f.id)
		}
	}
	for _, role := range roles {
		delete(f.suppressed, role)
		for key := range f.filters {
			if key.role == role {
				delete(f.filters, key)
			}
		}
	}
	m.allocate(nil)
}

// suppress handles SUPPRESS.
func (m *master) suppress(f *framework, roles []string) {
	if !m.knownRoles(f, roles, "SUPPRESS") {
		return
	}
	if len(roles) == 0 {
		roles = f.roles
	}
	for _, role := range roles {
		f.suppressed[role] = true
	}
}

// knownRoles tells whether a framework has all these roles. A call with
// another one is dropped as a whole.
func (m *master) knownRoles(f *framework, roles []string, call string) bool {
	for _, role := range roles {
		if !slices.Contains(f.roles, role) {
			m.log.Warn("call dropped, framework is not subscribed to the role", "call", call, "framework", f.id, "role", role)
			return false
		}
	}
	return true
}

// decline handles DECLINE.
func (m *master) decline(f *framework, ids []mesos.OfferID, filters *mesos.Filters) {
	for _, id := range ids {
		o := m.offers[id.Value]
		if o == nil || o.framework != f {
			continue
		}
		m.removeOffer(o)
		m.refuse(f, o.role, o.agent, o.resources, filters)
	}
}

// kill handles KILL.
func (m *master) kill(f *framework, kill *scheduler.Call_Kill) {
	t := f.tasks[kill.TaskID.Value]
	if t == nil {
		m.reconcileTask(f, kill.TaskID.Value, kill.GetAgentID().GetValue())
		return
	}
	if kill.AgentID != nil && kill.AgentID.Value != t.agentID {
		m.log.Warn("KILL ignored, the task is on another agent", "task", kill.TaskID.Value)
		return
	}
	a := m.agents[t.agentID]
	if a == nil {
		return
	}
	if !a.connected {
		if a.killed[f.id] == nil {
			a.killed[f.id] = map[string]bool{}
		}
		a.killed[f.id][kill.TaskID.Value] = true
		return
	}
	id := kill.TaskID.Value
	m.tell(a, Message{Type: "KILL", Framework: f.id, Task: id}, func(agent *Agent) { agent.onKill(f.id, id, kill.KillPolicy) })
}

// shutdown handles SHUTDOWN.
func (m *master) shutdown(f *framework, call *scheduler.Call_Shutdown) {
	a := m.agents[call.AgentID.Value]
	if a == nil || a.executors[f.id][call.ExecutorID.Value] == nil {
		return
	}
	id := call.ExecutorID.Value
	m.tell(a, Message{Type: "SHUTDOWN_EXECUTOR", Framework: f.id, Executor: id}, func(agent *Agent) { agent.onShutdownExecutor(f.id, id) })
}

// acknowledge handles ACKNOWLEDGE.
func (m *master) acknowledge(f *framework, ack *scheduler.Call_Acknowledge) {
	a := m.agents[ack.AgentID.Value]
	if a == nil || !a.connected {
		m.log.Warn("ACKNOWLEDGE ignored, the agent is not connected", "task", ack.TaskID.Value, "agent", ack.AgentID.Value)
		return
	}
	if t := f.tasks[ack.TaskID.Value]; t != nil {
		if !t.updated {
			m.log.Warn("ACKNOWLEDGE ignored, this master has sent no update", "task", ack.TaskID.Value)
			return
		}
		if isTerminal(t.sent) && string(t.sentUUID) == string(ack.UUID) {
			m.removeTask(t)
		}
	}
	taskID, uuid := ack.TaskID.Value, ack.UUID
	m.tell(a, Message{Type: "ACKNOWLEDGE", Framework: f.id, Task: taskID}, func(agent *Agent) { agent.onAcknowledge(f.id, taskID, uuid) })
}

// message handles MESSAGE.
func (m *master) message(f *framework, call *scheduler.Call_Message) {
	a := m.agents[call.AgentID.Value]
	if a == nil || !a.connected {
		return
	}
	id, data := call.ExecutorID.Value, call.Data
	m.tell(a, Message{Type: "MESSAGE", Framework: f.id, Executor: id}, func(agent *Agent) {
		agent.onMessage(f.id, id, &executor.Event{Type: executor.Event_MESSAGE, Message: &executor.Event_Message{Data: data}})
	})
}

// reconcile handles RECONCILE.
func (m *master) reconcile(f *framework, tasks []scheduler.Call_Reconcile_Task) {
	for _, t := range tasks {
		m.reconcileTask(f, t.TaskID.Value, t.GetAgentID().GetValue())
	}
	if len(tasks) > 0 {
		return
	}
	for _, t := range sortedTasks(f.tasks) {
		m.sendStatus(f, t.reconciled())
	}
}

// reconcileTask answers for one task, if there is an answer to give.
func (m *master) reconcileTask(f *framework, taskID, agentID string) {
	answer := func(state mesos.TaskState, text string) *mesos.TaskStatus {
		return masterStatus(taskID, agentID, f.caps.or(state), mesos.REASON_RECONCILIATION, "Reconciliation: "+text)
	}
	_, recovering := m.recovered[agentID]
	lost := f.unreachable[taskID]
	var status *mesos.TaskStatus
	switch {
	case f.tasks[taskID] != nil:
		status = f.tasks[taskID].reconciled()
	case recovering || agentID == "" && len(m.recovered) > 0:
		return // the agent may still tell
	case m.agents[agentID] != nil:
		status = answer(mesos.TASK_GONE, "Task is unknown to the agent")
	case lost != nil:
		status = answer(mesos.TASK_UNREACHABLE, "Task is unreachable")
		status.UnreachableTime = lost.lost
	case m.unreachable[agentID] != nil:
		status = answer(mesos.TASK_UNREACHABLE, "Task is unreachable")
		status.UnreachableTime = m.unreachable[agentID]
	case m.gone[agentID]:
		status = answer(mesos.TASK_GONE_BY_OPERATOR, "Task is gone")
	default:
		status = answer(mesos.TASK_UNKNOWN, "Task is unknown")
	}
	m.sendStatus(f, status)
}

// status makes a status of the master's own for a task that it knows.
func (t *task) status(state mesos.TaskState, reason mesos.TaskStatus_Reason, text string) *mesos.TaskStatus {
	s := masterStatus(t.info.TaskID.Value, t.agentID, state, reason, text)
	if t.executorID != "" {
		s.ExecutorID = &mesos.ExecutorID{Value: t.executorID}
	}
	return s
}

// reconciled is the answer for a task that the master knows.
func (t *task) reconciled() *mesos.TaskStatus {
	state := t.state
	if t.updated {
		state = t.sent
	}
	s := t.status(state, mesos.REASON_RECONCILIATION, "Reconciliation: Latest task state")
	if t.last != nil {
		s.Healthy, s.CheckStatus, s.ContainerStatus = t.last.Healthy, t.last.CheckStatus, t.last.ContainerStatus
	}
	return s
}

// updateFramework handles UPDATE_FRAMEWORK.
func (m *master) updateFramework(f *framework, call *scheduler.Call_UpdateFramework) *reply {
	info := clone(&call.FrameworkInfo)
	if err := validateFramework(info); err != nil {
		return badRequest("Supplied FrameworkInfo is not valid: %v", err)
	}
	if err := validateUpdate(f.info, info); err != nil {
		return badRequest("FrameworkInfo update is not valid: %v", err)
	}
	if err := validateSuppressed(call.SuppressedRoles, rolesOf(info, capabilitiesOf(info))); err != nil {
		return badRequest("%v", err)
	}
	filters := f.filters
	f.configure(info, call.SuppressedRoles)
	f.filters = filters
	for _, o := range sortedByID(f.offers) {
		if !slices.Contains(f.roles, o.role) {
			m.rescind(o)
		}
	}
	fi := f.internalInfo()
	for _, a := range m.agents {
		m.tell(a, Message{Type: "UPDATE_FRAMEWORK", Framework: f.id}, func(agent *Agent) { agent.onUpdateFramework(fi) })
	}
	m.allocate(nil)
	return &reply{status: 200}
}

// addTask takes a task into the books.
func (m *master) addTask(t *task) {
	t.framework.tasks[t.info.TaskID.Value] = t
	a := m.agents[t.agentID]
	byID := a.tasks[t.framework.id]
	if byID == nil {
		byID = map[string]*task{}
		a.tasks[t.framework.id] = byID
	}
	byID[t.info.TaskID.Value] = t
}

// removeTask forgets a task and gives back what it still holds.
func (m *master) removeTask(t *task) {
	m.releaseTask(t)
	f, id := t.framework, t.info.TaskID.Value
	delete(f.tasks, id)
	if a := m.agents[t.agentID]; a != nil {
		delete(a.tasks[f.id], id)
		if len(a.tasks[f.id]) == 0 {
			delete(a.tasks, f.id)
		}
	}
	f.complete(t)
	m.checkDrained(m.agents[t.agentID])
}

// complete remembers an ended task for /state.
func (f *framework) complete(t *task) {
	f.completed = append(f.completed, t)
	if n := len(f.completed) - maxCompleted; n > 0 {
		f.completed = slices.Delete(f.completed, 0, n)
	}
}

// releaseTask gives back the resources of a task, once.
func (m *master) releaseTask(t *task) {
	if t.released {
		return
	}
	t.released = true
	if a := m.agents[t.agentID]; a != nil {
		m.recover(t.framework, a, t.resources)
	}
}

// removeExecutor forgets an executor and gives back its resources.
func (m *master) removeExecutor(a *agentRecord, frameworkID, executorID string) {
	info := a.executors[frameworkID][executorID]
	if info == nil {
		return
	}
	delete(a.executors[frameworkID], executorID)
	if len(a.executors[frameworkID]) == 0 {
		delete(a.executors, frameworkID)
	}
	m.recover(m.frameworks[frameworkID], a, newResources(info.Resources))
}

// onStatusUpdate takes an update from an agent.
func (m *master) onStatusUpdate(agentID string, u *statusUpdate) {
	a := m.agents[agentID]
	f := m.frameworks[u.frameworkID]
	if a == nil || f == nil {
		m.log.Warn("status update ignored", "framework", u.frameworkID, "agent", agentID)
		return
	}
	m.sendStatus(f, u.status)
	t := a.tasks[f.id][u.status.TaskID.Value]
	if t == nil {
		return
	}
	m.updateTask(t, u.status, u.latest)
}

// updateTask brings a task up to date with a status.
func (m *master) updateTask(t *task, status *mesos.TaskStatus, latest mesos.TaskState) {
	if !isTerminal(t.state) {
		t.state = latest
	}
	if len(status.UUID) > 0 {
		t.updated, t.sent, t.sentUUID = true, status.GetState(), status.UUID
	}
	last := *status
	last.Data = nil
	t.last = &last
	if isTerminal(t.state) || t.state == mesos.TASK_UNREACHABLE {
		m.releaseTask(t)
	}
}

// onExecutorMessage takes a framework message from an executor.
func (m *master) onExecutorMessage(agentID, frameworkID, executorID string, data []byte) {
	f := m.frameworks[frameworkID]
	if f == nil || m.agents[agentID] == nil {
		return
	}
	m.send(f, &scheduler.Event{Type: scheduler.Event_MESSAGE, Message: &scheduler.Event_Message{
		AgentID: mesos.AgentID{Value: agentID}, ExecutorID: mesos.ExecutorID{Value: executorID}, Data: data,
	}})
}

// onExecutorExited takes the news that an executor has gone.
func (m *master) onExecutorExited(agentID, frameworkID, executorID string, status int32) {
	a := m.agents[agentID]
	if a == nil {
		return
	}
	m.removeExecutor(a, frameworkID, executorID)
	if f := m.frameworks[frameworkID]; f != nil {
		m.send(f, &scheduler.Event{Type: scheduler.Event_FAILURE, Failure: &scheduler.Event_Failure{
			AgentID: &mesos.AgentID{Value: agentID}, ExecutorID: &mesos.ExecutorID{Value: executorID}, Status: new(status),
		}})
	}
}

// sortedByID returns the offers of a map in the order they were made.
func sortedByID(offers map[string]*offer) []*offer {
	out := make([]*offer, 0, len(offers))
	for _, o := range offers {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *offer) int {
		if len(a.id) != len(b.id) {
			return len(a.id) - len(b.id)
		}
		return strings.Compare(a.id, b.id)
	})
	return out
}

// sortedTasks returns the tasks of a map ordered by id.
func sortedTasks(tasks map[string]*task) []*task {
	out := make([]*task, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int { return strings.Compare(a.info.TaskID.Value, b.info.TaskID.Value) })
	return out
}
