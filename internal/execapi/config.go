package execapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// TokenVariable is the environment variable with the executor's credential. Its
// children must not inherit it.
const TokenVariable = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN"

// A Config is what an agent tells its executor in the environment (mesos
// docs/executor-http-api.md, src/slave/slave.cpp executorEnvironment).
type Config struct {
	Endpoint     string // host:port of the agent
	DomainSocket string // path of its Unix socket; "" for TCP
	FrameworkID  string
	ExecutorID   string
	AgentID      string // "" with agents that do not tell
	Sandbox      string // the sandbox directory as the executor sees it

	// Checkpoint says that the agent finds its executors again when it is
	// restarted. The executor tries to reach it for RecoveryTimeout, with pauses
	// well below BackoffMax: an agent gives its executors no longer than that once
	// it is back.
	Checkpoint      bool
	RecoveryTimeout time.Duration
	BackoffMax      time.Duration

	// ShutdownGrace is how long after SHUTDOWN the agent destroys the container.
	ShutdownGrace time.Duration

	Token string      // sent as bearer token unless ""
	TLS   *tls.Config // nil for plain HTTP

	// The rest is not from the environment.

	// Logger gets the client's own log. Nil discards it.
	Logger *slog.Logger
	// CallTimeout bounds a call and ResendAfter the wait for an acknowledgement.
	// Zero means 10 s and 5 s.
	CallTimeout, ResendAfter time.Duration
	// Transport carries all requests. Nil means one of the client's own.
	Transport http.RoundTripper
}

// Defaults of an agent's flags, for variables that it need not set.
const (
	defaultRecoveryTimeout = 15 * time.Minute
	defaultBackoffMax      = 2 * time.Second
	defaultShutdownGrace   = 5 * time.Second
)

// FromEnv reads a Config from the environment. The error names every variable
// that is missing or malformed.
func FromEnv(getenv func(string) string) (Config, error) {
	var errs []error
	required := func(name string) string {
		value := getenv(name)
		if value == "" {
			errs = append(errs, fmt.Errorf("%s is not set", name))
		}
		return value
	}
	duration := func(name string, value time.Duration) time.Duration {
		s := getenv(name)
		if s == "" {
			return value
		}
		d, err := parseDuration(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		return d
	}
	cfg := Config{
		Endpoint:        required("MESOS_AGENT_ENDPOINT"),
		DomainSocket:    getenv("MESOS_DOMAIN_SOCKET"),
		FrameworkID:     required("MESOS_FRAMEWORK_ID"),
		ExecutorID:      required("MESOS_EXECUTOR_ID"),
		AgentID:         getenv("MESOS_SLAVE_ID"),
		Sandbox:         getenv("MESOS_SANDBOX"),
		Checkpoint:      getenv("MESOS_CHECKPOINT") == "1",
		RecoveryTimeout: duration("MESOS_RECOVERY_TIMEOUT", defaultRecoveryTimeout),
		BackoffMax:      duration("MESOS_SUBSCRIPTION_BACKOFF_MAX", defaultBackoffMax),
		ShutdownGrace:   duration("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", defaultShutdownGrace),
		Token:           getenv(TokenVariable),
	}
	if cfg.Sandbox == "" {
		// The host's name of it, which is right outside containers.
		if cfg.Sandbox = getenv("MESOS_DIRECTORY"); cfg.Sandbox == "" {
			errs = append(errs, errors.New("neither MESOS_SANDBOX nor MESOS_DIRECTORY is set"))
		}
	}
	if isTrue(getenv("LIBPROCESS_SSL_ENABLED")) {
		config, err := tlsFromEnv(getenv)
		if err != nil {
			errs = append(errs, err)
		}
		cfg.TLS = config
	}
	if len(errs) > 0 {
		return Config{}, fmt.Errorf("not started as an executor by a Mesos agent: %w", errors.Join(errs...))
	}
	return cfg, nil
}

func isTrue(s string) bool {
	switch strings.ToLower(s) {
	case "1", "t", "true", "yes":
		return true
	}
	return false
}

// tlsFromEnv takes libprocess's own settings (mesos docs/ssl.md). A certificate is
// verified where they say so or name a CA, by its chain only: agents are addressed
// by IP, which few certificates name.
func tlsFromEnv(getenv func(string) string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	certFile, keyFile := getenv("LIBPROCESS_SSL_CERT_FILE"), getenv("LIBPROCESS_SSL_KEY_FILE")
	if certFile != "" && keyFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("LIBPROCESS_SSL_CERT_FILE, LIBPROCESS_SSL_KEY_FILE: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	files := []string{}
	if file := getenv("LIBPROCESS_SSL_CA_FILE"); file != "" {
		files = append(files, file)
	}
	if dir := getenv("LIBPROCESS_SSL_CA_DIR"); dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("LIBPROCESS_SSL_CA_DIR: %w", err)
		}
		for _, entry := range entries {
			if !entry.IsDir() {
				files = append(files, filepath.Join(dir, entry.Name()))
			}
		}
	}
	verify := len(files) > 0
	for _, name := range []string{"LIBPROCESS_SSL_VERIFY_CERT", "LIBPROCESS_SSL_VERIFY_SERVER_CERT", "LIBPROCESS_SSL_REQUIRE_CERT"} {
		verify = verify || isTrue(getenv(name))
	}
	if !verify {
		return config, nil
	}
	var roots *x509.CertPool // nil: those of the system
	if len(files) > 0 {
		roots = x509.NewCertPool()
		found := false
		for _, file := range files {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("LIBPROCESS_SSL_CA_FILE, LIBPROCESS_SSL_CA_DIR: %w", err)
			}
			found = roots.AppendCertsFromPEM(pem) || found
		}
		if !found {
			return nil, fmt.Errorf("LIBPROCESS_SSL_CA_FILE, LIBPROCESS_SSL_CA_DIR: no certificate in %s", strings.Join(files, ", "))
		}
	}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		intermediates := x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			intermediates.AddCert(cert)
		}
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
		return err
	}
	return config, nil
}

// parseDuration reads what stout writes: a number and a unit, such as "5secs" or
// "1.5mins" (mesos 3rdparty/stout/include/stout/duration.hpp).
func parseDuration(s string) (time.Duration, error) {
	units := []struct {
		name string
		unit time.Duration
	}{
		{"ns", time.Nanosecond}, {"us", time.Microsecond}, {"ms", time.Millisecond},
		{"secs", time.Second}, {"mins", time.Minute}, {"hrs", time.Hour},
		{"days", 24 * time.Hour}, {"weeks", 7 * 24 * time.Hour},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(digits, 64)
		d := n * float64(u.unit)
		if err != nil || !(d >= 0 && d < 1<<62) {
			continue // "15mins" ends in "ns" too
		}
		return time.Duration(d), nil
	}
	return 0, fmt.Errorf("%q is no duration such as 5secs", s)
}
