package portainer

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// offers matches what is offered with what waits and uses or declines all of it.
func (l *ledger) offers(now time.Time, offers []Offer) {
	for _, o := range offers {
		l.seen[o.Agent] = o
		l.room[o.Agent] = l.room[o.Agent].most(o.Resources)
	}
	pending := l.pending(now)
	refuse := refuseIdle
	if len(pending) > 0 {
		refuse = refuseWaiting
	}
	launches := l.place(now, offers, pending)

	var unused []OfferID
	for _, o := range offers {
		attempts := launches[o.ID]
		if len(attempts) == 0 {
			unused = append(unused, o.ID)
			continue
		}
		for _, at := range attempts {
			l.do(actSave{at.build})
		}
		l.do(actAccept{o.ID, attempts, refuse})
		for _, at := range attempts {
			ev := event(now, at.build, at, EventLaunched)
			l.notice(at.build, notice{event: ev, follow: at.log()})
		}
	}
	if len(unused) > 0 {
		l.do(actDecline{unused, refuse})
	}
	l.settle(now)
}

// pending returns the builds that may be launched now.
func (l *ledger) pending(now time.Time) []Pending {
	if l.draining {
		return nil
	}
	pending := make([]Pending, 0, len(l.queue))
	trial := l.placed.clone()
	for _, b := range l.queue {
		if b.notBefore.After(now) {
			continue
		}
		pending = append(pending, Pending{
			ID: b.id, Image: b.image, Resources: b.resources, Attempt: b.launches + 1, Since: b.since, Avoid: l.avoided(b, now),
			Constraints: b.constraints, rules: b.rules, placed: trial,
		})
	}
	return pending
}

// avoided returns the agents that b should not use now. When no other agent could
// take it, it avoids none: a cluster of one is better tried again than not at all.
func (l *ledger) avoided(b *build, now time.Time) []AgentID {
	var avoid []AgentID
	for agent, until := range b.avoid {
		if until.After(now) {
			avoid = append(avoid, agent)
		}
	}
	if len(avoid) == 0 {
		return nil
	}
	for agent, o := range l.seen {
		if !slices.Contains(avoid, agent) && l.room[agent].Fits(b.resources) && !l.placed.check(b.rules, &o).refused() {
			slices.Sort(avoid)
			return avoid
		}
	}
	return nil
}

// place asks the matcher, checks what it says, and turns every placement that
// holds into an attempt.
func (l *ledger) place(now time.Time, offers []Offer, pending []Pending) map[OfferID][]*attempt {
	if len(pending) == 0 {
		return nil
	}
	left := make(map[OfferID]*Offer, len(offers))
	for i := range offers {
		o := offers[i]
		left[o.ID] = &o
	}
	waiting := make(map[BuildID]bool, len(pending))
	for _, p := range pending {
		waiting[p.ID] = true
	}
	launches := make(map[OfferID][]*attempt)
	for _, p := range l.match.MatchOffers(slices.Clone(offers), pending) {
		o, b := left[p.Offer], l.builds[p.Build]
		switch {
		case !waiting[p.Build]:
			l.do(actComplain{fmt.Sprintf("matcher placed %q, which does not wait", p.Build)})
			continue
		case o == nil:
			l.do(actComplain{fmt.Sprintf("matcher placed %q on unknown offer %q", p.Build, p.Offer)})
			continue
		case !o.Resources.Fits(b.resources):
			l.do(actComplain{fmt.Sprintf("matcher placed %q (%v) on offer %q, which has %v left", p.Build, b.resources, p.Offer, o.Resources)})
			continue
		}
		if why := l.placed.check(b.rules, o); why.refused() {
			l.do(actComplain{fmt.Sprintf("matcher placed %q on offer %q against its constraint %s", p.Build, p.Offer, why)})
			continue
		}
		waiting[p.Build] = false
		o.Resources = o.Resources.Sub(b.resources)
		launches[o.ID] = append(launches[o.ID], l.launch(now, b, o))
	}
	if len(launches) > 0 {
		l.queue = slices.DeleteFunc(l.queue, func(b *build) bool { return b.current != nil })
	}
	return launches
}

// launch makes the next attempt of b, on o's agent.
func (l *ledger) launch(now time.Time, b *build, o *Offer) *attempt {
	b.launches++
	b.counted++
	at := &attempt{
		build:         b,
		n:             b.launches,
		task:          taskID(b.id, b.launches),
		agent:         o.Agent,
		hostname:      o.Hostname,
		agentURL:      o.agentURL,
		held:          b.rules.values(o),
		launched:      now,
		nextReconcile: now.Add(firstReconcile),
		reconcileWait: reconcileMin,
	}
	b.current = at
	l.track(at)
	return at
}

func (l *ledger) track(at *attempt) {
	l.tasks[at.task] = at
	at.build.live = append(at.build.live, at)
	l.placed.add(at.build.rules, at.held)
}

// taskID is the Mesos task and executor ID of an attempt.
func taskID(id BuildID, n int) string { return string(id) + "-" + strconv.Itoa(n) }

// log says where the log of at is.
func (at *attempt) log() *logSource {
	return &logSource{attempt: at.n, task: at.task, agent: at.agent, hostname: at.hostname, agentURL: at.agentURL}
}

// explain says why b still waits.
func (l *ledger) explain(b *build, now time.Time) string {
	if !l.connected {
		if l.unconnected == nil {
			return "not connected to the master"
		}
		return fmt.Sprintf("not connected to the master: %v", l.unconnected)
	}
	if len(l.seen) == 0 {
		return fmt.Sprintf("no offers yet; the build needs %v", b.resources)
	}
	reasons := make(map[string]int)
	for _, o := range l.seen {
		reasons[l.unfit(b, &o, now)]++
	}
	text := fmt.Sprintf("%s seen, none with room for %v", plural(len(l.seen), "agent"), b.resources)
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		text += fmt.Sprintf("; %d %s", reasons[reason], reason)
	}
	return text
}

// unfit says what is wrong with an offer for b.
func (l *ledger) unfit(b *build, o *Offer, now time.Time) string {
	have, want := o.Resources, b.resources
	switch {
	case b.avoid[o.Agent].After(now):
		return "avoided after a failed attempt"
	case thousandths(have.CPUs) < thousandths(want.CPUs):
		return "with too few cpus"
	case thousandths(have.MemMB) < thousandths(want.MemMB):
		return "with too little mem"
	case thousandths(have.DiskMB) < thousandths(want.DiskMB):
		return "with too little disk"
	case thousandths(have.GPUs) < thousandths(want.GPUs):
		return "with too few gpus"
	}
	if why := l.placed.check(b.rules, o); why.refused() {
		return "against " + why.constraint()
	}
	if !available(o, now) {
		return "going down for maintenance"
	}
	return "taken by others"
}

// settle asks for offers when something waits, and stops them when nothing does.
func (l *ledger) settle(now time.Time) {
	if !l.connected {
		return
	}
	ready := false
	if !l.draining {
		ready = slices.ContainsFunc(l.queue, func(b *build) bool { return !b.notBefore.After(now) })
	}
	switch {
	case ready && (!l.reviving || l.wanting) && now.Sub(l.lastRevive) >= reviveEvery:
		l.do(actRevive{})
		l.reviving, l.wanting, l.lastRevive = true, false, now
	case !ready && l.reviving:
		l.do(actSuppress{})
		l.reviving = false
	}
}
