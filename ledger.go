package portainer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/org/portainer/internal/wire"
)

// A ledger knows every build and attempt and decides what to do about them. It
// is pure: inputs are method calls that carry the time, outputs are actions to
// be taken with take. It does no I/O, starts nothing, locks nothing and reads
// no clock, so that one goroutine may own it and a test may replay any story.
//
// The order of actions is the order in which they must be carried out; save
// comes before the accept or acknowledge that relies on it.
type ledger struct {
	policy policy
	match  OfferMatcher
	jitter func() float64 // in [0,1)

	builds       map[BuildID]*build
	queue        []*build              // waiting for an offer, oldest first
	tasks        map[string]*attempt   // launched and not known to have ended
	seen         map[AgentID]Offer     // the latest offer of each agent, for explanations
	room         map[AgentID]Resources // the most that each agent has offered
	placed       *placed               // where live builds are, for constraints
	connected    bool
	since        time.Time // when the present subscription began
	nextImplicit time.Time // when to ask for tasks that are not known here
	draining     bool

	reviving   bool      // the master was asked for offers
	wanting    bool      // something changed since, so that asking again can help
	lastRevive time.Time // bounds how often

	explanations int // that the present tick has left

	out []action
}

// policy is the part of Config that the ledger acts on.
type policy struct {
	queueTimeout    time.Duration // 0 means none
	buildTimeout    time.Duration // 0 means none
	launchTimeout   time.Duration
	unreachableWait time.Duration
	pushLease       time.Duration
	avoidFor        time.Duration
	explainEvery    time.Duration
}

const (
	// reviveEvery bounds how often REVIVE is sent: it clears all filters, so a
	// loop of them would make the master offer the same agents without end.
	reviveEvery = 250 * time.Millisecond
	// refuseWaiting is for offers that no waiting build can use; as soon as more
	// becomes free on the agent, Mesos's filter no longer applies.
	refuseWaiting = 5 * time.Second
	// refuseIdle is for offers that arrive when nothing waits. The next REVIVE
	// clears it.
	refuseIdle = time.Hour

	// explainAtOnce bounds how many builds are told in one tick why they wait: it
	// takes a look at every agent.
	explainAtOnce = 64

	// youngTask is how long the master may not know a task that was just
	// accepted: launches are authorized asynchronously, and a reconciliation
	// meanwhile is answered as if the task did not exist.
	youngTask = 10 * time.Second
	// answerTime is how long after a subscription the answers to reconciliation
	// may take; before, no task is given up for what happened without one.
	answerTime        = 10 * time.Second
	firstReconcile    = 30 * time.Second // after a launch that nobody spoke of
	reconcileMin      = 2 * time.Second
	reconcileMax      = time.Minute
	reconcilePeriod   = 15 * time.Minute // for tasks that all is well with
	killMin           = 5 * time.Second
	killMax           = 2 * time.Minute
	retryMin          = time.Second
	retryMax          = time.Minute
	terminalDataLimit = 15 * time.Minute // agents resend an update at least every 10 minutes
)

// A buildSpec is a build as it is submitted: everything about it that does not
// change.
type buildSpec struct {
	id          BuildID
	image       string
	file        string // what messages call the Dockerfile
	resources   Resources
	constraints []Constraint
	registries  []string          // that the build speaks to
	secrets     map[string][]byte // build secrets by id; never saved
	ownSecrets  bool              // there are such, or were in an earlier life
	maxAttempts int
	oomRetryMB  float64 // memory of the one attempt after an OOM; 0 means none
	task        wire.Task
}

// A build is one submitted build.
type build struct {
	buildSpec
	rules     *rules // constraints, compiled
	submitted time.Time
	since     time.Time // when it began to wait for an offer
	notBefore time.Time // when it may be launched
	explained time.Time
	launches  int // attempts launched, which number them
	counted   int // of these, the ones that count against maxAttempts
	oomRaised bool
	avoid     map[AgentID]time.Time // until when
	current   *attempt              // nil while waiting
	live      []*attempt            // those in ledger.tasks, oldest first
	lease     lease                 // who may push
	restored  bool                  // from an earlier life
	done      bool
	result    *Result     // when done, this
	failure   *BuildError // or that
}

// A lease is the right of one attempt to write the tags of its build. It ends by
// itself, so that an attempt that nobody can reach loses it too.
type lease struct {
	Attempt int       `json:"attempt"`
	Until   time.Time `json:"until"`
}

// An attempt is one launch of a build.
type attempt struct {
	build     *build
	n         int
	task      string
	agent     AgentID
	hostname  string
	agentURL  string
	held      map[string]string // values of attributes that constraints count
	launched  time.Time
	heard     bool // an update came
	running   bool
	abandoned bool   // its build no longer waits for it: it is to be killed
	sealKey   string // the public key of its executor, once it asked for secrets
	withheld  bool   // it was told that another attempt may still push

	unreachable   time.Time // since when; zero if it is reachable
	ended         time.Time // when the master said it has ended, though the update itself has not come
	nextReconcile time.Time
	reconcileWait time.Duration
	nextKill      time.Time // zero unless it is being killed
	killWait      time.Duration
}

// An update is a task status update without Mesos's types. States, reasons and
// sources are spelled as in mesos.proto.
type update struct {
	task    string
	agent   AgentID
	state   string
	reason  string
	source  string
	message string
	data    []byte
	uuid    []byte // empty if it must not be acknowledged
}

// An action is something that the ledger wants to be done.
type action any

type (
	actRevive   struct{}
	actSuppress struct{}
	actDecline  struct {
		offers []OfferID
		refuse time.Duration
	}
	actAccept struct {
		offer    OfferID
		attempts []*attempt
		refuse   time.Duration
	}
	actKill struct {
		task  string
		agent AgentID
	}
	// actReconcile asks for the state of tasks; for all of them if tasks is nil.
	actReconcile   struct{ tasks map[string]AgentID }
	actAcknowledge struct{ update update }
	// actGrant answers an executor that may push.
	actGrant struct {
		task  string
		agent AgentID
		grant wire.PushGrant
	}
	// actSave makes the present state of a build durable.
	actSave struct{ build *build }
	// actForget says that the ledger has done with a build.
	actForget struct{ build *build }
	// actNotice goes to whoever waits for the build.
	actNotice struct {
		id     BuildID
		notice notice
	}
	// actRelease says that no attempt uses the staged context any more.
	actRelease struct{ build *build }
	// actComplain reports a placement that the matcher should not have made.
	actComplain struct{ text string }
)

func newLedger(p policy, match OfferMatcher, jitter func() float64) *ledger {
	return &ledger{
		policy: p,
		match:  match,
		jitter: jitter,
		builds: make(map[BuildID]*build),
		tasks:  make(map[string]*attempt),
		seen:   make(map[AgentID]Offer),
		room:   make(map[AgentID]Resources),
		placed: newPlaced(),
	}
}

// take returns the actions since the last call.
func (l *ledger) take() []action {
	out := l.out
	l.out = nil
	return out
}

func (l *ledger) do(a action) { l.out = append(l.out, a) }

// busy reports whether time may bring something to do.
func (l *ledger) busy() bool { return len(l.builds) > 0 || len(l.tasks) > 0 }

// notice tells whoever waits for b.
func (l *ledger) notice(b *build, n notice) { l.do(actNotice{b.id, n}) }

// event returns an Event about b, and about at unless it is nil.
func event(now time.Time, b *build, at *attempt, kind EventKind) Event {
	ev := Event{Build: b.id, Image: b.image, Kind: kind, Time: now}
	if at != nil {
		ev.Attempt, ev.Agent, ev.Hostname = at.n, at.agent, at.hostname
	}
	return ev
}

// submit takes a new build. The id must be new.
func (l *ledger) submit(now time.Time, spec buildSpec) {
	b := &build{buildSpec: spec, rules: l.compile(spec.constraints), submitted: now, avoid: make(map[AgentID]time.Time)}
	l.builds[b.id] = b
	l.do(actSave{b})
	l.enqueue(now, b, now)
	l.settle(now)
}

// compile makes constraints ready for use. They have been checked: what is wrong
// with one is told to whoever gave it.
func (l *ledger) compile(constraints []Constraint) *rules {
	rules, err := l.placed.compile(constraints)
	if err != nil {
		l.do(actComplain{err.Error()})
	}
	return rules
}

// restore takes over the builds of an earlier life, before anything else happens.
func (l *ledger) restore(now time.Time, records []record) {
	records = slices.SortedFunc(slices.Values(records), func(a, b record) int { return a.Submitted.Compare(b.Submitted) })
	for i := range records {
		r := &records[i]
		b := &build{
			buildSpec: buildSpec{
				id: r.ID, image: r.Image, file: r.File, resources: r.Resources,
				constraints: r.Constraints, registries: r.Registries,
				maxAttempts: r.MaxAttempts, oomRetryMB: r.OOMRetryMB, ownSecrets: r.OwnSecrets, task: r.Task,
			},
			submitted: r.Submitted, launches: r.Launches, counted: r.Counted, oomRaised: r.OOMRaised,
			restored: true, lease: r.Lease, rules: l.compile(r.Constraints), avoid: make(map[AgentID]time.Time), done: r.Done, result: r.Result,
		}
		if r.Failure != nil {
			b.failure = r.buildError()
		}
		l.builds[b.id] = b
		for _, a := range r.Attempts {
			l.restoreAttempt(now, b, a)
		}
		switch {
		case b.done:
			l.notice(b, notice{result: b.result, err: asError(b.failure)})
		case b.current == nil:
			l.enqueue(now, b, now)
		}
		l.release(b)
	}
}

// asError keeps a nil *BuildError from becoming an error that is not nil.
func asError(e *BuildError) error {
	if e == nil {
		return nil
	}
	return e
}

// restoreAttempt takes over a task that may still run.
func (l *ledger) restoreAttempt(now time.Time, b *build, r attemptRecord) {
	at := &attempt{
		build: b, n: r.N, task: taskID(b.id, r.N), agent: r.Agent, hostname: r.Hostname, agentURL: r.AgentURL, held: r.Held,
		launched: r.Launched, heard: r.Heard, running: r.Running, abandoned: r.Abandoned,
		nextReconcile: now.Add(reconcileMin), reconcileWait: reconcileMin,
	}
	l.track(at)
	if at.abandoned {
		at.nextKill, at.killWait = now, killMin
		return
	}
	b.current = at
	l.notice(b, notice{follow: at.log()})
}

// abandonAll treats every task as lost: the master has removed the framework, and
// with it all of them.
func (l *ledger) abandonAll(now time.Time) {
	l.connected = false
	for _, at := range sortedAttempts(l.tasks) {
		l.end(now, at, update{task: at.task, agent: at.agent, state: "TASK_LOST", message: "the master has removed the framework"})
		if !at.build.done {
			l.do(actSave{at.build})
		}
	}
}

// enqueue makes b wait for an offer, which it may use from notBefore.
func (l *ledger) enqueue(now time.Time, b *build, notBefore time.Time) {
	b.current = nil
	b.since, b.explained, b.notBefore = now, now, notBefore
	l.queue = append(l.queue, b)
	l.wanting = true
	l.notice(b, notice{event: event(now, b, nil, EventQueued)})
}

// cancel ends a build because its caller gave up or is gone; an unknown or ended
// one is ignored.
func (l *ledger) cancel(now time.Time, id BuildID, class Class, cause error) {
	b := l.builds[id]
	if b == nil || b.done {
		return
	}
	l.fail(now, b, b.current, &BuildError{Phase: b.phase(), Class: class, Err: cause})
	l.settle(now)
}

// drain stops launching, ends every build and kills every task.
func (l *ledger) drain(now time.Time, class Class, cause error) {
	l.draining = true
	for _, b := range l.sortedBuilds() {
		l.fail(now, b, b.current, &BuildError{Phase: b.phase(), Class: class, Err: cause})
	}
	l.settle(now)
}

// phase is where b stands, as far as the framework can tell.
func (b *build) phase() Phase {
	switch {
	case b.current == nil:
		return PhaseQueue
	case !b.current.running:
		return PhaseLaunch
	default:
		return PhaseBuild
	}
}

// subscribed is called when the master has accepted a subscription.
func (l *ledger) subscribed(now time.Time) {
	l.connected, l.since = true, now
	l.reviving, l.wanting = false, true
	clear(l.seen)
	clear(l.room)
	l.nextImplicit = now.Add(reconcilePeriod)
	for _, at := range l.tasks {
		at.reconcileWait = reconcileMin
		at.nextReconcile = later(now, at.launched.Add(youngTask/2))
		if !at.nextKill.IsZero() {
			at.nextKill = now // an earlier KILL may have been lost with the connection
		}
	}
	// Tasks of ours that we do not know of are told by an implicit one, and killed.
	l.do(actReconcile{})
	l.tick(now)
}

// disconnected is called when the subscription is lost.
func (l *ledger) disconnected() { l.connected = false }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

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

// update applies a status update and then has it acknowledged.
func (l *ledger) update(now time.Time, u update) {
	if at := l.tasks[u.task]; at != nil {
		l.apply(now, at, u)
		if !at.build.done {
			l.do(actSave{at.build})
		}
	} else if !terminal(u.state) && u.state != "TASK_UNREACHABLE" && u.state != "TASK_UNKNOWN" {
		// A task that was given up and has come back, or one of an earlier life.
		l.do(actKill{u.task, u.agent})
	}
	if len(u.uuid) > 0 {
		l.do(actAcknowledge{u})
	}
	l.settle(now)
}

// asked is called when the executor of a task asks whether it may push. Only the
// attempt that its build waits for may, and only when no other can still do so.
func (l *ledger) asked(now time.Time, task string, ask wire.PushAsk) {
	at := l.tasks[task]
	if at == nil || at.abandoned {
		return
	}
	b := at.build
	if b.lease.Attempt != at.n && b.lease.Until.After(now) {
		if !at.withheld {
			at.withheld = true
			l.notice(b, notice{event: infoEvent(now, at, fmt.Sprintf(
				"attempt %d cannot be reached and may still push; waiting up to %v for its right to end",
				b.lease.Attempt, b.lease.Until.Sub(now).Round(time.Second)))})
		}
		return
	}
	b.lease = lease{at.n, now.Add(l.policy.pushLease)}
	l.do(actSave{b})
	l.do(actGrant{task, at.agent, wire.PushGrant{Serial: ask.Serial, Lease: l.policy.pushLease}})
}

// terminal reports whether a task in this state never changes again.
func terminal(state string) bool {
	switch state {
	case "TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_LOST", "TASK_ERROR",
		"TASK_DROPPED", "TASK_GONE", "TASK_GONE_BY_OPERATOR":
		return true
	}
	return false
}

// apply changes the state of at as u says.
func (l *ledger) apply(now time.Time, at *attempt, u update) {
	reconciled := u.reason == "REASON_RECONCILIATION"
	switch {
	case u.state == "TASK_UNREACHABLE":
		if !at.unreachable.IsZero() {
			return
		}
		at.unreachable = now
		// Nobody promises to tell of its return: the update is lost if it comes
		// while there is no subscription.
		at.nextReconcile, at.reconcileWait = now.Add(reconcileMax), reconcileMax
		if !at.abandoned {
			l.notice(at.build, notice{event: infoEvent(now, at, fmt.Sprintf(
				"agent %s cannot be reached; waiting %v for it to return", at.hostname, l.policy.unreachableWait))})
		}
		return
	case u.state == "TASK_UNKNOWN" || u.state == "TASK_LOST" || u.state == "TASK_GONE":
		if reconciled && !at.heard && now.Sub(at.launched) < youngTask {
			at.nextReconcile = now.Add(youngTask / 2)
			return
		}
		l.end(now, at, u)
		return
	case reconciled && terminal(u.state) && u.state != "TASK_GONE_BY_OPERATOR" && !at.abandoned:
		// The master knows the end but keeps no data; the agent will send the
		// update itself, with the outcome in it, again and again.
		if at.ended.IsZero() {
			at.ended = now
		}
		return
	case terminal(u.state):
		l.end(now, at, u)
		return
	}
	returned := !at.unreachable.IsZero()
	began := u.state == "TASK_RUNNING" && !at.running
	at.heard = true
	at.unreachable = time.Time{}
	at.nextReconcile = now.Add(reconcilePeriod)
	at.reconcileWait = reconcileMin
	at.running = at.running || began
	switch {
	case at.abandoned && (returned || began):
		at.killWait = killMin // what was sent before did not reach it
		l.kill(now, at)
	case began && !at.abandoned:
		l.notice(at.build, notice{event: event(now, at.build, at, EventRunning)})
	}
}

func infoEvent(now time.Time, at *attempt, text string) Event {
	ev := event(now, at.build, at, EventInfo)
	ev.Text = text
	return ev
}

// end takes the terminal update of at.
func (l *ledger) end(now time.Time, at *attempt, u update) {
	if u.source != "SOURCE_MASTER" && u.source != "" && at.build.lease.Attempt == at.n {
		at.build.lease = lease{} // it is known to be dead, not only out of sight
	}
	l.untrack(at)
	if at.abandoned {
		return
	}
	outcome, failure := classify(at, u)
	logSize := int64(-1)
	if outcome != nil {
		logSize = outcome.LogSize
	}
	l.notice(at.build, notice{logEnd: &logEnd{size: logSize}})
	if failure == nil {
		l.succeed(now, at, outcome)
		return
	}
	if u.reason == "REASON_INVALID_OFFERS" {
		at.build.counted-- // the offer was gone before the task began: nobody's fault
	}
	l.retryOrFail(now, at, failure, u.reason)
}

// untrack forgets a task that has ended.
func (l *ledger) untrack(at *attempt) {
	delete(l.tasks, at.task)
	l.placed.remove(at.build.rules, at.held)
	at.build.live = slices.DeleteFunc(at.build.live, func(other *attempt) bool { return other == at })
	l.wanting = true // what it used is free now
	l.release(at.build)
}

// live reports whether a task may still run that can be told to stop.
func (l *ledger) live() bool {
	for _, at := range l.tasks {
		if at.unreachable.IsZero() {
			return true
		}
	}
	return false
}

// forsake forgets every task that is to be killed: nothing more will be heard of
// it.
func (l *ledger) forsake() {
	for _, at := range sortedAttempts(l.tasks) {
		if at.abandoned {
			l.untrack(at)
		}
	}
}

// disown forgets, as they are, the builds that have a task or are of an earlier
// life, and returns those that were not over.
func (l *ledger) disown() []*build {
	var builds []*build
	for _, b := range l.sortedBuilds() {
		if len(b.live) == 0 && !b.restored {
			continue
		}
		delete(l.builds, b.id)
		for _, at := range b.live {
			delete(l.tasks, at.task)
		}
		l.queue = slices.DeleteFunc(l.queue, func(q *build) bool { return q == b })
		if !b.done {
			builds = append(builds, b)
		}
	}
	return builds
}

// release lets go of what b needed for its attempts, once there is none.
func (l *ledger) release(b *build) {
	if b.done && len(b.live) == 0 {
		delete(l.builds, b.id)
		l.do(actRelease{b})
		l.do(actForget{b})
	}
}

func (l *ledger) succeed(now time.Time, at *attempt, o *wire.Outcome) {
	b := at.build
	b.result = &Result{
		ID: b.id, Image: b.image, Digest: o.Digest, Refs: o.Refs, Engine: o.Engine,
		Agent: at.agent, Hostname: at.hostname, Attempts: at.n, Started: o.Started, Finished: o.Ended,
	}
	l.finish(b)
	l.notice(b, notice{event: event(now, b, at, EventSucceeded), result: b.result})
	l.release(b)
}

// retryOrFail decides what follows the failed attempt at.
func (l *ledger) retryOrFail(now time.Time, at *attempt, failure *BuildError, reason string) {
	b := at.build
	switch {
	case failure.Class == ClassOOM && b.oomRetryMB > b.task.MemMB && !b.oomRaised:
		b.oomRaised = true
		b.resources.MemMB += b.oomRetryMB - b.task.MemMB
		b.task.MemMB = b.oomRetryMB
		l.retry(now, at, failure, 0)
	case !failure.Class.Retriable() || l.draining:
		l.fail(now, b, at, failure)
	case reason == "REASON_INVALID_OFFERS":
		l.retry(now, at, failure, 0)
	case b.counted >= b.maxAttempts:
		failure.Err = fmt.Errorf("%w; given up after %s", failure.Err, plural(b.counted, "attempt"))
		l.fail(now, b, at, failure)
	default:
		b.avoid[at.agent] = now.Add(l.policy.avoidFor)
		wait := min(retryMax, retryMin<<min(b.counted-1, 10))
		l.retry(now, at, failure, time.Duration(float64(wait)*(0.5+l.jitter()/2)))
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// retry queues the build of the failed attempt at again.
func (l *ledger) retry(now time.Time, at *attempt, failure *BuildError, wait time.Duration) {
	b := at.build
	ev := event(now, b, at, EventRetrying)
	ev.Err = l.complete(failure, b, at)
	l.notice(b, notice{event: ev})
	l.enqueue(now, b, now.Add(wait))
}

// fail ends b without an image; at is the attempt to blame, or nil.
func (l *ledger) fail(now time.Time, b *build, at *attempt, failure *BuildError) {
	if b.done {
		return
	}
	if b.current != nil {
		l.abandon(now, b.current)
	}
	b.failure = l.complete(failure, b, at)
	l.finish(b)
	ev := event(now, b, at, EventFailed)
	ev.Err = b.failure
	l.notice(b, notice{event: ev, err: b.failure})
	l.release(b)
}

// complete fills in what failure does not say of the build and attempt.
func (l *ledger) complete(failure *BuildError, b *build, at *attempt) *BuildError {
	failure.ID, failure.Image, failure.File = b.id, b.image, b.file
	if at != nil {
		failure.Agent, failure.Hostname, failure.Attempt = at.agent, at.hostname, at.n
	}
	return failure
}

// finish takes b out of the queue and lets nothing more happen to it.
func (l *ledger) finish(b *build) {
	b.done = true
	l.do(actSave{b})
	if b.current == nil {
		l.queue = slices.DeleteFunc(l.queue, func(q *build) bool { return q == b })
	}
}

// abandon has a task killed that its build no longer waits for. It does nothing
// to one that has ended.
func (l *ledger) abandon(now time.Time, at *attempt) {
	at.abandoned = true
	if l.tasks[at.task] == nil || !at.nextKill.IsZero() {
		return
	}
	at.killWait = killMin
	l.kill(now, at)
}

// kill sends a KILL, and says when to send another: neither the master nor the
// agent promises to deliver one.
func (l *ledger) kill(now time.Time, at *attempt) {
	l.do(actKill{at.task, at.agent})
	at.nextKill = now.Add(at.killWait)
	at.killWait = min(killMax, 2*at.killWait)
}

// tick does what is due by the clock.
func (l *ledger) tick(now time.Time) {
	due := make(map[string]AgentID)
	for _, at := range l.dueAttempts(now) {
		l.tickAttempt(now, at)
		if l.tasks[at.task] != nil && !at.nextReconcile.After(now) {
			due[at.task] = at.agent
			at.nextReconcile = now.Add(at.reconcileWait)
			at.reconcileWait = min(reconcileMax, 2*at.reconcileWait)
		}
	}
	if len(due) > 0 && l.connected {
		l.do(actReconcile{due})
	}
	if l.connected && l.busy() && !l.nextImplicit.After(now) {
		l.nextImplicit = now.Add(reconcilePeriod)
		l.do(actReconcile{})
	}
	l.explanations = explainAtOnce
	for _, b := range slices.Clone(l.queue) {
		l.tickQueued(now, b)
	}
	for _, b := range l.dueBuilds(now) {
		l.fail(now, b, b.current, &BuildError{Phase: b.phase(), Class: ClassTimeout, Err: fmt.Errorf(
			"not done after %v, the limit of a build; it was in phase %s", l.policy.buildTimeout, b.phase())})
	}
	l.settle(now)
}

// dueAttempts returns the attempts for which something may be due: few of many.
func (l *ledger) dueAttempts(now time.Time) []*attempt {
	due := make(map[string]*attempt)
	for id, at := range l.tasks {
		if !at.nextReconcile.After(now) || !at.nextKill.IsZero() && !at.nextKill.After(now) ||
			!at.unreachable.IsZero() || !at.ended.IsZero() || !at.running && now.Sub(at.launched) >= l.policy.launchTimeout {
			due[id] = at
		}
	}
	return sortedAttempts(due)
}

// dueBuilds returns the builds that have taken too long.
func (l *ledger) dueBuilds(now time.Time) []*build {
	if l.policy.buildTimeout == 0 {
		return nil
	}
	var due []*build
	for _, b := range l.builds {
		if !b.done && now.Sub(b.submitted) >= l.policy.buildTimeout {
			due = append(due, b)
		}
	}
	slices.SortFunc(due, func(a, b *build) int { return cmp.Compare(a.id, b.id) })
	return due
}

// sortedBuilds makes the order of actions independent of the map's.
func (l *ledger) sortedBuilds() []*build {
	return slices.SortedFunc(maps.Values(l.builds), func(a, b *build) int { return cmp.Compare(a.id, b.id) })
}

// sortedAttempts makes the order of actions independent of the map's.
func sortedAttempts(tasks map[string]*attempt) []*attempt {
	return slices.SortedFunc(maps.Values(tasks), func(a, b *attempt) int { return cmp.Compare(a.task, b.task) })
}

// tickAttempt does what is due for one task.
func (l *ledger) tickAttempt(now time.Time, at *attempt) {
	if !at.nextKill.IsZero() && !at.nextKill.After(now) && l.connected {
		l.kill(now, at)
	}
	if at.abandoned || !l.connected || now.Sub(l.since) < answerTime {
		return // what became of it meanwhile is not known yet
	}
	switch {
	case !at.unreachable.IsZero() && now.Sub(at.unreachable) >= l.policy.unreachableWait:
		l.replace(now, at, ClassLost, fmt.Errorf("agent could not be reached for %v", l.policy.unreachableWait))
	case !at.ended.IsZero() && now.Sub(at.ended) >= terminalDataLimit:
		l.replace(now, at, ClassLost, errors.New("the task ended, but its result never came"))
	case !at.running && at.unreachable.IsZero() && at.ended.IsZero() && now.Sub(at.launched) >= l.policy.launchTimeout:
		l.replace(now, at, ClassLaunch, fmt.Errorf("executor did not run within %v of its launch", l.policy.launchTimeout))
	}
}

// replace gives an attempt up that may still be alive.
func (l *ledger) replace(now time.Time, at *attempt, class Class, cause error) {
	l.abandon(now, at)
	l.notice(at.build, notice{logEnd: &logEnd{size: -1}})
	l.retryOrFail(now, at, &BuildError{Phase: at.build.phase(), Class: class, Err: cause}, "")
	if !at.build.done {
		l.do(actSave{at.build})
	}
}

// tickQueued does what is due for a build that waits.
func (l *ledger) tickQueued(now time.Time, b *build) {
	if !b.notBefore.After(now) && b.notBefore.After(l.lastRevive) {
		l.wanting = true // its backoff ended since offers were last asked for
	}
	waited := now.Sub(b.since)
	overdue := l.policy.queueTimeout > 0 && waited >= l.policy.queueTimeout
	if !overdue && now.Sub(b.explained) < l.policy.explainEvery || l.explanations == 0 {
		return
	}
	l.explanations--
	if overdue {
		l.fail(now, b, nil, &BuildError{Phase: PhaseQueue, Class: ClassTimeout, Err: fmt.Errorf(
			"no offer fitted within %v: %s", l.policy.queueTimeout, l.explain(b, now))})
		return
	}
	b.explained = now
	ev := event(now, b, nil, EventWaiting)
	ev.Text = fmt.Sprintf("waiting for %v: %s", waited.Round(time.Second), l.explain(b, now))
	l.notice(b, notice{event: ev})
}

// explain says why b still waits.
func (l *ledger) explain(b *build, now time.Time) string {
	if !l.connected {
		return "not connected to the master"
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

// classify turns a terminal update into the outcome of a success or the failure
// it reports.
func classify(at *attempt, u update) (*wire.Outcome, *BuildError) {
	if u.source == "SOURCE_EXECUTOR" && len(u.data) > 0 {
		outcome, err := wire.DecodeOutcome(u.data)
		switch {
		case err != nil:
			return nil, &BuildError{Phase: PhaseBuild, Class: ClassInvalid, Err: err}
		case outcome.Failure != nil:
			f := outcome.Failure
			class := Class(f.Class)
			if class == ClassCancelled {
				class = ClassPreempted // not by us, or the attempt would be abandoned
			}
			return outcome, &BuildError{
				Phase: Phase(f.Phase), Class: class, Step: f.Step, Line: f.Line, Err: errors.New(f.Message),
			}
		case u.state == "TASK_FINISHED":
			return outcome, nil
		}
	}
	cause := describe(u)
	if u.source == "SOURCE_EXECUTOR" && len(u.data) == 0 {
		cause += "; the executor told no outcome: is it portainer's?"
	}
	return nil, &BuildError{Phase: at.build.phase(), Class: classOf(u), Err: errors.New(cause)}
}

// classOf tells the class of a failure that Mesos reports, by mesos
// docs/task-state-reasons.md.
func classOf(u update) Class {
	switch u.reason {
	case "REASON_CONTAINER_LIMITATION_MEMORY":
		return ClassOOM
	case "REASON_CONTAINER_LIMITATION_DISK":
		return ClassDisk
	case "REASON_CONTAINER_LAUNCH_FAILED", "REASON_EXECUTOR_REGISTRATION_TIMEOUT":
		return ClassLaunch
	case "REASON_AGENT_DRAINING", "REASON_CONTAINER_PREEMPTED":
		return ClassPreempted
	case "REASON_MAX_COMPLETION_TIME_REACHED":
		return ClassTimeout
	case "REASON_TASK_INVALID", "REASON_TASK_UNAUTHORIZED", "REASON_TASK_GROUP_INVALID", "REASON_TASK_GROUP_UNAUTHORIZED":
		return ClassInvalid
	}
	switch {
	case u.state == "TASK_ERROR":
		return ClassInvalid
	case u.state == "TASK_KILLED":
		return ClassPreempted // not by us: an operator, or the executor's shutdown
	case u.state == "TASK_FINISHED", u.state == "TASK_FAILED" && u.source == "SOURCE_EXECUTOR":
		return ClassInvalid // an executor that tells no outcome is not ours
	}
	return ClassLost
}

// describe puts a status update into words.
func describe(u update) string {
	text := u.state
	if u.reason != "" {
		text += " " + u.reason
	}
	if u.message != "" {
		text += ": " + u.message
	}
	return text
}
