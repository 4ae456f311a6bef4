// Package master finds the leading master of a Mesos cluster.
package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Default ports of a master and of a ZooKeeper server.
const (
	masterPort    = "5050"
	zooKeeperPort = "2181"
)

// A Resolver says where to look for the leading master. Its methods are safe for
// concurrent use.
//
// What it says may be out of date: for about ten seconds after a leader's death
// ZooKeeper, and the other masters with it, still name the dead one. So a caller
// that cannot reach what Leader returned waits a while and calls Leader again,
// with no end but its own.
type Resolver interface {
	// Leader returns the base URL of the next master to ask. Scheme is "" unless
	// the specification named one: the caller chooses by whether it has TLS
	// configured. The path is a prefix, without a slash at its end, of every
	// path below that master. A caller that is redirected from there follows
	// Redirect.
	//
	// Leader blocks until something is known or ctx is done.
	Leader(ctx context.Context) (*url.URL, error)

	// String is the specification without its password.
	String() string

	// Close gives back what the Resolver holds. Leader fails afterwards.
	Close() error
}

// ErrClosed reports a Resolver that was closed.
var ErrClosed = errors.New("resolver closed")

// Parse returns the Resolver that spec describes, which is one of
//
//	host[:port]
//	host[:port],host[:port],…
//	http[s]://host[:port][/prefix],…
//	zk://[user:password@]host[:port],host[:port],…/path
//
// It connects to nothing yet.
func Parse(spec string) (Resolver, error) {
	spec = strings.TrimSpace(spec)
	scheme, rest, found := strings.Cut(spec, "://")
	if found && strings.EqualFold(scheme, "zk") {
		z, err := parseZooKeeper(rest)
		if err != nil {
			return nil, fmt.Errorf("master %q: %w", redact(spec), err)
		}
		return z, nil
	}
	l, err := parseList(spec)
	if err != nil {
		return nil, fmt.Errorf("master %q: %w", redact(spec), err)
	}
	return l, nil
}

// redact hides the password of a specification, well-formed or not.
func redact(spec string) string {
	at := strings.LastIndexByte(spec, '@')
	if at < 0 {
		return spec
	}
	start := strings.Index(spec[:at], "://")
	if start < 0 {
		start = 0
	} else {
		start += len("://")
	}
	colon := strings.IndexByte(spec[start:at], ':')
	if colon < 0 {
		return spec
	}
	return spec[:start+colon] + ":***" + spec[at:]
}

// hostPort checks s as host[:port] and returns it with a port.
func hostPort(s, defaultPort string) (string, error) {
	if s == "" {
		return "", errors.New("a host is empty")
	}
	host, port := s, defaultPort
	switch {
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		host = s[1 : len(s)-1]
		if !strings.Contains(host, ":") {
			return "", fmt.Errorf("%q is no IPv6 address", s)
		}
	case strings.Count(s, ":") > 0:
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", fmt.Errorf("%q is no host:port (an IPv6 address needs brackets)", s)
		}
	}
	if host == "" {
		return "", fmt.Errorf("%q has no host", s)
	}
	if strings.ContainsAny(host, " \t/?#@%\\") {
		return "", fmt.Errorf("%q is no host name", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port between 1 and 65535", s)
	}
	return net.JoinHostPort(host, port), nil
}
