package portainer

import (
	"context"
	"io"
	"sync"

	"github.com/org/portainer/internal/staging"
)

// A stager puts contexts into the staging bucket and removes those that no build
// uses any more. Equal contexts are one object, so builds share them: an object
// is removed when its last build lets go of it, and never while another is being
// put, which might find it there and rely on it.
type stager struct {
	store *staging.Store

	mu      sync.Mutex
	puts    int                    // under way
	uses    map[string]int         // by key
	garbage map[string]staging.Ref // unused, to be removed when no put is under way
}

func newStager(store *staging.Store) *stager {
	return &stager{store: store, uses: make(map[string]int), garbage: make(map[string]staging.Ref)}
}

// put stages what bundle writes. The caller releases what it gets.
func (s *stager) put(ctx context.Context, bundle func(context.Context, io.Writer) error) (staging.Ref, staging.PutStats, error) {
	s.mu.Lock()
	s.puts++
	s.mu.Unlock()
	ref, stats, err := s.store.PutContext(ctx, bundle)
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

// adopt counts a use of what an earlier process staged.
func (s *stager) adopt(ref staging.Ref) {
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

// sweep removes what is unused, unless a put is under way.
func (s *stager) sweep(ctx context.Context) error {
	// Held throughout: a put that starts now must not find what is going away.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.puts > 0 {
		return nil
	}
	for key, ref := range s.garbage {
		if err := s.store.Delete(ctx, ref); err != nil {
			return err
		}
		delete(s.garbage, key)
	}
	return nil
}
