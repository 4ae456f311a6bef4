package hdfsblob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/pause"
)

// A client speaks WebHDFS to the namenodes of one cluster.
type client struct {
	http         *http.Client
	ownTransport bool
	nodes        []*url.URL
	active       atomic.Int64 // which of nodes answered last
	user, token  string
	stall        time.Duration
	retries      int
}

// A request is an operation on one path.
type request struct {
	method, op, path string
	params           url.Values
}

func (r request) with(key, value string) request {
	params := url.Values{key: {value}}
	maps.Copy(params, r.params)
	r.params = params
	return r
}

// url returns where the namenode at base takes the request.
func (c *client) url(base *url.URL, r request) *url.URL {
	q := url.Values{"op": {r.op}}
	switch {
	case c.token != "":
		q.Set("delegation", c.token)
	case c.user != "":
		q.Set("user.name", c.user)
	}
	maps.Copy(q, r.params)
	return &url.URL{Scheme: base.Scheme, Host: base.Host, Path: "/webhdfs/v1" + r.path, RawQuery: q.Encode()}
}

// The waits between attempts.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// retry calls try, with the namenode to ask, until it succeeds or its error is one
// that asking again does not mend. r is what errors name.
func (c *client) retry(ctx context.Context, r request, try func(node *url.URL) error) error {
	backoff := firstBackoff
	for round, asked := 0, 0; ; {
		i := c.active.Load()
		node := c.nodes[i]
		err := try(node)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		err = fmt.Errorf("%s %s at %s: %w", r.op, r.path, node.Host, err)
		what := remedyFor(err)
		if what == giveUp {
			return err
		}
		if what == tryOthers {
			c.active.CompareAndSwap(i, (i+1)%int64(len(c.nodes)))
			if asked++; asked < len(c.nodes) {
				continue // the others first, before anyone waits
			}
		}
		asked = 0
		if round++; round > c.retries {
			return err
		}
		// Not all clients of a namenode that comes back at the same moment.
		if pause.For(ctx, backoff/2+rand.N(backoff/2)) != nil {
			return contextError(ctx)
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// contextError is the error of a context that is done: ctx.Err() and its cause.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(cause, err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// send sends one request and returns the answer if it is a success or a redirect.
// Whoever gets it closes its body, which ends the request. From then on, and as long
// as body has no more to give, nothing may stand still for longer than c.stall.
func (c *client) send(ctx context.Context, method string, u *url.URL, body io.Reader, length int64) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	dog := &watchdog{limit: c.stall, bite: func() {
		cancel(fmt.Errorf("%w for %s", errStalled, c.stall))
	}}
	fail := func(err error) error {
		dog.stop()
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = cause
		}
		cancel(nil)
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fail(withoutURL(err))
	}
	if body != nil {
		req.Body = io.NopCloser(&watchedBody{body, dog})
		req.ContentLength = length
		// HttpFS insists on it.
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	// RestCsrfPreventionFilter wants this header where it is configured.
	req.Header.Set("X-Xsrf-Header", "portainer")
	dog.start()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fail(withoutURL(err))
	}
	dog.stop()
	resp.Body = &watchedResponse{resp.Body, dog, func() { cancel(nil) }, ctx}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusTemporaryRedirect:
		return resp, nil
	}
	err = remoteError(resp)
	resp.Body.Close()
	return nil, err
}

// A watchdog bites when it was started and not stopped in time.
type watchdog struct {
	limit time.Duration
	bite  func()
	timer atomic.Pointer[time.Timer]
}

func (d *watchdog) start() {
	if old := d.timer.Swap(time.AfterFunc(d.limit, d.bite)); old != nil {
		old.Stop()
	}
}

func (d *watchdog) stop() {
	if old := d.timer.Swap(nil); old != nil {
		old.Stop()
	}
}

// A watchedBody is a request's body. While it is read the wait is for us, and
// otherwise for the server.
type watchedBody struct {
	r   io.Reader
	dog *watchdog
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.dog.stop()
	defer b.dog.start()
	return b.r.Read(p)
}

// A watchedResponse is a response's body. While it is read the wait is for the
// server.
type watchedResponse struct {
	body io.ReadCloser
	dog  *watchdog
	end  func()
	ctx  context.Context // of the request
}

func (b *watchedResponse) Read(p []byte) (int, error) {
	b.dog.start()
	n, err := b.body.Read(p)
	b.dog.stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); errors.Is(cause, errStalled) {
			err = cause
		}
	}
	return n, err
}

func (b *watchedResponse) Close() error {
	err := b.body.Close()
	b.end()
	return err
}

// maxAnswer is the size of the largest answer that is not a listing or a file.
const maxAnswer = 1 << 20

// ask sends a request to the active namenode and decodes the answer into one; an
// empty answer leaves it alone. again is true if an earlier attempt may have been
// carried out although its answer was lost.
func (c *client) ask(ctx context.Context, r request, answer any) (again bool, err error) {
	limit := int64(maxAnswer)
	if r.op == "LISTSTATUS" {
		limit = 1 << 40
	}
	err = c.retry(ctx, r, func(node *url.URL) error {
		err := func() error {
			resp, err := c.send(ctx, r.method, c.url(node, r), nil, 0)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode == http.StatusTemporaryRedirect {
				return &RemoteError{Status: resp.StatusCode, Message: "a redirect where none belongs"}
			}
			doc, err := io.ReadAll(io.LimitReader(resp.Body, limit))
			if err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			if len(doc) == 0 {
				return nil // RENAME with options and SETXATTR answer nothing
			}
			if err := json.Unmarshal(doc, answer); err != nil {
				return errorf(gcerrors.Unknown, "read the answer: %w", err)
			}
			return nil
		}()
		if err != nil && !neverSent(err) {
			remote := (*RemoteError)(nil)
			again = again || !errors.As(err, &remote) || remote.Status >= http.StatusInternalServerError
		}
		return err
	})
	return again, err
}

// redirect has the namenode say which datanode takes the request. Servers without
// datanodes, HttpFS and its like, name themselves.
func (c *client) redirect(ctx context.Context, node *url.URL, r request) (*url.URL, error) {
	resp, err := c.send(ctx, r.method, c.url(node, r), nil, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect {
		return nil, errorf(gcerrors.Unknown, "the answer is HTTP status %d, not a redirect to a datanode", resp.StatusCode)
	}
	to, err := resp.Location()
	if err != nil {
		return nil, errorf(gcerrors.Unknown, "the redirect leads nowhere: %w", withoutURL(err))
	}
	if node.Scheme == "https" && to.Scheme != "https" || to.Scheme != "http" && to.Scheme != "https" {
		return nil, errorf(gcerrors.Unknown, "the redirect to %s://%s leaves https", to.Scheme, to.Host)
	}
	return to, nil
}

// transfer sends a request to the namenode and then to the datanode that it names,
// until it gets an answer. prepare, if not nil, is asked for the path and the body of
// every attempt; its error ends them.
func (c *client) transfer(ctx context.Context, r request, prepare func() (path string, body io.Reader, length int64, err error)) (*http.Response, error) {
	var answer *http.Response
	var excluded []string // datanodes that failed
	var failure error     // of the last attempt
	err := c.retry(ctx, r, func(node *url.URL) error {
		var body io.Reader
		length := int64(0)
		if prepare != nil {
			var err error
			if r.path, body, length, err = prepare(); err != nil {
				return &codedError{codeOf(failure), errors.Join(failure, err)}
			}
		}
		ask := r
		if len(excluded) > 0 {
			ask = ask.with("excludedatanodes", strings.Join(excluded, ","))
		}
		to, err := c.redirect(ctx, node, ask)
		if err != nil {
			if len(excluded) > 0 && remedyFor(err) == giveUp && !isNotFound(err) {
				// There may be no other datanode: let the namenode choose among all again.
				excluded = nil
				err = fmt.Errorf("%w: %s", errNoOther, err.Error()) // its class does not count
			}
			failure = err
			return err
		}
		resp, err := c.send(ctx, r.method, to, body, length)
		if err != nil {
			if remedyFor(err) != giveUp {
				excluded = append(excluded, to.Hostname())
			}
			failure = fmt.Errorf("datanode %s: %w", to.Host, err)
			return failure
		}
		if resp.StatusCode == http.StatusTemporaryRedirect {
			resp.Body.Close()
			return errorf(gcerrors.Unknown, "datanode %s: it redirects once more", to.Host)
		}
		answer = resp
		return nil
	})
	return answer, err
}

// errNoOther reports a namenode that knows no datanode but those that failed.
var errNoOther = errors.New("no other datanode")
