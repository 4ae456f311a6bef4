package engine_test

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

var benchTree = flag.String("bench.tree", "", "the build context of the benchmarks; Go's own sources, 11 000 files and 140 MB, if empty")

// benchDir returns the directory that benchmarks build.
func benchDir(b *testing.B) string {
	b.Helper()
	if *benchTree != "" {
		return *benchTree
	}
	out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	require.NoError(b, err)
	return filepath.Join(strings.TrimSpace(string(out)), "src")
}

// BenchmarkOpen measures how long it takes from the start of a daemon until it
// takes a build, and until everything of it is gone again.
func BenchmarkOpen(b *testing.B) {
	benchRig(b)
	for _, kind := range []string{engine.KindDockerd, engine.KindBuildkitd} {
		b.Run("kind="+kind, func(b *testing.B) {
			var opening, closing time.Duration
			for b.Loop() {
				began := time.Now()
				e, err := engine.Open(b.Context(), engine.Config{Kind: kind, Sandbox: b.TempDir()})
				require.NoError(b, err)
				ready := time.Now()
				require.NoError(b, e.Close(b.Context()))
				opening, closing = opening+ready.Sub(began), closing+time.Since(ready)
			}
			b.ReportMetric(opening.Seconds()*1000/float64(b.N), "ms-open")
			b.ReportMetric(closing.Seconds()*1000/float64(b.N), "ms-close")
		})
	}
}

// BenchmarkBuildAndPush builds an image of a source tree from nothing and pushes
// it, and compares that with "docker build && docker push" of the same tree by
// the same daemon as the docker engine uses.
func BenchmarkBuildAndPush(b *testing.B) {
	r := benchRig(b)
	dir := benchDir(b)
	source := fmt.Sprintf("FROM %s\nCOPY . /src\nRUN find /src -type f | wc -l >/count\n", r.busybox)
	bundler := portainer.BundlerFunc(func(_ context.Context, _ portainer.Request, w io.Writer) error { return tarTree(dir, w) })
	n := 0
	fresh := func() string { n++; return fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), n) }

	docker := func(b *testing.B) time.Duration {
		dockerfile := filepath.Join(b.TempDir(), "Dockerfile")
		require.NoError(b, os.WriteFile(dockerfile, []byte(source), 0o600))
		ref := r.registry.Addr + "/" + fresh()
		began := time.Now()
		for _, args := range [][]string{
			{"build", "-q", "--no-cache", "--network=host", "--label", "n=" + ref, "-t", ref, "-f", dockerfile, dir},
			{"push", "-q", ref},
		} {
			cmd := exec.CommandContext(b.Context(), "docker", append([]string{"-H", r.daemon.Host}, args...)...)
			cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
			out, err := cmd.CombinedOutput()
			require.NoError(b, err, string(out))
		}
		return time.Since(began)
	}
	for _, w := range ways {
		b.Run(fmt.Sprintf("engine=%s/builder=%s", w.kind, w.name), func(b *testing.B) {
			cfg := r.benchConfig(b, w.kind, nil)
			cfg.Bundler = bundler
			var ours, theirs time.Duration
			for b.Loop() {
				theirs += docker(b)
				began := time.Now()
				e, err := engine.Open(b.Context(), cfg)
				require.NoError(b, err)
				req := portainer.Request{Registry: r.registry.Addr, Repository: fresh(), NoCache: true, Labels: map[string]string{"n": fresh()}}
				req.Source = []byte(source)
				if w.mount != "" {
					req.Source = fmt.Appendf(nil, "FROM %s\nCOPY . /src\nRUN %s find /src -type f | wc -l >/count\n", r.busybox, w.mount)
				}
				_, err = e.Build(b.Context(), req)
				require.NoError(b, err)
				ours += time.Since(began)
				require.NoError(b, e.Close(b.Context()))
			}
			b.ReportMetric(ours.Seconds()/float64(b.N), "s-ours")
			b.ReportMetric(theirs.Seconds()/float64(b.N), "s-docker")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "×docker")
		})
	}
}

// BenchmarkFirstStep measures how long it takes from opening an engine until the
// first RUN of a build begins.
func BenchmarkFirstStep(b *testing.B) {
	r := benchRig(b)
	for _, w := range ways {
		b.Run("way="+w.name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				log := &recorder{}
				cfg := r.benchConfig(b, w.kind, log)
				began := time.Now()
				e, err := engine.Open(b.Context(), cfg)
				require.NoError(b, err)
				source := fmt.Sprintf("FROM %s\nRUN %s true\n", r.busybox, w.mount)
				_, err = e.Build(b.Context(), portainer.Request{Registry: r.registry.Addr, Repository: "bench/first", Source: []byte(source), NoCache: true})
				require.NoError(b, err)
				require.NoError(b, e.Close(b.Context()))
				took += log.began(b, "RUN").Sub(began)
			}
			b.ReportMetric(took.Seconds()*1000/float64(b.N), "ms-to-first-step")
		})
	}
}

// BenchmarkPushOneLayer pushes an image whose one layer has 120 MB, and compares that
// with "docker push" of the same. What an engine does after the last step counts.
func BenchmarkPushOneLayer(b *testing.B) {
	r := benchRig(b)
	const want = 120 << 20
	bundler := portainer.BundlerFunc(func(_ context.Context, _ portainer.Request, w io.Writer) error {
		return tarFirst(benchDir(b), want, w)
	})
	// Each push is to a registry of its own, where the layer is not yet.
	fresh := func(b *testing.B, push func(registry string) time.Duration) time.Duration {
		registry, err := dockertest.StartRegistry(b.Context(), b.TempDir())
		require.NoError(b, err)
		defer func() { require.NoError(b, registry.Stop()) }()
		return push(registry.Addr)
	}
	for _, w := range []struct{ kind, step string }{{engine.KindDocker, "pushing "}, {engine.KindDockerd, "pushing "}, {engine.KindBuildkitd, "exporting to image"}} {
		b.Run("engine="+w.kind, func(b *testing.B) {
			var ours, theirs time.Duration
			for b.Loop() {
				theirs += fresh(b, func(registry string) time.Duration { return r.dockerPush(b, registry+"/bench/layer", bundler) })
				ours += fresh(b, func(registry string) time.Duration {
					log := &recorder{}
					cfg := r.benchConfig(b, w.kind, log)
					cfg.Bundler, cfg.Insecure = bundler, []string{registry}
					e, err := engine.Open(b.Context(), cfg)
					require.NoError(b, err)
					_, err = e.Build(b.Context(), portainer.Request{
						Registry: registry, Repository: "bench/layer", Source: []byte("FROM scratch\nCOPY data /\n"), NoCache: true,
					})
					require.NoError(b, err)
					require.NoError(b, e.Close(b.Context()))
					return log.took(b, w.step)
				})
			}
			b.ReportMetric(ours.Seconds()/float64(b.N), "s-ours")
			b.ReportMetric(theirs.Seconds()/float64(b.N), "s-docker")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "×docker")
		})
	}
}

// dockerPush builds an image of a context with the docker command and returns how long
// it takes to push it.
func (r *rig) dockerPush(b *testing.B, ref string, bundler portainer.ContextBundler) time.Duration {
	b.Helper()
	run := func(stdin io.Reader, args ...string) {
		cmd := exec.CommandContext(b.Context(), "docker", append([]string{"-H", r.daemon.Host}, args...)...)
		cmd.Env, cmd.Stdin = append(os.Environ(), "DOCKER_BUILDKIT=0"), stdin
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, string(out))
	}
	dir := b.TempDir()
	context, err := os.Create(filepath.Join(dir, "context.tar"))
	require.NoError(b, err)
	defer context.Close()
	require.NoError(b, bundler.Bundle(b.Context(), portainer.Request{}, context))
	_, err = context.Seek(0, io.SeekStart)
	require.NoError(b, err)
	run(context, "build", "-q", "--no-cache", "-t", ref, "-f", "Dockerfile", "-")
	began := time.Now()
	run(nil, "push", "-q", ref)
	took := time.Since(began)
	run(nil, "rmi", "-f", ref)
	return took
}

// BenchmarkRegistryCache builds a source tree on an agent that has nothing of it, from
// a cache in a registry that another agent has filled, and compares that with what the
// other needed.
func BenchmarkRegistryCache(b *testing.B) {
	r := benchRig(b)
	dir := benchDir(b)
	source := fmt.Sprintf("FROM %s\nCOPY . /src\nRUN find /src -type f | wc -l >/count\n", r.busybox)
	var cold, warm time.Duration
	n := 0
	for b.Loop() {
		n++
		cache := fmt.Sprintf("type=registry,ref=%s/bench/cache-%d-%d", r.registry.Addr, time.Now().UnixNano(), n)
		build := func(o portainer.Options) time.Duration {
			cfg := r.benchConfig(b, engine.KindBuildkitd, nil)
			cfg.Bundler = portainer.BundlerFunc(func(_ context.Context, _ portainer.Request, w io.Writer) error { return tarTree(dir, w) })
			began := time.Now()
			e, err := engine.Open(b.Context(), cfg)
			require.NoError(b, err)
			_, err = e.Build(b.Context(), portainer.Request{Registry: r.registry.Addr, Repository: "bench/cached", Source: []byte(source), Options: o})
			require.NoError(b, err)
			took := time.Since(began)
			require.NoError(b, e.Close(b.Context()))
			return took
		}
		cold += build(portainer.Options{CacheTo: []string{cache + ",mode=max"}})
		warm += build(portainer.Options{CacheFrom: []string{cache}})
	}
	b.ReportMetric(cold.Seconds()/float64(b.N), "s-cold")
	b.ReportMetric(warm.Seconds()/float64(b.N), "s-warm")
	b.ReportMetric(warm.Seconds()/cold.Seconds(), "×cold")
}

// BenchmarkLog measures how fast the output of a step arrives that writes as fast as it
// can.
func BenchmarkLog(b *testing.B) {
	r := benchRig(b)
	const size = 100_000_000
	for _, w := range ways {
		if w.by == "(buildkit)" {
			continue // it drops output, see TestClippedLogIsReported
		}
		b.Run("way="+w.name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				var got int64
				log := portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
					switch {
					case ev.Kind == portainer.EventLog && strings.HasPrefix(ev.Text, "0123456789"):
						got += int64(len(ev.Text)) + 1
					case ev.Kind == portainer.EventStepDone && strings.Contains(ev.Step.Name, "yes"):
						took += ev.Step.Duration
					}
				})
				e, err := engine.Open(b.Context(), r.benchConfig(b, w.kind, log))
				require.NoError(b, err)
				source := fmt.Sprintf("FROM %s\nRUN yes %s | head -c %d\n", r.busybox, strings.Repeat("0123456789", 9)+"012345678", size)
				_, err = e.Build(b.Context(), portainer.Request{Registry: r.registry.Addr, Repository: "bench/log", Source: []byte(source), NoCache: true})
				require.NoError(b, err)
				require.NoError(b, e.Close(b.Context()))
				require.EqualValues(b, size, got)
			}
			b.ReportMetric(size/1e6*float64(b.N)/took.Seconds(), "MB/s")
		})
	}
}

// benchRig returns what the benchmarks share with the tests.
func benchRig(b *testing.B) *rig {
	b.Helper()
	shared.once.Do(func() { shared.err = shared.rig.start(context.Background()) })
	require.NoError(b, shared.err)
	return &shared.rig
}

// benchConfig returns a Config for an engine of that kind.
func (r *rig) benchConfig(b *testing.B, kind string, logs portainer.LogSink) engine.Config {
	b.Helper()
	if kind == engine.KindDocker {
		return r.given(logs)
	}
	return engine.Config{Kind: kind, Sandbox: b.TempDir(), Logs: logs, Insecure: []string{r.registry.Addr}}
}

// began returns when the first step whose name contains s began.
func (r *recorder) began(b *testing.B, s string) time.Time {
	b.Helper()
	for _, ev := range r.all() {
		if ev.Kind == portainer.EventStep && strings.Contains(ev.Step.Name, s) {
			return ev.Time
		}
	}
	b.Fatalf("no step %q has begun", s)
	return time.Time{}
}

// took returns how long the step took whose name begins with s.
func (r *recorder) took(b *testing.B, s string) time.Duration {
	b.Helper()
	for _, ev := range r.all() {
		if ev.Kind == portainer.EventStepDone && strings.HasPrefix(ev.Step.Name, s) {
			return ev.Step.Duration
		}
	}
	b.Fatalf("no step %q has ended", s)
	return 0
}

// tarFirst writes the first files below dir, about want bytes, as one file and a
// Dockerfile that copies it.
func tarFirst(dir string, want int64, w io.Writer) error {
	tw := tar.NewWriter(w)
	dockerfile := "FROM scratch\nCOPY data /\n"
	if err := tw.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(dockerfile))}); err != nil {
		return err
	}
	if _, err := io.WriteString(tw, dockerfile); err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: "data", Mode: 0o644, Size: want}); err != nil {
		return err
	}
	r, out := io.Pipe()
	go func() { out.CloseWithError(tarTree(dir, out)) }()
	_, err := io.CopyN(tw, r, want)
	return errors.Join(err, r.Close(), tw.Close())
}

// tarTree writes the regular files and directories below dir as a tar.
func tarTree(dir string, w io.Writer) error {
	tw := tar.NewWriter(w)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil || !(info.Mode().IsRegular() || info.IsDir()) {
			return err
		}
		hdr, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		hdr.Name = path
		if err := tw.WriteHeader(hdr); err != nil || info.IsDir() {
			return err
		}
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, f)
		return errors.Join(err, f.Close())
	})
	return errors.Join(err, tw.Close(), root.Close())
}
