package portainer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/staging"
)

// Builds that are submitted together often have the same context: it is then looked
// at, read and packed once. One that comes while others' is being staged does not
// rely on what they have seen, which may be out of date by now. It waits, with all
// that come meanwhile, and then they stage it together, for which little is left
// to do.

// A stagingDesk has the stagings of contexts that are under way.
type stagingDesk struct {
	mu   sync.Mutex
	runs map[string]*stagingQueue // by contextKey
}

// A stagingQueue is the stagings of one context.
type stagingQueue struct {
	now, next *stagingRun // next is nil if nobody waits for it
}

// A stagingRun is one staging, for all who wait for it.
type stagingRun struct {
	stage   func(context.Context) (staging.Ref, staging.PutStats, error)
	ctx     context.Context
	cancel  context.CancelCauseFunc // when nobody waits any more
	waiting int
	done    chan struct{}
	ref     staging.Ref
	stats   staging.PutStats
	err     error
}

// do calls stage, or waits for another call of it with the same key that has not
// begun yet. PutStats are those of the first who asked; the others have sent nothing.
func (d *stagingDesk) do(ctx context.Context, key string, stage func(context.Context) (staging.Ref, staging.PutStats, error)) (staging.Ref, staging.PutStats, error) {
	run, first := d.join(ctx, key, stage)
	select {
	case <-run.done:
	case <-ctx.Done():
		gone := context.Cause(ctx)
		if !d.leave(run, gone) {
			return staging.Ref{}, staging.PutStats{}, gone
		}
		<-run.done
		if run.err != nil {
			return staging.Ref{}, staging.PutStats{}, gone
		}
		// It has succeeded all the same. Somebody must let go of what it has staged.
	}
	stats := run.stats
	if !first {
		stats.Uploaded, stats.Sent = false, 0
	}
	return run.ref, stats, run.err
}

// join returns the next run of key. first tells that it is the caller's own.
func (d *stagingDesk) join(ctx context.Context, key string, stage func(context.Context) (staging.Ref, staging.PutStats, error)) (run *stagingRun, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.runs[key]
	if q != nil && q.next != nil && q.next.waiting > 0 {
		q.next.waiting++
		return q.next, false
	}
	run = &stagingRun{stage: stage, waiting: 1, done: make(chan struct{})}
	run.ctx, run.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if q != nil {
		if given := q.next; given != nil { // and given up
			given.err = context.Cause(given.ctx)
			close(given.done)
		}
		q.next = run
		return run, true
	}
	if d.runs == nil {
		d.runs = map[string]*stagingQueue{}
	}
	d.runs[key] = &stagingQueue{now: run}
	go d.work(key, run)
	return run, true
}

// leave tells that one does not wait for run any more, and why. It returns true to the
// last one, who waits for its end.
func (d *stagingDesk) leave(run *stagingRun, why error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if run.waiting--; run.waiting > 0 {
		return false
	}
	run.cancel(why)
	return true
}

// work does run, and those that follow it. Whoever waits for a run waits for it to be
// done with that.
func (d *stagingDesk) work(key string, run *stagingRun) {
	for run != nil {
		if run.err = context.Cause(run.ctx); run.err == nil {
			run.ref, run.stats, run.err = run.stage(run.ctx)
		}
		run.cancel(nil)
		run = d.finish(key, run)
	}
}

// finish ends a run and returns the next one.
func (d *stagingDesk) finish(key string, run *stagingRun) *stagingRun {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer close(run.done)
	q := d.runs[key]
	q.now, q.next = q.next, nil
	if q.now == nil {
		delete(d.runs, key)
	}
	return q.now
}

// contextKey tells contexts apart that are not the same by their options. The
// Dockerfile counts only if it has an ignore file of its own.
func contextKey(opt buildctx.Options) string {
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		dir = opt.Dir
	}
	ignore := opt.Dockerfile + ".dockerignore"
	if _, err := os.Lstat(ignore); err != nil || opt.Dockerfile == "" {
		ignore = ""
	} else if abs, err := filepath.Abs(ignore); err == nil {
		ignore = abs
	}
	return fmt.Sprintf("%q %q %q %d %t %q", dir, ignore, opt.CacheDir, opt.Limit, opt.AllowOutside, opt.Grafts)
}
