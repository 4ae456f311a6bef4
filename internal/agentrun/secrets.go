package agentrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/seal"
)

const (
	// secretsTimeout bounds how long the framework may take to send the secrets
	// of the task. It is asked again all the time, so it must be away, or unable
	// to reach this agent. By then Mesos has most likely given it up.
	secretsTimeout = 2 * time.Minute
	// secretsAge is how old credentials may be when a registry is spoken to.
	// Older ones are asked for anew: passwords of cloud registries are tokens
	// that expire, some within half an hour.
	secretsAge = 10 * time.Minute
	// urlAge is how old signed URLs may be. They are good for an hour.
	urlAge = 20 * time.Minute
)

// awaitSecrets waits until the secrets of the task are here.
func (a *attempt) awaitSecrets(ctx context.Context) (seal.Credentials, error) {
	limited, cancel := context.WithTimeoutCause(ctx, secretsTimeout, fmt.Errorf("no secrets within %v", secretsTimeout))
	defer cancel()
	began := time.Now()
	got, err := a.secrets.Credentials(limited)
	if err != nil {
		class := portainer.ClassLaunch
		switch {
		case ctx.Err() != nil:
			class = portainer.ClassCancelled
		case errors.Is(err, seal.ErrRefused):
			class = portainer.ClassAuth
		case errors.Is(err, seal.ErrVersion):
			class = portainer.ClassInvalid
		}
		return seal.Credentials{}, &portainer.BuildError{Phase: portainer.PhaseLaunch, Class: class, Err: err}
	}
	a.cfg.Logger.Info("secrets received", "secrets", got, "waited", time.Since(began))
	return got, nil
}

// auth is the engine.AuthFunc of the attempt.
func (a *attempt) auth(ctx context.Context, registry string) (engine.RegistryAuth, error) {
	c, err := a.secrets.Fresh(ctx, secretsAge)
	if err != nil {
		return engine.RegistryAuth{}, err
	}
	return engine.RegistryAuth(c.Registries[registry]), nil
}

// secret is the engine.SecretFunc of the attempt.
func (a *attempt) secret(ctx context.Context, id string) ([]byte, error) {
	c, err := a.secrets.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	return c.Secrets[id], nil
}

// sshAgents are the ssh agents that the steps of the task may use, all of them with
// the framework.
func (a *attempt) sshAgents() map[string]engine.SSHFunc {
	agents := make(map[string]engine.SSHFunc, len(a.task.SSH))
	for _, id := range a.task.SSH {
		agents[id] = func(ctx context.Context, conn io.ReadWriter) error { return a.ssh.Serve(ctx, id, conn) }
	}
	return agents
}

// url is the staging.URLFunc of the attempt.
func (a *attempt) url(ctx context.Context, key string, fresh bool) (string, error) {
	if a.secrets == nil {
		return "", errors.New("the task has signed URLs, but says that there are no secrets")
	}
	age := urlAge
	if fresh {
		age = 0
	}
	c, err := a.secrets.Fresh(ctx, age)
	if err != nil {
		return "", err
	}
	found, ok := c.URLs[key]
	if !ok {
		return "", errors.New("the framework has signed no URL of it")
	}
	return found, nil
}

// A maskedLog takes secrets out of what goes to a log.
type maskedLog struct {
	to   portainer.LogSink
	mask func(line []byte) []byte
}

// HandleEvent implements portainer.LogSink.
func (l maskedLog) HandleEvent(ctx context.Context, ev portainer.Event) {
	ev.Text = l.text(ev.Text)
	ev.Step.Name = l.text(ev.Step.Name)
	ev.Step.Error = l.text(ev.Step.Error)
	l.to.HandleEvent(ctx, ev)
}

func (l maskedLog) text(s string) string {
	if s == "" {
		return s
	}
	return string(l.mask([]byte(s)))
}
