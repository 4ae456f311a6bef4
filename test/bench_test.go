package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
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

// benchCluster starts "portainer local".
func benchCluster(b *testing.B) *cluster {
	b.Helper()
	cmd := exec.Command(program, "local")
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

// BenchmarkAgainstDocker builds and pushes Go's own source tree, about 150 MB,
// with the same daemon: by portainer, and by docker build and docker push.
func BenchmarkAgainstDocker(b *testing.B) {
	tree := b.TempDir()
	goroot, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	require.NoError(b, err)
	require.NoError(b, os.CopyFS(filepath.Join(tree, "src"), os.DirFS(filepath.Join(strings.TrimSpace(string(goroot)), "src"))))
	dockerfile := "FROM " + registry + "/busybox\nCOPY src /src\nRUN find /src -name '*.go' | wc -l > /count\n"
	require.NoError(b, os.WriteFile(filepath.Join(tree, "Dockerfile"), []byte(dockerfile), 0o644))

	timed := func(name string, args ...string) time.Duration {
		began := time.Now()
		out, err := exec.CommandContext(b.Context(), name, args...).CombinedOutput()
		require.NoError(b, err, "%s", out)
		return time.Since(began)
	}
	// Each measurement has a daemon and a repository of its own: no layer is
	// there before.
	fresh := func(run func(host, image string) time.Duration) time.Duration {
		d, err := dockertest.StartDaemon(b.Context(), b.TempDir())
		require.NoError(b, err)
		defer func() { require.NoError(b, d.Stop()) }()
		return run(d.Host, "bench/"+time.Now().Format("150405.000000"))
	}
	var given, own, docker time.Duration
	for b.Loop() {
		given += fresh(func(host, image string) time.Duration {
			return timed(program, "build", "--to", registry, "--repository", image, "--docker-host", host, tree)
		})
		own += fresh(func(_, image string) time.Duration {
			return timed(program, "build", "--to", registry, "--repository", image, tree)
		})
		docker += fresh(func(host, image string) time.Duration {
			ref := registry + "/" + image
			return timed("docker", "--host", host, "build", "--network", "host", "--tag", ref, tree) + timed("docker", "--host", host, "push", ref)
		})
	}
	n := float64(b.N)
	b.ReportMetric(given.Seconds()/n, "s/given-daemon")
	b.ReportMetric(own.Seconds()/n, "s/own-engine")
	b.ReportMetric(docker.Seconds()/n, "s/docker")
	b.ReportMetric(float64(given)/float64(docker), "given-daemon-of-docker")
	b.ReportMetric(float64(own)/float64(docker), "own-engine-of-docker")
}
