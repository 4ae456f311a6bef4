package schedapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/recordio"
)

// defaultHeartbeat is the interval of masters that do not tell theirs.
const defaultHeartbeat = 15 * time.Second

// A subscription is one stream of events and the calls that belong to it.
type subscription struct {
	base   *url.URL
	stream string // Mesos-Stream-Id
	queue  queue
}

// subscribe runs one subscription to its end and says why it ended.
func (c *Client) subscribe(run context.Context, handle func(Event)) error {
	ctx, cancel := context.WithCancelCause(run)
	defer cancel(nil)
	timer := time.AfterFunc(c.cfg.ConnectTimeout, func() {
		cancel(fmt.Errorf("no subscription within %v", c.cfg.ConnectTimeout))
	})
	defer timer.Stop()

	sub, body, err := c.connect(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer body.Close()
	host := sub.base.Host
	stream := bufio.NewReaderSize(body, 64<<10)

	first, err := nextEvent(stream)
	if err != nil {
		return fmt.Errorf("master %s: %w", host, causeOf(ctx, err))
	}
	if first.Type == scheduler.Event_ERROR {
		return refusal(host, first.GetError().GetMessage(), false)
	}
	if first.Type != scheduler.Event_SUBSCRIBED || first.Subscribed == nil {
		return fmt.Errorf("master %s began its stream with %s instead of SUBSCRIBED", host, first.Type)
	}
	if !timer.Stop() {
		return causeOf(ctx, context.Canceled)
	}
	heartbeat := defaultHeartbeat
	if s := first.Subscribed.GetHeartbeatIntervalSeconds(); s > 0 {
		heartbeat = time.Duration(s * float64(time.Second))
	}
	silence := heartbeat * time.Duration(c.cfg.MissedHeartbeats)
	c.log.Info("subscribed", "master", host, "framework", first.Subscribed.FrameworkID.GetValue())

	var sender sync.WaitGroup
	c.begin(sub, first.Subscribed)
	defer func() {
		c.end()
		cancel(nil)
		sender.Wait()
		sub.queue.drop()
	}()
	sender.Go(func() {
		if err := c.sendAll(run, ctx, sub); err != nil {
			cancel(err)
		}
	})

	handle(Event{Event: first})
	for {
		watchdog := time.AfterFunc(silence, func() {
			cancel(fmt.Errorf("nothing from master %s for %v", host, silence))
		})
		event, err := nextEvent(stream)
		watchdog.Stop()
		var bad *decodeError
		switch {
		case errors.As(err, &bad):
			// The master would send it again on the next stream.
			c.log.Warn("event not understood", "master", host, "err", bad)
			continue
		case err != nil:
			return causeOf(ctx, fmt.Errorf("stream of master %s: %w", host, err))
		}
		switch event.Type {
		case scheduler.Event_HEARTBEAT, scheduler.Event_UNKNOWN:
		case scheduler.Event_ERROR:
			return refusal(host, event.GetError().GetMessage(), true)
		default:
			if _, known := scheduler.Event_Type_name[int32(event.Type)]; known {
				handle(Event{Event: event})
			}
		}
	}
}

// begin makes sub the subscription that calls go to.
func (c *Client) begin(sub *subscription, event *scheduler.Event_Subscribed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.framework.ID.GetValue() != event.FrameworkID.GetValue() {
		framework := *c.framework
		framework.ID = event.FrameworkID
		c.framework = &framework
	}
	c.current = sub
}

func (c *Client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = nil
}

// connect finds the leading master and returns the stream it answers SUBSCRIBE
// with.
func (c *Client) connect(ctx context.Context) (*subscription, io.ReadCloser, error) {
	// Well before the whole attempt is over, so that the resolver tells its trouble.
	finding, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout/3)
	base, err := c.cfg.Masters.Leader(finding)
	cancel()
	if err != nil {
		return nil, nil, err
	}
	if base.Scheme == "" {
		base.Scheme = "http"
		if c.cfg.TLS != nil {
			base.Scheme = "https"
		}
	}
	c.mu.Lock()
	framework := c.framework
	c.mu.Unlock()
	call := scheduler.Call{
		Type:        scheduler.Call_SUBSCRIBE,
		FrameworkID: framework.ID,
		Subscribe:   &scheduler.Call_Subscribe{FrameworkInfo: framework, SuppressedRoles: c.cfg.Suppressed()},
	}
	body, err := call.Marshal()
	if err != nil {
		return nil, nil, err
	}
	for range master.MaxRedirects + 1 {
		resp, err := c.post(ctx, base, "", body)
		if err != nil {
			return nil, nil, fmt.Errorf("master %s: %w", base.Host, withoutURL(err))
		}
		switch {
		case resp.StatusCode == http.StatusOK:
			if kind := resp.Header.Get("Content-Type"); kind != mediaType {
				resp.Body.Close()
				return nil, nil, fmt.Errorf("%s answers with %q: no Mesos master", base.Host, kind)
			}
			stream := resp.Header.Get(streamHeader)
			if stream == "" { // taken out on the way: the master would refuse every call
				resp.Body.Close()
				return nil, nil, fmt.Errorf("master %s: its stream came without %s", base.Host, streamHeader)
			}
			return &subscription{base: base, stream: stream, queue: newQueue()}, resp.Body, nil
		case isRedirect(resp.StatusCode):
			location := resp.Header.Get("Location")
			discard(resp)
			next, err := master.Redirect(base, location, path)
			if err != nil {
				return nil, nil, err
			}
			c.log.Debug("redirected", "master", base.Host, "leader", next.Host)
			base = next
		default:
			status := newStatusError("SUBSCRIBE", resp)
			if status.final() {
				return nil, nil, &RejectedError{Master: base.Host, Message: status.text(), reason: status.reason()}
			}
			return nil, nil, fmt.Errorf("master %s: %w", base.Host, status)
		}
	}
	return nil, nil, fmt.Errorf("redirected %d times in a row, last to %s: the masters have not agreed on a leader", master.MaxRedirects+1, base.Host)
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// A decodeError reports a record that is whole but is no event.
type decodeError struct{ err error }

func (e *decodeError) Error() string { return "not an event: " + e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

func nextEvent(stream *bufio.Reader) (*scheduler.Event, error) {
	record, err := recordio.Read(stream)
	if err != nil {
		return nil, err
	}
	event := new(scheduler.Event)
	if err := event.Unmarshal(record); err != nil {
		return nil, &decodeError{err}
	}
	return event, nil
}

// causeOf returns why ctx is done, if it is, and otherwise err, which what is done
// under ctx has met.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// refusal is the error that an ERROR event stands for. Before SUBSCRIBED it is the
// answer to the subscription (mesos src/master/master.cpp, refuseSubscription),
// which the same framework would get again.
func refusal(host, message string, subscribed bool) error {
	rejected := &RejectedError{Master: host, Message: message}
	switch {
	case strings.Contains(message, "Framework failed over"):
		rejected.reason = ErrFailedOver
	case strings.Contains(message, "Framework has been removed"),
		strings.Contains(message, "Completed framework attempted"): // older masters
		rejected.reason = ErrRemoved
	case subscribed, strings.Contains(message, "Authorization failure"): // the authorizer did not work
		return fmt.Errorf("master %s: %s", host, message)
	}
	return rejected
}
