package portainer

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// An agent counts as one that cannot be reached when so many readings in a row
	// have failed, with no longer between them than failureAge, or one, if it took
	// that long: then it is a timeout, which has seen many packets lost.
	awayFailures = 3
	awayAfter    = 4 * time.Second
	failureAge   = 30 * time.Second

	// probeMin is how soon after that it is tried again, and probeMax how often in
	// the end.
	probeMin = 5 * time.Second
	probeMax = 2 * time.Minute
)

// A reach knows the agents whose files the framework cannot read, so that not every
// build has to find out for itself. Its methods are safe for concurrent use.
type reach struct {
	log *slog.Logger

	mu     sync.Mutex
	agents map[string]*outOfReach // by URL
}

// outOfReach is what is known of an agent whose files could not be read at last.
type outOfReach struct {
	failures int       // in a row
	last     time.Time // when the last of them was
	why      error
	away     bool
	probe    time.Time // when to try again, if away
	pause    time.Duration
}

func newReach(log *slog.Logger) *reach {
	return &reach{log: log, agents: make(map[string]*outOfReach)}
}

// away tells why an agent cannot be reached; nil if it can, as far as is known.
func (r *reach) away(agent string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.agents[agent]; a != nil && a.away {
		return a.why
	}
	return nil
}

// failed notes that a reading which began then has failed.
func (r *reach) failed(agent string, began time.Time, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[agent]
	if a == nil {
		a = &outOfReach{pause: probeMin}
		r.agents[agent] = a
	}
	now := time.Now()
	if began.Sub(a.last) > failureAge {
		a.failures = 0
	}
	a.failures++
	a.last, a.why = now, why
	if !a.away && (a.failures >= awayFailures || now.Sub(began) >= awayAfter) {
		a.away, a.probe = true, now.Add(a.pause)
		r.log.Warn("agent cannot be reached at its URL; logs come over the master", "agent", agent, "err", why)
	}
}

// read notes that the files of an agent were read.
func (r *reach) read(agent string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.agents[agent]; a != nil && a.away {
		r.log.Info("agent can be reached again; logs come from its files", "agent", agent)
	}
	delete(r.agents, agent)
}

// probe reports whether it is time that the caller tries an agent that is away.
func (r *reach) probe(agent string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, now := r.agents[agent], time.Now()
	if a == nil || !a.away || now.Before(a.probe) {
		return false
	}
	a.pause = min(2*a.pause, probeMax)
	a.probe = now.Add(a.pause)
	return true
}
