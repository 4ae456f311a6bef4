package portainer

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"

	"github.com/org/portainer/internal/staging"
)

// benchTree returns a source tree that every machine with Go has: Go's own.
func benchTree(b *testing.B) Request {
	b.Helper()
	root, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	return Request{
		Dir:        filepath.Join(strings.TrimSpace(string(root)), "src"),
		Dockerfile: filepath.Join(b.TempDir(), "Dockerfile"),
		Source:     []byte("FROM scratch\nCOPY . /\n"),
	}
}

func benchBucket(b *testing.B) *blob.Bucket {
	b.Helper()
	bucket, err := fileblob.OpenBucket(b.TempDir(), &fileblob.Options{NoTempDir: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bucket.Close() })
	return bucket
}

// BenchmarkTarGzip is the measure: what a shell would do.
func BenchmarkTarGzip(b *testing.B) {
	req := benchTree(b)
	for b.Loop() {
		out := filepath.Join(b.TempDir(), "context.tar.gz")
		cmd := exec.CommandContext(b.Context(), "sh", "-c", `tar -C "$1" -cf - . | gzip -6 > "$2"`, "sh", req.Dir, out)
		if msg, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, msg)
		}
		fi, err := os.Stat(out)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(fi.Size()), "sent-bytes")
	}
}

func BenchmarkStage(b *testing.B) {
	req := benchTree(b)
	put := func(b *testing.B, s *staging.Store, dir DirBundler) staging.Ref {
		ref, stats, err := new(stagingDesk).putContext(b.Context(), s, dir, req, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(stats.Sent), "sent-bytes")
		b.SetBytes(stats.TarSize)
		return ref
	}
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			put(b, staging.New(benchBucket(b)), DirBundler{})
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		dir := DirBundler{CacheDir: b.TempDir()}
		s := staging.New(benchBucket(b))
		put(b, s, dir)
		for b.Loop() {
			put(b, s, dir)
		}
	})
	b.Run("unchanged/cache=none", func(b *testing.B) {
		s := staging.New(benchBucket(b))
		put(b, s, DirBundler{})
		for b.Loop() {
			put(b, s, DirBundler{})
		}
	})
	b.Run("fetch", func(b *testing.B) {
		s := staging.New(benchBucket(b))
		ref := put(b, s, DirBundler{})
		for b.Loop() {
			r, err := s.Open(b.Context(), ref)
			if err != nil {
				b.Fatal(err)
			}
			_, err = io.Copy(io.Discard, r)
			if err := errors.Join(err, r.Close()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPack(b *testing.B) {
	req := benchTree(b)
	for b.Loop() {
		var n counted
		if err := (DirBundler{}).Bundle(b.Context(), req, &n); err != nil {
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
