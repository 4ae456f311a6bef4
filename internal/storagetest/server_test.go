package storagetest_test

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A process is a server that a test runs.
type process struct {
	cmd    *exec.Cmd
	output *output
	done   chan struct{} // it has ended, and was waited for
}

// An output is what a process says.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// startProcess runs a server until it is killed or the test ends.
func startProcess(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), output: &output{}, done: make(chan struct{})}
	p.cmd.Env = append(p.cmd.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	dieWithUs(p.cmd)
	started := make(chan error, 1)
	go func() {
		// A thread of its own, which ends after the process and not before.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait() // killed, so its error says nothing
		}
	}()
	require.NoError(t, <-started)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.output)
		}
	})
	return p
}

// kill ends the process as a crash does.
func (p *process) kill() {
	p.cmd.Process.Kill() // or it is gone
	<-p.done
}

// startTime is what a server may take to begin to answer on a busy machine.
const startTime = time.Minute

// waitFor polls until a server does what it should.
func (p *process) waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-p.done:
			require.Fail(t, "the server ended", "before %s: %s", what, p.output)
		case <-ctx.Done():
			require.Fail(t, "the server does nothing", "no %s: %s", what, p.output)
		}
	}
}

// waitForListener polls until something listens at an address.
func (p *process) waitForListener(t testing.TB, network, address string) {
	t.Helper()
	p.waitFor(t, "listener at "+address, func() bool {
		c, err := net.Dial(network, address)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// freePort returns an address that nothing listens at, for a server that does not
// tell which one it has chosen.
func freePort(t testing.TB) (host, port string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host, port, err = net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return host, port
}
