package portainer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/staging"
)

// What is measured here is compared with what tar, gzip and docker do with the same
// trees on the same machine in the same run. Of several times the best one counts:
// the others tell of what else the machine was doing.

// goTree is a source tree that every machine with Go has: Go's own.
func goTree(b *testing.B) string {
	b.Helper()
	root, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(root)), "src")
}

const bigTreeSize = 1 << 30

// bigTree makes a tree of 1 GiB: many small files and some large ones, most of them
// text, a third of the bytes such as do not compress. The seed decides everything.
func bigTree(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(1, 30))
	words := make([]string, 4096)
	for i := range words {
		words[i] = strings.Repeat(string(rune('a'+r.IntN(26))), 1+r.IntN(3)) + fmt.Sprintf("%x ", r.Uint32N(1<<(4+r.IntN(20))))
	}
	noise := rand.NewChaCha8([32]byte{30})
	var buf []byte
	for total, n := 0, 0; total < bigTreeSize; n++ {
		size := 1 << (8 + r.IntN(10))
		if n%250 == 0 {
			size = 8 << 20 << r.IntN(3)
		}
		size = min(size+r.IntN(size), bigTreeSize-total)
		buf = buf[:0]
		if n%3 == 0 {
			buf = append(buf, make([]byte, size)...)
			_, _ = noise.Read(buf) // it never fails
		}
		for len(buf) < size {
			buf = append(buf, words[int(r.ExpFloat64()*200)%len(words)]...)
		}
		name := filepath.Join(dir, fmt.Sprintf("d%02d", n%97), fmt.Sprintf("e%d", n%7), fmt.Sprintf("f%05d", n))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, buf[:size], 0o644); err != nil {
			b.Fatal(err)
		}
		total += size
	}
	return dir
}

// A contextBench measures one tree.
type contextBench struct {
	*testing.B
	req      Request
	cacheDir string
}

func newContextBench(b *testing.B, dir string) *contextBench {
	return &contextBench{B: b, cacheDir: b.TempDir(), req: Request{
		Dir:        dir,
		Dockerfile: filepath.Join(b.TempDir(), "Dockerfile"),
		Source:     []byte("FROM scratch\nCOPY . /\n"),
	}}
}

// bucket returns a new directory as a bucket. remove removes it.
func (b *contextBench) bucket() (bucket *blob.Bucket, remove func()) {
	dir, err := os.MkdirTemp(b.TempDir(), "bucket")
	if err != nil {
		b.Fatal(err)
	}
	if bucket, err = fileblob.OpenBucket(dir, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite}); err != nil {
		b.Fatal(err)
	}
	return bucket, func() {
		if err := errors.Join(bucket.Close(), os.RemoveAll(dir)); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *contextBench) put(desk *stagingDesk, s *staging.Store, req Request) (time.Duration, staging.Ref, staging.PutStats) {
	began := time.Now()
	ref, stats, err := desk.putContext(b.Context(), s, DirBundler{CacheDir: b.cacheDir}, req, nil)
	if err != nil {
		b.Error(err) // it may be another goroutine
	}
	return time.Since(began), ref, stats
}

// best returns the shortest of n times.
func best(n int, measure func() time.Duration) time.Duration {
	shortest := measure()
	for range n - 1 {
		shortest = min(shortest, measure())
	}
	return shortest
}

// tarGzip is what a shell would do.
func (b *contextBench) tarGzip() (took, cpu time.Duration, size int64) {
	out := filepath.Join(b.TempDir(), "context.tar.gz")
	began := time.Now()
	cmd := exec.CommandContext(b.Context(), "sh", "-c", `tar -C "$1" -cf - . | gzip -6 > "$2"`, "sh", b.req.Dir, out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, msg)
	}
	took, cpu = time.Since(began), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	fi, err := os.Stat(out)
	if err != nil {
		b.Fatal(err)
	}
	return took, cpu, fi.Size()
}

// first stages the tree in an empty bucket, with nothing known of it.
func (b *contextBench) first() (took, cpu time.Duration, sent int64) {
	took = best(3, func() time.Duration {
		bucket, remove := b.bucket()
		defer remove()
		if err := os.RemoveAll(b.cacheDir); err != nil {
			b.Fatal(err)
		}
		before := cpuTime(b)
		took, _, stats := b.put(new(stagingDesk), staging.New(bucket), b.req)
		cpu, sent = cpuTime(b)-before, stats.Sent
		return took
	})
	return took, cpu, sent
}

// cpuTime is what this process has had of the processors.
func cpuTime(b *contextBench) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

var transferred = regexp.MustCompile(`transferring context: .* ([0-9.]+)s done`)

// dockerTransfer is the time that docker build takes to get the tree to the daemon on
// the same machine: what BuildKit itself says, or up to the classic builder's first
// step.
func (b *contextBench) dockerTransfer(buildkit bool) time.Duration {
	d, err := dockertest.StartDaemon(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := d.Stop(); err != nil {
			b.Fatal(err)
		}
	}()
	if err := os.WriteFile(b.req.Dockerfile, b.req.Source, 0o644); err != nil {
		b.Fatal(err)
	}
	cli := "/usr/bin/docker" // Debian's, which has BuildKit built in
	if _, err := os.Stat(cli); err != nil {
		cli = "docker"
	}
	cmd := exec.CommandContext(b.Context(), cli, "--host", d.Host, "build", "-f", b.req.Dockerfile, b.req.Dir)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+b.TempDir())
	if buildkit {
		cmd.Args = append(cmd.Args, "--progress", "plain")
		cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); w.Close() }()
	var took time.Duration
	var text strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fmt.Fprintln(&text, lines.Text())
		if m := transferred.FindStringSubmatch(lines.Text()); m != nil {
			if took, err = time.ParseDuration(m[1] + "s"); err != nil {
				b.Fatal(err)
			}
		} else if took == 0 && strings.HasPrefix(lines.Text(), "Step 1/") {
			took = time.Since(began)
		}
	}
	if err := <-ended; err != nil || took == 0 {
		b.Fatalf("docker build: %v\n%s", err, text.String())
	}
	return took
}

// changeOne gives one file of middling size another content.
func (b *contextBench) changeOne() {
	name := filepath.Join(b.req.Dir, "d07", "e0", fmt.Sprintf("f%05d", 7))
	fi, err := os.Stat(name)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, fi.Size())
	_, _ = rand.NewChaCha8([32]byte{31}).Read(data)
	if err := os.WriteFile(name, data, 0o644); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkContext measures how a context gets to the bucket, and back.
func BenchmarkContext(b *testing.B) {
	for _, tree := range []struct {
		name string
		make func(*testing.B) string
	}{{"go", goTree}, {"1GiB", bigTree}} {
		b.Run("tree="+tree.name, func(b *testing.B) {
			c := newContextBench(b, tree.make(b))
			for b.Loop() {
				c.measure(tree.name == "1GiB")
			}
		})
	}
}

// measure measures all there is to a tree, which may be changed if it is our own.
func (b *contextBench) measure(own bool) {
	report := func(d time.Duration, unit string) { b.ReportMetric(d.Seconds(), "s/"+unit) }
	gzip, gzipCPU, gzipSize := b.tarGzip()
	classic, buildkit := b.dockerTransfer(false), b.dockerTransfer(true)
	first, cpu, sent := b.first()
	report(gzip, "tar-gzip")
	report(classic, "docker-classic-transfer")
	report(buildkit, "docker-buildkit-transfer")
	report(first, "first")
	b.ReportMetric(float64(gzip)/float64(first), "times-as-fast-as-tar-gzip")
	b.ReportMetric(float64(cpu)/float64(gzipCPU), "cpu-of-tar-gzip")
	b.ReportMetric(float64(sent)/float64(gzipSize), "size-of-tar-gzip")
	b.ReportMetric(float64(classic)/float64(first), "times-as-fast-as-classic-transfer")
	b.ReportMetric(float64(buildkit)/float64(first), "times-as-fast-as-buildkit-transfer")

	bucket, remove := b.bucket()
	defer remove()
	s := staging.New(bucket)
	_, ref, stats := b.put(new(stagingDesk), s, b.req)
	b.SetBytes(stats.TarSize)
	var again int64
	unchanged := best(5, func() time.Duration {
		took, _, stats := b.put(new(stagingDesk), s, b.req)
		again += stats.Sent
		return took
	})
	report(unchanged, "unchanged")
	b.ReportMetric(float64(unchanged)/float64(first), "unchanged-of-first")
	b.ReportMetric(float64(again)/float64(sent), "unchanged-bytes-of-first")
	report(best(3, func() time.Duration { return b.fetch(s, ref) }), "fetch")
	if own {
		b.changeOne()
		took, _, stats := b.put(new(stagingDesk), s, b.req)
		report(took, "one-file-changed")
		b.ReportMetric(float64(stats.Sent)/float64(sent), "changed-bytes-of-first")
	}
	took, sentByAll := b.dockerfiles(40)
	report(took, "40-dockerfiles")
	b.ReportMetric(float64(took)/float64(first), "40-dockerfiles-of-first")
	b.ReportMetric(float64(sentByAll)/float64(sent), "40-dockerfiles-bytes-of-first")
	b.ReportMetric(float64(b.peak())/(1<<20), "MiB-peak")
}

// fetch reads the staged context, as an agent does.
func (b *contextBench) fetch(s *staging.Store, ref staging.Ref) time.Duration {
	began := time.Now()
	r, err := s.Open(b.Context(), ref)
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.Copy(io.Discard, r)
	if err := errors.Join(err, r.Close()); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// dockerfiles stages the context for n Dockerfiles at once, with nothing known of it.
func (b *contextBench) dockerfiles(n int) (took time.Duration, sent int64) {
	bucket, remove := b.bucket()
	defer remove()
	if err := os.RemoveAll(b.cacheDir); err != nil {
		b.Fatal(err)
	}
	s, desk := staging.New(bucket), new(stagingDesk)
	var all sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for i := range n {
		all.Go(func() {
			req := b.req
			req.Dockerfile = fmt.Sprintf("%s.%d", req.Dockerfile, i)
			_, _, stats := b.put(desk, s, req)
			mu.Lock()
			defer mu.Unlock()
			sent += stats.Sent
		})
	}
	all.Wait()
	return time.Since(began), sent
}

// benchDir is the variable that has the tree for a process of peak.
const benchDir = "PORTAINER_BENCH_DIR"

// peak is how much memory a process takes at most that stages the tree.
func (b *contextBench) peak() int64 {
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run", "^$", "-test.bench", "^BenchmarkContextMemory$", "-test.benchtime", "1x")
	cmd.Env = append(os.Environ(), benchDir+"="+b.req.Dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// BenchmarkContextMemory stages a tree once: of its own, it is the Go tree.
func BenchmarkContextMemory(b *testing.B) {
	dir := os.Getenv(benchDir)
	if dir == "" {
		dir = goTree(b)
	}
	c := newContextBench(b, dir)
	b.ReportAllocs()
	for b.Loop() {
		bucket, remove := c.bucket()
		c.put(new(stagingDesk), staging.New(bucket), c.req)
		remove()
	}
}

func BenchmarkPack(b *testing.B) {
	c := newContextBench(b, goTree(b))
	for b.Loop() {
		var n counted
		if err := (DirBundler{}).Bundle(b.Context(), c.req, &n); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(n))
	}
}

type counted int64

func (c *counted) Write(p []byte) (int, error) {
	*c += counted(len(p))
	return len(p), nil
}
