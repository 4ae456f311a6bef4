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
	r := &shared.rig
	shared.once.Do(func() { shared.err = r.start(context.Background()) })
	require.NoError(b, shared.err)
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
	r := &shared.rig
	shared.once.Do(func() { shared.err = r.start(context.Background()) })
	require.NoError(b, shared.err)
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
			cfg := engine.Config{Kind: w.kind, Sandbox: b.TempDir(), Insecure: []string{r.registry.Addr}, Bundler: bundler}
			if w.kind == engine.KindDocker {
				cfg.Host = r.daemon.Host
			}
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
