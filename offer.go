package portainer

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// IDs assigned by Mesos. They are opaque.
type (
	AgentID string
	OfferID string
)

// Resources is an amount of what an agent offers. Mesos counts scalars in
// thousandths; compare and subtract with the methods, not with the floats
// (0.3-0.1 < 0.2 in float64).
type Resources struct {
	CPUs   float64 // cores, fractions allowed
	MemMB  float64 // units of 2^20 bytes, which Mesos calls MB
	DiskMB float64 // likewise
	GPUs   float64 // whole devices
}

// thousandths is a scalar as Mesos counts it.
func thousandths(v float64) int64 { return int64(math.Round(v * 1000)) }

// Fits reports whether want can be taken out of r.
func (r Resources) Fits(want Resources) bool {
	return thousandths(want.CPUs) <= thousandths(r.CPUs) &&
		thousandths(want.MemMB) <= thousandths(r.MemMB) &&
		thousandths(want.DiskMB) <= thousandths(r.DiskMB) &&
		thousandths(want.GPUs) <= thousandths(r.GPUs)
}

// Add returns r and more together.
func (r Resources) Add(more Resources) Resources {
	sum := func(a, b float64) float64 { return float64(thousandths(a)+thousandths(b)) / 1000 }
	return Resources{
		CPUs:   sum(r.CPUs, more.CPUs),
		MemMB:  sum(r.MemMB, more.MemMB),
		DiskMB: sum(r.DiskMB, more.DiskMB),
		GPUs:   sum(r.GPUs, more.GPUs),
	}
}

// Sub returns r less used.
func (r Resources) Sub(used Resources) Resources {
	return r.Add(Resources{CPUs: -used.CPUs, MemMB: -used.MemMB, DiskMB: -used.DiskMB, GPUs: -used.GPUs})
}

// most returns the larger of each amount.
func (r Resources) most(other Resources) Resources {
	return Resources{
		CPUs: max(r.CPUs, other.CPUs), MemMB: max(r.MemMB, other.MemMB),
		DiskMB: max(r.DiskMB, other.DiskMB), GPUs: max(r.GPUs, other.GPUs),
	}
}

// String shows cpus and mem, and the others that are not zero.
func (r Resources) String() string {
	text := "cpus:" + decimalText(r.CPUs) + " mem:" + decimalText(r.MemMB)
	if r.DiskMB != 0 {
		text += " disk:" + decimalText(r.DiskMB)
	}
	if r.GPUs != 0 {
		text += " gpus:" + decimalText(r.GPUs)
	}
	return text
}

// decimalText writes a scalar as Mesos does, without an exponent.
func decimalText(v float64) string {
	return strconv.FormatFloat(float64(thousandths(v))/1000, 'f', -1, 64)
}

// An Offer is what one agent can give at this moment to one role of this
// framework.
type Offer struct {
	ID         OfferID
	Agent      AgentID
	Hostname   string
	Role       string
	Resources  Resources
	Attributes map[string]string // agent attributes, as text
	// Unavailable is when maintenance of the agent begins; zero if none is
	// planned.
	Unavailable time.Time

	agentURL string // base URL of the agent's HTTP API
}

// A Pending is a build that waits to be placed.
type Pending struct {
	ID        BuildID
	Image     string
	Resources Resources // complete: defaults and the executor's own share are in it
	Attempt   int       // the attempt to be launched, from 1
	Since     time.Time // when it began to wait
	Avoid     []AgentID // agents that lost an earlier attempt, forgotten after a while

	// Constraints are those of the build. The framework drops placements that
	// violate one; Allows tells before.
	Constraints []Constraint

	rules  *rules
	placed *placed // where builds are, with the placements of this round; shared
}

// Allows reports whether the constraints of p let it run on o's agent, as things
// stood when MatchOffers was called.
func (p *Pending) Allows(o *Offer) bool {
	return p.placed == nil || !p.placed.check(p.rules, o).refused()
}

// hold counts p as placed on o.
func (p *Pending) hold(o *Offer) {
	if p.placed != nil {
		p.placed.add(p.rules, p.rules.values(o))
	}
}

// A Placement puts a build on an offer.
type Placement struct {
	Build BuildID
	Offer OfferID
}

// An OfferMatcher decides which builds run on which offers.
//
// MatchOffers gets every offer held and every build waiting, oldest first, and
// returns placements; builds may share an offer. It is called from one goroutine
// at a time, between two events of the cluster, so it must be quick, must not
// block, and must neither change nor keep its arguments. Offers without a
// placement are declined. A placement that names an unknown or already placed
// build, an unknown offer, or more than an offer has left is dropped and logged,
// and its build keeps waiting.
type OfferMatcher interface {
	MatchOffers(offers []Offer, builds []Pending) []Placement
}

// A MatcherFunc is a function that is an OfferMatcher.
type MatcherFunc func(offers []Offer, builds []Pending) []Placement

// MatchOffers calls f.
func (f MatcherFunc) MatchOffers(offers []Offer, builds []Pending) []Placement {
	return f(offers, builds)
}

// Spread is the default matcher. It places each build, oldest first, on the
// agent with the most cpus left, so that a few builds get whole machines to
// themselves and many fill the cluster evenly. Agents of Pending.Avoid, and
// those whose maintenance begins within the hour, are passed over.
type Spread struct{}

// MatchOffers implements OfferMatcher.
func (Spread) MatchOffers(offers []Offer, builds []Pending) []Placement {
	least := leastOf(builds)
	room := roomiest(roomFor(least, offers))
	heap.Init(&room)
	var placements []Placement
	var full shortages
	for i := range builds {
		b := &builds[i]
		if full.covers(b) {
			continue
		}
		if offer := room.place(b, least); offer != "" {
			placements = append(placements, Placement{Build: b.ID, Offer: offer})
		} else if len(b.Avoid) == 0 {
			full.add(b)
		}
	}
	return placements
}

// FirstFit places each build, oldest first, on the first offer with room whose
// agent is not in Pending.Avoid and has no maintenance within the hour. It fills
// few agents and leaves the others whole, for frameworks that need them so.
type FirstFit struct{}

// MatchOffers implements OfferMatcher.
func (FirstFit) MatchOffers(offers []Offer, builds []Pending) []Placement {
	least := leastOf(builds)
	room := roomFor(least, offers)
	var placements []Placement
	var full shortages
	for i := range builds {
		b := &builds[i]
		if full.covers(b) {
			continue
		}
		at := slices.IndexFunc(room, func(r remaining) bool { return r.takes(b) })
		switch {
		case at >= 0:
			room[at].use(b)
			placements = append(placements, Placement{Build: b.ID, Offer: room[at].offer.ID})
			if !room[at].left.Fits(least) {
				room = slices.Delete(room, at, at+1)
			}
		case len(b.Avoid) == 0:
			full.add(b)
		}
	}
	return placements
}

// maintenanceMargin is how long before its maintenance an agent gets no more
// builds: few take longer.
const maintenanceMargin = time.Hour

func available(o *Offer, now time.Time) bool {
	return o.Unavailable.IsZero() || o.Unavailable.Sub(now) > maintenanceMargin
}

// leastOf is the least that any of builds needs of each resource. What has less
// left takes none of them and need not be looked at again.
func leastOf(builds []Pending) Resources {
	if len(builds) == 0 {
		return Resources{}
	}
	least := builds[0].Resources
	for i := range builds {
		r := &builds[i].Resources
		least = Resources{
			CPUs: min(least.CPUs, r.CPUs), MemMB: min(least.MemMB, r.MemMB), DiskMB: min(least.DiskMB, r.DiskMB), GPUs: min(least.GPUs, r.GPUs),
		}
	}
	return least
}

// shortages are what fitted nowhere. A build that needs no less under the same
// constraints need not be tried: thousands of equal builds in a queue then cost no
// more than one.
type shortages []shortage

type shortage struct {
	resources Resources
	rules     *rules
	epoch     uint64 // of the constraints, when it was tried
}

// epoch is that of p's constraints.
func (p *Pending) epoch() uint64 {
	if p.placed == nil {
		return 0
	}
	return p.placed.epoch(p.rules)
}

func (s shortages) covers(p *Pending) bool {
	return slices.ContainsFunc(s, func(short shortage) bool {
		return short.rules == p.rules && p.Resources.Fits(short.resources) && short.epoch == p.epoch()
	})
}

func (s *shortages) add(p *Pending) {
	const enough = 16 // kinds of builds; beyond that they are tried in vain
	if len(*s) < enough {
		*s = append(*s, shortage{p.Resources, p.rules, p.epoch()})
	}
}

// remaining is an offer and what earlier placements left of it.
type remaining struct {
	offer *Offer
	left  Resources
}

// takes reports whether b may be placed there.
func (r *remaining) takes(b *Pending) bool {
	return r.left.Fits(b.Resources) && !slices.Contains(b.Avoid, r.offer.Agent) && b.Allows(r.offer)
}

// use takes what b needs.
func (r *remaining) use(b *Pending) {
	r.left = r.left.Sub(b.Resources)
	b.hold(r.offer)
}

// roomFor returns the offers that have room for least now.
func roomFor(least Resources, offers []Offer) []remaining {
	now := time.Now()
	room := make([]remaining, 0, len(offers))
	for i := range offers {
		if available(&offers[i], now) && offers[i].Resources.Fits(least) {
			room = append(room, remaining{&offers[i], offers[i].Resources})
		}
	}
	return room
}

// roomiest is a heap of offers, the one with the most cpus left on top.
type roomiest []remaining

func (h roomiest) Len() int           { return len(h) }
func (h roomiest) Less(i, j int) bool { return h[i].left.CPUs > h[j].left.CPUs }
func (h roomiest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *roomiest) Push(x any)        { *h = append(*h, x.(remaining)) }
func (h *roomiest) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

// place takes what b needs from the roomiest offer that has it, and returns that
// offer's id, or "". No build needs less than least.
func (h *roomiest) place(b *Pending, least Resources) OfferID {
	var passed []remaining
	defer func() {
		for _, r := range passed {
			heap.Push(h, r)
		}
	}()
	for h.Len() > 0 && thousandths((*h)[0].left.CPUs) >= thousandths(b.Resources.CPUs) {
		top := &(*h)[0]
		if top.takes(b) {
			id := top.offer.ID
			top.use(b)
			if top.left.Fits(least) {
				heap.Fix(h, 0)
			} else {
				heap.Pop(h)
			}
			return id
		}
		passed = append(passed, heap.Pop(h).(remaining))
	}
	return ""
}

// Names of resources, as mesos docs/attributes-resources.md has them.
const (
	resourceCPUs = "cpus"
	resourceMem  = "mem"
	resourceDisk = "disk"
	resourceGPUs = "gpus"
)

// fromMesos converts an offer. What no build may use, such as revocable
// resources and persistent volumes, is left out of the amounts.
func fromMesos(o *mesos.Offer, secure bool) Offer {
	offer := Offer{
		ID:         OfferID(o.ID.Value),
		Agent:      AgentID(o.AgentID.Value),
		Hostname:   o.Hostname,
		Role:       o.GetAllocationInfo().GetRole(),
		Attributes: make(map[string]string, len(o.Attributes)),
		agentURL:   agentURL(o, secure),
	}
	for i := range o.Resources {
		r := &o.Resources[i]
		if !usable(r) {
			continue
		}
		amount := r.GetScalar().GetValue()
		switch r.Name {
		case resourceCPUs:
			offer.Resources = offer.Resources.Add(Resources{CPUs: amount})
		case resourceMem:
			offer.Resources = offer.Resources.Add(Resources{MemMB: amount})
		case resourceDisk:
			offer.Resources = offer.Resources.Add(Resources{DiskMB: amount})
		case resourceGPUs:
			offer.Resources = offer.Resources.Add(Resources{GPUs: amount})
		}
	}
	for i := range o.Attributes {
		offer.Attributes[o.Attributes[i].Name] = attributeText(&o.Attributes[i])
	}
	if u := o.Unavailability; u != nil {
		offer.Unavailable = time.Unix(0, u.Start.Nanoseconds)
	}
	return offer
}

// agentURL is where the agent of an offer serves its API. Mesos says "http" there
// even when the agent speaks TLS (mesos src/master/master.cpp), so the scheme is
// ours to know.
func agentURL(o *mesos.Offer, secure bool) string {
	scheme, host, port := "http", o.Hostname, int32(5051)
	if secure {
		scheme = "https"
	}
	if u := o.URL; u != nil {
		port = u.Address.Port
		switch {
		case secure && u.Address.GetHostname() != "": // certificates are made out to names
			host = u.Address.GetHostname()
		case u.Address.GetIP() != "":
			host = u.Address.GetIP()
		case u.Address.GetHostname() != "":
			host = u.Address.GetHostname()
		}
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// attributeText writes the value of an attribute as an operator wrote it.
func attributeText(a *mesos.Attribute) string {
	switch {
	case a.Text != nil:
		return a.Text.Value
	case a.Scalar != nil:
		return decimalText(a.Scalar.Value)
	case a.Ranges != nil:
		parts := make([]string, len(a.Ranges.Range))
		for i, r := range a.Ranges.Range {
			parts[i] = fmt.Sprintf("%d-%d", r.Begin, r.End)
		}
		return "[" + strings.Join(parts, ",") + "]"
	case a.Set != nil:
		return "{" + strings.Join(a.Set.Item, ",") + "}"
	}
	return ""
}

// usable reports whether a build may use an entry of an offer: not what can be
// taken away again, nor shared or persistent volumes, nor a disk that is a device
// of its own.
func usable(r *mesos.Resource) bool {
	if r.Scalar == nil || r.Revocable != nil || r.Shared != nil {
		return false
	}
	return r.Disk == nil || r.Disk.Persistence == nil && r.Disk.Source == nil
}

// carve takes want out of pool, entry by entry, and returns what it took. Entries
// reserved for role come first, then those of its ancestors, then unreserved
// ones; each part taken keeps the reservation and allocation of its entry. ok is
// false, and pool as it was, if pool has less.
func carve(pool []mesos.Resource, role string, want Resources) (taken []mesos.Resource, ok bool) {
	left := make([]int64, len(pool))
	for i := range pool {
		if usable(&pool[i]) {
			left[i] = thousandths(pool[i].Scalar.Value)
		}
	}
	order := carvingOrder(pool, role)
	for _, w := range []struct {
		name   string
		amount float64
	}{{resourceCPUs, want.CPUs}, {resourceMem, want.MemMB}, {resourceDisk, want.DiskMB}, {resourceGPUs, want.GPUs}} {
		need := thousandths(w.amount)
		for _, i := range order {
			if need == 0 {
				break
			}
			if pool[i].Name != w.name || left[i] == 0 {
				continue
			}
			part := min(need, left[i])
			need -= part
			left[i] -= part
			entry := pool[i]
			entry.Scalar = &mesos.Value_Scalar{Value: float64(part) / 1000}
			taken = append(taken, entry)
		}
		if need > 0 {
			return nil, false
		}
	}
	for i := range pool {
		if usable(&pool[i]) {
			pool[i].Scalar = &mesos.Value_Scalar{Value: float64(left[i]) / 1000}
		}
	}
	return taken, true
}

// carvingOrder returns the indices of pool, most specific reservation first.
func carvingOrder(pool []mesos.Resource, role string) []int {
	rank := func(i int) int {
		switch reserved := pool[i].GetRole(); reserved {
		case role:
			return math.MinInt
		case "*":
			return 0
		default:
			return -len(reserved) // a longer ancestor is a nearer one
		}
	}
	order := make([]int, len(pool))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank(a), rank(b)) })
	return order
}
