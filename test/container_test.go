package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// unprivileged are the flags for a machine that refuses privileged containers:
// what buildkitd needs at least.
var unprivileged = []string{"--container-privileged=false", "--container-parameter", "cap-add=SYS_ADMIN", "--container-parameter", "security-opt=seccomp=unconfined"}

// A dockerCluster is a cluster whose agents run executors in Docker.
type dockerCluster struct {
	*cluster
	daemon *dockertest.Daemon
	calls  string // the file with the command lines of the docker client
	parent string // the cgroup above those of the containers
}

func startDockerCluster(t *testing.T) *dockerCluster {
	t.Helper()
	c := &dockerCluster{calls: filepath.Join(t.TempDir(), "calls"), parent: fmt.Sprintf("/portainer-test-%d", os.Getpid())}
	dir := t.TempDir()
	var err error
	c.daemon, err = dockertest.StartDaemon(t.Context(), dir, "--cgroup-parent", c.parent)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.daemon.Stop())
		for _, cgroup := range c.cgroups(t) {
			require.NoError(t, os.Remove(cgroup), "it held no other cgroup")
		}
	})
	// The agents' docker is one that takes notes.
	real, err := exec.LookPath("docker")
	require.NoError(t, err)
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n{ printf '%%s\\n' \"$@\"; echo ---; } >>%s\nexec %s \"$@\"\n", c.calls, real)
	require.NoError(t, os.WriteFile(filepath.Join(bin, "docker"), []byte(script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	c.cluster = startCluster(t, "--docker-socket", strings.TrimPrefix(c.daemon.Host, "unix://"))
	return c
}

// cgroups lists those of the containers, the one above them last.
func (c *dockerCluster) cgroups(t *testing.T) []string {
	t.Helper()
	tops, err := filepath.Glob("/sys/fs/cgroup/*" + c.parent)
	require.NoError(t, err)
	if _, err := os.Stat("/sys/fs/cgroup" + c.parent); err == nil {
		tops = append(tops, "/sys/fs/cgroup"+c.parent)
	}
	var all []string
	for _, top := range tops {
		all = append(all, top)
		for _, name := range filesBelow(t, top) {
			if info, err := os.Stat(name); err == nil && info.IsDir() {
				all = append(all, name)
			}
		}
	}
	slices.Reverse(all)
	return all
}

// run returns the arguments of the last "docker run".
func (c *dockerCluster) run(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(c.calls)
	require.NoError(t, err)
	for _, call := range slices.Backward(strings.Split(string(data), "---\n")) {
		if args := strings.Split(strings.TrimSuffix(call, "\n"), "\n"); len(args) > 2 && args[2] == "run" {
			return args
		}
	}
	require.Fail(t, "no executor was run in Docker", string(data))
	return nil
}

// build builds a Dockerfile in a container.
func (c *dockerCluster) build(t *testing.T, want int, dir string, flags ...string) *process {
	t.Helper()
	return cli(t, want, c.args(dir, flags...)...)
}

func (c *dockerCluster) args(dir string, flags ...string) []string {
	args := []string{"build", "--mesos-master", c.master, "--to", registry, "--from", registry, "--repository", "test/container"}
	return append(append(append(args, unprivileged...), flags...), dir)
}

// nothingLeft checks that no container, cgroup, mount or process is left of a
// build. Containers end just after the builds in them.
func (c *dockerCluster) nothingLeft(t *testing.T, before machine, p *process) {
	t.Helper()
	c.nothingRuns(t, before, p)
	// What the agent keeps of a sandbox has nothing of the engine in it.
	for _, name := range filesBelow(t, c.temp) {
		require.NotContains(t, name, "/engine-")
	}
}

// nothingRuns checks that all of a build is gone but what the agent keeps of its
// sandboxes.
func (c *dockerCluster) nothingRuns(t *testing.T, before machine, p *process) {
	t.Helper()
	eventually(t, 20*time.Second, func() bool { return docker(t, c.daemon.Host, "ps", "--all", "--quiet") == "" }, "a container is left")
	before.nothingLeft(t, p)
	for _, cgroup := range c.cgroups(t) {
		require.Equal(t, c.parent, "/"+filepath.Base(cgroup), "a cgroup is left")
	}
}

// TestContainerImage runs executors in containers, and the engines with them.
func TestContainerImage(t *testing.T) {
	archive, programs := theBundle(t)
	c := startDockerCluster(t)

	// What an operator does to have the engine in an image.
	engine := registry + "/engine:v1"
	recipe := write(t, map[string]string{"Dockerfile": "FROM " + registry + "/busybox\nCOPY buildkitd runc /usr/local/bin/\n"})
	for _, name := range []string{"buildkitd", "runc"} {
		require.NoError(t, os.Rename(filepath.Join(programs, name), filepath.Join(recipe, name)))
	}
	docker(t, c.daemon.Host, "build", "--quiet", "--tag", engine, recipe)

	// Debian's dockerd, with the libraries that it is linked to.
	agents := []string{"--engine", "dockerd", "--container-parameter", "cap-add=NET_ADMIN"}
	for _, dir := range []string{"/usr", "/lib", "/lib64", "/etc"} {
		if _, err := os.Stat(dir); err == nil {
			agents = append(agents, "--container-volume", dir+":"+dir+":ro")
		}
	}
	tests := []struct {
		name, image string
		flags       []string
		built       string // what the log says about the engine
	}{
		{"archive with the engine", registry + "/busybox", []string{"--executor-uri", archive},
			`buildkitd v0\.[^ ]+ ready in [^:]+: /mnt/mesos/sandbox/buildkitd and /mnt/mesos/sandbox/runc are there`},
		{"image with the engine", engine, []string{"--executor-uri", filepath.Join(programs, "portainer-executor")},
			`buildkitd v0\.[^ ]+ ready in [^:]+: /usr/local/bin/buildkitd and /usr/local/bin/runc are there`},
		{"engine of the agent", registry + "/busybox", agents, `dockerd [^ ]+ \([a-z]+\) ready in [^:]+: asked for`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY f /f\nRUN cat /f >/g && chown 5:6 /g\n", "f": "from the context"})
			p := c.build(t, 0, dir, append(tt.flags, "--container-image", tt.image, "--build-cpu", "0.5", "--build-mem", "256", "--tag", strings.ReplaceAll(tt.name, " ", "-"))...)
			require.Len(t, p.refs(), 1)
			require.Equal(t, "from the context", filesIn(t, pushed(t, p.refs()[0]))["g"])
			require.Regexp(t, "engine "+tt.built, p.stderr.String())

			// mesos src/docker/docker.cpp, Docker::RunOptions and Docker::run.
			run := c.run(t)
			require.Equal(t, []string{"-H", c.daemon.Host, "run", "--cpu-shares", "614", "--memory", "335544320"}, run[:7])
			container := run[slices.Index(run, "--name")+1]
			require.Regexp(t, "^mesos-[0-9a-f-]{36}$", container)
			require.Subset(t, run, []string{
				"MESOS_CONTAINER_NAME=" + container, "MESOS_SANDBOX=/mnt/mesos/sandbox", "MESOS_ALLOCATION_ROLE=*", "MESOS_CHECKPOINT=1",
				"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD=1mins", "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined",
			})
			require.NotContains(t, run, "--privileged")
			tail := run[slices.Index(run, "--net"):]
			require.Equal(t, []string{"--net", "host", "--entrypoint", "/bin/sh", "--name", container}, tail[:6])
			require.Equal(t, []string{tt.image, "-c"}, run[len(run)-3:len(run)-1])
			require.Contains(t, run[len(run)-1], `cd "${MESOS_SANDBOX:-.}" && exec `)
			c.nothingLeft(t, before, p)
		})
	}
}

// TestContainerEnds: a build in a container is broken off, and one loses its container
// and is launched again. Nothing is left of either.
func TestContainerEnds(t *testing.T) {
	archive, err := bundle()
	require.NoError(t, err)
	c := startDockerCluster(t)
	began := make(chan struct{}, 1)
	var again atomic.Bool // do not wait
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if !again.Load() {
			began <- struct{}{}
			<-r.Context().Done() // until the step is killed
		}
	}))
	defer server.Close()
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN wget -q -O /dev/null " + server.URL + "\n"})
	inTheMiddle := func(flags ...string) *process {
		t.Helper()
		p := start(t, c.args(dir, append(flags, "--container-image", registry+"/busybox", "--executor-uri", archive)...)...)
		select {
		case <-began:
		case <-p.exited:
			require.Fail(t, "the build has ended before its step began")
		}
		return p
	}

	before := look(t)
	p := inTheMiddle("--tag", "never")
	p.interrupt()
	require.Equal(t, exitInterrupted, p.wait())
	notPushed(t, registry+"/test/container:never")
	c.nothingLeft(t, before, p)

	p = inTheMiddle("--tag", "again", "--retries", "1")
	again.Store(true)
	docker(t, c.daemon.Host, "kill", strings.TrimSpace(docker(t, c.daemon.Host, "ps", "--quiet")))
	require.Equal(t, 0, p.wait())
	pushed(t, p.refs()[0])
	require.Contains(t, p.stderr.String(), "attempt 2 launched")
	// The data of an engine that was killed is in a sandbox that no other container sees:
	// it goes when the agent removes that.
	c.nothingRuns(t, before, p)
}

// TestContainerFails: what goes wrong with a container is trouble with the
// cluster, and the message says what to look at.
func TestContainerFails(t *testing.T) {
	c := startDockerCluster(t)
	nowhere := freeAddr(t) + "/engine:v1"
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\n"})
	for _, tt := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"no such image", []string{"--container-image", nowhere}, "pull " + nowhere},
		{"no such parameter", []string{"--container-image", registry + "/busybox", "--container-parameter", "nonsense=1"}, "Container exited with status 125"},
		{"no such network", []string{"--container-image", registry + "/busybox", "--container-network", "builds"}, "Container exited with status 125"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			meta := filepath.Join(t.TempDir(), "meta.json")
			p := c.build(t, 3, dir, append(tt.flags, "--retries", "0", "--metadata-file", meta)...)
			require.Contains(t, p.stderr.String(), tt.want)
			require.Equal(t, "launch", readMetadata(t, meta).Builds[0].Class)
			if tt.name == "no such network" {
				run := c.run(t)
				require.Equal(t, "builds", run[slices.Index(run, "--net")+1])
			}
		})
	}
}
