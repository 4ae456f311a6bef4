package test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// maxRun bounds one run of the program.
const maxRun = 3 * time.Minute

// exitInterrupted is the exit code after SIGINT.
const exitInterrupted = 130

// A process is a run of the program.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	temp   string // its TMPDIR
	stdout *lockedBuffer
	stderr *lockedBuffer
	exited chan struct{}
	killed *time.Timer
}

// A lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs the program in the repository's root.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startProgram(t, program, args...)
}

func startProgram(t *testing.T, path string, args ...string) *process {
	t.Helper()
	return startIn(t, t.TempDir(), path, args...)
}

// startIn runs a program with that TMPDIR.
func startIn(t *testing.T, temp, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path, args...), temp: temp, stdout: &lockedBuffer{}, stderr: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Dir = root
	p.cmd.Env = append(os.Environ(), "TMPDIR="+p.temp, "XDG_CACHE_HOME="+cache)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Pipes may be held open by what the program leaves behind.
	p.cmd.WaitDelay = 5 * time.Second
	require.NoError(t, p.cmd.Start())
	p.killed = time.AfterFunc(maxRun, func() { _ = p.cmd.Process.Kill() })
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait() // code tells how it ended
	}()
	t.Cleanup(func() {
		p.killed.Stop()
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(30 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
		if t.Failed() {
			t.Logf("portainer %s\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), p.stdout, tailOf(p.stderr.String()))
		}
	})
	return p
}

// tailOf is the end of a long text.
func tailOf(s string) string { return s[max(0, len(s)-8000):] }

// wait waits for the end and returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	<-p.exited
	require.True(p.t, p.killed.Stop(), "the program did not end within %s", maxRun)
	return p.cmd.ProcessState.ExitCode()
}

// waitFor waits until the standard error holds text.
func (p *process) waitFor(out *lockedBuffer, text string) {
	p.t.Helper()
	eventually(p.t, 2*time.Minute, func() bool {
		select {
		case <-p.exited:
			require.FailNow(p.t, "the program ended", "before it wrote %q", text)
		default:
		}
		return strings.Contains(out.String(), text)
	}, "the program did not write %q", text)
}

func (p *process) interrupt() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(os.Interrupt))
}

// refs are the lines of the standard output.
func (p *process) refs() []string { return strings.Fields(p.stdout.String()) }

// cli runs the program to its end and wants an exit code.
func cli(t *testing.T, want int, args ...string) *process {
	t.Helper()
	p := start(t, args...)
	require.Equal(t, want, p.wait(), tailOf(p.stderr.String()))
	return p
}

// A cluster is a running "portainer local".
type cluster struct {
	*process
	master   string
	agents   []string
	registry string
}

func startCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	c := &cluster{process: start(t, append([]string{"local"}, args...)...)}
	c.killed.Reset(10 * maxRun) // of the program on it there may be several
	c.waitFor(c.stdout, "\nready\n")
	for line := range strings.Lines(c.stdout.String()) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "master":
			c.master = value
		case "agent":
			c.agents = append(c.agents, value)
		case "registry":
			c.registry = value
		default:
			require.Equal(t, "ready", key)
		}
	}
	return c
}

// stop ends the cluster as Ctrl-C does.
func (c *cluster) stop() {
	c.t.Helper()
	c.interrupt()
	require.Equal(c.t, 0, c.wait())
}

// eventually waits for a condition.
func eventually(t *testing.T, d time.Duration, ok func() bool, format string, args ...any) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			require.FailNow(t, "timed out", format, args)
		case <-tick.C:
		}
	}
}

// write makes a build context of files and returns its directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// docker runs Docker's client against a daemon.
func docker(t *testing.T, host string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "docker", append([]string{"--host", host}, args...)...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("docker %v: %s", args, exit.Stderr)
	}
	require.NoError(t, err)
	return string(out)
}
