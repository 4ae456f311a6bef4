// Package schedapi is a client of the Mesos scheduler HTTP API, version 1, as
// mesos docs/scheduler-http-api.md describes it.
//
// It keeps one framework subscribed: it finds the leading master, notices when
// the stream has gone silent, subscribes again, and sends calls in order. What
// the events mean is its caller's affair.
package schedapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/pause"
)

// Config says which framework to subscribe, where and how.
type Config struct {
	// Masters finds the leading master. The caller closes it after Run.
	// Required.
	Masters master.Resolver

	// Framework describes the framework; New copies it. With an ID it continues
	// as that framework. Without, the master gives it one, which is in the first
	// SUBSCRIBED event. Principal defaults to the one below. Required.
	Framework *mesos.FrameworkInfo

	// Suppressed returns the roles that are to get no offers from the beginning
	// of a subscription. Run calls it at each subscription, from its own
	// goroutine. Nil means none.
	Suppressed func() []string

	// Principal and Secret are sent as HTTP basic credentials unless Principal
	// is "".
	Principal, Secret string

	// TLS, if not nil, makes https the scheme of masters that were named without
	// one.
	TLS *tls.Config

	// Logger gets the client's own log. Nil discards it.
	Logger *slog.Logger

	// ConnectTimeout bounds an attempt to subscribe, from finding a master to its
	// SUBSCRIBED event. CallTimeout bounds any other call. Zero means 15 s.
	ConnectTimeout, CallTimeout time.Duration

	// BackoffMin and BackoffMax bound the jittered pause between subscriptions.
	// Zero means 100 ms and 5 s.
	BackoffMin, BackoffMax time.Duration

	// MissedHeartbeats is after how many heartbeat intervals without any event
	// the stream is given up. Zero means 5.
	MissedHeartbeats int

	// Transport carries all requests. Nil means one of the client's own.
	Transport http.RoundTripper
}

// An Event is something that happened to the subscription. Exactly one of its
// fields is set.
type Event struct {
	// Event is from the master. HEARTBEAT and ERROR events, and those of types
	// that mesos-go does not know, are not passed on.
	*scheduler.Event

	// Disconnected says why there is no subscription: the one there was has
	// ended, or an attempt has failed. Another attempt follows.
	Disconnected error
}

// A Client keeps one framework subscribed. Its methods are safe for concurrent
// use, but Run may be called only once.
type Client struct {
	cfg  Config
	http *http.Client
	log  *slog.Logger

	mu        sync.Mutex
	framework *mesos.FrameworkInfo // replaced, never changed
	current   *subscription        // nil while not subscribed
	tornDown  bool
}

// New checks cfg and returns a Client that does nothing before Run.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.Masters == nil:
		return nil, errors.New("scheduler client: no masters")
	case cfg.Framework == nil:
		return nil, errors.New("scheduler client: no framework")
	case cfg.Principal == "" && cfg.Secret != "":
		return nil, errors.New("scheduler client: a secret without a principal")
	}
	framework, err := copyFramework(cfg.Framework)
	if err != nil {
		return nil, fmt.Errorf("scheduler client: framework: %w", err)
	}
	if framework.Principal == nil && cfg.Principal != "" {
		framework.Principal = &cfg.Principal
	}
	defaultTo(&cfg.ConnectTimeout, 15*time.Second)
	defaultTo(&cfg.CallTimeout, 15*time.Second)
	defaultTo(&cfg.BackoffMin, 100*time.Millisecond)
	defaultTo(&cfg.BackoffMax, 5*time.Second)
	defaultTo(&cfg.MissedHeartbeats, 5)
	if cfg.Suppressed == nil {
		cfg.Suppressed = func() []string { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport(cfg.TLS)
	}
	return &Client{cfg: cfg, http: newHTTPClient(cfg.Transport), log: cfg.Logger, framework: framework}, nil
}

func defaultTo[T ~int | ~int64](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// copyFramework copies through the encoding: the struct is full of pointers.
func copyFramework(f *mesos.FrameworkInfo) (*mesos.FrameworkInfo, error) {
	data, err := f.Marshal()
	if err != nil {
		return nil, err
	}
	c := new(mesos.FrameworkInfo)
	return c, c.Unmarshal(data)
}

// Run subscribes, and subscribes again whenever the subscription ends. It
// returns context.Cause(ctx) when ctx is done, nil after a TEARDOWN that Do sent,
// and a *RejectedError when trying again is of no use.
//
// Run calls handle from one goroutine, one event after the other. Nothing is read
// from the master while handle runs, so it should be quick.
func (c *Client) Run(ctx context.Context, handle func(Event)) error {
	defer c.http.CloseIdleConnections()
	delay := backoff{min: c.cfg.BackoffMin, max: c.cfg.BackoffMax}
	for {
		began := time.Now()
		err := c.subscribe(ctx, handle)
		var rejected *RejectedError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case c.isTornDown():
			return nil
		case errors.As(err, &rejected):
			return rejected
		}
		handle(Event{Disconnected: err})
		if time.Since(began) > 2*c.cfg.BackoffMax {
			delay.reset()
		}
		wait := delay.next()
		c.log.Warn("not subscribed", "err", err, "retry", wait)
		if err := pause.For(ctx, wait); err != nil {
			return err
		}
	}
}

func (c *Client) isTornDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tornDown
}

// Send puts a call in the queue and returns at once. Calls are sent one at a time
// in the order of Send, with the framework's ID and the stream's filled in.
//
// A call belongs to the subscription there is at the time of Send. When that
// ends, calls not sent yet are dropped, and so is a call made without a
// subscription: a later subscription begins with reconciliation, and offers of
// the earlier one are void. The last call before a disconnect may or may not have
// reached the master.
//
// call may be used again when Send has returned.
func (c *Client) Send(call *scheduler.Call) {
	if err := c.enqueue(call, nil); err != nil {
		c.log.Debug("call dropped", "call", call.Type, "err", err)
	}
}

// Do sends a call like Send, in its turn, and waits until the master has answered
// it. It returns ErrNotSubscribed if the subscription there was, if any, ended before
// that; the master may or may not have got the call then.
func (c *Client) Do(ctx context.Context, call *scheduler.Call) error {
	done := make(chan error, 1)
	if err := c.enqueue(call, done); err != nil {
		return fmt.Errorf("%s: %w", call.Type, err)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", call.Type, context.Cause(ctx))
	}
}

func (c *Client) enqueue(call *scheduler.Call, done chan<- error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return ErrNotSubscribed
	}
	full := *call
	full.FrameworkID = c.framework.ID
	if full.Type == scheduler.Call_UPDATE_FRAMEWORK && full.UpdateFramework != nil {
		// Later subscriptions must not take the change back.
		framework, err := copyFramework(&full.UpdateFramework.FrameworkInfo)
		if err != nil {
			return err
		}
		framework.ID = c.framework.ID
		c.framework = framework
	}
	body, err := full.Marshal()
	if err != nil {
		return err
	}
	c.current.queue.add(queued{kind: full.Type, body: body, done: done})
	return nil
}
