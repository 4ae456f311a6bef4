package agentrun

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/pause"
	"github.com/org/portainer/internal/wire"
)

// How often the framework is asked while it does not answer.
const (
	askMin = 100 * time.Millisecond
	askMax = time.Second
)

// errLeaseLost is why a push is broken off.
var errLeaseLost = errors.New("the framework could not be reached to prolong the right to push")

// A permit is the right of this attempt to push, which the framework gives it for
// a while at a time: another attempt of the same build may be alive elsewhere.
type permit struct {
	send func(wire.PushAsk) // best effort

	mu      sync.Mutex
	serial  int
	sent    map[int]time.Time // when each question was sent that has no answer yet
	until   time.Time         // the end of the lease; zero while there is none
	renewed chan struct{}     // closed and replaced when until moves
}

func newPermit(send func(wire.PushAsk)) *permit {
	return &permit{send: send, sent: make(map[int]time.Time), renewed: make(chan struct{})}
}

// ask asks once, and returns a channel that is closed at the next answer.
func (p *permit) ask() <-chan struct{} {
	p.mu.Lock()
	p.serial++
	p.sent[p.serial] = time.Now()
	question, renewed := wire.PushAsk{Serial: p.serial}, p.renewed
	p.mu.Unlock()
	p.send(question)
	return renewed
}

// answer takes the framework's answer. One to a question that was answered before
// changes nothing.
func (p *permit) answer(g wire.PushGrant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked, ok := p.sent[g.Serial]
	if !ok {
		return
	}
	for serial := range p.sent {
		if serial <= g.Serial {
			delete(p.sent, serial)
		}
	}
	if until := asked.Add(g.Lease); until.After(p.until) {
		p.until = until
		close(p.renewed)
		p.renewed = make(chan struct{})
	}
}

// end returns when the lease ends.
func (p *permit) end() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until
}

// acquire waits for the right to push. The context it returns is done when the
// right is lost, which the caller, too, ends with release.
func (p *permit) acquire(ctx context.Context) (_ context.Context, release func(), err error) {
	for wait := askMin; !p.end().After(time.Now()); wait = min(askMax, 2*wait) {
		renewed := p.ask()
		if err := waitFor(ctx, renewed, wait); err != nil {
			return nil, nil, &portainer.BuildError{Phase: portainer.PhasePush, Class: portainer.ClassCancelled, Err: err}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { p.keep(ctx, cancel) })
	return ctx, func() { cancel(nil); keeper.Wait() }, nil
}

// waitFor returns when renewed is closed, after d, or with an error when ctx is
// done.
func waitFor(ctx context.Context, renewed <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-renewed:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keep prolongs the lease until ctx is done, and cancels it when that fails.
func (p *permit) keep(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		end := p.end()
		left := time.Until(end)
		if left <= 0 {
			cancel(&portainer.BuildError{Phase: portainer.PhasePush, Class: portainer.ClassLost,
				Err: fmt.Errorf("%w within its term", errLeaseLost)})
			return
		}
		// Half of what is left asleep, then a question; towards the end of the
		// term the questions come faster, but no faster than askMin.
		idle := min(left, max(left/2, askMin))
		if pause.For(ctx, idle) != nil {
			return
		}
		if waitFor(ctx, p.ask(), min(askMin, left-idle)) != nil {
			return
		}
	}
}
