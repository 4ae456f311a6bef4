package portainer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"

	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// An Engine says what builds images on the agents.
type Engine struct {
	// Kind is "docker" (a daemon that runs already, at Host), "dockerd" (started
	// for the build and gone after it), "buildkitd" (likewise, or one that runs
	// already, if Host says where), or "auto" or "", which takes the first of these
	// that an agent has: Docker at Host, buildkitd, dockerd.
	Kind string
	// Host is the address of the daemon, as DOCKER_HOST spells it:
	// "unix:///var/run/docker.sock", "tcp://127.0.0.1:2375".
	Host string
	// TLS has the daemon at a tcp:// Host spoken to over TLS. Nil means without,
	// unless the agent's own DOCKER_TLS_VERIFY and DOCKER_CERT_PATH say otherwise.
	TLS *EngineTLS
	// AllowVFS lets an engine that is started for the build start also where overlay
	// file systems do not work. It then copies the whole image for every step.
	AllowVFS bool
}

// An EngineTLS says how a daemon is spoken to over TLS. However it is printed or
// logged, its key does not show.
type EngineTLS struct {
	// CA are certificates, as PEM, that may vouch for the daemon. Empty means those
	// that the agent trusts.
	CA []byte
	// Cert and Key, as PEM, are what the daemon wants to see of its clients. They
	// reach executors like credentials, sealed. Empty means nothing.
	Cert, Key []byte
}

// String says what there is to say, not the key.
func (t EngineTLS) String() string {
	return fmt.Sprintf("TLS, own CA: %t, client certificate: %t", len(t.CA) > 0, len(t.Key) > 0)
}

// GoString is String.
func (t EngineTLS) GoString() string { return t.String() }

// Format is String whatever the verb: others would print the fields.
func (t EngineTLS) Format(s fmt.State, _ rune) { fmt.Fprint(s, t.String()) }

// LogValue implements slog.LogValuer.
func (t EngineTLS) LogValue() slog.Value { return slog.StringValue(t.String()) }

// engineKinds are the values of Engine.Kind.
var engineKinds = map[string]bool{"auto": true, "docker": true, "dockerd": true, "buildkitd": true}

// validate returns everything that is wrong with e.
func (e *Engine) validate() []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !engineKinds[e.Kind] {
		bad("Engine.Kind: %q is none of auto, docker, dockerd, buildkitd", e.Kind)
	}
	if e.Kind == "docker" && e.Host == "" {
		bad("Engine.Host: missing; engine docker needs the address of a daemon")
	}
	if e.Kind == "dockerd" && e.Host != "" {
		bad("Engine.Host: %q: engine dockerd starts a daemon of its own; use docker for one that runs", e.Host)
	}
	return append(problems, e.validateTLS()...)
}

// validateTLS returns everything that is wrong with e.TLS.
func (e *Engine) validateTLS() []error {
	if e.TLS == nil {
		return nil
	}
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("Engine.TLS: "+format, args...))
	}
	if !strings.HasPrefix(e.Host, "tcp://") {
		bad("Engine.Host is %q, and only a daemon at tcp://host:port is spoken to over TLS", e.Host)
	}
	if len(e.TLS.CA) > maxCA {
		bad("CA: %d bytes, at most %d can be sent", len(e.TLS.CA), maxCA)
	} else if len(e.TLS.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(e.TLS.CA) {
		bad("CA: it holds no certificate in PEM form")
	}
	if len(e.TLS.Cert)+len(e.TLS.Key) > 0 {
		if _, err := tls.X509KeyPair(e.TLS.Cert, e.TLS.Key); err != nil {
			bad("Cert, Key: %w", err)
		}
	}
	return problems
}

// wire is e as executors are told.
func (e *Engine) wire() wire.Engine {
	out := wire.Engine{Kind: e.Kind, Host: e.Host, AllowVFS: e.AllowVFS}
	if e.TLS != nil {
		out.TLS, out.CA, out.ClientCert = true, e.TLS.CA, len(e.TLS.Key) > 0
	}
	return out
}

// clientCert is what the daemon wants to see; nil for nothing.
func (e *Engine) clientCert() *seal.ClientCert {
	if e.TLS == nil || len(e.TLS.Key) == 0 {
		return nil
	}
	return &seal.ClientCert{Cert: e.TLS.Cert, Key: e.TLS.Key}
}
