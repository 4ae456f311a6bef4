package portainer

import (
	"context"
	"errors"
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
	// ErrFailed reports that a build ran and failed by its own doing: a
	// Dockerfile step, a denied push. It is never retried.
	ErrFailed = errors.New("build failed")
	// ErrLost reports that every attempt was lost to the cluster: agent gone,
	// executor dead, task never started. The same Request may work later.
	ErrLost = errors.New("build lost")
	// ErrStaging reports that the staging bucket could not be read or written.
	ErrStaging = errors.New("staging failed")
)

// A Framework is a Mesos scheduler framework that builds images.
type Framework struct{}

// Build implements Builder.
func (f *Framework) Build(ctx context.Context, req Request) (*Result, error) { return nil, ErrStopped }
