package test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// TestSSH has steps sign with a key in an ssh agent of ours and with one in a file.
// Neither can leave this process and the command: what the steps get are signatures.
func TestSSH(t *testing.T) {
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "sshsign"), "./test/testdata/sshsign")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(`# portainer: repository=test/ssh
FROM scratch
COPY sshsign /
RUN --mount=type=ssh ["/sshsign", "from the agent"]
RUN --mount=type=ssh,id=deploy ["/sshsign", "from the file"]
`), 0o644))
	ofAgent, agentKey := sshKey(t)
	ofFile, fileKey := sshKey(t)
	keyring := agent.NewKeyring()
	require.NoError(t, keyring.Add(agent.AddedKey{PrivateKey: &agentKey, Comment: "agent"}))
	socket := serveAgent(t, keyring)
	block, err := ssh.MarshalPrivateKey(fileKey, "")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "id")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))

	t.Setenv("SSH_AUTH_SOCK", socket)
	before := look(t)
	p := cli(t, 0, "build", "--to", registry, "--stream", "--ssh", "default", "--ssh", "deploy="+file, dir)
	pushed(t, refOf(t, p, "test/ssh"))
	requireSigned(t, p.stderr.String(), "agent", ofAgent, "from the agent")
	requireSigned(t, p.stderr.String(), file, ofFile, "from the file")
	left, err := keyring.List()
	require.NoError(t, err)
	require.Len(t, left, 1)
	before.nothingLeft(t, p)
}

func TestSSHAgentIsMissing(t *testing.T) {
	dir := write(t, map[string]string{"Dockerfile": "# portainer: repository=test/ssh-missing\nFROM busybox\nRUN --mount=type=ssh,id=other,required true\n"})
	t.Setenv("SSH_AUTH_SOCK", serveAgent(t, agent.NewKeyring()))
	p := cli(t, 1, "build", "--to", registry, "--from", registry, "--ssh", "default", dir)
	require.Contains(t, p.stderr.String(), `no ssh agent "other"`)
}

func sshKey(t *testing.T) (ssh.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	key, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	return key, private
}

// serveAgent is an ssh agent on a socket, whose path it returns.
func serveAgent(t *testing.T, keys agent.Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ssh-") //nolint:usetesting // short: a socket is in it
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, "agent"))
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(keys, conn) // one at a time is enough
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-ended
		require.NoError(t, os.RemoveAll(dir))
	})
	return l.Addr().String()
}

// requireSigned wants a valid signature of text in the log.
func requireSigned(t *testing.T, log, comment string, key ssh.PublicKey, text string) {
	t.Helper()
	found := regexp.MustCompile(`signed by ` + regexp.QuoteMeta(comment) + `: (\S+)`).FindStringSubmatch(log)
	require.NotNil(t, found, "no signature by %s", comment)
	data, err := base64.StdEncoding.DecodeString(found[1])
	require.NoError(t, err)
	var signature ssh.Signature
	require.NoError(t, ssh.Unmarshal(data, &signature))
	require.NoError(t, key.Verify([]byte(text), &signature))
}
