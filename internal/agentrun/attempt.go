package agentrun

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/sshforward"
	"github.com/org/portainer/internal/wire"
)

// An attempt is one try at the build of a task.
type attempt struct {
	cfg     Config
	sandbox string
	task    *wire.Task
	log     portainer.LogSink
	permit  *permit
	secrets *seal.Receiver     // nil if the task needs none
	ssh     *sshforward.Remote // nil with secrets

	engine  Engine   // nil until it is open and after close
	outputs *outputs // nil if there are none
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
		outcome.ConfigDigest, outcome.Descriptor = res.ConfigDigest, wire.Descriptor(res.Descriptor)
		outcome.Outputs = a.outputs.delivered()
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
	staged, err := a.openStaged(ctx)
	if err != nil {
		return nil, err
	}
	defer staged.close()
	outputs, closeOutputs, err := openOutputs(ctx, t)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := closeOutputs(); err != nil {
			a.cfg.Logger.Warn("staging bucket not closed", "err", err)
		}
	}()
	a.outputs = outputs
	began := time.Now()
	cfg, err := a.engineConfig(ctx, staged)
	if err != nil {
		return nil, err
	}
	cfg.Save = outputs.save()
	eng, err := a.cfg.OpenEngine(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a.engine = eng
	a.info(ctx, "engine %s ready in %v: %s", eng.Name(), time.Since(began).Round(time.Millisecond), eng.Why())
	var secrets seal.Credentials
	if a.secrets != nil {
		if secrets, err = a.awaitSecrets(ctx); err != nil {
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
		Remote:     t.Remote,
		Target:     t.Target,
		Args:       t.Args,
		Labels:     t.Labels,
		Network:    t.Network,
		AddHosts:   t.AddHosts,
		NoCache:    t.NoCache,
		Pull:       t.Pull,
		Options:    a.options(secrets),
		Outputs:    outputsOf(t),
		Resources:  portainer.Resources{CPUs: t.CPUs, MemMB: t.MemMB, DiskMB: t.DiskMB},
	})
}

// close closes the engine.
func (a *attempt) close() error {
	if a.engine == nil {
		return nil
	}
	eng := a.engine
	a.engine = nil
	if err := eng.Close(context.Background()); err != nil {
		return fmt.Errorf("close engine: %w", err)
	}
	return nil
}

// info adds a line of the executor's own to the log.
func (a *attempt) info(ctx context.Context, format string, args ...any) {
	a.log.HandleEvent(ctx, portainer.Event{Kind: portainer.EventInfo, Time: time.Now(), Text: fmt.Sprintf(format, args...)})
}
