// Package staging keeps build contexts and executors in a blob bucket, where
// agents find them. Everything is content-addressed: what is there already is not
// sent again, and whoever reads it can tell that it is whole.
//
// A context is a recipe, which says how to make its tar stream out of chunks of
// content, and packs, which hold the chunks: a few MiB of neighbours compressed
// together, some 16 MiB an object. A context that is like another one shares its
// packs and sends only the chunks that are new. The recipe is written last; a
// context without recipe is no context.
package staging

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Where things are in the bucket.
const (
	ContextPrefix  = "portainer/contexts/"
	PackPrefix     = "portainer/packs/"
	ExecutorPrefix = "portainer/executors/"
)

// DefaultLimit is the size of the largest context that Open yields, uncompressed.
const DefaultLimit = 64 << 30

const (
	// bundlings is how often a context is read anew when it changes under our
	// hands.
	bundlings = 3
	// executorLife is how long a staged executor is relied on before it is
	// written again, so that GC sees that it is used.
	executorLife = 6 * time.Hour
	// cleanupTime bounds what must be done even when a caller has given up.
	cleanupTime = 30 * time.Second
)

// ErrChanged reports a context that was not the same twice: something writes to
// its files all the time.
var ErrChanged = errors.New("the build context keeps changing")

// errOther reports a second reading that was not like the first.
var errOther = errors.New("the context changed between two readings")

// A Ref says where a staged context is and what it must hold.
type Ref struct {
	Key    string
	Size   int64  // of the recipe's object when it was staged
	Digest string // of the context; Key has it too
}

// RefOf returns what is known of a context by its key alone.
func RefOf(key string) Ref {
	return Ref{Key: key, Digest: "sha256:" + strings.TrimPrefix(key, ContextPrefix)}
}

// PutStats says what a put took.
type PutStats struct {
	Uploaded bool  // false if the context was there already
	TarSize  int64 // of the context, uncompressed
	Sent     int64 // bytes written to the bucket
}

// A Store stages contexts in a bucket. It is safe for concurrent use, and so are
// several Stores on one bucket, in any number of processes.
type Store struct {
	bucket  *blob.Bucket
	objects objects // where contexts are read

	// ID names this Store's leases. New chooses one that nobody else has. A
	// process that takes over from one that died sets the other's, so that
	// Delete gives up what the other has staged. It must not change after the
	// first use, and have no slash in it.
	ID string

	// TTL is for how long Delete leaves contexts there, for whoever stages the same or
	// a similar one next, and what an upload has sent that failed or was killed. 0 means
	// not at all. It must not change after the first use.
	TTL time.Duration

	// Limit is the size of the largest context that Open yields, uncompressed;
	// 0 means DefaultLimit. It must not change after the first use.
	Limit int64

	mu   sync.Mutex
	puts map[string]*put // under way, by digest
	held map[string]bool // leases that are relied on, by digest
}

// A put is what callers with the same context share.
type put struct {
	done chan struct{}
	ref  Ref
	err  error
}

// New returns a Store on b, which the caller closes after it.
func New(b *blob.Bucket) *Store {
	return &Store{bucket: b, objects: bucketReader{b}, ID: rand.Text(), puts: map[string]*put{}, held: map[string]bool{}}
}

// PutContext is Put for the tar stream that bundle writes.
func (s *Store) PutContext(ctx context.Context, bundle Bundle) (Ref, PutStats, error) {
	return s.Put(ctx, bundle, nil)
}

// Put stages a context, unless it is there already. m, if not nil, shows how far
// that is.
//
// If the context cannot be read whole, and whenever ctx is done or the bucket
// fails, nothing is left in the bucket that could be taken for a context. Errors
// of src come back wrapped. Calls for the same context at the same time share one
// upload.
//
// The context stays until Delete, and is then removed unless another Store relies
// on it, too.
func (s *Store) Put(ctx context.Context, src Source, m *Meter) (Ref, PutStats, error) {
	for range bundlings {
		m.restart()
		r, err := src.recipe(ctx, m)
		if err != nil {
			return Ref{}, PutStats{}, err
		}
		ref, stats, err := s.putOnce(ctx, r.digest(), r, src, m)
		if errors.Is(err, errOther) {
			continue
		}
		stats.TarSize = r.tarSize()
		return ref, stats, err
	}
	return Ref{}, PutStats{}, fmt.Errorf("stage the context: %w: it was read %d times, and never twice the same", ErrChanged, bundlings+1)
}

// errAbsent reports a context that is not there, and of which only the digest is known.
var errAbsent = errors.New("the context is not staged")

// Find looks for the context of that digest. If it is there, it stays as if it had
// been put now; ok is false if it is not.
func (s *Store) Find(ctx context.Context, digest string) (ref Ref, ok bool, err error) {
	key := ContextPrefix + hexOf(digest)
	there, err := s.bucket.Exists(ctx, key)
	if err != nil {
		return Ref{}, false, fmt.Errorf("look for staged context %s: %w", key, told(err))
	}
	if !there {
		return Ref{}, false, nil
	}
	ref, _, err = s.putOnce(ctx, digest, nil, nil, nil)
	if errors.Is(err, errAbsent) { // by now
		return Ref{}, false, nil
	}
	return ref, err == nil, err
}

// putOnce stages the context, or waits for someone who does. Without a recipe it only
// makes sure that a context which is there stays.
func (s *Store) putOnce(ctx context.Context, digest string, r *recipe, src Source, m *Meter) (Ref, PutStats, error) {
	for {
		s.mu.Lock()
		p, shared := s.puts[digest]
		if !shared {
			p = &put{done: make(chan struct{})}
			s.puts[digest] = p
		}
		s.mu.Unlock()
		if !shared {
			var stats PutStats
			p.ref, stats, p.err = s.stage(ctx, digest, r, src, m)
			s.mu.Lock()
			delete(s.puts, digest)
			s.mu.Unlock()
			close(p.done)
			return p.ref, stats, p.err
		}
		select {
		case <-ctx.Done():
			return Ref{}, PutStats{}, context.Cause(ctx)
		case <-p.done:
		}
		if p.err == nil {
			return p.ref, PutStats{}, nil
		}
		// The other's trouble may be its own, a cancelled context above all.
	}
}

// stage makes sure that the context is in the bucket, and that it stays.
func (s *Store) stage(ctx context.Context, digest string, r *recipe, src Source, m *Meter) (_ Ref, _ PutStats, err error) {
	ref := Ref{Key: ContextPrefix + hexOf(digest), Digest: digest}
	written := false // packs of ours, which no recipe knows
	defer func() {
		if err != nil {
			// A bucket that fails here too says what it has said; what stays expires.
			_ = s.giveUp(ctx, digest, written)
			return
		}
		s.Hold(ref)
	}()
	if err := s.acquire(ctx, digest); err != nil {
		return Ref{}, PutStats{}, err
	}
	defer s.renewing(ctx, digest)()
	attrs, err := s.bucket.Attributes(ctx, ref.Key)
	if err == nil {
		ref.Size = attrs.Size
		return ref, PutStats{}, nil
	}
	if gcerrors.Code(err) != gcerrors.NotFound {
		return Ref{}, PutStats{}, fmt.Errorf("look for staged context %s: %w", ref.Key, told(err))
	}
	if r == nil {
		return Ref{}, PutStats{}, errAbsent
	}
	if err := s.reuse(ctx, r); err != nil {
		return Ref{}, PutStats{}, err
	}
	written = true
	sent, err := s.upload(ctx, r, src, m)
	if err != nil {
		return Ref{}, PutStats{}, err
	}
	object, err := r.encode()
	if err != nil {
		return Ref{}, PutStats{}, fmt.Errorf("stage the context: %w", err)
	}
	ref.Size = int64(len(object))
	err = s.writeRecipe(ctx, ref.Key, object)
	if gcerrors.Code(err) == gcerrors.FailedPrecondition {
		// Someone else was faster with the same context; our packs go with the
		// next removal of anything.
		attrs, err := s.bucket.Attributes(ctx, ref.Key)
		if err != nil {
			return Ref{}, PutStats{}, fmt.Errorf("look for staged context %s: %w", ref.Key, told(err))
		}
		ref.Size = attrs.Size
		return ref, PutStats{Sent: sent}, nil
	}
	if err != nil {
		return Ref{}, PutStats{}, err
	}
	m.addSent(ref.Size)
	return ref, PutStats{Uploaded: true, Sent: sent + ref.Size}, nil
}

// giveUp ends a staging that has failed; written says that it may have left packs. The
// lease stays if an earlier staging of the same context succeeded: it is the same lease.
func (s *Store) giveUp(ctx context.Context, digest string, written bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if written && s.TTL > 0 {
		// The next one need not send them again. The note tells when they are to go.
		if err := s.note(ctx, s.keptKey(digest)); err != nil {
			return err
		}
	}
	if !s.holds(digest) {
		if err := s.release(ctx, digest); err != nil {
			return err
		}
	}
	if written && s.TTL <= 0 {
		return s.sweep(ctx, 0, func(Object) bool { return false })
	}
	return nil
}

// PutFile stages the file with that name as it is, unless it is there already, and
// returns its key.
func (s *Store) PutFile(ctx context.Context, name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, &contextReader{ctx, f})
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	key := ExecutorPrefix + sum
	attrs, err := s.bucket.Attributes(ctx, key)
	if err == nil && attrs.Size == size && time.Since(attrs.ModTime) < executorLife {
		return key, nil
	}
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return "", fmt.Errorf("look for %s: %w", key, told(err))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h.Reset()
	if err := s.write(ctx, key, &summed{f, h, sum}); err != nil {
		return "", fmt.Errorf("stage %s: %w", name, err)
	}
	return key, nil
}

// A summed reader fails at its end if that was not what it should be.
type summed struct {
	r    io.Reader
	h    hash.Hash
	want string
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.h.Write(b[:n])
	if errors.Is(err, io.EOF) && hex.EncodeToString(s.h.Sum(nil)) != s.want {
		err = errors.New("the file changed while it was read")
	}
	return n, err
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// A contextReader stops when its context is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}
