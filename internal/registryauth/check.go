package registryauth

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/org/portainer/internal/pause"
	"github.com/org/portainer/internal/seal"
)

// What CheckPush finds wrong. The text around them is for people.
var (
	// ErrAuth reports a registry that refuses these credentials, or a push with
	// them.
	ErrAuth = errors.New("access denied")
	// ErrRegistry reports a registry that works otherwise than it must.
	ErrRegistry = errors.New("registry trouble")
	// ErrUnreachable reports a registry, or its token server, that does not
	// answer. Agents may still reach it: they can be in another network.
	ErrUnreachable = fmt.Errorf("%w: unreachable", ErrRegistry)
)

const (
	// checkTimeout bounds CheckPush.
	checkTimeout = 30 * time.Second
	// cancelTimeout bounds the request that takes the begun upload back.
	cancelTimeout = 5 * time.Second
	// tries and minPause are for what may be better in a moment.
	tries    = 3
	minPause = 300 * time.Millisecond
	maxPause = 5 * time.Second
	// maxBody bounds what is read of an answer.
	maxBody = 64 << 10
)

// A Target is a repository that images are to be pushed to.
type Target struct {
	Registry   string // "host" or "host:port"; "docker.io" is Docker Hub
	Repository string // "team/app"
	Auth       seal.RegistryAuth
	// Insecure allows plain HTTP and certificates that cannot be verified, as
	// is always so for a registry on this machine.
	Insecure bool
	// TLS has the CA and client certificate for the registry. nil means what
	// the system trusts.
	TLS *tls.Config
}

// CheckPush begins an upload of a blob and takes it back, which is the one
// question that all registries answer alike. The error wraps ErrAuth,
// ErrRegistry or ErrUnreachable, or that of ctx, and holds no secret.
func CheckPush(ctx context.Context, t Target) error {
	limited, cancel := context.WithTimeoutCause(ctx, checkTimeout,
		fmt.Errorf("%w: no answer from %s within %v", ErrUnreachable, t.Registry, checkTimeout))
	defer cancel()
	c := newChecker(t)
	defer c.transport.CloseIdleConnections()
	err := c.check(limited)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = ended(ctx)
	case limited.Err() != nil:
		err = context.Cause(limited)
	}
	return fmt.Errorf("push to %s/%s: %w", t.Registry, t.Repository, err)
}

// A checker asks one registry.
type checker struct {
	Target
	transport *http.Transport
	client    *http.Client
	lax       bool   // plain HTTP and unverified certificates are good enough
	base      string // "https://host:port", once it has answered
}

func newChecker(t Target) *checker {
	c := &checker{Target: t, transport: http.DefaultTransport.(*http.Transport).Clone(), lax: t.Insecure || isLoopback(t.Registry)}
	if t.TLS != nil {
		c.transport.TLSClientConfig = t.TLS.Clone()
	} else {
		c.transport.TLSClientConfig = new(tls.Config)
	}
	if c.lax {
		c.transport.TLSClientConfig.InsecureSkipVerify = true
	}
	c.client = &http.Client{Transport: c.transport, CheckRedirect: c.checkRedirect}
	return c
}

// isLoopback reports whether a registry is on this machine, where docker, too,
// does without TLS (moby registry/config.go, 127.0.0.0/8).
func isLoopback(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkRedirect keeps secrets from going where they are not meant to: in the
// clear, or to another host. (net/http would take them along to other ports and
// to subdomains.)
func (c *checker) checkRedirect(req *http.Request, via []*http.Request) error {
	switch first := via[0]; {
	case len(via) >= 10:
		return errors.New("more than 10 redirects")
	case req.URL.Scheme != "https" && first.URL.Scheme == "https":
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	case req.URL.Host != first.URL.Host && req.ContentLength != 0:
		return fmt.Errorf("redirected to %s with a secret", req.URL.Host)
	case req.URL.Host != first.URL.Host:
		req.Header.Del("Authorization")
	}
	return nil
}

// check tries until there is an answer that another try would not change.
func (c *checker) check(ctx context.Context) error {
	for try := 1; ; try++ {
		err := c.once(ctx)
		var again *temporaryError
		if !errors.As(err, &again) || try == tries {
			return err
		}
		wait := max(minPause<<(try-1), min(again.after, maxPause))
		if pause.For(ctx, wait) != nil {
			return err
		}
	}
}

// A temporaryError may be gone the next time.
type temporaryError struct {
	error
	after time.Duration
}

func (e *temporaryError) Unwrap() error { return e.error }

// once asks once.
func (c *checker) once(ctx context.Context) error {
	resp, err := c.begin(ctx) //nolint:bodyclose // do has read and closed it
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusUnauthorized {
		authorization, err := c.authorize(ctx, resp, "pull,push")
		if err != nil {
			return err
		}
		if resp, err = c.send(ctx, c.base, authorization); err != nil { //nolint:bodyclose // likewise
			return c.network(c.Registry, err)
		}
		if resp.StatusCode < 300 {
			return c.takeBack(ctx, resp, authorization)
		}
	}
	if resp.StatusCode < 300 {
		return c.takeBack(ctx, resp, "")
	}
	return c.refused(resp)
}

// begin sends the first request, without credentials, to find out how the
// registry is spoken to.
func (c *checker) begin(ctx context.Context) (*http.Response, error) {
	host := c.Registry
	if keyOf(host) == hubKey {
		host = "registry-1.docker.io"
	}
	resp, err := c.send(ctx, "https://"+host, "")
	if err == nil {
		c.base = "https://" + host
		return resp, nil
	}
	if c.lax && ctx.Err() == nil {
		plain, plainErr := c.send(ctx, "http://"+host, "")
		if plainErr == nil {
			c.base = "http://" + host
			return plain, nil
		}
		if isPlain(err) {
			err = plainErr
		}
	}
	return nil, c.network(c.Registry, err)
}

// send begins an upload. The registry answers with the place to continue at.
func (c *checker) send(ctx context.Context, base, authorization string) (*http.Response, error) {
	path := url.URL{Path: "/v2/" + c.Repository + "/blobs/uploads/"}
	return c.do(ctx, http.MethodPost, base+path.EscapedPath(), authorization)
}

// do reads all of the answer, so that its connection can be used again.
func (c *checker) do(ctx context.Context, method, target, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	req.Header.Set("User-Agent", userAgent)
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	return resp, nil
}

const userAgent = "portainer"

// takeBack cancels the upload that was begun. That it cannot be is no fault of
// the credentials: registries remove forgotten uploads by themselves.
func (c *checker) takeBack(ctx context.Context, begun *http.Response, authorization string) error {
	location, err := begun.Location()
	if err != nil || begun.Request.URL.Host != location.Host || location.Scheme != begun.Request.URL.Scheme {
		return nil // not a place to send credentials to
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodDelete, location.String(), authorization) //nolint:bodyclose // likewise
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return nil
	}
	// Some want a token for deletion, which others would refuse to give.
	if authorization, err = c.authorize(ctx, resp, "pull,push,delete"); err == nil {
		_, _ = c.do(ctx, http.MethodDelete, location.String(), authorization) //nolint:bodyclose // likewise
	}
	return nil
}

// refused turns an answer other than a success into an error.
func (c *checker) refused(resp *http.Response) error {
	says := complaint(resp)
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return c.denied(says)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s knows no such repository: %s", ErrRegistry, c.Registry, says)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500 && code != http.StatusNotImplemented:
		return &temporaryError{fmt.Errorf("%w: %s answered %s", ErrRegistry, c.Registry, says), retryAfter(resp)}
	}
	return fmt.Errorf("%w: %s answered %s", ErrRegistry, c.Registry, says)
}

// denied says who was denied and what can be done about it.
func (c *checker) denied(says string) error {
	if c.Auth == (seal.RegistryAuth{}) {
		return fmt.Errorf("%w: %s wants credentials and none are known; run docker login %s (%s)", ErrAuth, c.Registry, c.Registry, says)
	}
	return fmt.Errorf("%w: %s does not let %v push (%s)", ErrAuth, c.Registry, c.Auth, says)
}

// network turns an error of net/http into one that names the address.
func (c *checker) network(host string, err error) error {
	if temporary := (*temporaryError)(nil); errors.As(err, &temporary) {
		return err
	}
	var where *url.Error
	if errors.As(err, &where) {
		err = where.Err // without the URL, which may hold more than is fit to print
	}
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &verify):
		return fmt.Errorf("%w: the certificate of %s: %w (give its CA, or allow it as insecure)", ErrRegistry, host, err)
	case isPlain(err):
		return fmt.Errorf("%w: %s does not speak TLS: allow it as insecure", ErrRegistry, host)
	}
	wrapped := fmt.Errorf("%w: %s: %w", ErrUnreachable, host, err)
	var op *net.OpError
	if errors.As(err, &op) && op.Op != "dial" || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &temporaryError{error: wrapped} // a connection that broke
	}
	return wrapped
}

// isPlain reports whether err comes of speaking TLS to a server of plain HTTP.
func isPlain(err error) bool {
	var header tls.RecordHeaderError
	return errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch)
}

// complaint is what the answer of a registry says, on one line.
func complaint(resp *http.Response) string {
	text := resp.Status
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return text
	}
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 {
		e := answer.Errors[0]
		text += ", " + strings.TrimSuffix(e.Code+": "+e.Message, ": ")
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "…"
	}
	return text
}

// retryAfter is how long an answer asks to wait.
func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, 60)) * time.Second
}
