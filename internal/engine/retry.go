package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/pause"
)

const (
	// maxOutage is how long a registry may be away, or too busy, when an image
	// is to be pushed. The image waits, it is not built again.
	maxOutage = 2 * time.Minute
	// maxUnseen is that for a registry that has not answered before: its
	// address is more likely wrong.
	maxUnseen = 2 * time.Second

	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// hopeless are failures of a registry that no waiting heals.
var hopeless = regexp.MustCompile(`(?i)x509: |server gave http response to https client|tls: |no such host|unsupported|manifest invalid|name invalid|\b40[045] [a-z]`)

// entangled is what a registry says that mixes up uploads of the same blob at once, as
// docker-registry 2.8 does now and then: the next push finds the blob, or sends it again.
var entangled = regexp.MustCompile(`(?i)\bdigest invalid\b|\bblob unknown\b`)

// A probe asks a registry whether it is there.
type probe struct {
	urls     []string // of its API
	manifest string   // of the image, below each of them
	client   *http.Client

	asking sync.WaitGroup
	mu     sync.Mutex
	seen   bool
}

// newProbe asks the registry of j for the first time. The caller calls end.
func newProbe(ctx context.Context, j *job) *probe {
	host := j.req.Registry
	if host == dockerHub {
		host = "registry-1.docker.io"
	}
	p := &probe{
		urls:     []string{"https://" + host + "/v2/", "http://" + host + "/v2/"},
		manifest: j.req.Repository + "/manifests/" + strings.TrimPrefix(j.refs[0], j.image+":"),
	}
	// Nothing is told to the registry nor believed of it: not even who it is.
	p.client = &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, Certificates: j.cfg.clientCertificates(j.req.Registry)}, //nolint:gosec // see above
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	p.seen = slices.Contains(baseRegistries(j.script, j.req.Args), j.req.Registry)
	p.asking.Go(func() { p.ask(ctx) })
	return p
}

// ask asks whether the registry answers.
func (p *probe) ask(ctx context.Context) {
	for _, url := range p.urls {
		if _, err := p.get(ctx, http.MethodGet, url); err == nil {
			return
		}
	}
}

// leave returns how long the registry wants to be left alone. An engine that it has told so
// does not pass that on, so it is asked again: as a whole and, since it may limit nothing
// else, for the image.
func (p *probe) leave(ctx context.Context) time.Duration {
	for _, url := range p.urls {
		leave, err := p.get(ctx, http.MethodGet, url)
		if err == nil && leave == 0 {
			leave, err = p.get(ctx, http.MethodHead, url+p.manifest)
		}
		if err == nil {
			return leave
		}
	}
	return 0
}

// get makes a request and returns how long the registry wants to be left alone.
func (p *probe) get(ctx context.Context, method, url string) (leave time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	p.mu.Lock()
	p.seen = true
	p.mu.Unlock()
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		return retryAfter(resp.Header.Get("Retry-After"), time.Now()), nil
	}
	return 0, nil
}

// retryAfter reads the header of that name (RFC 9110, 10.2.3).
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// end waits for the first question to be answered.
func (p *probe) end() { p.asking.Wait() }

// patience returns how long the registry may be away.
func (p *probe) patience() time.Duration {
	p.asking.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen {
		return maxOutage
	}
	return maxUnseen
}

// persist calls push until it succeeds, or fails for a reason that waiting does
// not heal, or the registry has been away for too long.
func (j *job) persist(ctx context.Context, push func(again bool) error) error {
	var since time.Time // the registry is away
	for try := 0; ; try++ {
		err := push(try > 0)
		if err == nil || ctx.Err() != nil || !canWait(err) {
			return err
		}
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		wait := min(firstBackoff<<min(try, 10), lastBackoff)
		wait = wait/2 + rand.N(wait/2+1) // others may have been cut off at the same time
		wait = max(wait, j.probe.leave(ctx))
		patience := j.probe.patience()
		if now.Add(wait).Sub(since) > patience {
			return waitedInVain(err, now.Sub(since))
		}
		j.report.info("registry %s: %v; next attempt in %s", j.req.Registry, rootCause(err), wait.Round(100*time.Millisecond))
		if pause.For(ctx, wait) != nil {
			return err
		}
	}
}

// canWait reports whether err is that of a push that may succeed later.
func canWait(err error) bool {
	var be *portainer.BuildError
	return errors.As(err, &be) && be.Phase == portainer.PhasePush && be.Class == portainer.ClassRegistry &&
		(netWords.MatchString(be.Err.Error()) || entangled.MatchString(be.Err.Error())) && !hopeless.MatchString(be.Err.Error())
}

// waitedInVain adds to the error of a push how long it was tried.
func waitedInVain(err error, d time.Duration) error {
	var be *portainer.BuildError
	if d < time.Second || !errors.As(err, &be) {
		return err
	}
	out := *be
	out.Err = fmt.Errorf("%w (tried for %s)", be.Err, d.Round(time.Second))
	return &out
}

// rootCause is what err says of the push alone.
func rootCause(err error) error {
	var be *portainer.BuildError
	if errors.As(err, &be) {
		return be.Err
	}
	return err
}
