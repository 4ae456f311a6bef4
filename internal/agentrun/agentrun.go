// Package agentrun is what an executor does: it takes a task from its Mesos agent,
// reads the staged context, builds and pushes the image with an engine, and reports
// how that ended.
package agentrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/execapi"
)

// A Config says where an executor runs. The zero value of each field is right for a
// process that an agent started.
type Config struct {
	// Getenv and Unsetenv are the environment. Nil means the process's own.
	// Unsetenv takes out what the engine and its containers must not inherit.
	Getenv   func(string) string
	Unsetenv func(string) error

	// Stdout gets the build's log as text, for people who look into the sandbox.
	// It never holds up the build. Nil means os.Stdout.
	Stdout io.Writer
	// Logger gets the executor's own log. Nil means text on os.Stderr.
	Logger *slog.Logger

	// OpenEngine opens the engine that builds. Nil means engine.Open.
	OpenEngine func(ctx context.Context, cfg engine.Config) (Engine, error)
	// Sweep removes what killed executors have left on the machine. Nil means
	// the function of that name.
	Sweep func(ctx context.Context, log *slog.Logger) error
}

// An Engine builds and pushes images. *engine.Engine is one.
type Engine interface {
	portainer.Builder
	Name() string
	Why() string
	Close(ctx context.Context) error
}

func (c Config) withDefaults() Config {
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	if c.Unsetenv == nil {
		c.Unsetenv = os.Unsetenv
	}
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if c.OpenEngine == nil {
		c.OpenEngine = func(ctx context.Context, cfg engine.Config) (Engine, error) {
			return engine.Open(ctx, cfg)
		}
	}
	if c.Sweep == nil {
		c.Sweep = Sweep
	}
	return c
}

// Sweep removes what killed executors have left on this machine: engines with their
// processes, containers, mounts, cgroups and data. Those in use are left alone.
func Sweep(ctx context.Context, log *slog.Logger) error { return engine.Sweep(ctx, "", log) }

// Run serves as the executor that this process is. See Serve.
func Run(ctx context.Context) error { return Serve(ctx, Config{}) }

// Serve runs the task that the agent gives, and returns when the agent has taken
// the last status update and nothing is left of the engine. When ctx is done, or the
// agent says so or is gone, the task is killed first; what then takes longer than
// the agent's shutdown grace period is given up.
//
// An error means that an update may not have been delivered, or that something was
// left behind. How the build ended is no error of Serve.
func Serve(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	api, err := execapi.FromEnv(cfg.Getenv)
	if err != nil {
		return err
	}
	if err := cfg.Unsetenv(execapi.TokenVariable); err != nil {
		return fmt.Errorf("unset %s: %w", execapi.TokenVariable, err)
	}
	api.Logger = cfg.Logger
	cfg.Logger.Info("executor started", "version", Version().String(), "framework", api.FrameworkID, "executor", api.ExecutorID)
	client := execapi.New(api)
	x := newExecutor(cfg, api, client)

	// The client and the sweep outlive ctx: the last updates go out after it.
	// What the task leaves unfinished, killing it finishes.
	own, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	sweeping, stopSweep := context.WithCancel(own)
	x.hurry = stopSweep
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		if err := cfg.Sweep(sweeping, cfg.Logger); err != nil && sweeping.Err() == nil {
			cfg.Logger.Warn("leftovers of other executors not removed", "err", err)
		}
	}()
	var served sync.WaitGroup
	var gone error
	served.Go(func() { gone = client.Run(own, x) })
	onSignal := context.AfterFunc(ctx, x.Shutdown)
	defer onSignal()

	<-x.finished
	x.tasks.Wait()
	flush, cancel := context.WithTimeout(own, x.flushTime())
	undelivered := client.Flush(flush)
	cancel()
	// A build may be quicker than the sweep. Who is told to go leaves it to the next.
	timer := time.AfterFunc(patience, stopSweep)
	<-swept
	timer.Stop()
	stop(errFinished)
	served.Wait()
	if undelivered == nil && !errors.Is(gone, errFinished) && x.ran() == "" {
		undelivered = gone // no task and no agent
	}
	return errors.Join(undelivered, x.leftErr())
}

// errFinished is why the client ends in the end.
var errFinished = errors.New("finished")

// flushTime is how long the agent may take to take the last updates. One that
// checkpoints may be restarting: the outcome is worth waiting for, because without it
// the image would be built again. One that says to shut down is there, and may do so for
// a framework whose updates it takes no more (mesos src/slave/slave.cpp, statusUpdate).
func (x *executor) flushTime() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case !x.stopBy.IsZero():
		return min(max(time.Until(x.stopBy), 100*time.Millisecond), shutdownPatience)
	case x.api.Checkpoint:
		return x.api.RecoveryTimeout + patience
	}
	return patience
}

// patience is how long an agent that is there may take for anything, and
// shutdownPatience how long when the executor is to go.
const (
	patience         = 30 * time.Second
	shutdownPatience = 3 * time.Second
)
