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

	"github.com/org/portainer/internal/schedapi"
)

// tickEvery is how often the ledger is asked what is due, while it has anything.
const tickEvery = 100 * time.Millisecond

// teardownTimeout bounds the call that removes the framework from the master.
const teardownTimeout = 5 * time.Second

const (
	// avoidFor is how long a build keeps away from an agent that lost it.
	avoidFor = 10 * time.Minute
	// explainEvery is how often a waiting build is told why.
	explainEvery = 30 * time.Second
)

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
	fatal       error                    // the state cannot be kept
	cleanup     sync.WaitGroup           // removals of staged contexts, and answers about secrets
	cleanupCtx  context.Context          // of the removals
	answerCtx   context.Context          // of the answers; it ends with the connection
}

func newLoop(f *Framework, cleanupCtx context.Context) *loop {
	return &loop{
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
		cleanupCtx:  cleanupCtx,
	}
}

// serve is Run: it runs the loop over one framework id after the other. The
// connection to the master ends with alive.
func (l *loop) serve(ctx, alive context.Context) error {
	l.restore()
	for {
		err := l.connect(ctx, alive)
		if l.f.state == nil || !errors.Is(err, schedapi.ErrRemoved) {
			return err
		}
		// The id of an earlier life has expired: go on as a new framework.
		l.f.cfg.Logger.Warn("the master has removed the framework; subscribing as a new one", "framework", l.frameworkID)
		l.frameworkID = ""
		if err := l.f.state.setFramework(""); err != nil {
			return l.abort(fmt.Errorf("state: %w", err))
		}
		l.ledger.abandonAll(time.Now())
		if err := l.perform(); err != nil {
			return l.abort(err)
		}
	}
}

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
			if why := l.ledger.unconnected; why != nil {
				err = fmt.Errorf("%w: %w", err, why)
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

// abort ends every build for want of a master or a state, and returns why. What a
// state directory holds of tasks that may go on is left to a later life: none of
// them can be killed now, and their images need not be lost.
func (l *loop) abort(why error) error {
	if l.f.state != nil {
		l.dismiss(l.ledger.disown(), why)
	}
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

// cancel ends a build. It does so even when ctx, its caller's, is done.
func (f *Framework) cancel(ctx context.Context, id BuildID, class Class, cause error) {
	// The loop takes this soon or has ended.
	_ = f.ask(context.WithoutCancel(ctx), func(l *loop) { l.ledger.cancel(time.Now(), id, class, cause) })
}
