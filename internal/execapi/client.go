// Package execapi is a client of the Mesos executor HTTP API, version 1, as mesos
// docs/executor-http-api.md describes it.
//
// It keeps an executor subscribed with its agent, over the agent's restarts too,
// and sees to it that the agent gets every status update, in order.
package execapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// Errors to test for with errors.Is.
var (
	// ErrGone reports that there is no agent any more that would take updates.
	ErrGone = errors.New("the agent is gone")
	// ErrRefused reports an agent that will not have the executor.
	ErrRefused = errors.New("the agent refuses the executor")
)

// A Handler is told what the agent wants. Its methods are called one at a time,
// from Run's goroutine, and must not block.
type Handler interface {
	// Launch starts a task.
	Launch(task Task)
	// Kill ends a task, within grace if that is not 0. The task may be unknown.
	Kill(taskID string, grace time.Duration)
	// Message takes what the framework sent.
	Message(data []byte)
	// Shutdown ends all tasks, and then the executor. It is called once, also
	// when the agent is gone for good.
	Shutdown()
}

// A Client speaks to one agent. Its methods are safe for concurrent use, but Run
// may be called only once.
type Client struct {
	cfg  Config
	http *http.Client
	log  *slog.Logger

	mu       sync.Mutex
	session  int              // counts subscriptions
	live     bool             // whether one is on
	tasks    []mesos.TaskInfo // launched, and none of their updates acknowledged
	updates  []*update        // not acknowledged, in the order of Update
	messages [][]byte
	ended    error         // why Run has returned
	wake     chan struct{} // holds a token while there may be something to send
	changed  chan struct{} // closed and replaced when updates shrink or Run ends
	shutdown bool          // Handler.Shutdown was called
	killing  bool          // the framework has TASK_KILLING_STATE
}

// An update is a status update on its way.
type update struct {
	status  mesos.TaskStatus
	session int       // in which it was sent last
	sent    time.Time // when
	taken   int       // how often the agent has accepted it without acknowledging it
}

// maxMessages is how many messages wait at most. They are hints: newer ones are
// no worth than those that wait.
const maxMessages = 8

// New returns a Client that does nothing before Run.
func New(cfg Config) *Client {
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = 10 * time.Second
	}
	if cfg.ResendAfter <= 0 {
		cfg.ResendAfter = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
		transport := &http.Transport{ // no proxy: the agent is on this machine
			DialContext:        dialer.DialContext,
			TLSClientConfig:    cfg.TLS.Clone(),
			DisableCompression: true,
		}
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(true)
		if cfg.DomainSocket != "" {
			transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", cfg.DomainSocket)
			}
		}
		cfg.Transport = transport
	}
	return &Client{
		cfg: cfg,
		http: &http.Client{
			Transport:     cfg.Transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		log:     cfg.Logger,
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
}

// Update reports the state of a task. It returns at once; the update is sent, and
// sent again, until the agent has acknowledged it. Agents get the updates of a task
// in the order of the calls.
func (c *Client) Update(s Status) {
	status := c.encode(s)
	c.mu.Lock()
	c.updates = append(c.updates, &update{status: status})
	c.mu.Unlock()
	c.signal()
}

// KillingState reports whether the framework wants to hear of Killing. It is false
// before the first subscription.
func (c *Client) KillingState() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killing
}

// Message sends data to the framework if it can be done soon. Mesos drops messages
// at any hop without a word.
func (c *Client) Message(data []byte) {
	c.mu.Lock()
	if c.live && len(c.messages) < maxMessages {
		c.messages = append(c.messages, data)
	}
	c.mu.Unlock()
	c.signal()
}

// Flush waits until the agent has every update: it has them on disk by then, whether
// or not the framework has seen them. While the agent is away, Flush waits for it.
func (c *Client) Flush(ctx context.Context) error {
	for {
		c.mu.Lock()
		left, ended, changed := len(c.updates), c.ended, c.changed
		c.mu.Unlock()
		switch {
		case left == 0:
			return nil
		case ended != nil:
			return fmt.Errorf("%d status updates not delivered: %w", left, ended)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d status updates not delivered: %w", left, context.Cause(ctx))
		}
	}
}

func (c *Client) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// notify wakes Flush. The caller holds mu.
func (c *Client) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}
