package staging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"
)

// executorTTL is how long an executor stays that nobody stages: as long as its signed
// address is good, at most.
const executorTTL = 7 * 24 * time.Hour

// outputTTL is how long an output waits to be fetched. Whoever is to do so may come back
// with a state directory.
const outputTTL = 24 * time.Hour

// An Object is a staged context, an executor, or an output that was not fetched.
type Object struct {
	Key     string
	Digest  string    // of a context; "" of the others
	Size    int64     // of a context: with its packs, those it shares with others included
	Staged  time.Time // when it was written
	Used    time.Time // when someone last relied on it
	Expires time.Time // when it may be removed, if nobody uses it until then; past if it may be now
	Leases  int       // how many rely on it, or were killed within the last day
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

// A state is what there is in the bucket.
type state struct {
	objects []Object // contexts, pending ones included, executors and outputs
	notes   map[string][]string
	stale   []string // notes that say nothing any more, of contexts that are not there
	packs   map[string]*blob.ListObject
	needs   map[string][]packRef // of each context
}

// A usage is what the notes on a context say.
type usage struct {
	used, expires time.Time
	leases        int
	leased        bool // by anyone, however long ago
}

func (u *usage) note(used, expires time.Time) {
	if used.After(u.used) {
		u.used = used
	}
	if expires.After(u.expires) {
		u.expires = expires
	}
}

// survey finds out what is there, but for what contexts need.
func (s *Store) survey(ctx context.Context) (*state, error) {
	st := &state{notes: map[string][]string{}, packs: map[string]*blob.ListObject{}, needs: map[string][]packRef{}}
	usages, err := s.surveyNotes(ctx, st)
	if err != nil {
		return nil, err
	}
	if err := s.surveyContexts(ctx, st, usages); err != nil {
		return nil, err
	}
	for prefix, ttl := range map[string]time.Duration{ExecutorPrefix: executorTTL, OutputPrefix: outputTTL} {
		err := s.list(ctx, prefix, func(o *blob.ListObject) error {
			st.objects = append(st.objects, Object{Key: o.Key, Size: o.Size, Staged: o.ModTime, Used: o.ModTime, Expires: o.ModTime.Add(ttl)})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(st.objects, func(a, b Object) int { return strings.Compare(a.Key, b.Key) })
	err = s.list(ctx, PackPrefix, func(o *blob.ListObject) error {
		st.packs[o.Key] = o
		return nil
	})
	return st, err
}

// surveyNotes reads the leases and the wishes to keep, and tells what they say of each
// digest.
func (s *Store) surveyNotes(ctx context.Context, st *state) (map[string]*usage, error) {
	usages := map[string]*usage{}
	usageOf := func(key, prefix string) *usage {
		digest := path.Dir(strings.TrimPrefix(key, prefix))
		st.notes[digest] = append(st.notes[digest], key)
		if usages[digest] == nil {
			usages[digest] = &usage{}
		}
		return usages[digest]
	}
	err := s.list(ctx, leasePrefix, func(o *blob.ListObject) error {
		u := usageOf(o.Key, leasePrefix)
		u.leased = true
		if time.Since(o.ModTime) < leaseLife {
			u.leases++
		}
		u.note(o.ModTime, o.ModTime.Add(leaseLife))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.list(ctx, keptPrefix, func(o *blob.ListObject) error {
		u := usageOf(o.Key, keptPrefix)
		seconds, err := strconv.ParseInt(path.Base(o.Key), 10, 32)
		if err == nil {
			u.note(o.ModTime, o.ModTime.Add(time.Duration(seconds)*time.Second))
		}
		return nil
	})
	return usages, err
}

// surveyContexts finds the contexts, of which usages tells, and those that are only
// spoken of there.
func (s *Store) surveyContexts(ctx context.Context, st *state, usages map[string]*usage) error {
	err := s.list(ctx, ContextPrefix, func(o *blob.ListObject) error {
		digest := strings.TrimPrefix(o.Key, ContextPrefix)
		c := Object{Key: o.Key, Digest: "sha256:" + digest, Size: o.Size, Staged: o.ModTime, Used: o.ModTime}
		if u := usages[digest]; u != nil {
			u.note(o.ModTime, o.ModTime)
			c.Used, c.Expires, c.Leases = u.used, u.expires, u.leases
			delete(usages, digest)
		}
		st.objects = append(st.objects, c)
		return nil
	})
	if err != nil {
		return err
	}
	for digest, u := range usages {
		switch {
		case u.leased:
			st.objects = append(st.objects, Object{
				Key: ContextPrefix + digest, Digest: "sha256:" + digest, Used: u.used, Expires: u.expires, Leases: u.leases, Pending: true,
			})
		case !time.Now().Before(u.expires):
			st.stale = append(st.stale, st.notes[digest]...)
		}
	}
	return nil
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

// list calls fn for every object below prefix.
func (s *Store) list(ctx context.Context, prefix string, fn func(*blob.ListObject) error) error {
	for it := s.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, told(err))
		}
		if o.IsDir {
			continue
		}
		if err := fn(o); err != nil {
			return err
		}
	}
}
