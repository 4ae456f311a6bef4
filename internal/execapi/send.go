package execapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

const mediaType = "application/x-protobuf"

// resendPause is the pause after a call that failed while the stream is up.
const resendPause = time.Second

// maxTaken is how often an agent may accept an update before it counts as
// acknowledged. Agents do not acknowledge updates of a task that the framework has
// done with (mesos src/slave/slave.cpp, Slave::___statusUpdate), so an
// acknowledgement that was lost does not come again.
const maxTaken = 2

// sendAll sends updates in order, and messages between them, until ctx is done or
// the agent says that the subscription is none. It sends an update again that is
// not acknowledged in time; agents know duplicates by their UUID.
func (c *Client) sendAll(ctx context.Context) error {
	for ctx.Err() == nil {
		call, u, wait := c.next()
		wake := (<-chan struct{})(c.wake)
		if call != nil {
			err := c.send(ctx, call)
			var status *statusError
			switch {
			case err == nil && u != nil:
				c.mu.Lock()
				u.taken++
				c.mu.Unlock()
				continue
			case err == nil:
				continue
			case errors.As(err, &status) && status.code < http.StatusInternalServerError:
				return err
			case u == nil:
				c.log.Debug("message lost", "err", err)
				continue
			}
			// The stream tells whether the agent is gone.
			c.log.Warn("update not sent", "task", u.status.TaskID.Value, "err", err)
			c.mu.Lock()
			u.session = 0
			c.mu.Unlock()
			wait, wake = resendPause, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-wake:
		}
		timer.Stop()
	}
	return nil
}

// next returns the next call to send and its update, if it is for one, or how long
// to wait for either.
func (c *Client) next() (*executor.Call, *update, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wait := c.cfg.ResendAfter
	before := len(c.updates)
	c.updates = slices.DeleteFunc(c.updates, func(u *update) bool {
		return u.session == c.session && u.taken >= maxTaken && now.Sub(u.sent) >= c.cfg.ResendAfter
	})
	if len(c.updates) < before {
		c.log.Warn("updates taken but not acknowledged", "count", before-len(c.updates))
		c.notify()
	}
	for _, u := range c.updates {
		if left := u.sent.Add(c.cfg.ResendAfter).Sub(now); u.session == c.session && left > 0 {
			wait = min(wait, left)
			continue
		}
		u.session, u.sent = c.session, now
		return &executor.Call{Type: executor.Call_UPDATE, Update: &executor.Call_Update{Status: u.status}}, u, 0
	}
	if len(c.messages) > 0 {
		data := c.messages[0]
		c.messages = c.messages[1:]
		return &executor.Call{Type: executor.Call_MESSAGE, Message: &executor.Call_Message{Data: data}}, nil, 0
	}
	return nil, nil, wait
}

func (c *Client) send(ctx context.Context, call *executor.Call) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.CallTimeout,
		fmt.Errorf("%s: no answer from the agent within %v: %w", call.Type, c.cfg.CallTimeout, context.DeadlineExceeded))
	defer cancel()
	resp, err := c.post(ctx, call)
	if err != nil {
		return causeOf(ctx, fmt.Errorf("%s: %w", call.Type, err))
	}
	if resp.StatusCode == http.StatusAccepted || resp.StatusCode == http.StatusOK {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // a failure only costs the connection
		resp.Body.Close()
		return nil
	}
	return fmt.Errorf("%s: %w", call.Type, newStatusError(resp))
}

func (c *Client) post(ctx context.Context, call *executor.Call) (*http.Response, error) {
	call.ExecutorID.Value = c.cfg.ExecutorID
	call.FrameworkID.Value = c.cfg.FrameworkID
	body, err := call.Marshal()
	if err != nil {
		return nil, err
	}
	base := url.URL{Scheme: "http", Host: c.cfg.Endpoint, Path: "/api/v1/executor"}
	if c.cfg.TLS != nil {
		base.Scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("agent %s: %w", c.cfg.Endpoint, err)
	}
	return resp, nil
}

// A statusError reports an answer that is no success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.code, e.text) }

// newStatusError reads and closes the body of resp.
func newStatusError(resp *http.Response) error {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the status tells enough
	text := strings.TrimSpace(string(body))
	if text == "" {
		text = http.StatusText(resp.StatusCode)
	}
	return &statusError{code: resp.StatusCode, text: text}
}
