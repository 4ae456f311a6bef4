package master

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
)

// list is a Resolver of given masters, asked in turn. Any of them redirects to
// the leader, so it needs to know no more.
type list struct {
	spec string
	urls []*url.URL

	mu     sync.Mutex
	next   int
	closed bool
}

func parseList(spec string) (*list, error) {
	if spec == "" {
		return nil, errors.New("empty; give host:port, a list of them, or zk://host:port/path")
	}
	l := &list{spec: redact(spec)}
	for part := range strings.SplitSeq(spec, ",") {
		u, err := parseMaster(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		l.urls = append(l.urls, u)
	}
	return l, nil
}

// parseMaster reads host[:port] or an http or https URL.
func parseMaster(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		host, err := hostPort(s, masterPort)
		if err != nil {
			return nil, err
		}
		return &url.URL{Host: host}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		if inner := (*url.Error)(nil); errors.As(err, &inner) {
			err = inner.Err // without the URL, which the caller names
		}
		return nil, err
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme %q is none of http, https and zk (zk:// cannot be in a list)", u.Scheme)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q has no host", s)
	case u.User != nil:
		return nil, errors.New("credentials do not belong in the URL; give principal and secret")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%q has more than scheme, host and path", s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}, nil
}

func (l *list) Leader(ctx context.Context) (*url.URL, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	u := *l.urls[l.next]
	l.next = (l.next + 1) % len(l.urls)
	return &u, nil
}

func (l *list) String() string { return l.spec }

func (l *list) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}
