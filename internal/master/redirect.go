package master

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// MaxRedirects is how many redirects in a row a caller follows before it takes
// the masters to be in disagreement and asks again later. A lone master that
// still recovers its replicated log redirects to itself.
const MaxRedirects = 5

// Redirect returns the base URL of the master that a master at base names in the
// Location header of its answer to a request for path. Masters have written
// "//host:port/path", "host:port" and whole URLs there over time (mesos
// src/master/http.cpp, Master::Http::redirect; docs/scheduler-http-api.md).
//
// A redirect from https to http is refused: credentials would go over it.
func Redirect(base *url.URL, location, path string) (*url.URL, error) {
	bad := func(why string) (*url.URL, error) {
		return nil, fmt.Errorf("master %s redirects to %q: %s", base.Host, location, why)
	}
	var target *url.URL
	switch {
	case location == "":
		return bad("no location")
	case strings.HasPrefix(location, "//") || strings.Contains(location, "://"):
		u, err := url.Parse(location)
		if err != nil {
			if inner := (*url.Error)(nil); errors.As(err, &inner) {
				err = inner.Err
			}
			return bad(err.Error())
		}
		target = u
	default:
		host, rest, _ := strings.Cut(location, "/")
		target = &url.URL{Host: host}
		if rest != "" {
			target.Path = "/" + rest
		}
	}
	if target.Scheme == "" {
		target.Scheme = base.Scheme
	}
	if target.Scheme != "http" && target.Scheme != "https" {
		return bad("neither http nor https")
	}
	if base.Scheme == "https" && target.Scheme == "http" {
		return bad("from https to http")
	}
	if target.Port() == "" && target.Scheme == base.Scheme && !strings.Contains(location, "://") {
		// Only whole URLs imply the ports of HTTP.
		host, err := hostPort(target.Host, masterPort)
		if err != nil {
			return bad(err.Error())
		}
		target.Host = host
	}
	if target.Hostname() == "" {
		return bad("no host")
	}
	prefix := strings.TrimRight(target.Path, "/")
	prefix = strings.TrimSuffix(prefix, path)
	return &url.URL{Scheme: target.Scheme, Host: target.Host, Path: strings.TrimRight(prefix, "/")}, nil
}
