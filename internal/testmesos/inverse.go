package testmesos

import (
	"fmt"
	"maps"
	"slices"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// Inverse offers ask frameworks that have something on an agent with planned
// maintenance whether they can do without it (mesos docs/maintenance.md). What is
// answered has no effect but that operators see it, and that the question is not
// put again for the time that the filters of the answer say.

// maintenance is the plan for an agent and what frameworks said to it.
type maintenance struct {
	unavailability *mesos.Unavailability
	asked          map[string]*inverseOffer // outstanding, by framework
	answers        map[string]bool          // whether it was accepted, by framework
	quiet          map[string]time.Time     // when a framework may be asked again
}

// An inverseOffer is one that is outstanding.
type inverseOffer struct {
	id        string
	framework *framework
	agent     *agentRecord
	timeout   *timer
}

// plan sets the maintenance of an agent; nil is none.
func (m *master) plan(a *agentRecord, u *mesos.Unavailability) {
	m.rescindAll(a)
	a.maintain = nil
	if u != nil {
		a.maintain = &maintenance{
			unavailability: u, asked: map[string]*inverseOffer{}, answers: map[string]bool{}, quiet: map[string]time.Time{},
		}
	}
	m.allocate(a)
}

// askBack makes inverse offers to frameworks that have tasks, executors or offers
// on the agents, also to those that want no offers (mesos
// src/master/allocator/mesos/hierarchical.cpp, generateInverseOffers).
func (m *master) askBack(agents []*agentRecord, at time.Time) {
	made := map[*framework][]mesos.InverseOffer{}
	for _, a := range agents {
		if a.maintain == nil || !a.connected || a.drain != nil || m.agents[a.id] != a {
			continue
		}
		for _, f := range m.frameworks {
			if f.connected() && f.occupies(a) && a.maintain.asked[f.id] == nil && !a.maintain.quiet[f.id].After(at) {
				made[f] = append(made[f], m.inverseOffer(f, a).proto())
			}
		}
	}
	for f, offers := range made {
		m.send(f, &scheduler.Event{
			Type: scheduler.Event_INVERSE_OFFERS, InverseOffers: &scheduler.Event_InverseOffers{InverseOffers: offers},
		})
	}
}

// occupies tells whether a framework uses an agent or is offered it.
func (f *framework) occupies(a *agentRecord) bool {
	return len(a.tasks[f.id]) > 0 || len(a.executors[f.id]) > 0 ||
		slices.ContainsFunc(slices.Collect(maps.Values(a.offers)), func(o *offer) bool { return o.framework == f })
}

func (m *master) inverseOffer(f *framework, a *agentRecord) *inverseOffer {
	o := &inverseOffer{id: fmt.Sprintf("%s-O%d", m.id, m.nextOffer), framework: f, agent: a}
	m.nextOffer++
	a.maintain.asked[f.id] = o
	if d := m.c.cfg.OfferTimeout; d > 0 {
		o.timeout = m.after(d, func() {
			if a.maintain != nil && a.maintain.asked[f.id] == o {
				m.takeBack(o)
			}
		})
	}
	return o
}

// takeBack ends an inverse offer and says so.
func (m *master) takeBack(o *inverseOffer) {
	o.remove()
	m.send(o.framework, &scheduler.Event{
		Type: scheduler.Event_RESCIND_INVERSE_OFFER,
		RescindInverseOffer: &scheduler.Event_RescindInverseOffer{
			InverseOfferID: mesos.OfferID{Value: o.id},
		},
	})
}

func (o *inverseOffer) remove() {
	o.timeout.stop()
	delete(o.agent.maintain.asked, o.framework.id)
}

// rescindAll takes all offers of an agent back, and all inverse ones.
func (m *master) rescindAll(a *agentRecord) {
	for _, o := range sortedByID(a.offers) {
		m.rescind(o)
	}
	if a.maintain == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(a.maintain.asked)) {
		m.takeBack(a.maintain.asked[id])
	}
}

// eachInverse calls do for the inverse offers that a framework has.
func (m *master) eachInverse(f *framework, do func(*inverseOffer)) {
	for _, a := range m.agents {
		if a.maintain != nil && a.maintain.asked[f.id] != nil {
			do(a.maintain.asked[f.id])
		}
	}
}

// answerInverse handles ACCEPT_INVERSE_OFFERS and DECLINE_INVERSE_OFFERS. Ids that
// are not valid any more are passed over.
func (m *master) answerInverse(f *framework, ids []mesos.OfferID, filters *mesos.Filters, accepted bool) {
	m.eachInverse(f, func(o *inverseOffer) {
		if !slices.Contains(ids, mesos.OfferID{Value: o.id}) {
			return
		}
		plan := o.agent.maintain
		o.remove()
		plan.answers[f.id] = accepted
		plan.quiet[f.id] = time.Now().Add(refusal(filters))
	})
}

func (o *inverseOffer) proto() mesos.InverseOffer {
	return mesos.InverseOffer{
		OfferID:        mesos.OfferID{Value: o.id},
		URL:            o.agent.url(),
		FrameworkID:    mesos.FrameworkID{Value: o.framework.id},
		AgentID:        &mesos.AgentID{Value: o.agent.id},
		Unavailability: *o.agent.maintain.unavailability,
	}
}

// MaintenanceAnswers returns what the frameworks, by id, said to the planned
// maintenance of the agent: true when they accepted it. The operator's call
// GET_MAINTENANCE_STATUS shows the same.
func (a *Agent) MaintenanceAnswers() map[string]bool {
	var answers map[string]bool
	a.toMaster(func(m *master, id string) {
		if rec := m.agents[id]; rec != nil && rec.maintain != nil {
			answers = maps.Clone(rec.maintain.answers)
		}
	})
	return answers
}
