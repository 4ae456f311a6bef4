package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// These are ratios of two things measured side by side on one machine in one run:
// absolute times say more about the machine.
//
// On an ext4 without a journal they say little, too: for minutes after many files were
// deleted, making one passes over all of their inodes (linux fs/ext4/ialloc.c,
// recently_deleted), so that whatever is measured later is slower. A TMPDIR on another
// file system helps.

// allocationInterval is how often Mesos allocates by default, and so how long a
// framework may wait for an offer that it did not ask for.
const allocationInterval = time.Second

// BenchmarkSubmitToLaunch is the time from a staged build to its launch on an
// idle cluster, as a share of an allocation interval.
func BenchmarkSubmitToLaunch(b *testing.B) {
	local := benchCluster(b)
	bucket, err := blob.OpenBucket(b.Context(), "file://"+b.TempDir()+"?no_tmp_dir=true&metadata=skip")
	require.NoError(b, err)
	defer bucket.Close()
	var queued, launched time.Time
	framework, err := portainer.New(portainer.Config{
		Master:          local.master,
		Registry:        registry,
		From:            registry,
		Staging:         bucket,
		StagingURL:      "file:///nonexistent",
		ExecutorCommand: program + " executor",
		Logs: portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
			switch ev.Kind {
			case portainer.EventQueued:
				queued = time.Now()
			case portainer.EventLaunched:
				launched = time.Now()
			}
		}),
	})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(ctx) }()
	defer func() { cancel(); <-ran }()

	var total time.Duration
	for b.Loop() {
		_, err := framework.Build(ctx, portainer.Request{
			Repository: "bench/launch", Dockerfile: "Dockerfile", Source: []byte("FROM busybox\nRUN true\n"), Dir: b.TempDir(),
		})
		require.NoError(b, err)
		total += launched.Sub(queued)
	}
	mean := total / time.Duration(b.N)
	b.ReportMetric(float64(mean.Microseconds())/1000, "ms/launch")
	b.ReportMetric(float64(mean)/float64(allocationInterval), "of-allocation-interval")
}

// benchCluster starts "portainer local" with args.
func benchCluster(b *testing.B, args ...string) *cluster {
	b.Helper()
	cmd := exec.Command(program, append([]string{"local"}, args...)...)
	stdout := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(stdout.String(), "\nready\n") {
		select {
		case <-tick.C:
		case <-deadline:
			b.Fatal("portainer local is not ready")
		}
	}
	line, _, _ := strings.Cut(stdout.String(), "\n")
	return &cluster{master: strings.TrimPrefix(line, "master=")}
}

// BenchmarkAgents builds as many images as several agents build one after the other, on
// all of them at once and on one: how near the gain comes to the number of agents. The
// steps sleep, because the agents are one machine.
func BenchmarkAgents(b *testing.B) {
	const agents, rounds, sleep = 4, 2, "10"
	tools, err := dockertest.Tools(b.Context())
	require.NoError(b, err)
	b.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	run := func(n int) time.Duration {
		local := benchCluster(b, "--agents", strconv.Itoa(n), "--resources", "cpus:1.5;mem:4096;disk:16384")
		args := []string{
			"build", "--mesos-master", local.master, "--staging-uri", "file://" + b.TempDir(), "--to", registry,
			"--engine", "buildkitd", "--build-cpu", "1", "--no-cache", "--queue-timeout", "5m",
		}
		for i := range agents * rounds {
			file := filepath.Join(b.TempDir(), "Dockerfile")
			text := fmt.Sprintf("# portainer: repository=bench/agents-%d\nFROM %s/busybox\nRUN sleep %s\n", i, registry, sleep)
			require.NoError(b, os.WriteFile(file, []byte(text), 0o644))
			args = append(args, file)
		}
		began := time.Now()
		out, err := exec.CommandContext(b.Context(), program, args...).CombinedOutput()
		require.NoError(b, err, "%s", out)
		return time.Since(began)
	}
	var alone, together time.Duration
	for b.Loop() {
		alone += run(1)
		together += run(agents)
	}
	b.ReportMetric(alone.Seconds()/float64(b.N), "s/alone")
	b.ReportMetric(together.Seconds()/float64(b.N), "s/together")
	b.ReportMetric(float64(alone)/float64(together)/agents, "of-agents")
}

// BenchmarkDockerdReady is the time from starting a dockerd to a usable engine,
// against that of a bare dockerd that is polled every 10 ms.
func BenchmarkDockerdReady(b *testing.B) {
	var ours, bare time.Duration
	for b.Loop() {
		began := time.Now()
		e, err := engine.Open(b.Context(), engine.Config{Kind: engine.KindDockerd, Sandbox: b.TempDir()})
		require.NoError(b, err)
		ours += time.Since(began)
		require.NoError(b, e.Close(b.Context()))

		began = time.Now()
		d, err := dockertest.StartDaemon(b.Context(), b.TempDir())
		require.NoError(b, err)
		bare += time.Since(began)
		require.NoError(b, d.Stop())
	}
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/ready")
	b.ReportMetric(float64(ours)/float64(bare), "of-bare-dockerd")
}

// BenchmarkAgainstDocker builds and pushes Go's own source tree, about 150 MB, from
// nothing: by portainer with each engine, from the command line to its end, and by
// docker build and docker push.
func BenchmarkAgainstDocker(b *testing.B) {
	tools, err := dockertest.Tools(b.Context())
	require.NoError(b, err)
	b.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	tree := b.TempDir()
	goroot, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	require.NoError(b, err)
	require.NoError(b, os.CopyFS(filepath.Join(tree, "src"), os.DirFS(filepath.Join(strings.TrimSpace(string(goroot)), "src"))))
	dockerfile := "FROM " + registry + "/busybox\nCOPY src /src\nRUN find /src -name '*.go' | wc -l > /count\n"
	require.NoError(b, os.WriteFile(filepath.Join(tree, "Dockerfile"), []byte(dockerfile), 0o644))

	timed := func(name string, args ...string) time.Duration {
		cmd := exec.CommandContext(b.Context(), name, args...)
		// The builder that every docker has.
		cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
		began := time.Now()
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, "%s", out)
		return time.Since(began)
	}
	image := func() string { return "bench/" + time.Now().Format("150405.000000") }
	// Each measurement has a registry of its own, and those by a given daemon a daemon:
	// no layer is there before.
	fresh := func(run func(host, registry string) time.Duration) time.Duration {
		r, err := dockertest.StartRegistry(b.Context(), b.TempDir())
		require.NoError(b, err)
		defer func() { require.NoError(b, r.Stop()) }()
		d, err := dockertest.StartDaemon(b.Context(), b.TempDir())
		require.NoError(b, err)
		defer func() { require.NoError(b, d.Stop()) }()
		return run(d.Host, r.Addr)
	}
	ways := []string{"docker", "dockerd", "buildkitd"}
	ours := map[string]time.Duration{}
	var docker time.Duration
	for b.Loop() {
		docker += fresh(func(host, to string) time.Duration {
			ref := to + "/" + image()
			return timed("docker", "--host", host, "build", "--network", "host", "--tag", ref, tree) + timed("docker", "--host", host, "push", ref)
		})
		for _, way := range ways {
			ours[way] += fresh(func(host, to string) time.Duration {
				args := []string{"build", "--to", to, "--repository", image(), "--engine", way}
				if way == "docker" {
					args = append(args, "--docker-host", host)
				}
				return timed(program, append(args, tree)...)
			})
		}
	}
	n := float64(b.N)
	b.ReportMetric(docker.Seconds()/n, "s/docker-itself")
	for _, way := range ways {
		b.ReportMetric(ours[way].Seconds()/n, "s/"+way)
		b.ReportMetric(float64(ours[way])/float64(docker), way+"-of-docker-itself")
	}
}

// BenchmarkLogThroughput is how fast the output of one step arrives at the terminal's
// end of portainer: through the engine, the executor's build.log, and the agent's files.
func BenchmarkLogThroughput(b *testing.B) {
	const size = 100_000_000
	dir := b.TempDir()
	line := strings.Repeat("0123456789", 9) + "012345678"
	dockerfile := "FROM " + registry + "/busybox\nRUN yes " + line + " | head -c " + strconv.Itoa(size) + "\n"
	require.NoError(b, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644))
	d, err := dockertest.StartDaemon(b.Context(), b.TempDir())
	require.NoError(b, err)
	defer func() { require.NoError(b, d.Stop()) }()
	var took time.Duration
	for b.Loop() {
		out, err := os.Create(filepath.Join(b.TempDir(), "log"))
		require.NoError(b, err)
		cmd := exec.CommandContext(b.Context(), program, "build", "--to", registry, "--repository", "bench/log", "--stream", "--no-cache", "--docker-host", d.Host, dir)
		cmd.Stderr = out
		began := time.Now()
		require.NoError(b, cmd.Run())
		took += time.Since(began)
		data, err := os.ReadFile(out.Name())
		require.NoError(b, errors.Join(err, out.Close()))
		// Whole lines, whatever else is on the terminal.
		require.Equal(b, size/(len(line)+1), strings.Count(string(data), line+"\n"))
	}
	b.ReportMetric(size/1e6*float64(b.N)/took.Seconds(), "MB/s")
}
