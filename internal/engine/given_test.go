package engine_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// clientTLS returns how to speak to a server with the certificates in dir.
func clientTLS(t *testing.T, dir string) *tls.Config {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	require.NoError(t, err)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
}

// refusesStrangers checks that a daemon lets nobody in with other certificates, or
// with none.
func refusesStrangers(t *testing.T, cfg engine.Config) {
	t.Helper()
	other := t.TempDir()
	_, err := dockertest.WriteCerts(other, "127.0.0.1")
	require.NoError(t, err)
	anonymous := cfg.TLS.Clone()
	anonymous.Certificates = nil
	for _, wrong := range []*tls.Config{clientTLS(t, other), anonymous, nil} {
		cfg.TLS = wrong
		_, err = engine.Open(testContext(t), cfg)
		var be *portainer.BuildError
		require.ErrorAs(t, err, &be)
		require.Equal(t, portainer.ClassLaunch, be.Class)
	}
}

func TestDaemonOverTLS(t *testing.T) {
	r := theRig(t)
	certs := t.TempDir()
	_, err := dockertest.WriteCerts(certs, "127.0.0.1")
	require.NoError(t, err)
	pem := func(name string) string { return filepath.Join(certs, name) }
	d, err := dockertest.StartDaemon(testContext(t), t.TempDir(), "--host", "tcp://127.0.0.1:0", "--tlsverify",
		"--tlscacert", pem("ca.pem"), "--tlscert", pem("cert.pem"), "--tlskey", pem("key.pem"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Stop()) })
	require.Eventually(t, func() bool { return d.TCP() != "" }, time.Minute, 10*time.Millisecond)

	cfg := engine.Config{Kind: engine.KindDocker, Host: "tcp://" + d.TCP(), TLS: clientTLS(t, certs)}
	e := open(t, cfg)
	for _, mount := range []string{"", "--mount=type=tmpfs,target=/t "} {
		_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+mount+"true\n"))
		require.NoError(t, err)
	}
	refusesStrangers(t, cfg)
}

func TestBuildkitdOverTLS(t *testing.T) {
	r := theRig(t)
	certs := t.TempDir()
	_, err := dockertest.WriteCerts(certs, "127.0.0.1")
	require.NoError(t, err)
	pem := func(name string) string { return filepath.Join(certs, name) }
	d, err := dockertest.StartBuildkitd(testContext(t), t.TempDir(), "--addr", "tcp://127.0.0.1:0",
		"--tlscacert", pem("ca.pem"), "--tlscert", pem("cert.pem"), "--tlskey", pem("key.pem"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Stop()) })

	cfg := engine.Config{Kind: engine.KindBuildkitd, Host: "tcp://" + d.TCP(), TLS: clientTLS(t, certs), Insecure: []string{r.registry.Addr}}
	res, err := open(t, cfg).Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN echo x >/x\n"))
	require.NoError(t, err)
	require.Equal(t, "x\n", fileSystem(t, pull(t, res.Refs[0]))["x"])
	refusesStrangers(t, cfg)

	// What only its own configuration could do is refused before it builds.
	cfg.Registries = []portainer.Registry{{Host: "registry.test", Mirrors: []string{r.registry.Addr}}}
	_, err = open(t, cfg).Build(testContext(t), r.request(t, "FROM registry.test/busybox\n"))
	var be *portainer.BuildError
	require.ErrorAs(t, err, &be)
	require.Equal(t, portainer.ClassInvalid, be.Class)
	require.ErrorContains(t, err, `add [registry."registry.test"] with mirrors = ["`+r.registry.Addr+`"] to its buildkitd.toml`)
}
