//go:build unix

package registryauth_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCredentialHelpersEndWithTheContext has a helper start a child and hang.
func TestCredentialHelpersEndWithTheContext(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	c := open(t, `{"credsStore": "hangs"}`, map[string]string{
		"hangs": fmt.Sprintf(`sleep 1000 & echo $! $$ > %[1]s.new; mv %[1]s.new %[1]s; wait`, pids),
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(pids); err == nil {
				cancel(gaveUp)
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	_, err := c.Credentials(ctx, "a.example")
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, gaveUp)
	text, err := os.ReadFile(pids)
	require.NoError(t, err)
	for word := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(word)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return !runs(pid) }, 10*time.Second, 5*time.Millisecond, "process %d still runs", pid)
	}
}

// runs reports whether a process is there and no zombie.
func runs(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(string(out), "Z")
}
