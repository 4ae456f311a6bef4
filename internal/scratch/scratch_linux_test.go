package scratch_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/scratch"
)

// TestMain is also the process that is killed: it makes a directory, starts a
// child in it, and says where.
func TestMain(m *testing.M) {
	if os.Getenv("SCRATCH_TEST_MAKER") == "" {
		os.Exit(m.Run())
	}
	d, err := scratch.Make("test-")
	if err != nil {
		panic(err)
	}
	child := exec.Command("sh", "-c", os.Getenv("SCRATCH_TEST_MAKER"))
	child.Dir = d.Path()
	child.Stdout = os.Stdout
	if err := child.Start(); err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, d.Path())
	select {}
}

// leave has a process make a directory, and kills it.
func leave(t *testing.T, command string) (path string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "SCRATCH_TEST_MAKER=echo child; "+command)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for range 2 { // in any order
		require.True(t, lines.Scan())
		if lines.Text() != "child" {
			path = lines.Text()
		}
	}
	dirs, err := scratch.Abandoned("test-")
	require.NoError(t, err)
	require.Empty(t, dirs, "its maker lives")
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	return path
}

func entries(t *testing.T) []os.DirEntry {
	t.Helper()
	found, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	return found
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	d, err := scratch.Make("test-")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.Path(), "file"), nil, 0o600))
	dirs, err := scratch.Abandoned("test-")
	require.NoError(t, err)
	require.Empty(t, dirs)
	require.NoError(t, d.Remove())
	require.Empty(t, entries(t))
}

func TestAbandonedAfterKill(t *testing.T) {
	for name, command := range map[string]string{"ends when asked": "exec sleep 1000", "must be killed": "trap '' TERM; while :; do sleep 0.01; done"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			path := leave(t, command)
			other, err := os.MkdirTemp("", "test-") //nolint:usetesting // in TMPDIR, where nothing says that it may go
			require.NoError(t, err)
			none, err := scratch.Abandoned("other-")
			require.NoError(t, err)
			require.Empty(t, none)

			dirs, err := scratch.Abandoned("test-")
			require.NoError(t, err)
			require.Len(t, dirs, 1)
			require.Equal(t, path, dirs[0].Path())
			again, err := scratch.Abandoned("test-")
			require.NoError(t, err)
			require.Empty(t, again, "it has an owner now")
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			require.NoError(t, dirs[0].End(ctx))
			require.NoError(t, dirs[0].Leave())
			dirs, err = scratch.Abandoned("test-")
			require.NoError(t, err)
			require.Len(t, dirs, 1)
			require.NoError(t, dirs[0].Remove())
			require.NoDirExists(t, path)
			require.DirExists(t, other)
			require.Len(t, entries(t), 1)
		})
	}
}
