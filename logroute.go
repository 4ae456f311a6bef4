package portainer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/org/portainer/internal/schedapi"
)

// errOutOfReach reports an agent that could not be reached before, either.
var errOutOfReach = errors.New("the executor has ended, and the agent is out of reach")

// A logRoute reads logs from the agents' files, and where an agent cannot be reached
// has the executor send its log over the master. It belongs to one goroutine, which
// closes it.
type logRoute struct {
	files    logReader // safe for concurrent use
	executor *executorLog
	reach    *reach
	say      func(ctx context.Context, text string) // to whoever sees the log

	source *logSource // being read
	said   bool       // that its agent cannot be reached
	left   bool       // its executor knows that it is not asked
	probes sync.WaitGroup
	stop   context.CancelFunc // ends them; nil before there was one
}

func (r *logRoute) read(ctx context.Context, s *logSource, offset int64) ([]byte, int64, error) {
	if r.source != s {
		r.source, r.said, r.left = s, false, false
	}
	if s.ended {
		data, size, err := r.files.read(ctx, s, offset)
		if err != nil && r.reach.away(s.agentURL) != nil {
			err = fmt.Errorf("%w: %w", errOutOfReach, err)
		}
		return data, size, err
	}
	why := r.reach.away(s.agentURL)
	if why == nil {
		data, size, err := r.fromFiles(ctx, s, offset)
		if why = r.reach.away(s.agentURL); err == nil || why == nil {
			return data, size, err
		}
	}
	if !r.said {
		r.said = true
		r.say(ctx, fmt.Sprintf("agent %s cannot be reached at %s: %v; its log comes over the master", s.hostname, s.agentURL, cmp.Or(errors.Unwrap(why), why)))
	}
	r.probe(ctx, s, offset)
	r.left = false
	return r.executor.read(ctx, s, offset)
}

// fromFiles reads from the agent, and notes whether that is possible.
func (r *logRoute) fromFiles(ctx context.Context, s *logSource, offset int64) ([]byte, int64, error) {
	began := time.Now()
	data, size, err := r.files.read(ctx, s, offset)
	switch {
	case ctx.Err() != nil:
		return nil, 0, err
	case r.unreachable(s, err):
		r.reach.failed(s.agentURL, began, err)
		return nil, 0, err
	case err == nil:
		r.reach.read(s.agentURL)
	}
	if !r.left && (err == nil || errors.Is(err, schedapi.ErrFileForbidden)) {
		// What the agent forbids is not had by another way.
		r.left = true
		r.executor.leave(s)
	}
	return data, size, err
}

// unreachable reports whether a reading failed in a way that means that the agent
// cannot be reached. That there is no file means so only when the executor has said
// that its log is complete: then somebody else answers at the agent's address, or an
// agent that is too old.
func (r *logRoute) unreachable(s *logSource, err error) bool {
	switch {
	case err == nil, errors.Is(err, schedapi.ErrFileForbidden):
		return false
	case errors.Is(err, schedapi.ErrFileNotFound):
		return r.executor.awaited(s)
	}
	return true
}

// probe tries now and then whether the agent can be reached after all. A connection
// may take long to fail, so the log does not wait for it.
func (r *logRoute) probe(ctx context.Context, s *logSource, offset int64) {
	if !r.reach.probe(s.agentURL) {
		return
	}
	if r.stop != nil {
		r.stop()
		r.probes.Wait()
	}
	ctx, r.stop = context.WithCancel(ctx)
	r.probes.Go(func() {
		if _, _, err := r.files.read(ctx, s, offset); err == nil {
			r.reach.read(s.agentURL)
		}
	})
}

// close ends what read has started.
func (r *logRoute) close() {
	if r.stop != nil {
		r.stop()
	}
	r.probes.Wait()
}
