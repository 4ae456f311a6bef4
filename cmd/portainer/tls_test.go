package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// TestTLSUsage has every mistake in the files of TLS, none of which starts
// anything.
func TestTLSUsage(t *testing.T) {
	one, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{one, other} {
		_, err := dockertest.WriteCerts(dir, "127.0.0.1")
		require.NoError(t, err)
	}
	ca, cert, key := filepath.Join(one, "ca.pem"), filepath.Join(one, "cert.pem"), filepath.Join(one, "key.pem")
	otherKey := filepath.Join(other, "key.pem")
	junk := filepath.Join(one, "junk.pem")
	require.NoError(t, os.WriteFile(junk, []byte("no certificate\n"), 0o600))
	missing := filepath.Join(one, "missing.pem")
	file := filepath.Join(one, "Dockerfile")
	require.NoError(t, os.WriteFile(file, []byte("FROM scratch\nLABEL a=b\n"), 0o600))

	tests := []struct {
		name  string
		flags []string
		want  []string // parts of the message
	}{
		{"no such CA", []string{"--mesos-ca", missing}, []string{"--mesos-ca", missing, "no such file"}},
		{"a directory as CA", []string{"--mesos-ca", one}, []string{"--mesos-ca", one}},
		{"a CA that is none", []string{"--mesos-ca", junk}, []string{"--mesos-ca", junk, "no certificate in PEM form"}},
		{"a key as CA", []string{"--mesos-ca", key}, []string{"--mesos-ca", key, "no certificate in PEM form"}},
		{"a key without certificate", []string{"--mesos-ca", ca, "--mesos-key", key}, []string{"--mesos-key needs --mesos-cert"}},
		{"a certificate without key", []string{"--mesos-cert", cert}, []string{"--mesos-cert needs --mesos-key"}},
		{"no such certificate", []string{"--mesos-cert", missing, "--mesos-key", key}, []string{"--mesos-cert", missing, "no such file"}},
		{"no such key", []string{"--mesos-cert", cert, "--mesos-key", missing}, []string{"--mesos-key", missing, "no such file"}},
		{"the key of another certificate", []string{"--mesos-cert", cert, "--mesos-key", otherKey}, []string{"--mesos-cert", cert, "--mesos-key", otherKey, "does not match"}},
		{"a certificate that is none", []string{"--mesos-cert", junk, "--mesos-key", key}, []string{"--mesos-cert", junk}},
		{"the cluster on this machine", []string{"--mesos-ca", ca, "--mesos-master", "local:2"}, []string{"--mesos-ca", "local:2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"build", "--mesos-master", "127.0.0.1:1", "--to", "r.example", "--repository", "a"}, tt.flags...)
			got := portainerWith(t, nil, append(args, file)...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Empty(t, got.stdout)
			for _, part := range tt.want {
				require.Contains(t, got.stderr, part)
			}
		})
	}
}

func TestTLSConfig(t *testing.T) {
	dir := t.TempDir()
	_, err := dockertest.WriteCerts(dir, "127.0.0.1")
	require.NoError(t, err)
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")

	config, err := (&tlsFlags{}).config()
	require.NoError(t, err)
	require.Nil(t, config, "Mesos is spoken to without TLS")

	config, err = (&tlsFlags{caFile: ca}).config()
	require.NoError(t, err)
	require.NotNil(t, config.RootCAs)
	require.Empty(t, config.Certificates)

	config, err = (&tlsFlags{certFile: cert, keyFile: key}).config()
	require.NoError(t, err)
	require.Nil(t, config.RootCAs, "the system's are trusted")
	require.Len(t, config.Certificates, 1)
}
