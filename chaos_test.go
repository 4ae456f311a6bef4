package portainer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/wire"
)

// TestLedgerChaos drives ledgers with random but legal inputs from a simulated
// cluster that loses what Mesos may lose, and checks what must hold whatever
// happens. The seed in the name of a failed test repeats it.
func TestLedgerChaos(t *testing.T) {
	const seeds = 60
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSim(t, uint64(seed))
			for range 400 {
				s.step()
				s.check()
			}
			s.finish()
		})
	}
}

// A sim is a master with its agents, as a ledger sees them.
type sim struct {
	t      *testing.T
	rand   *rand.Rand
	ledger *ledger
	now    time.Time

	connected  bool
	suppressed bool
	agents     []*simAgent
	tasks      map[string]*simTask // known to the master or an agent
	inFlight   []update            // to the framework
	offerCount int
	uuidCount  int
	quiet      bool // nothing goes wrong any more

	offered map[OfferID]Offer // of the OFFERS event at hand
	builds  map[BuildID]*simBuild
}

type simAgent struct {
	id          AgentID
	total, used Resources
	unreachable bool
}

type simTask struct {
	id      string
	agent   *simAgent
	used    Resources
	visible bool     // authorized: reconciliation knows it
	state   string   // at the agent
	outbox  []update // of the agent, unacknowledged; only the first is sent
	lost    bool     // the agent has forgotten it
}

type simBuild struct {
	attempts, invalid, oom int
	ends, releases         int
	saved                  bool
}

const chaosAttempts = 3

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{
		t: t, rand: rand.New(rand.NewPCG(seed, 7)), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		tasks: make(map[string]*simTask), builds: make(map[BuildID]*simBuild),
	}
	for i := range 1 + s.rand.IntN(4) {
		s.agents = append(s.agents, &simAgent{
			id: AgentID(fmt.Sprintf("a%d", i)), total: Resources{CPUs: float64(2 + s.rand.IntN(6)), MemMB: 8192},
		})
	}
	p := policy{
		launchTimeout: time.Minute, unreachableWait: 2 * time.Minute, avoidFor: time.Minute, explainEvery: 10 * time.Second,
	}
	if s.rand.IntN(2) == 0 {
		p.queueTimeout, p.buildTimeout = 5*time.Minute, 20*time.Minute
	}
	s.ledger = newLedger(p, MatcherFunc(s.match), s.rand.Float64)
	return s
}

func (s *sim) chance(percent int) bool { return s.rand.IntN(100) < percent }

// match is mostly Spread, at times FirstFit, and at times nonsense.
func (s *sim) match(offers []Offer, builds []Pending) []Placement {
	for i := range builds[1:] {
		s.must(!builds[i+1].Since.Before(builds[i].Since), "pending builds are not the oldest first")
	}
	switch {
	case !s.quiet && s.chance(5):
		var wild []Placement
		for range 5 {
			wild = append(wild, Placement{Build: builds[s.rand.IntN(len(builds))].ID, Offer: offers[s.rand.IntN(len(offers))].ID})
		}
		wild = append(wild, Placement{Build: "nobody", Offer: offers[0].ID}, Placement{Build: builds[0].ID, Offer: "nothing"})
		clear(offers) // against the rules; it must only hurt itself
		return wild
	case s.chance(30):
		return FirstFit{}.MatchOffers(offers, builds)
	}
	return Spread{}.MatchOffers(offers, builds)
}

// step makes something happen.
func (s *sim) step() {
	s.now = s.now.Add(time.Duration(s.rand.IntN(500)) * time.Millisecond)
	switch n := s.rand.IntN(100); {
	case n < 6:
		s.submit()
	case n < 8 && len(s.builds) > 0:
		ids := slices.Sorted(maps.Keys(s.builds))
		s.ledger.cancel(s.now, ids[s.rand.IntN(len(ids))], ClassCancelled, ErrStopped)
	case n < 10:
		s.now = s.now.Add(time.Duration(s.rand.IntN(90)) * time.Second)
	case n < 25:
		s.offer()
	case n < 50:
		s.deliver()
	case n < 75:
		s.progress()
	case n < 78:
		s.toggleAgent(s.agents[s.rand.IntN(len(s.agents))])
	case n < 80 && s.connected:
		s.disconnect()
	case n < 86 && !s.connected:
		s.subscribe()
	case n < 90:
		s.resend()
	default:
		s.ledger.tick(s.now)
	}
	s.perform()
}

func (s *sim) submit() {
	id := BuildID(fmt.Sprintf("b%03d", len(s.builds)))
	s.builds[id] = new(simBuild)
	mem := float64(256 * (1 + s.rand.IntN(8)))
	s.ledger.submit(s.now, buildSpec{
		id: id, maxAttempts: chaosAttempts, oomRetryMB: float64(4096 * s.rand.IntN(2)), task: wire.Task{MemMB: mem},
		resources: Resources{CPUs: 0.1 * float64(1+s.rand.IntN(20)), MemMB: mem + 64},
	})
}

// offer sends one OFFERS event with what is free on the agents.
func (s *sim) offer() {
	if !s.connected || s.suppressed {
		return
	}
	s.offered = make(map[OfferID]Offer)
	var offers []Offer
	for _, a := range s.agents {
		free := a.total.Sub(a.used)
		if a.unreachable || thousandths(free.CPUs) < 10 || !s.quiet && s.chance(20) {
			continue
		}
		s.offerCount++
		o := Offer{ID: OfferID(fmt.Sprintf("o%d", s.offerCount)), Agent: a.id, Hostname: string(a.id), Resources: free}
		s.offered[o.ID] = o
		offers = append(offers, o)
	}
	if len(offers) == 0 {
		return
	}
	s.ledger.offers(s.now, offers)
	s.perform()
	require.Empty(s.t, s.offered, "offers that were neither accepted nor declined")
}

// perform does what the ledger wants, as far as the connection allows.
func (s *sim) perform() {
	for _, a := range s.ledger.take() {
		switch a := a.(type) {
		case actRevive:
			s.suppressed = s.suppressed && !s.connected
		case actSuppress:
			s.suppressed = true
		case actDecline:
			for _, id := range a.offers {
				require.Contains(s.t, s.offered, id, "declined, but not offered or used already")
				delete(s.offered, id)
			}
		case actAccept:
			s.accept(a)
		case actKill:
			s.kill(a)
		case actReconcile:
			s.reconcile(a)
		case actAcknowledge:
			require.Fail(s.t, "acknowledgement of no update", "%+v", a)
		case actSave:
			s.builds[a.build.id].saved = true
		case actNotice:
			s.notice(a)
		case actRelease:
			b := s.builds[a.build.id]
			b.releases++
			require.Equal(s.t, 1, b.ends, "%s released before its end was told", a.build.id)
			require.Equal(s.t, 1, b.releases, "%s released twice", a.build.id)
		}
	}
}

func (s *sim) notice(a actNotice) {
	b := s.builds[a.id]
	s.must(b.ends == 0, "%s was told something after its end", a.id)
	n := a.notice
	if n.result != nil || n.err != nil {
		require.False(s.t, n.result != nil && n.err != nil)
		require.True(s.t, n.event.Kind == EventSucceeded || n.event.Kind == EventFailed)
		b.ends++
	}
}

func (s *sim) accept(a actAccept) {
	o, ok := s.offered[a.offer]
	require.True(s.t, ok, "offer %s accepted, but not offered or used already", a.offer)
	delete(s.offered, a.offer)
	require.NotEmpty(s.t, a.attempts)
	var used Resources
	for _, at := range a.attempts {
		b := s.builds[at.build.id]
		b.attempts++
		require.True(s.t, b.saved, "attempt %s launched before it was saved", at.task)
		require.NotContains(s.t, s.tasks, at.task, "task id used twice")
		require.Equal(s.t, o.Agent, at.agent)
		require.LessOrEqual(s.t, b.attempts, chaosAttempts+b.invalid+b.oom+maxUnheard, "too many attempts of %s", at.build.id)
		used = used.Add(at.build.resources)
	}
	require.True(s.t, o.Resources.Fits(used), "launched %v on an offer of %v", used, o.Resources)
	agent := s.agent(o.Agent)
	switch {
	case !s.quiet && s.chance(3): // the call is lost with the connection, which breaks
		s.disconnect()
	case !s.quiet && s.chance(5): // the offer was rescinded
		for _, at := range a.attempts {
			s.builds[at.build.id].invalid++
			s.send(update{task: at.task, agent: at.agent, state: "TASK_DROPPED", source: "SOURCE_MASTER", reason: "REASON_INVALID_OFFERS"})
		}
	default:
		for _, at := range a.attempts {
			s.tasks[at.task] = &simTask{id: at.task, agent: agent, used: at.build.resources, visible: s.chance(80), state: "TASK_STAGING"}
			agent.used = agent.used.Add(at.build.resources)
		}
	}
}

func (s *sim) agent(id AgentID) *simAgent {
	return s.agents[slices.IndexFunc(s.agents, func(a *simAgent) bool { return a.id == id })]
}

func (s *sim) kill(a actKill) {
	at := s.ledger.tasks[a.task]
	require.False(s.t, at != nil && !at.abandoned, "%s was killed although its build waits for it", a.task)
	task := s.tasks[a.task]
	switch {
	case !s.connected:
	case task == nil || !task.visible || task.agent.unreachable:
		s.answer(a.task, a.agent)
	case !s.quiet && s.chance(20): // lost on the way to the agent
	case !terminal(task.state) && task.state == "TASK_STAGING":
		s.end(task, update{state: "TASK_KILLED", reason: "REASON_TASK_KILLED_DURING_LAUNCH", source: "SOURCE_AGENT"})
	case !terminal(task.state):
		s.end(task, s.outcome("TASK_KILLED", ClassCancelled))
	}
}

func (s *sim) reconcile(a actReconcile) {
	switch {
	case !s.connected || !s.quiet && s.chance(20):
	case a.tasks == nil:
		for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
			if task := s.tasks[id]; task.visible && !task.lost && !task.agent.unreachable {
				s.answer(id, task.agent.id)
			}
		}
	default:
		for _, id := range slices.Sorted(maps.Keys(a.tasks)) {
			s.answer(id, a.tasks[id])
		}
	}
}

// answer sends what an explicit reconciliation of one task is answered with.
func (s *sim) answer(id string, agent AgentID) {
	u := update{task: id, agent: agent, source: "SOURCE_MASTER", reason: "REASON_RECONCILIATION"}
	task := s.tasks[id]
	switch {
	case s.agent(agent).unreachable:
		u.state = "TASK_UNREACHABLE"
	case task == nil || !task.visible || task.lost:
		u.state = "TASK_GONE"
	default:
		u.state = task.state
	}
	s.send(u)
}

// send puts an update on its way to the framework.
func (s *sim) send(u update) {
	if s.connected {
		s.inFlight = append(s.inFlight, u)
	}
}

// deliver hands the oldest update over, at times twice.
func (s *sim) deliver() {
	if len(s.inFlight) == 0 {
		return
	}
	u := s.inFlight[0]
	s.inFlight = s.inFlight[1:]
	times := 1
	if !s.quiet && s.chance(10) {
		times = 2
	}
	for range times {
		s.hand(u)
	}
}

// hand gives u to the ledger, which acknowledges it once if it has a uuid.
func (s *sim) hand(u update) {
	s.ledger.update(s.now, u)
	var acknowledged int
	actions := s.ledger.take()
	rest := actions[:0]
	for _, a := range actions {
		if ack, ok := a.(actAcknowledge); ok {
			s.must(ack.update.task == u.task && ack.update.agent == u.agent && string(ack.update.uuid) == string(u.uuid), "%+v acknowledged for %+v", ack.update, u)
			acknowledged++
			continue
		}
		rest = append(rest, a)
	}
	if len(u.uuid) > 0 {
		s.must(acknowledged == 1, "%d acknowledgements of %+v", acknowledged, u)
		if s.connected && (s.quiet || !s.chance(10)) {
			s.acknowledged(u)
		}
	} else {
		s.must(acknowledged == 0, "acknowledgement of %+v, which has no uuid", u)
	}
	s.ledger.out = append(rest, s.ledger.out...)
	s.perform()
}

// acknowledged has the agent send its next update.
func (s *sim) acknowledged(u update) {
	task := s.tasks[u.task]
	if task == nil || len(task.outbox) == 0 || string(task.outbox[0].uuid) != string(u.uuid) {
		return
	}
	task.outbox = task.outbox[1:]
	switch {
	case len(task.outbox) > 0:
		s.forward(task)
	case terminal(task.state):
		delete(s.tasks, task.id)
	}
}

// queue gives the agent of a task another update to send.
func (s *sim) queue(task *simTask, u update) {
	s.uuidCount++
	u.task, u.agent, u.uuid = task.id, task.agent.id, fmt.Append(nil, s.uuidCount)
	task.outbox = append(task.outbox, u)
	if len(task.outbox) == 1 {
		s.forward(task)
	}
}

// forward sends the first unacknowledged update of a task.
func (s *sim) forward(task *simTask) {
	if len(task.outbox) > 0 && !task.agent.unreachable && !task.lost {
		s.send(task.outbox[0])
	}
}

func (s *sim) resend() {
	for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
		s.forward(s.tasks[id])
	}
}

func (s *sim) end(task *simTask, u update) {
	task.state = u.state
	task.agent.used = task.agent.used.Sub(task.used)
	s.queue(task, u)
}

// outcome is a terminal update of an executor.
func (s *sim) outcome(state string, class Class) update {
	o := wire.Outcome{Digest: "sha256:1"}
	if class != "" {
		o = wire.Outcome{Failure: &wire.Failure{Class: string(class), Phase: string(PhaseBuild), Message: "failed"}}
	}
	data, err := o.Encode()
	require.NoError(s.t, err)
	return update{state: state, source: "SOURCE_EXECUTOR", data: data}
}

// progress moves one task on.
func (s *sim) progress() {
	var alive []string
	for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
		if !terminal(s.tasks[id].state) {
			alive = append(alive, id)
		}
	}
	if len(alive) == 0 {
		return
	}
	task := s.tasks[alive[s.rand.IntN(len(alive))]]
	switch {
	case !task.visible:
		task.visible = true
	case s.quiet && task.state == "TASK_RUNNING":
		s.end(task, s.outcome("TASK_FINISHED", ""))
	case s.quiet:
		task.state = "TASK_RUNNING"
		s.queue(task, update{state: "TASK_RUNNING", source: "SOURCE_EXECUTOR"})
	case task.state == "TASK_STAGING" && s.chance(10):
		s.end(task, update{state: "TASK_FAILED", source: "SOURCE_AGENT", reason: "REASON_CONTAINER_LAUNCH_FAILED"})
	case task.state == "TASK_STAGING" && s.chance(80):
		task.state = "TASK_RUNNING"
		s.queue(task, update{state: "TASK_STARTING", source: "SOURCE_EXECUTOR"})
		s.queue(task, update{state: "TASK_RUNNING", source: "SOURCE_EXECUTOR"})
	case task.state == "TASK_STAGING":
	case s.chance(10):
		s.end(task, update{state: "TASK_FAILED", source: "SOURCE_AGENT", reason: "REASON_EXECUTOR_TERMINATED"})
	case s.chance(5):
		s.oom(task)
		s.end(task, update{state: "TASK_FAILED", source: "SOURCE_AGENT", reason: "REASON_CONTAINER_LIMITATION_MEMORY"})
	case s.chance(10):
		s.end(task, s.outcome("TASK_FAILED", ClassUser))
	case s.chance(5):
		s.end(task, update{state: "TASK_KILLED", source: "SOURCE_AGENT", reason: "REASON_AGENT_DRAINING"})
	case s.chance(5): // the agent was restarted without its checkpoints
		task.lost, task.state = true, "TASK_LOST"
		task.agent.used = task.agent.used.Sub(task.used)
	case s.chance(60):
		s.end(task, s.outcome("TASK_FINISHED", ""))
	}
}

func (s *sim) oom(task *simTask) {
	if at := s.ledger.tasks[task.id]; at != nil {
		s.builds[at.build.id].oom = 1
	}
}

// toggleAgent makes an agent unreachable, or brings it back.
func (s *sim) toggleAgent(a *simAgent) {
	a.unreachable = !a.unreachable
	for _, id := range slices.Sorted(maps.Keys(s.tasks)) {
		task := s.tasks[id]
		switch {
		case task.agent != a || task.lost || !task.visible:
		case a.unreachable:
			s.send(update{task: id, agent: a.id, state: "TASK_UNREACHABLE", source: "SOURCE_MASTER", reason: "REASON_AGENT_REMOVED"})
		default:
			if !terminal(task.state) {
				s.send(update{task: id, agent: a.id, state: task.state, source: "SOURCE_MASTER", reason: "REASON_AGENT_REREGISTERED"})
			}
			s.forward(task)
		}
	}
}

func (s *sim) disconnect() {
	s.connected, s.inFlight = false, nil
	s.ledger.disconnected(nil)
}

func (s *sim) subscribe() {
	s.connected, s.suppressed = true, true
	s.resend()
	s.ledger.subscribed(s.now)
}

// must fails the test unless ok: require's own checks are too slow for so many.
func (s *sim) must(ok bool, format string, args ...any) {
	if !ok {
		s.t.Helper()
		require.Fail(s.t, fmt.Sprintf(format, args...))
	}
}

// check looks at what must hold between any two inputs.
func (s *sim) check() {
	waiting := make(map[*build]bool)
	for _, b := range s.ledger.queue {
		s.must(!waiting[b], "%s waits twice", b.id)
		s.must(b.current == nil, "%s waits and runs", b.id)
		waiting[b] = true
	}
	live := make(map[*build]*attempt)
	for _, at := range s.ledger.tasks {
		s.must(slices.Contains(at.build.live, at), "%s is not among the attempts of its build", at.task)
		if !at.abandoned {
			s.must(live[at.build] == nil, "%s has two attempts that count", at.build.id)
			s.must(at == at.build.current, "%s counts, but is not the current attempt", at.task)
			live[at.build] = at
		}
	}
	for id, b := range s.ledger.builds {
		s.must(b.done == (s.builds[id].ends == 1), "%s: done %v, told %d times", id, b.done, s.builds[id].ends)
		s.must(b.done || waiting[b] != (live[b] != nil), "%s neither waits nor runs, or does both", id)
	}
}

// finish heals the cluster and lets time pass, until nothing is left.
func (s *sim) finish() {
	s.quiet = true
	for _, a := range s.agents {
		if a.unreachable {
			s.toggleAgent(a)
		}
	}
	for range 4000 {
		if len(s.ledger.builds) == 0 && len(s.ledger.tasks) == 0 {
			break
		}
		if !s.connected {
			s.subscribe()
		}
		s.now = s.now.Add(time.Second)
		s.ledger.tick(s.now)
		s.perform()
		s.offer()
		s.progress()
		s.resend()
		for len(s.inFlight) > 0 {
			s.deliver()
		}
		s.check()
	}
	require.Empty(s.t, s.ledger.builds)
	require.Empty(s.t, s.ledger.tasks)
	require.Empty(s.t, s.ledger.queue)
	require.False(s.t, s.ledger.busy())
	require.False(s.t, s.ledger.reviving, "offers are still asked for")
	for id, b := range s.builds {
		require.Equal(s.t, 1, b.ends, id)
		require.Equal(s.t, 1, b.releases, id)
	}
}
