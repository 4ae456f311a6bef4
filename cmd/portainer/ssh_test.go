package main

import (
	"crypto/ed25519"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestSSHFlag(t *testing.T) {
	dir := t.TempDir()
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	plain, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("passphrase"))
	require.NoError(t, err)
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	key, withPassphrase := file("key", pem.EncodeToMemory(plain)), file("locked", pem.EncodeToMemory(locked))
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	g := &globals{invocation: invocation{env: func(name string) (string, bool) { return socket, name == "SSH_AUTH_SOCK" }}}

	agents, err := g.sshAgents([]string{"default", "other=" + socket, "deploy=" + key})
	require.NoError(t, err)
	require.Len(t, agents, 3)
	conn, err := agents["deploy"](t.Context())
	require.NoError(t, err)
	keys, err := agent.NewClient(conn).List()
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Len(t, keys, 1)
	require.Equal(t, key, keys[0].Comment)
	for _, id := range []string{"default", "other"} {
		conn, err := agents[id](t.Context())
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}

	for _, tt := range []struct{ flag, want string }{
		{"=x", "default or ID"},
		{"a=" + withPassphrase, "add it to an ssh agent"},
		{"a=" + filepath.Join(dir, "missing"), "no such file"},
		{"a=" + file("nonsense", []byte("x")), "nonsense: ssh: no key found"},
		{"a=" + key + "," + socket, "give one socket, or files of keys"},
	} {
		_, err := g.sshAgents([]string{tt.flag})
		require.ErrorContains(t, err, tt.want)
		require.ErrorContains(t, err, "--ssh")
	}
	_, err = g.sshAgents([]string{"a", "a=" + key})
	require.ErrorContains(t, err, "given twice")
	g.env = func(string) (string, bool) { return "", false }
	_, err = g.sshAgents([]string{"default"})
	require.ErrorContains(t, err, "SSH_AUTH_SOCK is not set")
}
