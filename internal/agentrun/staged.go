package agentrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"gocloud.dev/blob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// A stagedContexts yields the staged contexts of a task. Nothing of one is read before
// its bundler is called.
type stagedContexts struct {
	main  portainer.ContextBundler            // nil if the build has none
	named map[string]portainer.ContextBundler // further ones

	a       *attempt
	buckets map[string]*blob.Bucket // by URL
}

// openStaged opens the buckets of the task's contexts. The caller closes what it gets.
func (a *attempt) openStaged(ctx context.Context) (*stagedContexts, error) {
	s := &stagedContexts{a: a, buckets: map[string]*blob.Bucket{}}
	for _, c := range a.task.Staged() {
		if c.Signed || s.buckets[c.BucketURL] != nil {
			continue
		}
		bucket, err := blob.OpenBucket(ctx, c.BucketURL)
		if err != nil {
			s.close()
			return nil, fetchError(ctx, fmt.Errorf("open the staging bucket: %w", err), portainer.ClassStaging)
		}
		s.buckets[c.BucketURL] = bucket
	}
	if c := a.task.Context; c != nil {
		s.main = s.bundler(c, "build context")
	}
	for name, c := range a.task.Contexts {
		if s.named == nil {
			s.named = map[string]portainer.ContextBundler{}
		}
		s.named[name] = s.bundler(c, "build-context "+name)
	}
	return s, nil
}

// bundler returns what yields the staged context c, which messages call name.
func (s *stagedContexts) bundler(c *wire.Context, name string) portainer.BundlerFunc {
	var store *staging.Store
	if c.Signed {
		store = staging.NewReader(s.a.url)
	} else {
		store = staging.New(s.buckets[c.BucketURL])
	}
	ref := staging.Ref{Key: c.Key, Size: c.Size, Digest: c.Digest}
	return func(ctx context.Context, _ portainer.Request, w io.Writer) error {
		began := time.Now()
		r, err := open(ctx, store, ref, c.BucketURL)
		if err != nil {
			return fetchError(ctx, err, classOfFetch(err))
		}
		defer r.Close()
		in := &errReader{r: r}
		n, err := io.Copy(w, in)
		if in.err != nil {
			return fetchError(ctx, in.err, classOfFetch(in.err))
		}
		if err != nil {
			return err // the engine's own: it reads no more
		}
		s.a.info(ctx, "%s of %d bytes read in %v", name, n, time.Since(began).Round(time.Millisecond))
		return nil
	}
}

// close gives the buckets back.
func (s *stagedContexts) close() {
	for _, bucket := range s.buckets {
		if err := bucket.Close(); err != nil {
			s.a.cfg.Logger.Warn("staging bucket not closed", "err", err)
		}
	}
}

// errReader remembers the error of a reader: a copy does not tell whose error it
// returns.
type errReader struct {
	r   io.Reader
	err error
}

func (e *errReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// classOfFetch tells what a context that could not be read means: damage is the same
// on every agent, but a bucket out of reach is this agent's trouble.
func classOfFetch(err error) portainer.Class {
	if errors.Is(err, staging.ErrCorrupt) || errors.Is(err, staging.ErrGone) || errors.Is(err, staging.ErrTooLarge) {
		return portainer.ClassStaging
	}
	return portainer.ClassLost
}

func fetchError(ctx context.Context, err error, class portainer.Class) error {
	if ctx.Err() != nil {
		class = portainer.ClassCancelled
	}
	return &portainer.BuildError{Phase: portainer.PhaseFetch, Class: class, Err: err}
}
