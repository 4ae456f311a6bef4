package portainer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// tickEvery is how often the ledger is asked what is due, while it has anything.
const tickEvery = 100 * time.Millisecond

// teardownTimeout bounds the call that removes the framework from the master.
const teardownTimeout = 5 * time.Second

// A loop is the state of Run, and belongs to its goroutine: the ledger, and what
// it takes to carry out what the ledger decides.
type loop struct {
	f           *Framework
	ledger      *ledger
	client      *schedapi.Client
	frameworkID string
	boxes       map[BuildID]*mailbox
	recovered   map[BuildID]*recovered   // not yet attached to
	forgotten   map[BuildID]bool         // to leave the state when the ledger has done with them
	raw         map[OfferID]*mesos.Offer // of the OFFERS event at hand
	lastErr     error                    // why there is no subscription
	fatal       error                    // the state cannot be kept
	cleanup     sync.WaitGroup           // removals of staged contexts, and answers about secrets
	cleanupCtx  context.Context
}

// recovered is a build of an earlier life.
type recovered struct {
	box   *mailbox
	image string
}

// Run registers with the master and schedules builds until ctx is done; then it
// ends every build with ErrStopped, kills what still runs, removes what it
// staged, tears the framework down, and returns. It owns every goroutine that the
// Framework starts; none is left when it returns.
//
// With a state directory it first takes over what an earlier framework left. If
// the cause of ctx is ErrDetached, it then leaves everything as it is, for a later
// framework.
//
// Run may be called once. It returns context.Cause(ctx) after an orderly stop
// and an error wrapping ErrRejected if the master refuses the framework; lost
// connections are retried for ever.
func (f *Framework) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: Run was called before", ErrInvalid)
	}
	defer close(f.stopped)
	defer f.masters.Close()
	defer f.files.Close()
	if f.state != nil {
		defer f.state.close()
	}

	// The connection outlives ctx: the orderly stop needs it.
	alive, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()

	l := &loop{
		f: f,
		ledger: newLedger(policy{
			queueTimeout:    f.cfg.QueueTimeout,
			buildTimeout:    f.cfg.BuildTimeout,
			launchTimeout:   f.cfg.LaunchTimeout,
			unreachableWait: f.cfg.UnreachableTimeout,
			pushLease:       f.cfg.PushLease,
			avoidFor:        avoidFor,
			explainEvery:    explainEvery,
		}, f.cfg.Matcher, rand.Float64),
		frameworkID: f.cfg.FrameworkID,
		boxes:       make(map[BuildID]*mailbox),
		recovered:   make(map[BuildID]*recovered),
		forgotten:   make(map[BuildID]bool),
		cleanupCtx:  alive,
	}
	defer l.cleanup.Wait()
	l.restore()
	for {
		err := l.connect(ctx, alive)
		if f.state == nil || !errors.Is(err, schedapi.ErrRemoved) {
			return err
		}
		// The id of an earlier life has expired: go on as a new framework.
		f.cfg.Logger.Warn("the master has removed the framework; subscribing as a new one", "framework", l.frameworkID)
		l.frameworkID = ""
		if err := f.state.setFramework(""); err != nil {
			return l.abort(fmt.Errorf("state: %w", err))
		}
		l.ledger.abandonAll(time.Now())
		if err := l.perform(); err != nil {
			return l.abort(err)
		}
	}
}

// restore takes over what the state directory holds.
func (l *loop) restore() {
	for i := range l.f.past {
		r := &l.f.past[i]
		box := newMailbox()
		l.boxes[r.ID] = box
		l.recovered[r.ID] = &recovered{box, r.Image}
	}
	l.ledger.restore(time.Now(), l.f.past)
}

// connect runs the loop over one framework id.
func (l *loop) connect(ctx, alive context.Context) error {
	client, err := l.f.newClient(l.frameworkID)
	if err != nil {
		return err
	}
	l.client = client
	listening, hangUp := context.WithCancel(alive)
	events := make(chan schedapi.Event)
	rejected := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		rejected <- client.Run(listening, func(ev schedapi.Event) {
			select {
			case events <- ev:
			case <-listening.Done():
			}
		})
	})
	err = l.run(ctx, events, rejected)
	hangUp()
	reader.Wait()
	return err
}

const (
	// avoidFor is how long a build keeps away from an agent that lost it.
	avoidFor = 10 * time.Minute
	// explainEvery is how often a waiting build is told why.
	explainEvery = 30 * time.Second
)

// run is the loop proper. It returns when the framework is to end, with nothing
// of it left on the cluster if the cluster could be reached.
func (l *loop) run(ctx context.Context, events <-chan schedapi.Event, rejected <-chan error) error {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	done := ctx.Done()
	var deadline, unreachable <-chan time.Time
	if limit := l.f.cfg.ConnectTimeout; limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		unreachable = timer.C
	}
	for {
		var ticks <-chan time.Time
		if l.ledger.busy() {
			ticks = ticker.C
		}
		select {
		case ev := <-events:
			l.handle(ev)
			if l.ledger.connected {
				unreachable = nil
			}
		case <-unreachable:
			err := fmt.Errorf("%w at %s within %v", ErrUnreachable, l.f.masters, l.f.cfg.ConnectTimeout)
			if l.lastErr != nil {
				err = fmt.Errorf("%w: %w", err, l.lastErr)
			}
			return l.abort(err)
		case do := <-l.f.inbox:
			do(l)
		case now := <-ticks:
			l.ledger.tick(now)
		case <-done:
			done = nil
			if l.detaching(ctx) {
				return l.detach(ctx)
			}
			timer := time.NewTimer(l.f.cfg.ShutdownTimeout)
			defer timer.Stop()
			deadline = timer.C
			l.ledger.drain(time.Now(), ClassCancelled, ErrStopped)
		case <-deadline:
			l.f.cfg.Logger.Warn("tasks still ran at the end", "tasks", len(l.ledger.tasks), "waited", l.f.cfg.ShutdownTimeout)
			l.teardown()
			return l.leave(context.Cause(ctx))
		case err := <-rejected:
			err = fmt.Errorf("%w: %w", ErrRejected, err)
			if l.f.state != nil && errors.Is(err, schedapi.ErrRemoved) && done != nil {
				return err // the builds go on under another id
			}
			return l.abort(err)
		}
		if err := l.perform(); err != nil {
			return l.abort(err)
		}
		if done == nil && !l.ledger.live() {
			l.teardown()
			return l.leave(context.Cause(ctx))
		}
	}
}

// abort ends every build for want of a master, and returns why.
func (l *loop) abort(why error) error {
	l.ledger.drain(time.Now(), ClassLost, why)
	return l.leave(why)
}

// leave lets go of what tasks use that did not end in time, unless a later life
// sees to them, and returns why.
func (l *loop) leave(why error) error {
	if l.f.state == nil {
		l.ledger.forsake()
	}
	return errors.Join(why, l.perform())
}

// detaching reports whether tasks are to go on without the framework.
func (l *loop) detaching(ctx context.Context) bool {
	return l.f.state != nil && errors.Is(context.Cause(ctx), ErrDetached)
}

// detach lets whoever waits for a build go; the builds themselves go on.
func (l *loop) detach(ctx context.Context) error {
	for id, box := range l.boxes {
		box.post(notice{err: &BuildError{ID: id, Phase: PhaseBuild, Class: ClassCancelled, Err: ErrDetached}})
	}
	return context.Cause(ctx)
}

// teardown removes the framework from the master, so that it does not wait for
// the failover timeout.
func (l *loop) teardown() {
	if !l.ledger.connected {
		return
	}
	ctx, cancel := context.WithTimeout(l.cleanupCtx, teardownTimeout)
	defer cancel()
	if err := l.client.Do(ctx, &scheduler.Call{Type: scheduler.Call_TEARDOWN}); err != nil {
		l.f.cfg.Logger.Warn("framework could not be torn down; the master removes it after its failover timeout", "err", err)
		return
	}
	if l.f.state != nil {
		if err := l.f.state.setFramework(""); err != nil {
			l.f.cfg.Logger.Warn("state directory keeps the id of a framework that is gone", "err", err)
		}
	}
}

// submit takes a new build; what happens to it goes to box.
func (l *loop) submit(spec buildSpec, box *mailbox) {
	if err := l.checkID(spec.id); err != nil {
		failure := &BuildError{
			ID: spec.id, Image: spec.image, File: spec.file, Phase: PhaseQueue, Class: ClassInvalid,
			Err: err,
		}
		ev := Event{Build: spec.id, Image: spec.image, Kind: EventFailed, Time: time.Now(), Err: failure}
		box.post(notice{event: ev, err: failure})
		l.release(&build{buildSpec: spec})
		return
	}
	l.boxes[spec.id] = box
	l.ledger.submit(time.Now(), spec)
	if l.ledger.draining {
		l.ledger.cancel(time.Now(), spec.id, ClassCancelled, ErrStopped)
	}
}

// checkID tells what is wrong with the id of a new build.
func (l *loop) checkID(id BuildID) error {
	switch {
	case l.ledger.builds[id] != nil || l.boxes[id] != nil:
		return fmt.Errorf("build id %q is in use", id)
	case l.f.state != nil && l.f.state.has(id):
		return fmt.Errorf("build id %q is in use: the state directory has its result until that is forgotten", id)
	}
	return nil
}

// handle takes an event of the master.
func (l *loop) handle(ev schedapi.Event) {
	now := time.Now()
	log := l.f.cfg.Logger
	if ev.Event == nil {
		log.Debug("not connected to the master", "err", ev.Disconnected) // the client has warned
		l.lastErr = ev.Disconnected
		l.ledger.disconnected()
		return
	}
	switch ev.Type {
	case scheduler.Event_SUBSCRIBED:
		if err := l.adopt(ev.Subscribed.FrameworkID.Value); err != nil {
			l.fatal = err
			return
		}
		log.Info("subscribed", "framework", l.frameworkID)
		l.ledger.subscribed(now)
	case scheduler.Event_OFFERS:
		l.raw = make(map[OfferID]*mesos.Offer, len(ev.Offers.Offers))
		offers := make([]Offer, len(ev.Offers.Offers))
		for i := range ev.Offers.Offers {
			o := &ev.Offers.Offers[i]
			offers[i] = fromMesos(o, l.f.cfg.TLS != nil)
			l.raw[offers[i].ID] = o
		}
		log.Debug("offers", "count", len(offers))
		l.ledger.offers(now, offers)
	case scheduler.Event_UPDATE:
		u := updateFromMesos(&ev.Update.Status)
		log.Debug("status update", "task", u.task, "state", u.state, "reason", u.reason, "message", u.message)
		l.ledger.update(now, u)
		if ask, err := seal.DecodeAsk(u.data); err == nil {
			l.answerSecrets(ask, u.task, u.agent)
		}
	case scheduler.Event_MESSAGE:
		l.message(ev.Message)
	case scheduler.Event_FAILURE:
		log.Debug("failure", "agent", ev.Failure.GetAgentID().GetValue(), "executor", ev.Failure.GetExecutorID().GetValue())
	case scheduler.Event_RESCIND, scheduler.Event_HEARTBEAT:
		// No offer is held, so there is none to take back.
	default:
		log.Debug("event passed over", "type", ev.Type.String())
	}
}

// adopt makes id the framework's, durably before anything is done under it: an id
// that is lost is a framework whose tasks nobody can find again.
func (l *loop) adopt(id string) error {
	if l.f.state != nil && id != l.frameworkID {
		if err := l.f.state.setFramework(id); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	l.frameworkID = id
	return nil
}

// message takes what an executor says: that it wants to push or to have secrets, or
// that its log has grown, of which whoever follows the log is told.
func (l *loop) message(m *scheduler.Event_Message) {
	if ask, err := wire.DecodePushAsk(m.Data); err == nil {
		l.ledger.asked(time.Now(), m.ExecutorID.Value, ask)
		return
	}
	if ask, err := seal.DecodeAsk(m.Data); err == nil {
		l.answerSecrets(ask, m.ExecutorID.Value, AgentID(m.AgentID.Value))
		return
	}
	at := l.ledger.tasks[m.ExecutorID.Value]
	if at == nil {
		return
	}
	if _, err := wire.DecodeHint(m.Data); err != nil {
		l.f.cfg.Logger.Debug("message passed over", "executor", m.ExecutorID.Value, "err", err)
		return
	}
	if box := l.boxes[at.build.id]; box != nil {
		box.poke()
	}
}

// updateFromMesos converts a status.
func updateFromMesos(s *mesos.TaskStatus) update {
	u := update{
		task:    s.TaskID.Value,
		agent:   AgentID(s.GetAgentID().GetValue()),
		state:   s.GetState().String(),
		message: s.GetMessage(),
		data:    s.Data,
		uuid:    s.UUID,
	}
	if s.Reason != nil {
		u.reason = s.Reason.String()
	}
	if s.Source != nil {
		u.source = s.Source.String()
	}
	return u
}

// perform carries out what the ledger has decided. An error means that the state
// could not be kept; nothing that relies on it was done then, but whoever waits for
// a build that is over has been told.
func (l *loop) perform() error {
	actions := l.ledger.take()
	err := l.fatal
	if err == nil {
		err = l.save(actions)
	}
	if err != nil {
		l.notifyEnded(actions)
		return err
	}
	for _, a := range actions {
		switch a := a.(type) {
		case actRevive:
			l.client.Send(calls.Revive())
		case actSuppress:
			l.client.Send(calls.Suppress())
		case actDecline:
			l.decline(a)
		case actAccept:
			l.accept(a)
		case actKill:
			l.client.Send(calls.Kill(a.task, string(a.agent)))
		case actReconcile:
			l.reconcile(a)
		case actAcknowledge:
			l.client.Send(calls.Acknowledge(string(a.update.agent), a.update.task, a.update.uuid))
		case actGrant:
			l.client.Send(calls.Message(string(a.agent), a.task, a.grant.Encode()))
		case actNotice:
			l.notify(a)
		case actRelease:
			l.release(a.build)
		case actForget:
			l.drop(a.build.id)
		case actComplain:
			l.f.cfg.Logger.Warn("placement dropped", "why", a.text)
		}
	}
	l.raw = nil
	return nil
}

// save makes what actions say durable, all of it at once.
func (l *loop) save(actions []action) error {
	if l.f.state == nil {
		return nil
	}
	var records []record
	seen := make(map[*build]bool)
	for _, a := range actions {
		if s, ok := a.(actSave); ok && !seen[s.build] {
			seen[s.build] = true
			records = append(records, s.build.record())
		}
	}
	if len(records) == 0 {
		return nil
	}
	if err := l.f.state.put(records); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// drop forgets a build that the ledger has done with. Its record stays until its
// result was taken.
func (l *loop) drop(id BuildID) {
	delete(l.boxes, id)
	if l.f.state == nil || !l.forgotten[id] {
		return
	}
	delete(l.forgotten, id)
	if err := l.f.state.forget(id); err != nil {
		l.f.cfg.Logger.Warn("build stays in the state directory", "build", id, "err", err)
	}
}

// forget removes a finished build from the state, or has it removed as soon as no
// task of it is left.
func (l *loop) forget(id BuildID) error {
	switch b := l.ledger.builds[id]; {
	case b == nil:
		return l.f.state.forget(id)
	case b.done:
		l.forgotten[id] = true
	}
	return nil
}

func (l *loop) decline(a actDecline) {
	ids := make([]mesos.OfferID, len(a.offers))
	for i, id := range a.offers {
		ids[i] = mesos.OfferID{Value: string(id)}
	}
	l.client.Send(calls.Decline(ids...).With(calls.RefuseSeconds(a.refuse)))
}

func (l *loop) reconcile(a actReconcile) {
	tasks := make(map[string]string, len(a.tasks))
	for task, agent := range a.tasks {
		tasks[task] = string(agent)
	}
	l.client.Send(calls.Reconcile(calls.ReconcileTasks(tasks)))
}

func (l *loop) notify(a actNotice) {
	if a.notice.follow != nil {
		a.notice.follow.framework = l.frameworkID
	}
	if box := l.boxes[a.id]; box != nil {
		box.post(a.notice)
	}
}

// notifyEnded tells whoever waits for one of the builds that are over.
func (l *loop) notifyEnded(actions []action) {
	for _, a := range actions {
		n, ok := a.(actNotice)
		if !ok {
			continue
		}
		if b := l.ledger.builds[n.id]; b == nil || b.done {
			l.notify(n)
		}
	}
}

// release removes the staged context of b, if no other build uses it.
func (l *loop) release(b *build) {
	l.f.unstage(b.task.Context)
	l.cleanup.Go(func() { l.f.sweepStaging(l.cleanupCtx, b.id) })
}

// accept launches attempts on one offer.
func (l *loop) accept(a actAccept) {
	raw := l.raw[a.offer]
	pool := append([]mesos.Resource(nil), raw.Resources...)
	role := raw.GetAllocationInfo().GetRole()
	var tasks []mesos.TaskInfo
	for _, at := range a.attempts {
		task, err := l.taskInfo(at, pool, role)
		if err != nil {
			// Cannot be: the ledger fits builds to the sum of what carve takes from.
			l.f.cfg.Logger.Error("attempt could not be launched", "task", at.task, "err", err)
			l.ledger.update(time.Now(), update{
				task: at.task, agent: at.agent, state: "TASK_ERROR", reason: "REASON_TASK_INVALID", message: err.Error(),
			})
			continue
		}
		tasks = append(tasks, *task)
	}
	l.client.Send(calls.Accept(
		calls.OfferOperations{calls.OpLaunch(tasks...)}.WithOffers(mesos.OfferID{Value: string(a.offer)}),
	).With(calls.RefuseSeconds(a.refuse)))
}

// newClient makes the connection to the master.
func (f *Framework) newClient(id string) (*schedapi.Client, error) {
	cfg := &f.cfg
	checkpoint, failover := true, cfg.FailoverTimeout.Seconds()
	info := &mesos.FrameworkInfo{
		User:            cfg.User,
		Name:            cfg.Name,
		Roles:           []string{cfg.Role},
		Checkpoint:      &checkpoint,
		FailoverTimeout: &failover,
		Capabilities: []mesos.FrameworkInfo_Capability{
			{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE},
			{Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE},
			{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE},
		},
	}
	if cfg.Resources.GPUs > 0 {
		info.Capabilities = append(info.Capabilities, mesos.FrameworkInfo_Capability{Type: mesos.FrameworkInfo_Capability_GPU_RESOURCES})
	}
	if id != "" {
		info.ID = &mesos.FrameworkID{Value: id}
	}
	if cfg.WebUIURL != "" {
		info.WebUiURL = &cfg.WebUIURL
	}
	if cfg.Principal != "" {
		info.Principal = &cfg.Principal
	}
	return schedapi.New(schedapi.Config{
		Masters:   f.masters,
		Framework: info,
		// Suppressed at first, so that no offer comes before it can be used; the
		// ledger revives as soon as a build waits.
		Suppressed: func() []string { return []string{cfg.Role} },
		Principal:  cfg.Principal,
		Secret:     cfg.Secret,
		TLS:        cfg.TLS,
		Logger:     cfg.Logger,
	})
}

// ask has the loop's goroutine do something, and waits until it is done.
func (f *Framework) ask(ctx context.Context, do func(*loop)) error {
	finished := make(chan struct{})
	select {
	case f.inbox <- func(l *loop) { do(l); close(finished) }:
		<-finished
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.stopped:
		return ErrStopped
	}
}

// classOfEnd is the class of a build that ends because ctx does.
func classOfEnd(ctx context.Context) Class {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ClassTimeout
	}
	return ClassCancelled
}

// cancel ends a build because ctx, its caller's, is done.
func (f *Framework) cancel(ctx context.Context, id BuildID) {
	class := classOfEnd(ctx)
	// Not with ctx, which is done; the loop takes this soon or has ended.
	_ = f.ask(context.WithoutCancel(ctx), func(l *loop) {
		l.ledger.cancel(time.Now(), id, class, context.Cause(ctx))
	})
}
