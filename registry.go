package portainer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// A Registry says how the engines speak to one registry for which the defaults are
// not right. However it is printed or logged, its key does not show.
type Registry struct {
	// Host is the registry as references name it: "host", "host:port", or
	// "docker.io" for Docker Hub. Required.
	Host string
	// CA are certificates, as PEM, that may vouch for it beside those that the
	// agent trusts.
	CA []byte
	// ClientCert and ClientKey, as PEM, are what it wants to see of who speaks to
	// it. They reach executors like credentials, sealed.
	ClientCert, ClientKey []byte
	// Insecure lets it be spoken to over plain HTTP or with a certificate that
	// cannot be verified.
	Insecure bool
	// Mirrors are asked for its images before it is, in this order, as
	// "host[:port][/path]". Nothing is pushed to them. How they are spoken to is
	// said in entries of their own.
	Mirrors []string
}

// String says what there is to say of the registry, not the key.
func (r Registry) String() string {
	words := []string{r.Host}
	if len(r.CA) > 0 {
		words = append(words, "with a CA of its own")
	}
	if len(r.ClientCert) > 0 {
		words = append(words, "with a client certificate")
	}
	if r.Insecure {
		words = append(words, "insecure")
	}
	if len(r.Mirrors) > 0 {
		words = append(words, "mirrored by "+strings.Join(r.Mirrors, " "))
	}
	return strings.Join(words, ", ")
}

// GoString is String.
func (r Registry) GoString() string { return r.String() }

// Format is String whatever the verb: others would print the fields.
func (r Registry) Format(s fmt.State, _ rune) { fmt.Fprint(s, r.String()) }

// LogValue implements slog.LogValuer.
func (r Registry) LogValue() slog.Value { return slog.StringValue(r.String()) }

// maxCA bounds the certificates of one registry: they travel in tasks, which
// masters and agents keep in memory.
const maxCA = 64 << 10

// validate returns everything that is wrong with r, which comes after before.
func (r *Registry) validate(before []Registry) []error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("Registries: %s: "+format, append([]any{r.Host}, args...)...))
	}
	if !isRegistry(r.Host) {
		bad("%q is no registry: it must be host or host:port", r.Host)
	}
	if slices.ContainsFunc(before, func(other Registry) bool { return other.Host == r.Host }) {
		bad("it is there twice")
	}
	switch {
	case len(r.CA) > maxCA:
		bad("CA: %d bytes, at most %d can be sent", len(r.CA), maxCA)
	case len(r.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(r.CA):
		bad("CA: it holds no certificate in PEM form")
	}
	if len(r.ClientCert)+len(r.ClientKey) > 0 {
		if _, err := tls.X509KeyPair(r.ClientCert, r.ClientKey); err != nil {
			bad("ClientCert, ClientKey: %w", err)
		}
	}
	for _, m := range r.Mirrors {
		if host, _, _ := strings.Cut(m, "/"); !isRegistry(host) {
			bad("Mirrors: %q: it must be host[:port][/path], without a scheme", m)
		}
	}
	return problems
}

// isRegistry reports whether references could name a registry so.
func isRegistry(host string) bool {
	named, err := reference.ParseNormalizedNamed(host + "/repository")
	return err == nil && reference.Domain(named) == host
}

// validateRegistries returns everything that is wrong with cfg.Registry, From and
// Registries.
func (cfg *Config) validateRegistries() []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if host := strings.TrimSuffix(cfg.Registry, "/"); host != "" && !isRegistry(host) {
		bad("Registry: %q: it must be host or host:port, without a scheme", cfg.Registry)
	}
	if host, _, _ := strings.Cut(cfg.From, "/"); cfg.From != "" && !isRegistry(host) {
		bad("From: %q: it must be host or host:port, without a scheme", cfg.From)
	}
	for i := range cfg.Registries {
		r := &cfg.Registries[i]
		problems = append(problems, r.validate(cfg.Registries[:i])...)
	}
	return problems
}

// registry returns what Config.Registries says of host.
func (cfg *Config) registry(host string) (*Registry, bool) {
	i := slices.IndexFunc(cfg.Registries, func(r Registry) bool { return r.Host == host })
	if i < 0 {
		return nil, false
	}
	return &cfg.Registries[i], true
}

// withMirrors adds to registries those that mirror them.
func (cfg *Config) withMirrors(registries []string) []string {
	all := slices.Clone(registries)
	for _, host := range registries {
		if r, ok := cfg.registry(host); ok {
			for _, m := range r.Mirrors {
				mirror, _, _ := strings.Cut(m, "/")
				all = append(all, mirror)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// tellRegistries notes in task how the registries of a build are spoken to.
func (cfg *Config) tellRegistries(task *wire.Task, registries []string) {
	for _, host := range registries {
		r, ok := cfg.registry(host)
		if !ok {
			continue
		}
		if r.Insecure && !slices.Contains(task.Insecure, host) {
			task.Insecure = append(task.Insecure, host)
		}
		told := wire.Registry{Host: host, CA: r.CA, ClientCert: len(r.ClientKey) > 0, Mirrors: r.Mirrors}
		if len(told.CA) > 0 || told.ClientCert || len(told.Mirrors) > 0 {
			task.Registries = append(task.Registries, told)
		}
	}
}

// clientCerts returns what registries want to see of their clients, as task has
// promised its executor.
func (cfg *Config) clientCerts(task *wire.Task) (map[string]seal.ClientCert, error) {
	var certs map[string]seal.ClientCert
	for _, told := range task.Registries {
		if !told.ClientCert {
			continue
		}
		r, ok := cfg.registry(told.Host)
		if !ok || len(r.ClientKey) == 0 {
			return nil, errors.New("the framework no longer has the client certificate for registry " + told.Host)
		}
		if certs == nil {
			certs = make(map[string]seal.ClientCert)
		}
		certs[told.Host] = seal.ClientCert{Cert: r.ClientCert, Key: r.ClientKey}
	}
	return certs, nil
}
