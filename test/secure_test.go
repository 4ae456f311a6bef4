package test

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/testmesos"
)

// startMesos starts masters and agents in this process, for tests that do to
// them what no other process could. Their executors find an engine.
func startMesos(t *testing.T, cfg testmesos.Config) *testmesos.Cluster {
	t.Helper()
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": os.Getenv("HOME")}
	maps.Copy(env, cfg.ExecutorEnvironment)
	cfg.ExecutorEnvironment = env
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// A secureCluster asks everybody for everything: frameworks for a certificate
// and a secret, executors for a certificate and their token.
type secureCluster struct {
	*testmesos.Cluster
	ca, cert, key string // files
}

func startSecureCluster(t *testing.T) *secureCluster {
	t.Helper()
	dir := t.TempDir()
	ca, err := dockertest.WriteCerts(dir, "127.0.0.1")
	require.NoError(t, err)
	c := &secureCluster{ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	require.NoError(t, err)
	clients := x509.NewCertPool()
	require.True(t, clients.AppendCertsFromPEM(ca))
	c.Cluster = startMesos(t, testmesos.Config{
		Agents:           []testmesos.AgentConfig{{}, {}},
		TLS:              &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients},
		Credentials:      map[string]string{"portainer": "the secret"},
		AgentCredentials: map[string]string{"portainer": "the secret"},
		ExecutorSecret:   []byte("key of the agents"),
		ExecutorEnvironment: map[string]string{
			"LIBPROCESS_SSL_ENABLED": "1", "LIBPROCESS_SSL_CA_FILE": c.ca, "LIBPROCESS_SSL_VERIFY_SERVER_CERT": "1",
			"LIBPROCESS_SSL_CERT_FILE": c.cert, "LIBPROCESS_SSL_KEY_FILE": c.key,
		},
	})
	return c
}

// flags are those of a build for someone who knows secret.
func (c *secureCluster) flags(t *testing.T, secret string) []string {
	t.Helper()
	file := filepath.Join(write(t, map[string]string{"secret": secret + "\n"}), "secret")
	return []string{
		"build", "--mesos-master", strings.TrimPrefix(c.Master(), "https://"), "--mesos-ca", c.ca, "--mesos-cert", c.cert, "--mesos-key", c.key,
		"--mesos-principal", "portainer", "--mesos-secret-file", file, "--to", registry, "--from", registry,
	}
}

// TestSecureCluster builds where Mesos speaks nothing but TLS and lets nobody in
// without credentials: framework, reader of logs and executor all show theirs.
func TestSecureCluster(t *testing.T) {
	c := startSecureCluster(t)
	require.Contains(t, c.Master(), "https://")
	before := look(t)
	dir := write(t, map[string]string{
		"scratch/Dockerfile": "# portainer: repository=test/secure\nFROM scratch\nCOPY Dockerfile /\nLABEL secure=yes\n",
		"run/Dockerfile": "# portainer: repository=test/secure-run\nFROM busybox\n" +
			"RUN echo \"the token is '${MESOS_EXECUTOR_AUTHENTICATION_TOKEN}'\"\n",
	})
	p := cli(t, 0, append(c.flags(t, "the secret"), "--engine", "dockerd", "--stream", filepath.Join(dir, "scratch"), filepath.Join(dir, "run"))...)
	config, err := pushed(t, refOf(t, p, "test/secure")).ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "yes", config.Config.Labels["secure"])
	pushed(t, refOf(t, p, "test/secure-run"))
	require.Contains(t, p.stderr.String(), "the token is ''\n", "the log comes from the agent, and the step has no token")
	require.NoError(t, c.Close(), "it waits for its own processes, which nothingLeft must not bury")
	before.nothingLeft(t, p)
}

// TestSecureClusterRefuses has what goes wrong with credentials: one clear
// sentence, within seconds.
func TestSecureClusterRefuses(t *testing.T) {
	c := startSecureCluster(t)
	other := t.TempDir()
	_, err := dockertest.WriteCerts(other, "127.0.0.1")
	require.NoError(t, err)
	dir := write(t, map[string]string{"Dockerfile": "FROM scratch\nLABEL a=b\n"})
	tests := []struct {
		name   string
		secret string
		flags  []string // win over earlier ones
		want   []string
	}{
		{"wrong secret", "a guess", nil, []string{"wrong principal or secret"}},
		{"somebody else's CA", "the secret", []string{"--mesos-ca", filepath.Join(other, "ca.pem"), "--connect-timeout", "2s"}, []string{"certificate"}},
		{
			"somebody else's certificate", "the secret",
			[]string{"--mesos-cert", filepath.Join(other, "cert.pem"), "--mesos-key", filepath.Join(other, "key.pem"), "--connect-timeout", "2s"},
			[]string{"certificate"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			began := time.Now()
			args := append(c.flags(t, tt.secret), tt.flags...)
			p := cli(t, 3, append(args, "--repository", "test/refused", "--tag", "never", dir)...)
			require.Less(t, time.Since(began), 10*time.Second)
			require.Empty(t, p.stdout.String())
			messages := ownMessages(p)
			require.Len(t, messages, 1, "one sentence")
			for _, part := range tt.want {
				require.Contains(t, messages[0], part)
			}
			require.NotContains(t, p.stderr.String(), tt.secret)
			notPushed(t, registry+"/test/refused:never")
			before.nothingLeft(t, p)
		})
	}
}
