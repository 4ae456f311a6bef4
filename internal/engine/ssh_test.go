package engine_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/org/portainer/internal/engine"
)

// lentAgent is an agent whose keys stay in it.
type lentAgent struct{ agent.Agent }

func (lentAgent) RemoveAll() error { return errors.New("not yours") }

// TestSSH has steps sign with an agent on every engine, and meet one that is gone
// and one that was never given.
func TestSSH(t *testing.T) {
	r := theRig(t)
	program := filepath.Join(t.TempDir(), "sshsign")
	build := exec.CommandContext(testContext(t), "go", "build", "-ldflags=-s -w", "-o", program, "../../test/testdata/sshsign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	binary, err := os.ReadFile(program)
	require.NoError(t, err)
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	key, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	keys := agent.NewKeyring()
	require.NoError(t, keys.Add(agent.AddedKey{PrivateKey: &private, Comment: "lent"}))
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.config(t, w.kind, log)
			cfg.Bundler = files{"sign": string(binary)}
			cfg.SSH = map[string]engine.SSHFunc{
				"default": func(_ context.Context, conn io.ReadWriter) error { return agent.ServeAgent(lentAgent{keys}, conn) },
				"gone":    func(context.Context, io.ReadWriter) error { return errors.New("the agent is gone") },
			}
			e := open(t, cfg)
			req := r.request(t, "FROM BUSYBOX\nCOPY sign /sign.txt\nRUN cp /sign.txt /sign && chmod +x /sign\n"+
				"RUN --mount=type=ssh,required=true /sign 'sign this'\n"+
				"RUN --mount=type=ssh,id=gone,required=true /sign 'and this' || echo no agent >/failed\n"+
				"RUN test -z \"$SSH_AUTH_SOCK\"\n")
			req.NoCache = true // others build the same with the same daemon
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			require.Equal(t, "no agent\n", fileSystem(t, pull(t, res.Refs[0]))["failed"])
			said := strings.Join(log.lines("'sign this'"), "\n")
			_, encoded, ok := strings.Cut(said, "signed by lent: ")
			require.True(t, ok, said)
			data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
			require.NoError(t, err)
			var signature ssh.Signature
			require.NoError(t, ssh.Unmarshal(data, &signature))
			require.NoError(t, key.Verify([]byte("sign this"), &signature))

			_, err = e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN --mount=type=ssh,id=unknown,required=true true\n"))
			require.ErrorContains(t, err, `no ssh agent "unknown"`)
		})
	}
}
