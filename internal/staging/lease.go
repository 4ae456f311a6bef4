package staging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"

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

const (
	leasePrefix = "portainer/leases/"
	markPrefix  = "portainer/removing/"

	// markLife is how long a mark is heeded, since it was first seen: clocks differ.
	// A remover that is killed leaves one; one that lives is done sooner.
	markLife  = time.Minute
	sweepTime = markLife * 3 / 4
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

// release removes the lease again.
func (s *Store) release(ctx context.Context, digest string) error {
	return s.remove(ctx, s.leaseKey(digest))
}

// remove removes an object. One that is not there is no error.
func (s *Store) remove(ctx context.Context, key string) error {
	if err := s.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

// list calls fn for every object below prefix.
func (s *Store) list(ctx context.Context, prefix string, fn func(*blob.ListObject) error) error {
	for it := s.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if o.IsDir {
			continue
		}
		if err := fn(o); err != nil {
			return err
		}
	}
}

// Delete gives up a context that this Store has staged, and removes it if no
// other Store relies on it, with all that no other context needs. One that is not
// there is no error.
func (s *Store) Delete(ctx context.Context, ref Ref) error {
	if err := s.release(ctx, ref.Digest); err != nil {
		return fmt.Errorf("remove staged context: %w", err)
	}
	return s.sweep(ctx, func(o Object) bool { return o.Key == ref.Key && o.Leases == 0 })
}

// An Object is a staged context, or an executor.
type Object struct {
	Key     string
	Digest  string    // of a context; "" of an executor
	Size    int64     // of a context: with its packs, those it shares with others included
	Staged  time.Time // when it was written
	Used    time.Time // when someone last relied on it
	Leases  int       // how many rely on it, or were killed before they let go
	Pending bool      // an upload is under way, or was killed
}

// List returns what is staged, in the order of the keys.
func (s *Store) List(ctx context.Context) ([]Object, error) {
	st, err := s.survey(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.readPacks(ctx, st); err != nil {
		return nil, err
	}
	for i := range st.objects {
		for _, p := range st.needs[st.objects[i].Key] {
			st.objects[i].Size += p.size
		}
	}
	return st.objects, nil
}

// GC removes the contexts and executors that nobody has relied on for ttl,
// whatever leases are left on them, and then all that no context needs. It returns
// what it removed.
func (s *Store) GC(ctx context.Context, ttl time.Duration) ([]Object, error) {
	var removed []Object
	err := s.sweep(ctx, func(o Object) bool {
		old := time.Since(o.Used) >= ttl
		if old {
			removed = append(removed, o)
		}
		return old
	})
	return removed, err
}

// A state is what there is in the bucket.
type state struct {
	objects []Object // contexts, pending ones included, and executors
	leases  map[string][]string
	packs   map[string]int64
	needs   map[string][]packRef // of each context
}

func (s *Store) survey(ctx context.Context) (*state, error) {
	st := &state{leases: map[string][]string{}, packs: map[string]int64{}, needs: map[string][]packRef{}}
	used := map[string]time.Time{}
	err := s.list(ctx, leasePrefix, func(o *blob.ListObject) error {
		digest := path.Dir(strings.TrimPrefix(o.Key, leasePrefix))
		st.leases[digest] = append(st.leases[digest], o.Key)
		if o.ModTime.After(used[digest]) {
			used[digest] = o.ModTime
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	err = s.list(ctx, ContextPrefix, func(o *blob.ListObject) error {
		digest := strings.TrimPrefix(o.Key, ContextPrefix)
		seen[digest] = true
		c := Object{Key: o.Key, Digest: "sha256:" + digest, Size: o.Size, Staged: o.ModTime, Used: o.ModTime, Leases: len(st.leases[digest])}
		if used[digest].After(c.Used) {
			c.Used = used[digest]
		}
		st.objects = append(st.objects, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for digest, keys := range st.leases {
		if !seen[digest] {
			st.objects = append(st.objects, Object{Key: ContextPrefix + digest, Digest: "sha256:" + digest, Used: used[digest], Leases: len(keys), Pending: true})
		}
	}
	err = s.list(ctx, ExecutorPrefix, func(o *blob.ListObject) error {
		st.objects = append(st.objects, Object{Key: o.Key, Size: o.Size, Staged: o.ModTime, Used: o.ModTime})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.list(ctx, PackPrefix, func(o *blob.ListObject) error {
		st.packs[o.Key] = o.Size
		return nil
	})
	return st, err
}

// readPacks fills st.needs.
func (s *Store) readPacks(ctx context.Context, st *state) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(surveyors)
	var mu sync.Mutex
	for _, o := range st.objects {
		if o.Pending || o.Digest == "" {
			continue
		}
		g.Go(func() error {
			packs, err := s.packsOf(ctx, o.Key)
			if gcerrors.Code(err) == gcerrors.NotFound {
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			st.needs[o.Key] = packs
			return nil
		})
	}
	return g.Wait()
}

// surveyors is how many recipes are looked at together.
const surveyors = 16

// packsOf reads the head of a recipe.
func (s *Store) packsOf(ctx context.Context, key string) ([]packRef, error) {
	for size := int64(4 << 10); ; size *= 8 {
		data, err := s.readRange(ctx, key, 0, size)
		if err != nil {
			return nil, err
		}
		packs, _, err := decodePacks(data)
		if err == nil {
			return packs, nil
		}
		if int64(len(data)) < size {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
	}
}

func (s *Store) readRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	r, err := s.bucket.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, length))
}

// sweep removes what drop says of contexts and executors, and every pack that no
// context needs.
func (s *Store) sweep(ctx context.Context, drop func(Object) bool) (err error) {
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
	uploading := false
	kept := st.objects[:0]
	for _, o := range st.objects {
		if !drop(o) {
			uploading = uploading || o.Pending && time.Since(o.Used) < uploadLife
			kept = append(kept, o)
			continue
		}
		if !o.Pending {
			if err := s.remove(ctx, o.Key); err != nil {
				return err
			}
		}
		for _, lease := range st.leases[strings.TrimPrefix(o.Key, ContextPrefix)] {
			if err := s.remove(ctx, lease); err != nil {
				return err
			}
		}
	}
	st.objects = kept
	if uploading {
		return nil
	}
	if err := s.readPacks(ctx, st); err != nil {
		return err
	}
	for _, packs := range st.needs {
		for _, p := range packs {
			delete(st.packs, p.key())
		}
	}
	for key := range st.packs {
		if err := s.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}
