package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// An engineCase is a way to build.
type engineCase struct {
	name  string
	flags []string
}

// engineCases are a given daemon, and daemons of the build's own.
func engineCases(t *testing.T, daemon *dockertest.Daemon) []engineCase {
	t.Helper()
	tools, err := dockertest.Tools(t.Context())
	require.NoError(t, err)
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	return []engineCase{
		{"given daemon", []string{"--docker-host", daemon.Host}},
		{"dockerd of the build's own", []string{"--engine", "dockerd"}},
		{"buildkitd of the build's own", []string{"--engine", "buildkitd"}},
	}
}

// TestKilledProgram kills the program, and with it its cluster, in the middle of a
// RUN. The executor ends by itself, with the step; what then remains the next run
// removes.
func TestKilledProgram(t *testing.T) {
	daemon := startDaemon(t)
	for i, tt := range engineCases(t, daemon) {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			mark := fmt.Sprintf("sleep 98%d%d", i, time.Now().UnixNano()%1e6)
			dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY Dockerfile /\nRUN echo it-runs; trap '' TERM; " + mark + "; true\n"})
			temp := t.TempDir()
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/killed"}, tt.flags...)
			p := startIn(t, temp, program, append(args, dir)...)
			p.waitFor(p.stderr, "it-runs\n")
			require.NoError(t, p.cmd.Process.Kill())
			p.wait()
			require.NotEmpty(t, filesBelow(t, temp), "what the next run is to remove")

			next := startIn(t, temp, program, append(args, "--tag", "next", "examples/tree/b")...)
			require.Equal(t, 0, next.wait(), tailOf(next.stderr.String()))
			require.Len(t, next.refs(), 1)
			before.nothingLeft(t, next)
			require.NotContains(t, processes(t), mark)
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
			notPushed(t, registry+"/test/killed:latest")
		})
	}
}

// TestKilledProgramEndsItsExecutors: nothing runs on after the program, even if
// there is never another.
func TestKilledProgramEndsItsExecutors(t *testing.T) {
	daemon := startDaemon(t)
	before := look(t)
	mark := fmt.Sprintf("sleep 99%d", time.Now().UnixNano()%1e6)
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN echo it-runs; " + mark + "\n"})
	p := start(t, "build", "--to", registry, "--from", registry, "--repository", "test/killed", "--docker-host", daemon.Host, dir)
	p.waitFor(p.stderr, "it-runs\n")
	require.NoError(t, p.cmd.Process.Kill())
	p.wait()
	eventually(t, 30*time.Second, func() bool { return !strings.Contains(processes(t), mark) }, "the step runs on")
	eventually(t, 30*time.Second, func() bool {
		for _, c := range children(t) {
			if !before.children[c.pid] && c.state != "Z" {
				return false
			}
		}
		return true
	}, "an executor runs on")
	require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
	require.Empty(t, engines(t, p.temp))
}

// TestKilledExecutor kills the executor in the middle of a RUN: the build is done
// again, and nothing is left of either attempt.
func TestKilledExecutor(t *testing.T) {
	daemon := startDaemon(t)
	for _, tt := range engineCases(t, daemon) {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			meta := filepath.Join(t.TempDir(), "meta.json")
			dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN echo it-runs; sleep 2\n"})
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/killed-executor", "--metadata-file", meta}, tt.flags...)
			p := start(t, append(args, dir)...)
			p.waitFor(p.stderr, "it-runs\n")
			executor := executorOf(t, p)
			require.NoError(t, syscall.Kill(executor, syscall.SIGKILL))
			require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
			require.Len(t, p.refs(), 1)
			pushed(t, p.refs()[0])
			require.Equal(t, 2, readMetadata(t, meta).Builds[0].Attempts)
			before.nothingLeft(t, p)
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
		})
	}
}

// executorOf returns the process of the one executor of p's cluster.
func executorOf(t *testing.T, p *process) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, name := range files {
		command, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(command), program+"\x00executor\x00") {
			continue
		}
		if cwd, err := os.Readlink(filepath.Join(filepath.Dir(name), "cwd")); err != nil || !strings.HasPrefix(cwd, p.temp) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		require.NoError(t, err)
		return pid
	}
	require.Fail(t, "no executor runs")
	return 0
}
