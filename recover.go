package portainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/org/portainer/internal/staging"
)

// openState opens the state directory and reads what an earlier framework left.
func (f *Framework) openState() error {
	s, err := openState(f.cfg.StateDir)
	if err != nil {
		return err
	}
	id, past, err := s.load()
	if err != nil {
		s.close()
		return err
	}
	if err := s.tidy(past); err != nil {
		s.close()
		return err
	}
	if f.stager != nil {
		if f.stager.store.ID, err = s.stagingID(f.stager.store.ID); err != nil {
			s.close()
			return fmt.Errorf("state directory %s: %w", f.cfg.StateDir, err)
		}
	}
	f.state, f.past = s, past
	f.cfg.FrameworkID = cmp.Or(f.cfg.FrameworkID, id)
	for i := range past {
		f.cfg.GPUs = f.cfg.GPUs || past[i].Resources.GPUs > 0
		for _, c := range past[i].Task.Staged() {
			if f.stager != nil {
				f.stager.adopt(staging.Ref{Key: c.Key, Size: c.Size, Digest: c.Digest})
			}
		}
	}
	return nil
}

// recovered is a build of an earlier life.
type recovered struct {
	box    *mailbox
	record *record
}

// restore takes over what the state directory holds.
func (l *loop) restore() {
	for i := range l.f.past {
		r := &l.f.past[i]
		if l.f.stager == nil {
			r.Late = nil // it cannot be staged in this life
		}
		box := newMailbox()
		l.boxes[r.ID] = box
		l.recovered[r.ID] = &recovered{box, r}
	}
	l.ledger.restore(time.Now(), l.f.past)
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

// dismiss lets whoever waits for one of builds go, which a later life sees to.
func (l *loop) dismiss(builds []*build, why error) {
	for _, b := range builds {
		if box := l.boxes[b.id]; box != nil {
			box.post(notice{err: l.ledger.complete(&BuildError{Phase: b.phase(), Class: ClassLost, Err: why}, b, b.current)})
		}
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

// Recovered returns the builds that an earlier framework with the same state
// directory left, finished or not, in the order in which they were submitted.
func (f *Framework) Recovered() []BuildID {
	past := slices.SortedFunc(slices.Values(f.past), func(a, b record) int { return a.Submitted.Compare(b.Submitted) })
	ids := make([]BuildID, len(past))
	for i := range past {
		ids[i] = past[i].ID
	}
	return ids
}

// Attach is Build for one of Recovered: it goes on handing events to Config.Logs
// where the earlier framework left off, and returns when the build is over. Each
// build can be attached to once. Attach waits for Run if Run has not been called
// yet; every error is a *BuildError.
func (f *Framework) Attach(ctx context.Context, id BuildID) (*Result, error) {
	var r *recovered
	err := f.ask(ctx, func(l *loop) {
		r = l.recovered[id]
		delete(l.recovered, id)
	})
	switch {
	case err != nil:
		return nil, &BuildError{ID: id, Phase: PhaseQueue, Class: classOfEnd(ctx), Err: err}
	case r == nil:
		return nil, &BuildError{ID: id, Phase: PhaseRead, Class: ClassInvalid, Err: fmt.Errorf("no build %q to attach to", id)}
	}
	return f.follow(ctx, id, r.record.Image, r.box, func() { f.stageRestored(ctx, r.record) })
}

// Forget removes a finished build from the state directory. Until then a later
// framework recovers it, so that no result is lost between Build's return and
// what the caller does with it. It does nothing without a state directory, nor to
// a build that is not over. It waits for Run if Run has not been called yet, until
// ctx is done, and returns ErrStopped after Run.
func (f *Framework) Forget(ctx context.Context, id BuildID) error {
	if f.state == nil {
		return nil
	}
	var err error
	if askErr := f.ask(ctx, func(l *loop) { err = l.forget(id) }); askErr != nil {
		return askErr
	}
	return err
}
