package dockertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

// RegistryOptions say what a registry wants. The zero value is one on 127.0.0.1 that
// lets everybody do everything.
type RegistryOptions struct {
	// Host is a name or an address of this machine. "" means 127.0.0.1.
	Host string
	// User and Password are those of the one who is let in. "" means everybody.
	User, Password string
	// TLS gives it a certificate for Host, ca.pem in its directory, that nobody
	// else vouches for. ClientCerts lets in only who shows the same (cert.pem,
	// key.pem).
	TLS, ClientCerts bool
	// Auth is the section auth of its configuration, in the place of User.
	Auth string
}

// StartRegistry starts a registry on a free port of 127.0.0.1 that keeps its data
// in dir and lets everybody do everything. The caller stops it.
func StartRegistry(ctx context.Context, dir string) (*Registry, error) {
	return StartRegistryWith(ctx, dir, RegistryOptions{})
}

// StartPrivateRegistry starts a registry that asks everybody for that name and
// password.
func StartPrivateRegistry(ctx context.Context, dir, user, password string) (*Registry, error) {
	return StartRegistryWith(ctx, dir, RegistryOptions{User: user, Password: password})
}

// StartRegistryWith starts a registry on a free port.
func StartRegistryWith(ctx context.Context, dir string, o RegistryOptions) (*Registry, error) {
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var more strings.Builder
	if o.TLS {
		if _, err := WriteCerts(dir, o.Host); err != nil {
			return nil, err
		}
		fmt.Fprintf(&more, "  tls:\n    certificate: %[1]s/cert.pem\n    key: %[1]s/key.pem\n", dir)
		if o.ClientCerts {
			fmt.Fprintf(&more, "    clientcas:\n      - %s/ca.pem\n", dir)
		}
	}
	more.WriteString(o.Auth)
	if o.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		htpasswd := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(htpasswd, fmt.Appendf(nil, "%s:%s\n", o.User, hash), 0o600); err != nil {
			return nil, err
		}
		fmt.Fprintf(&more, "auth:\n  htpasswd:\n    realm: test\n    path: %s\n", htpasswd)
	}
	r, err := startRegistry(ctx, dir, net.JoinHostPort(o.Host, "0"), more.String())
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	r.Addr = net.JoinHostPort(o.Host, port)
	return r, nil
}

// Client returns what speaks to a registry that was started with TLS.
func (r *Registry) Client() (http.RoundTripper, error) {
	ca, err := os.ReadFile(filepath.Join(r.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.dir, "cert.pem"), filepath.Join(r.dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("no certificate in ca.pem")
	}
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true}, nil
}

// MachineAddress returns an address of this machine that is not on its loopback
// interface, where Docker trusts everybody.
func MachineAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no address but those of its loopback interface, on which Docker trusts everybody")
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
