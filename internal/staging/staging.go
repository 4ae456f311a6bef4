// Package staging keeps build contexts and executors in a blob bucket, where
// agents find them. Everything is content-addressed: what is there already is not
// sent again, and whoever reads it can tell that it is whole.
package staging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Where things are in the bucket.
const (
	ContextPrefix  = "portainer/contexts/"
	ExecutorPrefix = "portainer/executors/"
)

// DefaultLimit is the size of the largest context that Open yields, uncompressed.
const DefaultLimit = 64 << 30

// attempts is how often a context is bundled anew when it changes under our hands.
const attempts = 3

// ErrChanged reports a context that was not the same twice: something writes to
// its files all the time.
var ErrChanged = errors.New("the build context keeps changing")

// A Ref says where a staged context is and what it must hold.
type Ref struct {
	Key    string
	Size   int64  // of the object
	Digest string // of the context in it: what the function Digest says of the tar
}

// PutStats says what a put took.
type PutStats struct {
	Uploaded bool  // false if the context was there already
	TarSize  int64 // of the context, uncompressed
	Sent     int64 // bytes written to the bucket
}

// A Store stages contexts in a bucket. It is safe for concurrent use. Two Stores
// on one bucket, in one process or in two, may both stage the same context: the
// later one replaces the earlier one's object by an equal one.
type Store struct {
	bucket *blob.Bucket

	// Limit is the size of the largest context that Open yields, uncompressed;
	// 0 means DefaultLimit. It must not change after the first use.
	Limit int64

	mu      sync.Mutex
	uploads map[string]*upload // under way, by key
}

// An upload is what callers with the same context share.
type upload struct {
	done  chan struct{}
	ref   Ref
	stats PutStats
	err   error
}

// New returns a Store on b, which the caller closes after it.
func New(b *blob.Bucket) *Store {
	return &Store{bucket: b, uploads: map[string]*upload{}}
}

// PutContext stages the tar stream that bundle writes, unless it is there already.
//
// bundle is called once to learn the digest, and again to send the stream if the
// bucket lacks it; both times it must write the same. It must return an error for
// anything it could not read: then, and whenever ctx is done or the bucket fails,
// nothing is left in the bucket that could be taken for a context. Errors of bundle
// come back wrapped. Calls for the same context at the same time share one upload.
func (s *Store) PutContext(ctx context.Context, bundle func(ctx context.Context, w io.Writer) error) (Ref, PutStats, error) {
	for range attempts {
		digest, size, err := hashBundle(ctx, bundle)
		if err != nil {
			return Ref{}, PutStats{}, err
		}
		ref, stats, err := s.putOnce(ctx, digest, bundle)
		if errors.Is(err, errOther) {
			continue
		}
		stats.TarSize = size
		return ref, stats, err
	}
	return Ref{}, PutStats{}, fmt.Errorf("stage the context: %w: it was read %d times, and never twice the same", ErrChanged, attempts+1)
}

// errOther reports a second pass that wrote something other than the first.
var errOther = errors.New("the context changed between two passes")

// hashBundle returns the digest and the size of what bundle writes.
func hashBundle(ctx context.Context, bundle func(context.Context, io.Writer) error) (string, int64, error) {
	d := newDigestWriter()
	err := bundle(ctx, d)
	if ctx.Err() != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	digest, digestErr := d.finish(err)
	if err != nil {
		return "", 0, err
	}
	return digest, d.size, digestErr
}

// putOnce sends the context with that digest, or waits for someone who does.
func (s *Store) putOnce(ctx context.Context, digest string, bundle func(context.Context, io.Writer) error) (Ref, PutStats, error) {
	key := contextKey(digest)
	for {
		s.mu.Lock()
		up, shared := s.uploads[key]
		if !shared {
			up = &upload{done: make(chan struct{})}
			s.uploads[key] = up
		}
		s.mu.Unlock()
		if !shared {
			up.ref, up.stats, up.err = s.upload(ctx, key, digest, bundle)
			s.mu.Lock()
			delete(s.uploads, key)
			s.mu.Unlock()
			close(up.done)
			return up.ref, up.stats, up.err
		}
		select {
		case <-ctx.Done():
			return Ref{}, PutStats{}, context.Cause(ctx)
		case <-up.done:
		}
		if up.err == nil {
			return up.ref, PutStats{}, nil
		}
		// The other's trouble may be its own, a cancelled context above all.
	}
}

// upload sends what bundle writes, unless it is there.
func (s *Store) upload(ctx context.Context, key, digest string, bundle func(context.Context, io.Writer) error) (Ref, PutStats, error) {
	ref := Ref{Key: key, Digest: digest}
	attrs, err := s.bucket.Attributes(ctx, key)
	if err == nil {
		ref.Size = attrs.Size
		return ref, PutStats{}, nil
	}
	if gcerrors.Code(err) != gcerrors.NotFound {
		return Ref{}, PutStats{}, fmt.Errorf("look for staged context %s: %w", key, err)
	}
	size, err := s.write(ctx, key, func(w io.Writer) error {
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			return err
		}
		defer z.Close() // again, after an error, to end its goroutines
		d := newDigestWriter()
		err = bundle(ctx, io.MultiWriter(z, d))
		got, digestErr := d.finish(err)
		if err := errors.Join(err, digestErr); err != nil {
			return err
		}
		if got != digest {
			return errOther
		}
		return z.Close()
	})
	if err != nil {
		return Ref{}, PutStats{}, err
	}
	ref.Size = size
	return ref, PutStats{Uploaded: true, Sent: size}, nil
}

// write makes an object of what fill writes, whole or not at all: a blob's writer
// that is closed keeps what it has got, unless its context is done before.
func (s *Store) write(ctx context.Context, key string, fill func(io.Writer) error) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: "application/octet-stream"})
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", key, err)
	}
	count := &counter{w: w}
	err = fill(count)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		w.Close() // its error is that of the cancelled context
		return 0, err
	}
	if err := w.Close(); err != nil {
		return 0, fmt.Errorf("write %s: %w", key, err)
	}
	return count.n, nil
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
	if err == nil && attrs.Size == size {
		return key, nil
	}
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return "", fmt.Errorf("look for %s: %w", key, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	_, err = s.write(ctx, key, func(w io.Writer) error {
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, h), &contextReader{ctx, f}); err != nil {
			return fmt.Errorf("stage %s: %w", name, err)
		}
		if hex.EncodeToString(h.Sum(nil)) != sum {
			return fmt.Errorf("stage %s: the file changed while it was read", name)
		}
		return nil
	})
	return key, err
}

// Delete removes a staged context. One that is not there is no error.
func (s *Store) Delete(ctx context.Context, ref Ref) error {
	if err := s.bucket.Delete(ctx, ref.Key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return fmt.Errorf("remove staged context %s: %w", ref.Key, err)
	}
	return nil
}

func contextKey(digest string) string {
	return ContextPrefix + path.Base(strings.TrimPrefix(digest, "sha256:")) + ".tar.zst"
}

// A digestWriter takes a tar stream and tells its digest.
type digestWriter struct {
	w    *io.PipeWriter
	size int64
	done chan struct{}
	sum  string
	err  error
}

func newDigestWriter() *digestWriter {
	r, w := io.Pipe()
	d := &digestWriter{w: w, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.sum, d.err = Digest(r)
		r.CloseWithError(d.err)
	}()
	return d
}

func (d *digestWriter) Write(b []byte) (int, error) {
	n, err := d.w.Write(b)
	d.size += int64(n)
	return n, err
}

// finish ends the stream, with err if it was not written whole, and returns the
// digest.
func (d *digestWriter) finish(err error) (string, error) {
	d.w.CloseWithError(err)
	<-d.done
	return d.sum, d.err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

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

// How reads are taken up again.
const (
	readRetries = 6 // without a byte in between
	readBackoff = 100 * time.Millisecond
)
