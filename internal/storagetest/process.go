package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

// A Process is a server that runs.
type Process struct {
	name   string
	cmd    *exec.Cmd
	output output
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

// start starts a server, which runs until it is killed, or this process ends.
func start(name string, args ...string) (*Process, error) {
	p := &Process{name: filepath.Base(name), cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
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
			_ = p.cmd.Wait() // killed, so its error says nothing
		}
	}()
	return p, <-started
}

// Kill ends the process as a crash does.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // or it is gone
	<-p.done
}

// Output is what it has said.
func (p *Process) Output() string {
	p.output.mu.Lock()
	defer p.output.mu.Unlock()
	return p.output.buf.String()
}

// startTime is what a server may take to begin to answer on a busy machine.
const startTime = time.Minute

// await polls until a server does what it should, and else kills it.
func (p *Process) await(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended before %s: %s", p.name, what, p.Output())
		case <-ctx.Done():
			p.Kill()
			return fmt.Errorf("%s does nothing, no %s: %s", p.name, what, p.Output())
		}
	}
	return nil
}

// awaitListener polls until something listens at an address.
func (p *Process) awaitListener(ctx context.Context, network, address string) error {
	return p.await(ctx, "listener at "+address, func() bool {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// freePort returns an address that nothing listens at, for a server that does not
// tell which one it has chosen.
func freePort() (host, port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	return net.SplitHostPort(l.Addr().String())
}
