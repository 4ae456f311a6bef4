// Package portainer builds container images on an Apache Mesos cluster.
//
// A Framework registers with a Mesos master, waits for resource offers, and
// runs each build as one task on an agent. The build context is staged in a
// gocloud.dev/blob bucket that the agents can read; output streams back as
// Events; the image is pushed to a registry and reported as a Result.
//
// Programs embed it by calling Run in one goroutine and Build from as many as
// they like:
//
//	f, err := portainer.New(portainer.Config{
//		Master:      "mesos.example:5050",
//		Registry:    "registry.example:5000",
//		Staging:     bucket,
//		StagingURL:  "s3://builds?region=eu-west-1",
//		ExecutorURI: "https://files.example/portainer-executor.tar.gz",
//		Logs:        portainer.NewWriterSink(os.Stderr),
//	})
//	…
//	go f.Run(ctx)
//	result, err := f.Build(ctx, portainer.Request{Repository: "team/app", Dir: "."})
//
// This is not the Portainer container management UI, nor related to it.
package portainer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"gocloud.dev/blob"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/staging"
)

// Errors that callers may test for with errors.Is. The text around them is for
// people and may change.
var (
	// ErrInvalid reports a Config, Request or Dockerfile that can never work
	// as given.
	ErrInvalid = errors.New("invalid")
	// ErrStopped reports that Run has returned, before or during the call.
	ErrStopped = errors.New("framework stopped")
	// ErrRejected reports that the master refused the framework for good.
	ErrRejected = errors.New("framework rejected by the master")
	// ErrUnreachable reports that no master accepted the framework in time.
	ErrUnreachable = errors.New("no master could be reached")
	// ErrFailed reports that a build ran and failed by its own doing: a
	// Dockerfile step, a denied push. It is never retried.
	ErrFailed = errors.New("build failed")
	// ErrLost reports that every attempt was lost to the cluster: agent gone,
	// executor dead, task never started. The same Request may work later.
	ErrLost = errors.New("build lost")
	// ErrDetached is the cause to cancel the context of Run with when the tasks
	// of a framework with a state directory are to go on without it:
	//
	//	ctx, cancel := context.WithCancelCause(parent)
	//	go f.Run(ctx)
	//	…
	//	cancel(portainer.ErrDetached)
	ErrDetached = errors.New("framework detached")
	// ErrStaging reports that the staging bucket could not be read or written.
	ErrStaging = errors.New("staging failed")
)

// Config says how a Framework reaches the cluster and what it runs. New copies
// it, but not what its slices and pointers refer to, which must not change then.
type Config struct {
	// Master is where the masters are: "host:port", several of them separated by
	// commas, URLs, or "zk://[user:password@]host1:port1,host2:port2/path". The
	// leading master is found by itself. Required.
	Master string

	// Name, User and Role identify the framework to Mesos (FrameworkInfo). They
	// default to "portainer", the current user and "*".
	Name, User, Role string
	// WebUIURL is what Mesos's UI links the framework to. May be "".
	WebUIURL string
	// FrameworkID is the id of an earlier framework to take over from. "" means
	// a new one.
	FrameworkID string
	// FailoverTimeout is how long Mesos keeps the tasks of a framework that has
	// gone away. Zero means a minute, or an hour with a state directory. It cannot
	// be none: a broken connection would end every build.
	FailoverTimeout time.Duration

	// StateDir is a directory that holds what must outlive the process: the
	// framework id, every build and attempt, how far each log was handed on. A
	// later Framework with the same directory takes over, also after a crash.
	// "" means that nothing is kept. One process at a time may use it.
	StateDir string

	// Principal and Secret authenticate the framework to the master and to the
	// agents' files. Empty means without.
	Principal, Secret string
	// TLS, if not nil, has masters without a scheme in Master, and all agents,
	// spoken to over TLS, and says how.
	TLS *tls.Config

	// Staging holds build contexts between submission and build. The caller
	// opens and closes it; the Framework writes and deletes only below
	// "portainer/". Required by builds with local sources.
	Staging *blob.Bucket
	// StagingURL opens the same bucket on an agent, as gocloud.dev/blob's
	// OpenBucket would ("s3://builds?region=eu-west-1"). Required with Staging.
	StagingURL string
	// StagingSign says whether executors read what is staged at signed URLs. These are
	// good for an hour and for the contexts of one build, reach its executor sealed as
	// secrets do, and spare it credentials for the bucket. "auto" or "" signs if the
	// bucket can, "never" has executors open StagingURL, and with "always" a build fails
	// if its context cannot be signed.
	StagingSign string
	// StagingSigner signs in the place of Staging: the same bucket, by the address that
	// agents reach it at. The caller opens and closes it. Nil means Staging.
	StagingSigner *blob.Bucket

	// StagingTTL is how long a context stays in Staging after its last build, so that
	// the next one of the same or similar files sends less. Run removes what has
	// expired there, whoever staged it. Zero means that a context is removed with its
	// last build.
	StagingTTL time.Duration

	// ExecutorURI is where an agent fetches the executor: the binary itself or
	// an archive that holds it, which the agent unpacks. "" means that the
	// agents have what ExecutorCommand needs.
	ExecutorURI string
	// ExecutorCache has each agent fetch ExecutorURI once and keep it in its fetcher
	// cache for later attempts. The agent never asks whether it has changed (mesos
	// docs/fetcher.md), so the URI must name the same bytes for ever.
	ExecutorCache bool
	// ExecutorCommand is the shell command that starts the executor in its
	// sandbox. "" means "./portainer-executor", the name under which a binary
	// is fetched, whatever its URI calls it.
	ExecutorCommand string

	// Container runs the executor in a container on its agent; the zero value
	// runs it as a process. It excludes Engine.Host.
	Container Container

	// Engine says what builds images on the agents.
	Engine Engine

	// Registry and From are used by Requests that say nothing else. Insecure
	// holds for all of them.
	Registry, From string
	Insecure       bool

	// Registries say how registries are spoken to that need more than that, each
	// at most once. Of these, a build's executor is told those that it speaks to.
	Registries []Registry

	// Credentials finds what registries want to see, for pulls and pushes. They
	// reach executors sealed to a key in their memory, and are in no task, state
	// or log. Nil means that every registry is anonymous.
	Credentials CredentialsFunc

	// Resources is what a build gets where neither its Request nor its
	// Dockerfile says. Zero CPUs mean 1, zero MemMB 1024; the other zeros mean
	// none.
	Resources Resources

	// GPUs has agents with GPUs offered, which Mesos keeps from frameworks that do
	// not say that they know what to do with them (mesos docs/gpu-support.md). Builds
	// that ask for GPUs need it; Resources.GPUs, and builds with GPUs in the state
	// directory, imply it.
	GPUs bool

	// Constraints hold for every build, besides those of its Request.
	Constraints []Constraint

	// MaxAttempts bounds how often a build is launched when the cluster loses
	// it. Zero means 3. A build that failed by itself is not retried.
	MaxAttempts int
	// OOMRetryMemMB is the memory of one more attempt for a build that ran out
	// of it. Zero means that there is none.
	OOMRetryMemMB float64

	// QueueTimeout bounds how long a build waits for an offer, and BuildTimeout
	// how long it takes in all. Zero means no bound.
	QueueTimeout, BuildTimeout time.Duration
	// LaunchTimeout bounds the time from launch to a running executor, fetching
	// it included. Zero means 5 minutes.
	LaunchTimeout time.Duration
	// UnreachableTimeout is how long to wait for an agent that the master
	// cannot reach before its builds start elsewhere. Zero means 10 minutes.
	UnreachableTimeout time.Duration
	// PushLease is how long an attempt may go on pushing without contact to the
	// framework. If the master loses sight of it meanwhile, another attempt pushes
	// only when that time is over or its agent has said that it has ended, so that
	// tags never mix two images. Zero means 10 minutes.
	PushLease time.Duration
	// ConnectTimeout bounds how long Run tries to reach a master for the first
	// time. Zero means no bound: once connected, a Framework tries for ever
	// anyway.
	ConnectTimeout time.Duration
	// ShutdownTimeout bounds how long Run waits, after its context is done, for
	// tasks to be killed and staged contexts to be removed. Zero means 30
	// seconds.
	ShutdownTimeout time.Duration

	Bundler ContextBundler // nil means DirBundler{}
	Matcher OfferMatcher   // nil means Spread{}
	Logs    LogSink        // nil discards build output

	// Stdout is where outputs go whose Dest is "-". Nil refuses them.
	Stdout io.Writer

	// Logger receives the framework's own log. Nil discards it: a library is
	// silent unless asked. Build output never goes here.
	Logger *slog.Logger
}

// A Framework is a Mesos scheduler framework that builds images. Its methods
// are safe for concurrent use.
type Framework struct {
	cfg     Config
	masters master.Resolver
	stager  *stager // nil without a staging bucket
	desk    stagingDesk
	files   *schedapi.Files
	reach   *reach
	state   *state // nil without a state directory
	past    []record
	running atomic.Bool
	inbox   chan func(*loop) // to the loop's goroutine
	stopped chan struct{}    // closed when Run has returned
}

// New checks cfg and returns a Framework that is not yet running. The error
// wraps ErrInvalid and names every bad field, or tells why the state directory
// cannot be used. A state directory stays open until Run has returned.
func New(cfg Config) (*Framework, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	masters, masterErr := master.Parse(cfg.Master)
	if err := errors.Join(masterErr, cfg.validate()); err != nil {
		return nil, fmt.Errorf("%w config: %w", ErrInvalid, err)
	}
	f := &Framework{cfg: cfg, masters: masters, inbox: make(chan func(*loop)), stopped: make(chan struct{})}
	f.files = schedapi.NewFiles(schedapi.FilesConfig{Principal: cfg.Principal, Secret: cfg.Secret, TLS: cfg.TLS})
	f.reach = newReach(cfg.Logger)
	if cfg.Staging != nil {
		store := staging.New(cfg.Staging)
		store.TTL = cfg.StagingTTL
		f.stager = newStager(store)
	}
	if cfg.StateDir != "" {
		if err := f.openState(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Run registers with the master and schedules builds until ctx is done; then it
// ends every build with ErrStopped, kills what still runs, removes what it
// staged, tears the framework down, and returns. It owns every goroutine that the
// Framework starts; none is left when it returns.
//
// With a state directory it first takes over what an earlier framework left. If
// the cause of ctx is ErrDetached, it then leaves everything as it is, for a later
// framework.
//
// Run may be called once. It returns context.Cause(ctx) after an orderly stop, an
// error wrapping ErrRejected if the master refuses the framework, one wrapping
// ErrUnreachable if there was none within Config.ConnectTimeout, and another if the
// state directory cannot be written; lost connections are retried for ever. With a
// state directory, tasks that may still run then are left to a later framework.
func (f *Framework) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: Run was called before", ErrInvalid)
	}
	defer close(f.stopped)
	defer f.masters.Close()
	defer f.files.Close()
	if f.state != nil {
		defer f.state.close()
	}
	// The connection outlives ctx: the orderly stop needs it.
	alive, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	l := newLoop(f, alive)
	defer l.cleanup.Wait()
	if f.stager != nil {
		keeping, stop := context.WithCancel(alive)
		defer stop()
		l.cleanup.Go(func() { f.keepStaging(keeping) })
	}
	return l.serve(ctx, alive)
}
