package agentrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gocloud.dev/blob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// An attempt is one try at the build of a task.
type attempt struct {
	cfg     Config
	sandbox string
	task    *wire.Task
	log     portainer.LogSink
	permit  *permit
	secrets *seal.Receiver // nil if the task needs none

	engine Engine // nil until it is open and after close
}

// run builds and pushes the image. The caller closes the attempt in any case.
func (a *attempt) run(ctx context.Context) *wire.Outcome {
	started := time.Now()
	res, err := a.build(ctx)
	outcome := &wire.Outcome{}
	switch {
	case err != nil:
		outcome = failure(ctx, err)
	default:
		outcome.Digest, outcome.Refs, outcome.Engine = res.Digest, res.Refs, res.Engine
		for _, ref := range res.Refs {
			a.info(ctx, "pushed %s", ref)
		}
	}
	outcome.Started, outcome.Ended = started, time.Now()
	if outcome.Engine == "" && a.engine != nil {
		outcome.Engine = a.engine.Name()
	}
	return outcome
}

func (a *attempt) build(ctx context.Context) (*portainer.Result, error) {
	t := a.task
	host, err := os.Hostname()
	if err != nil {
		host = "this agent"
	}
	a.info(ctx, "attempt %d on %s, executor %s", t.Attempt, host, Version())
	bundler, closeBucket, err := a.bundler(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBucket()
	began := time.Now()
	cfg := engine.Config{
		Kind:     t.Engine.Kind,
		Host:     t.Engine.Host,
		Sandbox:  a.sandbox,
		Insecure: t.Insecure,
		Bundler:  bundler,
		Permit:   a.permit.acquire,
		Logs:     a.log,
		Logger:   a.cfg.Logger,
		CPUs:     t.CPUs,
		MemMB:    t.MemMB,
		DiskMB:   t.DiskMB,
	}
	if a.secrets != nil {
		cfg.Auth, cfg.Secrets = a.auth, a.secret
	}
	eng, err := a.cfg.OpenEngine(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a.engine = eng
	a.info(ctx, "engine %s ready in %v", eng.Name(), time.Since(began).Round(time.Millisecond))
	if a.secrets != nil {
		if err := a.awaitSecrets(ctx); err != nil {
			return nil, err
		}
	}
	return eng.Build(ctx, portainer.Request{
		ID:         portainer.BuildID(t.Build),
		Registry:   t.Registry,
		Repository: t.Repository,
		Tags:       t.Tags,
		Dockerfile: t.Name,
		Source:     t.Dockerfile,
		Target:     t.Target,
		Args:       t.Args,
		Labels:     t.Labels,
		Network:    t.Network,
		AddHosts:   t.AddHosts,
		NoCache:    t.NoCache,
		Pull:       t.Pull,
		Options:    portainer.Options(t.Options),
		Resources:  portainer.Resources{CPUs: t.CPUs, MemMB: t.MemMB, DiskMB: t.DiskMB},
	})
}

// bundler returns what yields the staged context, or nil if the build has none, and
// what gives the bucket back.
func (a *attempt) bundler(ctx context.Context) (portainer.ContextBundler, func(), error) {
	c := a.task.Context
	if c == nil {
		return nil, func() {}, nil
	}
	bucket, err := blob.OpenBucket(ctx, c.BucketURL)
	if err != nil {
		return nil, nil, fetchError(ctx, fmt.Errorf("open the staging bucket: %w", err), portainer.ClassStaging)
	}
	store := staging.New(bucket)
	ref := staging.Ref{Key: c.Key, Size: c.Size, Digest: c.Digest}
	bundle := func(ctx context.Context, _ portainer.Request, w io.Writer) error {
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
		a.info(ctx, "build context of %d bytes read in %v", n, time.Since(began).Round(time.Millisecond))
		return nil
	}
	closeBucket := func() {
		if err := bucket.Close(); err != nil {
			a.cfg.Logger.Warn("staging bucket not closed", "err", err)
		}
	}
	return portainer.BundlerFunc(bundle), closeBucket, nil
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

// close closes the engine. It is bounded by d, roughly: then the engine is killed.
func (a *attempt) close(d time.Duration) error {
	if a.engine == nil {
		return nil
	}
	eng := a.engine
	a.engine = nil
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if err := eng.Close(ctx); err != nil {
		return fmt.Errorf("close engine: %w", err)
	}
	return nil
}

// info adds a line of the executor's own to the log.
func (a *attempt) info(ctx context.Context, format string, args ...any) {
	a.log.HandleEvent(ctx, portainer.Event{Kind: portainer.EventInfo, Time: time.Now(), Text: fmt.Sprintf(format, args...)})
}
