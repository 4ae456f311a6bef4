package staging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// removers is how many objects are removed together.
const removers = 8

// Delete gives up a context that this Store has staged. It stays for TTL; without one it
// is removed at once, with all that no other context needs, unless another Store relies
// on it or wants it kept. One that is not there is no error.
func (s *Store) Delete(ctx context.Context, ref Ref) error {
	if s.TTL > 0 {
		if err := s.note(ctx, s.keptKey(ref.Digest)); err != nil {
			return fmt.Errorf("keep staged context: %w", err)
		}
	}
	s.mu.Lock()
	delete(s.held, ref.Digest)
	s.mu.Unlock()
	if err := s.release(ctx, ref.Digest); err != nil {
		return fmt.Errorf("remove staged context: %w", err)
	}
	if s.TTL > 0 {
		return nil
	}
	return s.sweep(ctx, s.TTL, expired)
}

// expired reports whether nobody relies on o any more, nor wants it kept.
func expired(o Object) bool { return !time.Now().Before(o.Expires) }

// GC removes the contexts and executors that nobody has relied on for age, whatever
// leases are left on them, and then all that no context needs. It returns what it
// removed.
func (s *Store) GC(ctx context.Context, age time.Duration) ([]Object, error) {
	return s.removeThose(ctx, age, func(o Object) bool { return time.Since(o.Used) >= age })
}

// Expire removes what has expired, and what no context needs that is older than TTL. It
// returns what it removed. Where there is nothing to remove it disturbs nobody.
func (s *Store) Expire(ctx context.Context) ([]Object, error) {
	st, err := s.survey(ctx)
	if err != nil {
		return nil, err
	}
	stale := len(st.stale) > 0
	for _, o := range st.objects {
		stale = stale || expired(o)
	}
	if !stale {
		return nil, nil
	}
	return s.removeThose(ctx, s.TTL, expired)
}

func (s *Store) removeThose(ctx context.Context, age time.Duration, drop func(Object) bool) ([]Object, error) {
	var removed []Object
	err := s.sweep(ctx, age, func(o Object) bool {
		if !drop(o) {
			return false
		}
		removed = append(removed, o)
		return true
	})
	return removed, err
}

// sweep removes what drop says of contexts and executors, and every pack that only those
// need or, once it has that age, that none needs at all.
func (s *Store) sweep(ctx context.Context, age time.Duration, drop func(Object) bool) (err error) {
	mark := markPrefix + s.ID + "-" + rand.Text()
	if err := s.note(ctx, mark); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, s.remove(ctx, mark))
	}()
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	st, err := s.survey(ctx)
	if err != nil {
		return err
	}
	var kept []Object
	var objects []string
	notes := st.stale
	uploading := false
	for _, o := range st.objects {
		if !drop(o) {
			uploading = uploading || o.Pending && time.Since(o.Used) < uploadLife
			kept = append(kept, o)
			continue
		}
		if !o.Pending {
			objects = append(objects, o.Key)
		}
		notes = append(notes, st.notes[strings.TrimPrefix(o.Key, ContextPrefix)]...)
	}
	var packs []string
	if !uploading {
		if err := s.readPacks(ctx, st); err != nil {
			return err
		}
		packs = st.unneeded(objects, kept, age)
	}
	for _, keys := range [][]string{objects, notes, packs} {
		if err := s.removeAll(ctx, keys); err != nil {
			return err
		}
	}
	return nil
}

// unneeded are the packs that only removed contexts need or, once they have that age,
// that none needs at all.
func (st *state) unneeded(removed []string, kept []Object, age time.Duration) []string {
	doomed := map[string]bool{}
	for key, o := range st.packs {
		doomed[key] = age <= 0 || time.Since(o.ModTime) >= age
	}
	for _, key := range removed {
		for _, p := range st.needs[key] {
			doomed[p.key()] = true
		}
	}
	for _, o := range kept {
		for _, p := range st.needs[o.Key] {
			doomed[p.key()] = false
		}
	}
	maps.DeleteFunc(doomed, func(_ string, yes bool) bool { return !yes })
	return slices.Collect(maps.Keys(doomed))
}

func (s *Store) removeAll(ctx context.Context, keys []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(removers)
	for _, key := range keys {
		g.Go(func() error { return s.remove(ctx, key) })
	}
	return g.Wait()
}
