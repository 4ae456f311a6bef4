package agentrun

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/seal"
)

// engineConfig is what the engine of the attempt is opened with. If it needs
// secrets from the start, they are waited for.
func (a *attempt) engineConfig(ctx context.Context, staged *stagedContexts) (engine.Config, error) {
	t := a.task
	cfg := engine.Config{
		Kind:     t.Engine.Kind,
		Host:     t.Engine.Host,
		AllowVFS: t.Engine.AllowVFS,
		Sandbox:  a.sandbox,
		Insecure: t.Insecure,
		Asked:    ability.Asked(t),
		Bundler:  staged.main,
		Contexts: staged.named,
		Permit:   a.permit.acquire,
		Logs:     a.log,
		Logger:   a.cfg.Logger,
		CPUs:     t.CPUs,
		MemMB:    t.MemMB,
		DiskMB:   t.DiskMB,
	}
	var secrets seal.Credentials
	if a.secrets != nil {
		cfg.Auth, cfg.Secrets, cfg.SSH = a.auth, a.secret, a.sshAgents()
		var err error
		if a.needsKeys() {
			if secrets, err = a.awaitSecrets(ctx); err != nil {
				return engine.Config{}, err
			}
		}
	}
	for _, r := range t.Registries {
		cert := secrets.ClientCerts[r.Host]
		cfg.Registries = append(cfg.Registries, portainer.Registry{
			Host: r.Host, CA: r.CA, ClientCert: cert.Cert, ClientKey: cert.Key, Mirrors: r.Mirrors,
		})
	}
	var err error
	if cfg.TLS, err = a.daemonTLS(secrets.Daemon); err != nil {
		return engine.Config{}, &portainer.BuildError{Phase: portainer.PhaseLaunch, Class: portainer.ClassLaunch, Err: err}
	}
	return cfg, nil
}

// needsKeys reports whether the engine cannot be opened without secrets.
func (a *attempt) needsKeys() bool {
	t := a.task
	for _, r := range t.Registries {
		if r.ClientCert {
			return true
		}
	}
	return t.Engine.ClientCert
}

// daemonTLS is how a given daemon is spoken to over TLS; nil for without. The task
// says it, or else the environment that docker's own client has it from.
func (a *attempt) daemonTLS(client *seal.ClientCert) (*tls.Config, error) {
	e := a.task.Engine
	if !e.TLS {
		return a.environmentTLS()
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if len(e.CA) > 0 {
		if cfg.RootCAs, err = poolOf(e.CA); err != nil {
			return nil, fmt.Errorf("engine at %s: %w", e.Host, err)
		}
	}
	if client != nil {
		pair, err := tls.X509KeyPair(client.Cert, client.Key)
		if err != nil {
			return nil, fmt.Errorf("engine at %s: client certificate: %w", e.Host, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// environmentTLS is what DOCKER_CERT_PATH and DOCKER_TLS_VERIFY say of a daemon at a
// TCP address, as docker's client has it.
func (a *attempt) environmentTLS() (*tls.Config, error) {
	dir, verify := a.cfg.Getenv("DOCKER_CERT_PATH"), a.cfg.Getenv("DOCKER_TLS_VERIFY")
	if !strings.HasPrefix(a.task.Engine.Host, "tcp://") || dir == "" && verify == "" {
		return nil, nil
	}
	if dir == "" {
		dir = filepath.Join(a.cfg.Getenv("HOME"), ".docker")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: verify == ""} //nolint:gosec // as docker has it
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err == nil {
		cfg.RootCAs, err = poolOf(ca)
	}
	if err != nil {
		return nil, fmt.Errorf("DOCKER_CERT_PATH of this agent: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("DOCKER_CERT_PATH of this agent: %w", err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// poolOf returns the certificates that the system trusts and those in pem.
func poolOf(pem []byte) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in PEM form")
	}
	return pool, nil
}

// options are those of the task, with what of them is secret.
func (a *attempt) options(secrets seal.Credentials) portainer.Options {
	o := portainer.Options(a.task.Options)
	if secrets.CacheFrom != nil {
		o.CacheFrom = slices.Clone(secrets.CacheFrom)
	}
	if secrets.CacheTo != nil {
		o.CacheTo = slices.Clone(secrets.CacheTo)
	}
	return o
}
