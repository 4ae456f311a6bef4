package staging

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/pause"
)

// How contexts and their removal keep out of each other's way, with no more than
// writing, listing and removing objects, and buckets that show at once what was
// written:
//
// Who stages a context first writes a lease on it, then looks whether anybody is
// removing things, and waits until nobody is. Only then does it rely on anything
// that is there. Who removes first writes a mark, then lists the leases, then
// removes what no lease protects, then the mark. So either the remover sees the
// lease, or the stager sees the mark. A lease on a context that is not there yet
// is an upload under way, whose packs may not be known: then no pack is removed.

// All puts of one Store share its lease on a context. So one that fails leaves it to
// those that have succeeded, until Delete.
//
// Who needs a context no more leaves a note that it be kept for some time, and gives its
// lease up. What has no lease and no such note any more has expired, and goes with the
// next removal of anything. A process that is killed gives nothing up, so leases are
// renewed, and old ones count for nothing.

const (
	leasePrefix = "portainer/leases/"
	markPrefix  = "portainer/removing/"
	keptPrefix  = "portainer/kept/"

	// markLife is how long a mark is heeded, since it was first seen: clocks differ.
	// A remover that is killed leaves one; one that lives is done sooner.
	markLife  = time.Minute
	sweepTime = markLife * 3 / 4
	// leaseLife is how long a lease counts that is not renewed, and RenewEvery how often
	// it should be.
	leaseLife  = 24 * time.Hour
	RenewEvery = time.Hour
	// uploadLife is how long a lease without a context is taken for an upload.
	uploadLife = 6 * time.Hour
	markPoll   = 50 * time.Millisecond
)

func (s *Store) leaseKey(digest string) string { return leasePrefix + hexOf(digest) + "/" + s.ID }

// acquire writes a lease on the context and waits until nobody removes anything.
func (s *Store) acquire(ctx context.Context, digest string) error {
	key := s.leaseKey(digest)
	if err := s.note(ctx, key); err != nil {
		return err
	}
	first := map[string]time.Time{}
	for {
		marked := false
		err := s.list(ctx, markPrefix, func(o *blob.ListObject) error {
			mark := o.Key + o.ModTime.String()
			if first[mark].IsZero() {
				first[mark] = time.Now()
			}
			marked = marked || time.Since(first[mark]) < markLife && time.Since(o.ModTime) < time.Hour
			return nil
		})
		if err != nil || !marked {
			return err
		}
		if pause.For(ctx, markPoll) != nil {
			return context.Cause(ctx)
		}
	}
}

// Renew makes the lease on a context that this Store has staged count for another day.
// Who relies on one for longer calls it every RenewEvery.
func (s *Store) Renew(ctx context.Context, ref Ref) error { return s.note(ctx, s.leaseKey(ref.Digest)) }

// Hold says that ref is relied on until Delete, so that a Put which fails does not give
// up its lease. Put and Find hold what they return; who takes over from a process that
// died holds what that one had staged.
func (s *Store) Hold(ref Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[ref.Digest] = true
}

func (s *Store) holds(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[digest]
}

// renewing renews the lease on a context until stop is called.
func (s *Store) renewing(ctx context.Context, digest string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause.For(ctx, RenewEvery) == nil {
			_ = s.note(ctx, s.leaseKey(digest)) // the next one may do, long before it is too late
		}
	}()
	return func() { cancel(); <-done }
}

// keptKey names the note that a context be kept for TTL from now on. The time is in the
// name, so that a listing tells everything.
func (s *Store) keptKey(digest string) string {
	return keptPrefix + hexOf(digest) + "/" + strconv.FormatInt(int64((s.TTL+time.Second-1)/time.Second), 10)
}

// release removes the lease again.
func (s *Store) release(ctx context.Context, digest string) error {
	return s.remove(ctx, s.leaseKey(digest))
}

// remove removes an object. One that is not there is no error.
func (s *Store) remove(ctx context.Context, key string) error {
	if err := s.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return fmt.Errorf("remove %s: %w", key, told(err))
	}
	return nil
}
