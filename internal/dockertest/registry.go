package dockertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// A Registry is a docker-registry that a test has started.
type Registry struct {
	Addr string // host:port

	dir string
	p   *process
}

// listening is how docker-registry tells where it listens.
var listening = regexp.MustCompile(`listening on ([^\s",]+:\d+)`)

// StartRegistry starts a registry on a free port of 127.0.0.1 that keeps its data
// in dir and lets everybody do everything. The caller stops it.
func StartRegistry(ctx context.Context, dir string) (*Registry, error) {
	return startRegistry(ctx, dir, "127.0.0.1:0", "")
}

// StartPrivateRegistry starts a registry that asks everybody for that name and
// password.
func StartPrivateRegistry(ctx context.Context, dir, user, password string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	htpasswd := filepath.Join(dir, "htpasswd")
	if err := os.WriteFile(htpasswd, fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600); err != nil {
		return nil, err
	}
	return startRegistry(ctx, dir, "127.0.0.1:0", fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s\n", htpasswd))
}

// StartTLSRegistry starts a registry on a free port of host, which must be a name
// or an address of this machine, with a certificate that only ca vouches for.
func StartTLSRegistry(ctx context.Context, dir, host string) (r *Registry, ca []byte, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	ca, err = WriteCerts(dir, host)
	if err != nil {
		return nil, nil, err
	}
	r, err = startRegistry(ctx, dir, net.JoinHostPort(host, "0"),
		fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n", filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")))
	if err != nil {
		return nil, nil, err
	}
	_, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return nil, nil, errors.Join(err, r.Stop())
	}
	r.Addr = net.JoinHostPort(host, port)
	return r, ca, nil
}

func startRegistry(ctx context.Context, dir, addr, more string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %s\n"+
		"  delete:\n    enabled: true\nhttp:\n  addr: %s\n%s", filepath.Join(dir, "data"), addr, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := start(filepath.Join(dir, "registry.log"), []string{"OTEL_TRACES_EXPORTER=none"}, "docker-registry", "serve", config)
	if err != nil {
		return nil, err
	}
	r := &Registry{dir: dir, p: p}
	err = p.ready(ctx, func() error {
		m := listening.FindStringSubmatch(strings.ReplaceAll(p.log(), `\"`, `"`))
		if m == nil {
			return errors.New("it does not listen yet")
		}
		r.Addr = m[1]
		if more != "" {
			return nil // not everybody is welcome
		}
		return get(ctx, &http.Transport{DisableKeepAlives: true}, "http://"+r.Addr+"/v2/")
	})
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return r, nil
}

// Stop stops the registry. Its data stays for the caller to remove.
func (r *Registry) Stop() error { return r.p.stop() }
