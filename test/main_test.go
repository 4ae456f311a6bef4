// Package test runs the program as users do: the built binary, a real registry,
// real Docker daemons, Mesos's protocol over TCP and executors in processes of
// their own.
package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/dockertest"
)

// What all tests share. Nothing of it changes after TestMain has set it.
var (
	root     string // of the repository
	program  string // the built CLI
	cache    string // its cache directory
	registry string // host:port, with <registry>/busybox in it
	scratch  string // a directory that lives as long as the tests
)

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	// Processes that a run leaves behind become children of this one, where
	// they can be seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "portainer-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	scratch = dir
	if root, err = filepath.Abs(".."); err != nil {
		return 0, err
	}
	program, cache = filepath.Join(dir, "portainer"), filepath.Join(dir, "cache")
	if err := goTool(ctx, buildArgs(program, "./cmd/portainer")...); err != nil {
		return 0, err
	}
	reg, err := dockertest.StartRegistry(ctx, filepath.Join(dir, "registry"))
	if err != nil {
		return 0, err
	}
	defer func() {
		if stopErr := reg.Stop(); stopErr != nil && err == nil {
			err = stopErr
		}
	}()
	registry = reg.Addr
	if _, err := dockertest.PushBusybox(ctx, registry); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// buildArgs are the arguments of a go build of what tests run, with the race
// detector if they have it themselves.
func buildArgs(out string, packages ...string) []string {
	args := []string{"build", "-o", out}
	if raceEnabled {
		args = append(args, "-race")
	}
	return append(args, packages...)
}

// goTool runs the go command in the repository.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	return nil
}
