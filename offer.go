package portainer

import (
	"math"
	"time"
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
}

// A Pending is a build that waits to be placed.
type Pending struct {
	ID        BuildID
	Image     string
	Resources Resources // complete: defaults and the executor's own share are in it
	Attempt   int       // the attempt to be launched, from 1
	Since     time.Time // when it began to wait
	Avoid     []AgentID // agents that lost an earlier attempt, forgotten after a while
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
