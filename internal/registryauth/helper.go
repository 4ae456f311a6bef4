package registryauth

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"time"

	"github.com/docker/docker-credential-helpers/client"
)

const (
	// helperTimeout is long enough for a person to unlock a keyring.
	helperTimeout = 2 * time.Minute
	// helperGrace is how long the output of a killed helper is waited for.
	helperGrace = 2 * time.Second
	// maxAnswer bounds what is read of a helper.
	maxAnswer = 1 << 20
)

// A helper is one run of a credential helper. Unlike that of its library it
// ends with a context, and its children with it.
type helper struct {
	cmd  *exec.Cmd
	kill context.CancelFunc
}

var _ client.Program = (*helper)(nil)

func newHelper(ctx context.Context, program string, args []string, stderr io.Writer) *helper {
	ctx, kill := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = stderr
	cmd.WaitDelay = helperGrace
	ownGroup(cmd)
	return &helper{cmd, kill}
}

// Input implements client.Program.
func (h *helper) Input(in io.Reader) { h.cmd.Stdin = in }

// Output implements client.Program.
func (h *helper) Output() ([]byte, error) {
	defer h.kill()
	out := limited{onFull: h.kill}
	h.cmd.Stdout = &out
	err := h.cmd.Run()
	if out.full {
		return nil, errTooLong
	}
	if err != nil && bytes.ContainsRune(out.data, '{') {
		return nil, err // an answer in spite of the error would get into the message
	}
	return out.data, err
}

var errTooLong = errors.New("its answer is too long")

// limited holds at most maxAnswer bytes. It embeds no bytes.Buffer, whose
// ReadFrom would get round Write.
type limited struct {
	data   []byte
	full   bool
	onFull func()
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.data)+len(p) > maxAnswer {
		l.full = true
		l.onFull()
		return 0, errTooLong
	}
	l.data = append(l.data, p...)
	return len(p), nil
}
