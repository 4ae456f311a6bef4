package testmesos

import (
	"sync"
	"time"
)

// An actor runs functions one after the other in the order in which they were
// posted. Masters and agents are actors, as libprocess processes are in Mesos:
// all their state is touched only by their own functions, and they talk to each
// other only by posting, so nothing can deadlock. An idle actor has no
// goroutine.
type actor struct {
	workers *sync.WaitGroup // owns the goroutine

	mu      sync.Mutex
	queue   []func()
	running bool
	closed  bool
	timers  map[*time.Timer]struct{}
}

func newActor(workers *sync.WaitGroup) *actor {
	return &actor{workers: workers, timers: map[*time.Timer]struct{}{}}
}

// post queues f. It reports false, and drops f, after close.
func (a *actor) post(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.queue = append(a.queue, f)
	if !a.running {
		a.running = true
		a.workers.Go(a.run)
	}
	return true
}

func (a *actor) run() {
	for {
		a.mu.Lock()
		batch := a.queue
		a.queue = nil
		if len(batch) == 0 {
			a.running = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		for _, f := range batch {
			f()
		}
	}
}

// call runs f in its turn and waits for it. It reports false after close.
func (a *actor) call(f func()) bool {
	done := make(chan struct{})
	if !a.post(func() { defer close(done); f() }) {
		return false
	}
	<-done
	return true
}

// A timer posts a function to an actor once.
type timer struct {
	owner *actor
	t     *time.Timer
}

// after posts f when d has passed, unless the timer is stopped before.
func (a *actor) after(d time.Duration, f func()) *timer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	t := &timer{owner: a}
	t.t = time.AfterFunc(d, func() {
		a.mu.Lock()
		_, live := a.timers[t.t]
		delete(a.timers, t.t)
		a.mu.Unlock()
		if live {
			a.post(f)
		}
	})
	a.timers[t.t] = struct{}{}
	return t
}

// stop stops the timer; f may still run if it was posted already.
func (t *timer) stop() {
	if t == nil {
		return
	}
	t.owner.mu.Lock()
	defer t.owner.mu.Unlock()
	t.t.Stop()
	delete(t.owner.timers, t.t)
}

// close refuses further functions and stops all timers. Functions already
// posted still run; the owner of the wait group waits for them.
func (a *actor) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for t := range a.timers {
		t.Stop()
	}
	clear(a.timers)
}
