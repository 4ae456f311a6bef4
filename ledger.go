package portainer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/org/portainer/internal/sshforward"
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
	unconnected  error     // why not; nil before the first try has ended
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
	maxUnheard        = 5                // launches that may get lost without being counted as attempts
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
	cacheFrom   []string          // if it holds secrets, which task.Options does not; never saved
	cacheTo     []string
	ssh         map[string]SSHAgent // ssh agents by id; never saved
	ownSecrets  bool                // there are any of these, or were in an earlier life
	maxAttempts int
	oomRetryMB  float64 // memory of the one attempt after an OOM; 0 means none
	task        wire.Task
	outputs     []Output
	// onDemand tells that there is a context which was not staged, because the
	// Dockerfile takes nothing from it.
	onDemand bool
	late     *lateContext // where that is, for a later life; nil if it could not stage it
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
	unheard   int // of those that do not, the ones of which nobody ever spoke
	oomRaised bool
	avoid     map[AgentID]time.Time // until when
	current   *attempt              // nil while waiting
	live      []*attempt            // those in ledger.tasks, oldest first
	lease     lease                 // who may push
	restored  bool                  // from an earlier life
	done      bool
	result    *Result     // when done, this
	failure   *BuildError // or that
	delivered []wire.Delivered
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
	abandoned bool             // its build no longer waits for it: it is to be killed
	sealKey   string           // the public key of its executor, once it asked for secrets
	ssh       *sshforward.Desk // what its executor asked ssh agents; nil before it did
	relieved  bool             // its executor was told that its log is read from files
	withheld  bool             // it was told that another attempt may still push

	maintenance time.Time // when its agent is to go down, as far as that is planned

	unreachable   time.Time // since when; zero if it is reachable
	ended         time.Time // when the master said it has ended, though the update itself has not come
	nextReconcile time.Time
	reconcileWait time.Duration
	nextKill      time.Time // zero unless it is being killed
	killWait      time.Duration
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
	// actYield agrees that agents may go down.
	actYield struct {
		offers []OfferID
		refuse time.Duration
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

// disconnected is called when the subscription is lost, or another try has brought none.
func (l *ledger) disconnected(why error) { l.connected, l.unconnected = false, why }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
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

// release lets go of what b needed for its attempts, once there is none.
func (l *ledger) release(b *build) {
	if b.done && len(b.live) == 0 {
		delete(l.builds, b.id)
		l.do(actRelease{b})
		l.do(actForget{b})
	}
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

// sortedBuilds makes the order of actions independent of the map's.
func (l *ledger) sortedBuilds() []*build {
	return slices.SortedFunc(maps.Values(l.builds), func(a, b *build) int { return cmp.Compare(a.id, b.id) })
}

// sortedAttempts makes the order of actions independent of the map's.
func sortedAttempts(tasks map[string]*attempt) []*attempt {
	return slices.SortedFunc(maps.Values(tasks), func(a, b *attempt) int { return cmp.Compare(a.task, b.task) })
}
