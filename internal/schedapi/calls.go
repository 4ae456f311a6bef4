package schedapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// queued is a call that waits to be sent.
type queued struct {
	kind scheduler.Call_Type
	body []byte
	done chan<- error // gets the answer, unless nil; has room for it
}

func (q queued) finish(err error) {
	if q.done != nil {
		q.done <- err
	}
}

// A queue holds the calls of one subscription.
type queue struct {
	mu    sync.Mutex
	calls []queued
	wake  chan struct{} // holds a token while there may be calls
}

func newQueue() queue { return queue{wake: make(chan struct{}, 1)} }

func (q *queue) add(call queued) {
	q.mu.Lock()
	q.calls = append(q.calls, call)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes and returns all calls.
func (q *queue) take() []queued {
	q.mu.Lock()
	defer q.mu.Unlock()
	calls := q.calls
	q.calls = nil
	return calls
}

// drop answers all calls with ErrNotSubscribed.
func (q *queue) drop() {
	for _, call := range q.take() {
		call.finish(fmt.Errorf("%s: %w", call.kind, ErrNotSubscribed))
	}
}

// sendAll sends the calls of sub in order until ctx is done, or until one fails
// in a way that leaves the subscription of no use or unknown whether the master
// got the call. ctx is the subscription's, run that of Run.
func (c *Client) sendAll(run, ctx context.Context, sub *subscription) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sub.queue.wake:
		}
		calls := sub.queue.take()
		for i, call := range calls {
			during := ctx
			if call.kind == scheduler.Call_TEARDOWN {
				during = run // the master may end the stream before it answers
			}
			err := c.sendOne(during, sub, call)
			if err == nil && call.kind == scheduler.Call_TEARDOWN {
				c.mu.Lock()
				c.tornDown = true
				c.mu.Unlock()
			}
			call.finish(err)
			var status *StatusError
			switch {
			case err == nil:
			case errors.As(err, &status) && status.refusesOnlyTheCall():
				c.log.Error("call refused", "call", call.kind, "err", err)
			default:
				for _, call := range calls[i+1:] {
					call.finish(fmt.Errorf("%s: %w", call.kind, ErrNotSubscribed))
				}
				return err
			}
		}
	}
}

func (c *Client) sendOne(during context.Context, sub *subscription, call queued) error {
	ctx, cancel := context.WithTimeoutCause(during, c.cfg.CallTimeout,
		fmt.Errorf("%s: no answer from master %s within %v: %w", call.kind, sub.base.Host, c.cfg.CallTimeout, context.DeadlineExceeded))
	defer cancel()
	resp, err := c.post(ctx, sub.base, sub.stream, call.body)
	if err != nil {
		switch {
		case during.Err() != nil:
			return fmt.Errorf("%s: %w any more: no answer came before", call.kind, ErrNotSubscribed)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s to master %s: %w", call.kind, sub.base.Host, withoutURL(err))
	}
	if resp.StatusCode == http.StatusAccepted || resp.StatusCode == http.StatusOK {
		discard(resp)
		return nil
	}
	return newStatusError(call.kind.String(), resp)
}

// refusesOnlyTheCall reports whether the master found fault with the call and not
// with the framework's standing.
func (e *StatusError) refusesOnlyTheCall() bool {
	return e.Code == http.StatusBadRequest &&
		!strings.Contains(e.Body, "Framework cannot be found") &&
		!strings.Contains(e.Body, "stream ID") && !strings.Contains(e.Body, streamHeader)
}
