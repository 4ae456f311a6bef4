package testmesos

import (
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// accept handles ACCEPT: offers are checked, operations applied in order, and
// the rest is declined with the call's filters (mesos src/master/master.cpp,
// Master::accept and Master::_accept). Of the operations only LAUNCH and
// LAUNCH_GROUP are carried out; others are dropped with a line in the log.
func (m *master) accept(f *framework, call *scheduler.Call_Accept) {
	offers, err := m.acceptedOffers(f, call.OfferIDs)
	if err != nil {
		for _, id := range call.OfferIDs {
			if o := m.offers[id.Value]; o != nil {
				m.removeOffer(o)
			}
		}
		state := f.caps.or(mesos.TASK_DROPPED)
		for i := range call.Operations {
			for _, t := range operationTasks(&call.Operations[i]) {
				m.sendStatus(f, masterStatus(t.TaskID.Value, t.AgentID.Value, state, mesos.REASON_INVALID_OFFERS,
					"Task launched with invalid offers: "+err.Error()))
			}
		}
		return
	}

	a, role := offers[0].agent, offers[0].role
	var left resources
	for _, o := range offers {
		left = left.plus(o.resources)
		m.removeOffer(o)
	}
	// removeOffer made the resources available; they stay in hand until the end.
	m.use(f, a, left)

	for i := range call.Operations {
		op := clone(&call.Operations[i])
		left = m.applyOperation(f, a, role, op, left)
	}
	m.recover(f, a, left)
	m.refuse(f, role, a, left, call.Filters)
}

// acceptedOffers returns the offers that an ACCEPT names.
func (m *master) acceptedOffers(f *framework, ids []mesos.OfferID) ([]*offer, error) {
	if len(ids) == 0 {
		return nil, says("No offers specified")
	}
	var offers []*offer
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id.Value] {
			return nil, says("Duplicate offer %s in offer list", id.Value)
		}
		seen[id.Value] = true
	}
	for _, id := range ids {
		o := m.offers[id.Value]
		if o == nil {
			return nil, says("Offer %s is no longer valid", id.Value)
		}
		if o.framework != f {
			return nil, says("Offer %s has invalid framework %s while framework %s is expected", id.Value, o.framework.id, f.id)
		}
		offers = append(offers, o)
	}
	for _, o := range offers[1:] {
		if o.role != offers[0].role {
			return nil, says("Aggregated offers must be allocated to the same role. Offer %s uses role %s but another is using role %s",
				o.id, o.role, offers[0].role)
		}
	}
	for _, o := range offers[1:] {
		if o.agent != offers[0].agent {
			return nil, says("Aggregated offers must belong to one single agent. Offer %s uses agent %s and agent %s",
				o.id, o.agent.id, offers[0].agent.id)
		}
	}
	return offers, nil
}

// operationTasks returns the tasks that an operation would launch.
func operationTasks(op *mesos.Offer_Operation) []mesos.TaskInfo {
	switch {
	case op.Type == mesos.Offer_Operation_LAUNCH && op.Launch != nil:
		return op.Launch.TaskInfos
	case op.Type == mesos.Offer_Operation_LAUNCH_GROUP && op.LaunchGroup != nil:
		return op.LaunchGroup.TaskGroup.Tasks
	}
	return nil
}

// applyOperation applies one operation to the resources at hand and returns
// what is left of them.
func (m *master) applyOperation(f *framework, a *agentRecord, role string, op *mesos.Offer_Operation, left resources) resources {
	tasks := operationTasks(op)
	reason := mesos.REASON_TASK_INVALID
	if op.Type == mesos.Offer_Operation_LAUNCH_GROUP {
		reason = mesos.REASON_TASK_GROUP_INVALID
	}
	fail := func(text string) resources {
		for _, t := range tasks {
			m.sendStatus(f, masterStatus(t.TaskID.Value, t.AgentID.Value, mesos.TASK_ERROR, reason, text))
		}
		return left
	}
	if op.Type != mesos.Offer_Operation_LAUNCH && op.Type != mesos.Offer_Operation_LAUNCH_GROUP {
		m.log.Warn("operation dropped, testmesos does not implement it", "operation", op.Type.String(), "framework", f.id)
		return left
	}
	if err := upgradeOperation(op); err != nil {
		return fail(err.Error())
	}
	if op.ID != nil {
		return fail("The `id` field cannot be set on " + op.Type.String() + " operations")
	}
	allocateOperation(op, role)
	if !a.connected || m.agents[a.id] != a {
		for _, t := range tasks {
			m.sendStatus(f, masterStatus(t.TaskID.Value, t.AgentID.Value, f.caps.or(mesos.TASK_DROPPED),
				mesos.REASON_AGENT_DISCONNECTED, "Agent disconnected"))
		}
		return left
	}
	if op.Type == mesos.Offer_Operation_LAUNCH_GROUP {
		return m.launchGroup(f, a, op.LaunchGroup, left, fail)
	}
	for i := range op.Launch.TaskInfos {
		t := &op.Launch.TaskInfos[i]
		if t.Executor != nil && t.Executor.FrameworkID == nil {
			t.Executor.FrameworkID = &mesos.FrameworkID{Value: f.id}
		}
		if err := m.validateTask(f, a, t, left); err != nil {
			m.sendStatus(f, masterStatus(t.TaskID.Value, t.AgentID.Value, mesos.TASK_ERROR, reason, err.Error()))
			continue
		}
		var fresh bool
		left, fresh = m.launch(f, a, t, t.Executor, left)
		m.deliver(f, a, []*mesos.TaskInfo{t}, t.Executor, false, fresh)
	}
	return left
}

// launchGroup handles LAUNCH_GROUP: all tasks or none.
func (m *master) launchGroup(f *framework, a *agentRecord, group *mesos.Offer_Operation_LaunchGroup, left resources,
	fail func(string) resources) resources {
	for i := range group.TaskGroup.Tasks {
		if t := &group.TaskGroup.Tasks[i]; t.Executor == nil {
			t.Executor = clone(&group.Executor)
		}
	}
	if err := m.validateGroup(f, a, group, left); err != nil {
		return fail(err.Error())
	}
	var tasks []*mesos.TaskInfo
	anyFresh := false
	for i := range group.TaskGroup.Tasks {
		t := &group.TaskGroup.Tasks[i]
		var fresh bool
		left, fresh = m.launch(f, a, t, &group.Executor, left)
		anyFresh = anyFresh || fresh
		tasks = append(tasks, t)
	}
	if len(tasks) > 0 {
		m.deliver(f, a, tasks, &group.Executor, true, anyFresh)
	}
	return left
}

// launch books one task, and its executor if that is new. It returns what is
// left of the resources, and whether the agent has to start the executor.
func (m *master) launch(f *framework, a *agentRecord, info *mesos.TaskInfo, ex *mesos.ExecutorInfo, left resources) (rest resources, fresh bool) {
	t := &task{
		info:      info,
		framework: f,
		agentID:   a.id,
		resources: newResources(info.Resources),
		state:     mesos.TASK_STAGING,
	}
	left, _ = left.minus(t.resources)
	if ex != nil {
		t.executorID = ex.ExecutorID.Value
		if a.executors[f.id][t.executorID] == nil {
			if a.executors[f.id] == nil {
				a.executors[f.id] = map[string]*mesos.ExecutorInfo{}
			}
			a.executors[f.id][t.executorID] = ex
			fresh = true
			left, _ = left.minus(newResources(ex.Resources))
		}
	}
	m.addTask(t)
	return left, fresh
}

// deliver sends tasks to their agent.
func (m *master) deliver(f *framework, a *agentRecord, tasks []*mesos.TaskInfo, ex *mesos.ExecutorInfo, group, fresh bool) {
	fi := f.internalInfo()
	msg := Message{Type: "RUN_TASK", Framework: f.id, Task: tasks[0].TaskID.Value}
	if ex != nil {
		msg.Executor = ex.ExecutorID.Value
	}
	if group {
		msg.Type = "RUN_TASK_GROUP"
	}
	m.tell(a, msg, func(agent *Agent) { agent.onRunTasks(fi, ex, tasks, group, fresh) })
}

// upgradeOperation checks the resources of an operation and brings them into
// internal form.
func upgradeOperation(op *mesos.Offer_Operation) error {
	return eachResources(op, upgradeResources)
}

// allocateOperation marks the resources of an operation as allocated to the
// offer's role where the scheduler has not.
func allocateOperation(op *mesos.Offer_Operation, role string) {
	_ = eachResources(op, func(pbs []mesos.Resource) error {
		for i := range pbs {
			if pbs[i].AllocationInfo == nil {
				pbs[i].AllocationInfo = &mesos.Resource_AllocationInfo{Role: new(role)}
			}
		}
		return nil
	})
}

func eachResources(op *mesos.Offer_Operation, f func([]mesos.Resource) error) error {
	if op.LaunchGroup != nil {
		if err := f(op.LaunchGroup.Executor.Resources); err != nil {
			return err
		}
	}
	for _, t := range operationTasks(op) {
		if err := f(t.Resources); err != nil {
			return err
		}
		if t.Executor != nil {
			if err := f(t.Executor.Resources); err != nil {
				return err
			}
		}
	}
	return nil
}
