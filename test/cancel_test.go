package test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/storagetest"
)

// endingBuilds is what an interrupt is answered with.
const endingBuilds = "interrupted: ending the builds; interrupt again not to wait for that"

// A stall keeps those waiting who come to it.
type stall struct {
	once    sync.Once
	reached chan struct{} // closed when somebody waits
	over    chan struct{} // closed when nobody shall any more
}

func newStall(t *testing.T) *stall {
	t.Helper()
	s := &stall{reached: make(chan struct{}), over: make(chan struct{})}
	t.Cleanup(func() { close(s.over) })
	return s
}

// wait keeps the caller until ctx is done or the test ends.
func (s *stall) wait(ctx context.Context) {
	s.once.Do(func() { close(s.reached) })
	select {
	case <-ctx.Done():
	case <-s.over:
	}
}

// await waits until somebody waits.
func (s *stall) await(t *testing.T, p *process) {
	t.Helper()
	select {
	case <-s.reached:
	case <-p.exited:
		require.Fail(t, "the program ended before it was stalled")
	}
}

// A slowBucket is one of S3 with two addresses: what the program uploads at the one
// can be stalled, and what agents download at the other is.
type slowBucket struct {
	data          string // where the server keeps it
	uri, agentURI string
	up, down      *stall
	stallUpload   func() // from now on, after a part of it
}

func newSlowBucket(t *testing.T) *slowBucket {
	t.Helper()
	dir, err := os.MkdirTemp("", "s3-") //nolint:usetesting // short: a socket is in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	server, err := storagetest.StartS3(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(server.Kill)
	relay := func() *storagetest.Relay {
		r, err := storagetest.NewRelay()
		require.NoError(t, err)
		t.Cleanup(r.Close)
		r.To(server.Network, server.Address)
		return r
	}
	program, agents := relay(), relay()
	withEnv(t, storagetest.S3Env(true))
	// Relays are closed when nothing is stalled any more.
	b := &slowBucket{
		data: filepath.Join(dir, "data", "staging"), up: newStall(t), down: newStall(t),
		uri: storagetest.S3URL(program.Addr(), "staging"), agentURI: storagetest.S3URL(agents.Addr(), "staging"),
	}
	b.stallUpload = func() {
		program.After(storagetest.Up, 1<<20, func() { b.up.wait(context.Background()) })
	}
	agents.After(storagetest.Down, 1, func() { b.down.wait(context.Background()) })
	return b
}

// slowRegistry is the tests' registry, but takes no layer or manifest to its end.
func slowRegistry(t *testing.T) (addr string, s *stall) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	t.Cleanup(server.Close)
	s = newStall(t) // is over before the server is closed
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			proxy.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // a client that goes away is seen after that
		s.wait(r.Context())
	})
	server.Start()
	return strings.TrimPrefix(server.URL, "http://"), s
}

// opened waits until the program reads a file.
func opened(t *testing.T, p *process, file string) {
	t.Helper()
	fds := fmt.Sprintf("/proc/%d/fd/", p.cmd.Process.Pid)
	eventually(t, time.Minute, func() bool {
		entries, err := os.ReadDir(fds)
		require.NoError(t, err)
		for _, e := range entries {
			if target, err := os.Readlink(fds + e.Name()); err == nil && target == file {
				return true
			}
		}
		return false
	}, "the program did not open %s", file)
}

// TestInterrupt interrupts a build in each of its phases: it ends at once, and nothing
// of it is left.
func TestInterrupt(t *testing.T) {
	daemon := startDaemon(t)
	docker(t, daemon.Host, "pull", "--quiet", registry+"/busybox") // base images stay where they were pulled
	withBuildkitd(t)
	other := startCluster(t)
	bucket := newSlowBucket(t)
	pushTo, push := slowRegistry(t)
	pushTo2, push2 := slowRegistry(t)
	given := []string{"--docker-host", daemon.Host}
	dockerd, buildkitd := []string{"--engine", "dockerd"}, []string{"--engine", "buildkitd"}
	mark := fmt.Sprintf("sleep 96%09d", time.Now().UnixNano()%1e9)
	slow := "RUN echo it-runs; " + mark + "\n"
	says := func(text string) func(*testing.T, string, *process) {
		return func(_ *testing.T, _ string, p *process) { p.waitFor(p.stderr, text) }
	}
	stalled := func(s *stall) func(*testing.T, string, *process) {
		return func(t *testing.T, _ string, p *process) { s.await(t, p) }
	}
	launched := filepath.Join(t.TempDir(), "launched")
	mute := filepath.Join(t.TempDir(), "executor") // it never subscribes
	require.NoError(t, os.WriteFile(mute, []byte("#!/bin/sh\n>"+launched+"\nexec "+mark+"\n"), 0o755))

	tests := []struct {
		phase string
		flags []string
		run   string           // ends the Dockerfile
		begin func(dir string) // before the program is started
		// reached returns when the build is in the phase, from which it would not come
		// for long.
		reached func(t *testing.T, dir string, p *process)
	}{
		{phase: "bundle", flags: []string{"--context-limit", "0"},
			begin:   func(dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, "data"), 1<<38)) },
			reached: func(t *testing.T, dir string, p *process) { opened(t, p, filepath.Join(dir, "data")) }},
		{phase: "stage", flags: []string{"--staging-uri", bucket.uri}, begin: func(string) { bucket.stallUpload() }, reached: stalled(bucket.up)},
		{phase: "queue with a master that is away", flags: []string{"--mesos-master", freeAddr(t), "--connect-timeout", "0"}, reached: says("staged")},
		{phase: "queue with no agent that fits", flags: []string{"--build-cpu", "1000"}, reached: says("staged")},
		{phase: "launch", flags: []string{"--executor-uri", mute}, reached: func(t *testing.T, _ string, _ *process) {
			eventually(t, time.Minute, func() bool { _, err := os.Stat(launched); return err == nil }, "no executor was launched")
		}},
		{phase: "fetch", flags: []string{"--staging-uri", bucket.uri, "--staging-agent-url", bucket.agentURI}, reached: stalled(bucket.down)},
		{phase: "build on a given daemon", flags: given, run: slow, reached: says("it-runs\n")},
		{phase: "build on dockerd of its own", flags: dockerd, run: slow, reached: says("it-runs\n")},
		{phase: "build on a cluster that goes on", flags: append([]string{"--mesos-master", other.master}, buildkitd...), run: slow, reached: says("it-runs\n")},
		{phase: "push from a given daemon", flags: append([]string{"--to", pushTo}, given...), reached: stalled(push)},
		{phase: "push from buildkitd of its own", flags: append([]string{"--to", pushTo2}, buildkitd...), reached: stalled(push2)},
	}
	for _, tt := range tests {
		t.Run(tt.phase, func(t *testing.T) {
			before := look(t)
			images := docker(t, daemon.Host, "images", "--all", "--quiet")
			staging := t.TempDir()
			data := make([]byte, 3<<20)
			_, _ = rand.Read(data) // never fails
			dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY data /\n" + tt.run, "data": string(data)})
			if tt.begin != nil {
				tt.begin(dir)
			}
			args := []string{"build", "--to", registry, "--from", registry, "--repository", "test/interrupt", "--tag", "never", "--staging-uri", staging, "--staging-ttl", "0"}
			p := start(t, append(append(args, tt.flags...), dir)...)
			tt.reached(t, dir, p)

			began := time.Now()
			p.interrupt()
			require.Equal(t, exitInterrupted, p.wait())
			took := time.Since(began)
			t.Logf("ended within %v", took.Round(time.Millisecond))
			require.Less(t, took, 10*time.Second)
			require.Empty(t, p.stdout.String())
			require.Equal(t, []string{endingBuilds}, ownMessages(p))
			before.nothingLeft(t, p)
			eventually(t, 5*time.Second, func() bool { return len(processesBelow(t, other.temp)) == 0 }, "an executor runs on")
			require.Empty(t, engines(t, other.temp))
			require.NotContains(t, processes(t), mark)
			require.Empty(t, staged(t, staging))
			require.Empty(t, staged(t, bucket.data))
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
			require.Equal(t, images, docker(t, daemon.Host, "images", "--all", "--quiet"))
			notPushed(t, registry+"/test/interrupt:never")
		})
	}
}

// TestInterruptWhileReading: a Dockerfile that does not come to its end is not waited
// for.
func TestInterruptWhileReading(t *testing.T) {
	for _, name := range []string{"a file", "standard input"} {
		t.Run(name, func(t *testing.T) {
			before := look(t)
			pipe := filepath.Join(t.TempDir(), "Dockerfile")
			require.NoError(t, syscall.Mkfifo(pipe, 0o600))
			args := []string{"-c", `exec "$0" "$@"`, program, "build", "--to", registry, "--repository", "test/interrupt", "--tag", "never", pipe}
			if name == "standard input" {
				args[1], args[len(args)-1] = args[1]+" <"+pipe, "-"
			}
			p := startProgram(t, "/bin/sh", args...)
			var fd int
			eventually(t, time.Minute, func() (opened bool) {
				var err error
				fd, err = syscall.Open(pipe, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
				return err == nil // somebody reads
			}, "the pipe was not opened")
			defer syscall.Close(fd)
			_, err := syscall.Write(fd, []byte("# it goes on\n"))
			require.NoError(t, err)
			eventually(t, time.Minute, func() bool {
				left, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
				require.NoError(t, err)
				return left == 0
			}, "the program did not read the pipe")
			p.interrupt()
			require.Equal(t, exitInterrupted, p.wait())
			require.Equal(t, []string{"interrupted"}, ownMessages(p))
			before.nothingLeft(t, p)
		})
	}
}

// TestSecondInterrupt: with a cluster that does not answer any more there is
// nothing to wait for.
func TestSecondInterrupt(t *testing.T) {
	before := look(t)
	c := startCluster(t)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	staging := t.TempDir()
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY Dockerfile /\nRUN echo it-runs; sleep 1234\n"})
	p := start(t, "build", "--mesos-master", c.master, "--to", c.registry, "--from", c.registry, "--repository", "test/twice",
		"--staging-uri", staging, "--staging-ttl", "0", dir)
	p.waitFor(p.stderr, "it-runs\n")

	require.NoError(t, c.cmd.Process.Signal(syscall.SIGSTOP))
	p.interrupt()
	p.waitFor(p.stderr, "interrupt again")
	p.interrupt()
	began := time.Now()
	require.Equal(t, exitInterrupted, p.wait())
	require.Less(t, time.Since(began), 2*time.Second)
	require.Equal(t, []string{endingBuilds, "interrupted again: the cluster may still be tidying up"}, ownMessages(p))
	require.NoError(t, c.cmd.Process.Signal(syscall.SIGCONT))
	c.stop()
	eventually(t, 10*time.Second, func() bool { return !strings.Contains(processes(t), "sleep 1234") }, "the step still runs")
	before.nothingLeft(t, c.process)
	before.nothingLeft(t, p)
}
