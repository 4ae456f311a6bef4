package test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// endingBuilds is what an interrupt is answered with.
const endingBuilds = "interrupted: ending the builds; interrupt again not to wait for that"

// TestInterrupt interrupts a build in the middle of a RUN: everything is gone
// within seconds.
func TestInterrupt(t *testing.T) {
	daemon := startDaemon(t)
	tests := []struct {
		name  string
		flags []string
	}{
		{"given daemon", []string{"--docker-host", daemon.Host}},
		{"dockerd of the build's own", []string{"--engine", "dockerd"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			staging := t.TempDir()
			dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY Dockerfile /\nRUN echo it-runs; sleep 1234\n"})
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/interrupt", "--staging-uri", staging, "--staging-ttl", "0"}, tt.flags...)
			p := start(t, append(args, dir)...)
			p.waitFor(p.stderr, "it-runs\n")
			require.NotEmpty(t, staged(t, staging))

			began := time.Now()
			p.interrupt()
			require.Equal(t, exitInterrupted, p.wait())
			require.Empty(t, p.stdout.String())
			require.Equal(t, []string{endingBuilds}, ownMessages(p))
			before.nothingLeft(t, p)
			require.Empty(t, staged(t, staging))
			require.NotContains(t, processes(t), "sleep 1234")
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
			require.Less(t, time.Since(began), 5*time.Second)
			notPushed(t, registry+"/test/interrupt:latest")
		})
	}
}

// TestInterruptWhileWaiting: a build that waits for an offer, and one whose master
// is away, end as quickly.
func TestInterruptWhileWaiting(t *testing.T) {
	before := look(t)
	p := start(t, "build", "--to", registry, "--from", registry, "--build-cpu", "1000", "--tag", "never", "--staging-uri", t.TempDir(), "examples/hello")
	p.waitFor(p.stderr, "staged")
	began := time.Now()
	p.interrupt()
	require.Equal(t, exitInterrupted, p.wait())
	require.Less(t, time.Since(began), 5*time.Second)
	before.nothingLeft(t, p)
}

// TestSecondInterrupt: with a cluster that does not answer any more there is
// nothing to wait for.
func TestSecondInterrupt(t *testing.T) {
	c := startCluster(t)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN echo it-runs; sleep 1234\n"})
	p := start(t, "build", "--mesos-master", c.master, "--to", c.registry, "--from", c.registry, "--repository", "test/twice", dir)
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
}
