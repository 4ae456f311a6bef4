package execapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"

	"github.com/org/portainer/internal/recordio"
)

// Run subscribes and serves h until ctx is done, when it returns context.Cause(ctx).
// SHUTDOWN does not end it: updates are to be sent after that.
//
// When the agent is gone for good, Run calls h.Shutdown, unless that was done
// before, and returns an error that wraps ErrGone or ErrRefused. The agent is gone
// at the first broken connection if it does not checkpoint, and after the recovery
// timeout if it does.
func (c *Client) Run(ctx context.Context, h Handler) error {
	err := c.run(ctx, h)
	c.mu.Lock()
	c.ended = err
	c.notify()
	c.mu.Unlock()
	c.http.CloseIdleConnections()
	if ctx.Err() == nil {
		c.callShutdown(h)
	}
	return err
}

func (c *Client) run(ctx context.Context, h Handler) error {
	var lost time.Time // when the connection broke; zero while there is one
	for {
		began := time.Now()
		subscribed, err := c.subscribe(ctx, h)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrRefused), errors.Is(err, ErrGone):
			return err
		case !c.cfg.Checkpoint:
			return fmt.Errorf("%w: %w (it does not checkpoint)", ErrGone, err)
		}
		if subscribed || lost.IsZero() {
			lost = time.Now()
			c.log.Warn("agent lost", "err", err)
		} else {
			c.log.Debug("agent still lost", "err", err)
		}
		if time.Since(lost) >= c.cfg.RecoveryTimeout {
			return fmt.Errorf("%w: not back within %v: %w", ErrGone, c.cfg.RecoveryTimeout, err)
		}
		wait := rand.N(c.cfg.BackoffMax/4 + 1)
		if subscribed && time.Since(began) > c.cfg.BackoffMax {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(wait, c.cfg.RecoveryTimeout-time.Since(lost))):
		}
	}
}

// subscribe runs one subscription to its end and says why it ended, and whether it
// ever was one.
func (c *Client) subscribe(ctx context.Context, h Handler) (subscribed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(c.cfg.CallTimeout, func() {
		cancel(fmt.Errorf("no answer to SUBSCRIBE within %v", c.cfg.CallTimeout))
	})
	defer timer.Stop()
	body, err := c.connect(ctx)
	if err != nil {
		return false, causeOf(ctx, err)
	}
	defer body.Close()
	if !timer.Stop() {
		return false, context.Cause(ctx)
	}
	var sender sync.WaitGroup
	defer func() {
		c.mu.Lock()
		c.live = false
		c.messages = nil
		c.mu.Unlock()
		cancel(nil)
		sender.Wait()
	}()
	stream := bufio.NewReaderSize(body, 64<<10)
	for {
		record, err := recordio.Read(stream)
		if err != nil {
			return subscribed, causeOf(ctx, fmt.Errorf("stream of the agent: %w", err))
		}
		var event executor.Event
		if err := event.Unmarshal(record); err != nil {
			c.log.Warn("event not understood", "err", err)
			continue
		}
		switch event.Type {
		case executor.Event_SUBSCRIBED:
			if subscribed {
				continue
			}
			subscribed = true
			c.mu.Lock()
			c.live = true
			c.killing = hasKillingState(event.Subscribed)
			for _, u := range c.updates {
				if u.session == c.session {
					u.taken++
				}
			}
			c.mu.Unlock()
			c.log.Info("subscribed", "agent", c.cfg.Endpoint)
			sender.Go(func() {
				if err := c.sendAll(ctx); err != nil {
					cancel(err)
				}
			})
		case executor.Event_LAUNCH:
			if event.Launch != nil {
				c.launch(h, event.Launch.Task)
			}
		case executor.Event_LAUNCH_GROUP:
			if event.LaunchGroup != nil {
				for _, task := range event.LaunchGroup.TaskGroup.Tasks {
					c.launch(h, task)
				}
			}
		case executor.Event_KILL:
			if event.Kill != nil {
				grace := event.Kill.GetKillPolicy().GetGracePeriod().GetNanoseconds()
				h.Kill(event.Kill.TaskID.Value, time.Duration(max(grace, 0)))
			}
		case executor.Event_ACKNOWLEDGED:
			if event.Acknowledged != nil {
				c.acknowledged(event.Acknowledged.TaskID, event.Acknowledged.UUID)
			}
		case executor.Event_MESSAGE:
			if event.Message != nil {
				h.Message(event.Message.Data)
			}
		case executor.Event_SHUTDOWN:
			c.log.Info("told to shut down")
			c.callShutdown(h)
			if !subscribed {
				// The agent is done with the framework, the executor or itself
				// (mesos src/slave/slave.cpp, Slave::subscribe): nobody would
				// acknowledge anything.
				return false, fmt.Errorf("%w: told to shut down instead of subscribed", ErrGone)
			}
		case executor.Event_ERROR:
			return subscribed, fmt.Errorf("error of the agent: %s", event.GetError().GetMessage())
		}
	}
}

// hasKillingState reports whether the framework has said that it understands
// TASK_KILLING, which others take for a state they do not know.
func hasKillingState(s *executor.Event_Subscribed) bool {
	if s == nil {
		return false
	}
	for _, capability := range s.FrameworkInfo.Capabilities {
		if capability.Type == mesos.FrameworkInfo_Capability_TASK_KILLING_STATE {
			return true
		}
	}
	return false
}

// connect returns the stream that the agent answers SUBSCRIBE with. The call lists
// every update that is not acknowledged, so they count as sent.
func (c *Client) connect(ctx context.Context) (io.ReadCloser, error) {
	c.mu.Lock()
	c.session++
	subscribe := &executor.Call_Subscribe{UnacknowledgedTasks: slices.Clone(c.tasks)}
	for _, u := range c.updates {
		subscribe.UnacknowledgedUpdates = append(subscribe.UnacknowledgedUpdates, executor.Call_Update{Status: u.status})
		u.session, u.sent = c.session, time.Now()
	}
	c.mu.Unlock()
	resp, err := c.post(ctx, &executor.Call{Type: executor.Call_SUBSCRIBE, Subscribe: subscribe})
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if kind := resp.Header.Get("Content-Type"); kind != mediaType {
			resp.Body.Close()
			return nil, fmt.Errorf("%w: it answers with %q", ErrRefused, kind)
		}
		return resp.Body, nil
	case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout, http.StatusInternalServerError:
		return nil, newStatusError(resp)
	}
	return nil, fmt.Errorf("%w: %w", ErrRefused, newStatusError(resp))
}

func (c *Client) launch(h Handler, task mesos.TaskInfo) {
	c.mu.Lock()
	c.tasks = append(c.tasks, task)
	c.mu.Unlock()
	h.Launch(Task{ID: task.TaskID.Value, Name: task.Name, Data: task.Data})
}

// acknowledged forgets an update that the agent has stored, and those of the same
// task before it: agents take them in order. It forgets the task too: the agent knows
// now that it was launched.
func (c *Client) acknowledged(task mesos.TaskID, uuid []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tasks = slices.DeleteFunc(c.tasks, func(t mesos.TaskInfo) bool { return t.TaskID == task })
	last := slices.IndexFunc(c.updates, func(u *update) bool {
		return u.status.TaskID == task && string(u.status.UUID) == string(uuid)
	})
	if last < 0 {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(c.updates[:last+1]), func(u *update) bool { return u.status.TaskID == task })
	c.updates = append(rest, c.updates[last+1:]...)
	c.notify()
}

func (c *Client) callShutdown(h Handler) {
	c.mu.Lock()
	done := c.shutdown
	c.shutdown = true
	c.mu.Unlock()
	if !done {
		h.Shutdown()
	}
}

// causeOf returns why ctx is done, if it is, and otherwise err.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}
