package testmesos

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// The allocator follows the hierarchical one of Mesos without quota and
// weights (mesos src/master/allocator/mesos/hierarchical.cpp): agents in random
// order, on each the roles by dominant share, in each role the frameworks by
// theirs, and the first that may have something gets all that is free.

// What is not offered for being too little (mesos --min_allocatable_resources).
const (
	minCPUs = 10        // 0.01 cpus
	minMem  = 32 * 1000 // 32 MB
)

const (
	defaultRefusal = 5 * time.Second
	maxRefusal     = 365 * 24 * time.Hour
)

// A filterKey is where a refusal holds.
type filterKey struct{ role, agent string }

// A filter hides resources from a framework as long as they are no more than
// what it refused.
type filter struct {
	refused resources // not allocated
	until   time.Time
}

// refuse notes that a framework does not want resources for a while.
func (m *master) refuse(f *framework, role string, a *agentRecord, rs resources, filters *mesos.Filters) {
	d := refusal(filters)
	if d == 0 || rs.empty() {
		return
	}
	key := filterKey{role, a.id}
	f.filters[key] = append(f.filters[key], filter{
		refused: rs.allocatedTo(""),
		until:   time.Now().Add(max(d, m.c.cfg.AllocationInterval)),
	})
}

// refusal is how long the filters of an answer hold (mesos
// include/mesos/v1/mesos.proto, Filters).
func refusal(filters *mesos.Filters) time.Duration {
	if filters == nil || filters.RefuseSeconds == nil {
		return defaultRefusal
	}
	switch seconds := *filters.RefuseSeconds; {
	case seconds > maxRefusal.Seconds():
		return maxRefusal
	case seconds >= 0:
		return time.Duration(seconds * float64(time.Second))
	default: // negative, or no number
		return defaultRefusal
	}
}

// filtered tells whether a framework refused these resources. Filters that
// have run out are dropped.
func (f *framework) filtered(key filterKey, rs resources, at time.Time) bool {
	filters, ok := f.filters[key]
	if !ok {
		return false
	}
	filters = slices.DeleteFunc(filters, func(x filter) bool { return !x.until.After(at) })
	if len(filters) == 0 {
		delete(f.filters, key)
		return false
	}
	f.filters[key] = filters
	return slices.ContainsFunc(filters, func(x filter) bool { return x.refused.contains(rs) })
}

// allocate offers what is free, on one agent or on all, and then asks back what
// maintenance needs.
func (m *master) allocate(only *agentRecord) {
	agents := []*agentRecord{only}
	if only == nil {
		agents = slices.Collect(maps.Values(m.agents))
		rand.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })
	}
	at := time.Now()
	m.makeOffers(agents, at)
	m.askBack(agents, at)
}

// makeOffers offers what is free on agents.
func (m *master) makeOffers(agents []*agentRecord, at time.Time) {
	contenders := m.contenders()
	if len(contenders) == 0 {
		return
	}
	made := map[*framework][]*offer{}
	for _, a := range agents {
		if !a.connected || a.drain != nil || a.available.empty() || m.agents[a.id] != a {
			continue
		}
		for _, role := range m.rolesByShare(contenders) {
			for _, f := range byShare(contenders[role], role, m.total) {
				if o := m.offer(f, role, a, at); o != nil {
					made[f] = append(made[f], o)
				}
			}
		}
	}
	for f, offers := range made {
		event := &scheduler.Event{Type: scheduler.Event_OFFERS, Offers: &scheduler.Event_Offers{}}
		for _, o := range offers {
			event.Offers.Offers = append(event.Offers.Offers, o.proto())
		}
		m.send(f, event)
	}
}

// contenders returns the frameworks that want offers, by role.
func (m *master) contenders() map[string][]*framework {
	out := map[string][]*framework{}
	for _, f := range m.frameworks {
		if !f.connected() {
			continue
		}
		for _, role := range f.roles {
			if !f.suppressed[role] {
				out[role] = append(out[role], f)
			}
		}
	}
	return out
}

// share returns the dominant share of an allocation.
func share(allocated, total map[string]int64) float64 {
	most := 0.0
	for name, n := range allocated {
		if all := total[name]; all > 0 {
			most = max(most, float64(n)/float64(all))
		}
	}
	return most
}

func (m *master) rolesByShare(contenders map[string][]*framework) []string {
	roles := slices.Sorted(maps.Keys(contenders))
	if len(roles) > 1 {
		slices.SortStableFunc(roles, func(a, b string) int {
			return cmp.Compare(share(m.roleShares[a], m.total), share(m.roleShares[b], m.total))
		})
	}
	return roles
}

func byShare(fs []*framework, role string, total map[string]int64) []*framework {
	slices.SortFunc(fs, func(a, b *framework) int {
		return cmp.Or(cmp.Compare(share(a.allocated[role], total), share(b.allocated[role], total)), strings.Compare(a.id, b.id))
	})
	return fs
}

// offer makes an offer of everything on an agent that a framework may have in
// a role, or returns nil.
func (m *master) offer(f *framework, role string, a *agentRecord, at time.Time) *offer {
	if !f.caps.gpu && a.total.scalar("gpus") > 0 {
		return nil
	}
	rs := a.available.filter(func(r resource) bool {
		return inRole(r.reservationRole(), role) &&
			(f.caps.revocable || r.meta.Revocable == nil) &&
			(f.caps.shared || !r.shared()) &&
			(f.caps.reservationRefinement || !r.refined())
	})
	if rs.scalar("cpus") < minCPUs && rs.scalar("mem") < minMem || f.filtered(filterKey{role, a.id}, rs, at) {
		return nil
	}
	o := &offer{
		id:        fmt.Sprintf("%s-O%d", m.id, m.nextOffer),
		framework: f,
		agent:     a,
		role:      role,
		resources: rs.allocatedTo(role),
	}
	m.nextOffer++
	a.available, _ = a.available.minus(rs)
	m.account(f, role, rs, 1)
	m.offers[o.id], f.offers[o.id], a.offers[o.id] = o, o, o
	if d := m.c.cfg.OfferTimeout; d > 0 {
		o.timeout = m.after(d, func() {
			if m.offers[o.id] == o {
				m.rescind(o)
			}
		})
	}
	return o
}

// account keeps the sums for fair sharing.
func (m *master) account(f *framework, role string, rs resources, sign int64) {
	f.addAllocated(role, rs, sign)
	sums := m.roleShares[role]
	if sums == nil {
		sums = map[string]int64{}
		m.roleShares[role] = sums
	}
	for _, r := range rs {
		sums[r.meta.Name] += sign * r.milli
	}
}

// recover takes allocated resources back; they are offered again at the next
// tick. The framework may be gone.
func (m *master) recover(f *framework, a *agentRecord, rs resources) {
	if rs.empty() {
		return
	}
	if f != nil {
		m.account(f, rs[0].meta.AllocationInfo.GetRole(), rs, -1)
	}
	if m.agents[a.id] == a {
		a.available = a.available.plus(rs.allocatedTo(""))
	}
}

// use takes resources that were recovered away again for a task or executor.
func (m *master) use(f *framework, a *agentRecord, rs resources) {
	if rs.empty() {
		return
	}
	m.account(f, rs[0].meta.AllocationInfo.GetRole(), rs, 1)
	a.available, _ = a.available.minus(rs.allocatedTo(""))
}

// removeOffer takes an offer back without telling anybody.
func (m *master) removeOffer(o *offer) {
	delete(m.offers, o.id)
	delete(o.framework.offers, o.id)
	delete(o.agent.offers, o.id)
	o.timeout.stop()
	m.recover(o.framework, o.agent, o.resources)
}

// rescind takes an offer back and says so.
func (m *master) rescind(o *offer) {
	m.removeOffer(o)
	m.send(o.framework, &scheduler.Event{Type: scheduler.Event_RESCIND, Rescind: &scheduler.Event_Rescind{
		OfferID: mesos.OfferID{Value: o.id},
	}})
}

// proto returns the offer as its framework sees it.
func (o *offer) proto() mesos.Offer {
	pb := mesos.Offer{
		ID:          mesos.OfferID{Value: o.id},
		FrameworkID: mesos.FrameworkID{Value: o.framework.id},
		AgentID:     mesos.AgentID{Value: o.agent.id},
		Hostname:    o.agent.info.Hostname,
		URL:         o.agent.url(),
		Resources:   o.resources.protoFor(o.framework.caps),
		Attributes:  o.agent.info.Attributes,
	}
	if plan := o.agent.maintain; plan != nil {
		pb.Unavailability = plan.unavailability
	}
	for _, id := range slices.Sorted(maps.Keys(o.agent.executors[o.framework.id])) {
		pb.ExecutorIDs = append(pb.ExecutorIDs, mesos.ExecutorID{Value: id})
	}
	if o.framework.caps.multiRole {
		pb.AllocationInfo = &mesos.Resource_AllocationInfo{Role: new(o.role)}
	}
	return pb
}

// url is where an agent is, as offers tell it.
func (a *agentRecord) url() *mesos.URL {
	addr := a.agent.server.address
	return &mesos.URL{
		Scheme:  "http", // also with TLS, see mesos src/master/master.cpp
		Address: mesos.Address{Hostname: new(a.info.Hostname), IP: new(addr.ip), Port: int32(addr.port)},
		Path:    new("/slave(1)"),
	}
}
