package portainer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/org/portainer/internal/staging"
)

// A stager puts contexts into the staging bucket and removes those that no build
// uses any more. Equal contexts are one object, so builds share them: an object
// is removed when its last build lets go of it, and never while another is being
// put, which might find it there and rely on it.
type stager struct {
	store *staging.Store

	mu       sync.Mutex             // never held during I/O: the loop releases
	puts     int                    // under way, and renewals
	sweeping chan struct{}          // closed when the sweep under way has ended; nil if there is none
	uses     map[string]int         // by key
	garbage  map[string]staging.Ref // unused, to be removed when no put is under way
}

func newStager(store *staging.Store) *stager {
	return &stager{store: store, uses: make(map[string]int), garbage: make(map[string]staging.Ref)}
}

// put calls stage, which stages a context. The caller releases what it gets, and
// sweeps in any case.
func (s *stager) put(ctx context.Context, stage func(*staging.Store) (staging.Ref, staging.PutStats, error)) (staging.Ref, staging.PutStats, error) {
	if err := s.begin(ctx); err != nil {
		return staging.Ref{}, staging.PutStats{}, err
	}
	ref, stats, err := stage(s.store)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts--
	if err != nil {
		return staging.Ref{}, staging.PutStats{}, err
	}
	s.uses[ref.Key]++
	delete(s.garbage, ref.Key)
	return ref, stats, nil
}

// begin waits until no sweep is under way, so that no put finds what is going away,
// and keeps another from beginning.
func (s *stager) begin(ctx context.Context) error {
	for {
		s.mu.Lock()
		sweeping := s.sweeping
		if sweeping == nil {
			s.puts++
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-sweeping:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// adopt counts a use of what an earlier process staged.
func (s *stager) adopt(ref staging.Ref) {
	s.store.Hold(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses[ref.Key]++
}

// release gives ref back.
func (s *stager) release(ref staging.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses[ref.Key]--; s.uses[ref.Key] > 0 {
		return
	}
	delete(s.uses, ref.Key)
	s.garbage[ref.Key] = ref
}

// sweep removes what is unused. It leaves that to a later sweep if a put is under
// way, and to the present one if there is one.
func (s *stager) sweep(ctx context.Context) error {
	s.mu.Lock()
	if s.puts > 0 || s.sweeping != nil {
		s.mu.Unlock()
		return nil
	}
	s.sweeping = make(chan struct{})
	defer func() {
		close(s.sweeping)
		s.sweeping = nil
		s.mu.Unlock()
	}()
	for {
		ref, ok := s.anyGarbage()
		if !ok {
			return nil
		}
		s.mu.Unlock()
		err := s.store.Delete(ctx, ref)
		s.mu.Lock()
		if err != nil {
			return err
		}
		delete(s.garbage, ref.Key)
	}
}

// renew has those that rely on a context counted among the living. It keeps sweeps
// away meanwhile, so that no lease is written anew that one has just given up.
func (s *stager) renew(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	keys := slices.Collect(maps.Keys(s.uses))
	s.mu.Unlock()
	var errs []error
	for _, key := range keys {
		errs = append(errs, s.store.Renew(ctx, staging.RefOf(key)))
	}
	s.mu.Lock()
	s.puts--
	s.mu.Unlock()
	return errors.Join(append(errs, s.sweep(ctx))...)
}

func (s *stager) anyGarbage() (ref staging.Ref, ok bool) {
	for _, ref := range s.garbage {
		return ref, true
	}
	return staging.Ref{}, false
}
