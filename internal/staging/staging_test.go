package staging_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

type file struct{ name, content string }

// tarOf returns a tar stream of the files, with padding as tar programs write it.
func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content))}))
		_, err := io.WriteString(w, f.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func random(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}

func writes(data []byte) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

func keys(t testing.TB, b *blob.Bucket) []string {
	t.Helper()
	var keys []string
	for it := b.List(nil); ; {
		o, err := it.Next(context.WithoutCancel(t.Context()))
		if errors.Is(err, io.EOF) {
			return keys
		}
		require.NoError(t, err)
		keys = append(keys, o.Key)
	}
}

func readAll(t testing.TB, s *staging.Store, ref staging.Ref) ([]byte, error) {
	t.Helper()
	r, err := s.Open(t.Context(), ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestPutContextRoundTrip(t *testing.T) {
	dir, err := fileblob.OpenBucket(t.TempDir(), nil)
	require.NoError(t, err)
	for name, bucket := range map[string]*blob.Bucket{"mem": memblob.OpenBucket(nil), "file": dir} {
		t.Run(name, func(t *testing.T) {
			defer bucket.Close()
			data := tarOf(t, file{"a", "hello"}, file{"b", random(3 << 20)}, file{"c", strings.Repeat("x", 5<<20)}, file{"d", random(3<<20) + "tail"})
			s := staging.New(bucket)
			ref, stats, err := s.PutContext(t.Context(), writes(data))
			require.NoError(t, err)
			require.True(t, stats.Uploaded)
			require.Equal(t, int64(len(data)), stats.TarSize)

			other := staging.New(bucket)
			again, stats, err := other.PutContext(t.Context(), writes(data))
			require.NoError(t, err)
			require.Equal(t, ref, again)
			require.False(t, stats.Uploaded)
			require.Zero(t, stats.Sent)

			got, err := readAll(t, s, ref)
			require.NoError(t, err)
			require.Equal(t, data, got)

			require.NoError(t, s.Delete(t.Context(), ref))
			got, err = readAll(t, s, ref)
			require.NoError(t, err, "the other store relies on it")
			require.Equal(t, data, got)
			require.NoError(t, other.Delete(t.Context(), ref))
			require.NoError(t, other.Delete(t.Context(), ref), "what is gone is removed")
			require.Empty(t, keys(t, bucket))
			_, err = s.Open(t.Context(), ref)
			require.ErrorIs(t, err, staging.ErrGone)
		})
	}
}

func TestDeleteInTheNameOfTheDead(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	dead := staging.New(bucket)
	ref, _, err := dead.PutContext(t.Context(), writes(tarOf(t, file{"a", "b"})))
	require.NoError(t, err)
	heir := staging.New(bucket)
	require.NoError(t, heir.Delete(t.Context(), ref))
	require.NotEmpty(t, keys(t, bucket), "anybody else leaves it alone")
	heir = staging.New(bucket)
	heir.ID = dead.ID
	require.NoError(t, heir.Delete(t.Context(), ref))
	require.Empty(t, keys(t, bucket))
}

func TestPutContextLeavesNothingOnError(t *testing.T) {
	data := tarOf(t, file{"a", random(1200 << 10)}, file{"b", "x"})
	broken := errors.New("disk on fire")
	for _, part := range []int{0, 1, 700, len(data) / 2, len(data) - 1024, len(data) - 1} {
		for _, pass := range []int{1, 2} {
			t.Run(fmt.Sprintf("pass %d after %d bytes", pass, part), func(t *testing.T) {
				bucket := memblob.OpenBucket(nil)
				defer bucket.Close()
				calls := 0
				_, _, err := staging.New(bucket).PutContext(t.Context(), func(ctx context.Context, w io.Writer) error {
					if calls++; calls < pass {
						return writes(data)(ctx, w)
					}
					if _, err := w.Write(data[:part]); err != nil {
						return err
					}
					return broken
				})
				require.ErrorIs(t, err, broken)
				require.Equal(t, pass, calls)
				require.Empty(t, keys(t, bucket))
			})
		}
	}
}

func TestPutContextRefusesAShortStream(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	data := tarOf(t, file{"a", random(100_000)})
	_, _, err := staging.New(bucket).PutContext(t.Context(), writes(data[:50_000]))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Empty(t, keys(t, bucket))
}

func TestPutContextCancelled(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	data := tarOf(t, file{"a", random(1 << 20)})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	calls := 0
	_, _, err := staging.New(bucket).PutContext(ctx, func(ctx context.Context, w io.Writer) error {
		if calls++; calls == 2 {
			cancel(why)
		}
		return writes(data)(ctx, w)
	})
	require.ErrorIs(t, err, why)
	require.Empty(t, keys(t, bucket))
}

func TestPutContextOfAChangingTree(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	calls := 0
	changing := func(until int) func(context.Context, io.Writer) error {
		return func(ctx context.Context, w io.Writer) error {
			calls++
			return writes(tarOf(t, file{"a", fmt.Sprint(min(calls, until))}))(ctx, w)
		}
	}
	s := staging.New(bucket)
	_, _, err := s.PutContext(t.Context(), changing(100))
	require.ErrorIs(t, err, staging.ErrChanged)
	require.Empty(t, keys(t, bucket))

	calls = 0
	ref, _, err := s.PutContext(t.Context(), changing(2))
	require.NoError(t, err)
	got, err := readAll(t, s, ref)
	require.NoError(t, err)
	require.Equal(t, tarOf(t, file{"a", "2"}), got)
}

func TestPutContextSharesOneUpload(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	data := tarOf(t, file{"a", random(100 << 10)})
	const n = 40
	var passes, uploads atomic.Int64
	var hashed sync.WaitGroup
	hashed.Add(n)
	errs := make(chan error, n)
	for range n {
		go func() {
			first := true
			_, stats, err := s.PutContext(t.Context(), func(ctx context.Context, w io.Writer) error {
				passes.Add(1)
				if !first {
					hashed.Wait() // until all have asked for the same context
				}
				err := writes(data)(ctx, w)
				if first {
					first = false
					hashed.Done()
				}
				return err
			})
			if stats.Uploaded {
				uploads.Add(1)
			}
			errs <- err
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	require.Equal(t, int64(1), uploads.Load())
	require.GreaterOrEqual(t, passes.Load(), int64(n+1))
}

func TestOpenRefusesDamage(t *testing.T) {
	data := tarOf(t, file{"a", random(300_000)}, file{"b", strings.Repeat("y", 300_000)})
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	ref, _, err := s.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	objects := map[string][]byte{}
	for _, k := range keys(t, bucket) {
		objects[k], err = bucket.ReadAll(t.Context(), k)
		require.NoError(t, err)
	}
	require.Len(t, objects, 3, "a recipe, a pack and a lease")
	for key, object := range objects {
		if strings.Contains(key, "/leases/") {
			continue
		}
		for _, n := range []int{0, 1, 100, len(object) / 2, len(object) - 1} {
			require.NoError(t, bucket.WriteAll(t.Context(), key, object[:n], nil))
			_, err := readAll(t, s, ref)
			require.ErrorIs(t, err, staging.ErrCorrupt, "%s cut to %d bytes", key, n)
		}
		for i := 0; i < len(object); i += len(object)/100 + 1 {
			bad := bytes.Clone(object)
			bad[i] ^= 0x10
			require.NoError(t, bucket.WriteAll(t.Context(), key, bad, nil))
			got, err := readAll(t, s, ref)
			if err == nil {
				require.Equal(t, data, got, "%s: bit in byte %d", key, i)
			}
		}
		require.NoError(t, bucket.WriteAll(t.Context(), key, object, nil))
	}
	_, err = readAll(t, s, ref)
	require.NoError(t, err)

	foreign, _, err := s.PutContext(t.Context(), writes(tarOf(t, file{"a", random(300_001)})))
	require.NoError(t, err)
	require.NoError(t, bucket.Copy(t.Context(), ref.Key, foreign.Key, nil))
	_, err = readAll(t, s, ref)
	require.ErrorIs(t, err, staging.ErrCorrupt)

	limited := staging.New(bucket)
	limited.Limit = 200_000
	_, err = readAll(t, limited, foreign)
	require.ErrorIs(t, err, staging.ErrTooLarge)
}

func TestPutFile(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	name := filepath.Join(t.TempDir(), "executor")
	require.NoError(t, os.WriteFile(name, []byte(random(100_000)), 0o755))
	key, err := s.PutFile(t.Context(), name)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(key, staging.ExecutorPrefix), key)
	got, err := bucket.ReadAll(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, random(100_000), string(got))
	again, err := s.PutFile(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, key, again)
	_, err = s.PutFile(t.Context(), name+"x")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPutContextKnowsContexts(t *testing.T) {
	base := &tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Size: 3}
	digest := func(t *testing.T, h *tar.Header, content string) string {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, content)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		bucket := memblob.OpenBucket(nil)
		defer bucket.Close()
		ref, _, err := staging.New(bucket).PutContext(t.Context(), writes(buf.Bytes()))
		require.NoError(t, err)
		return ref.Digest
	}
	seen := map[string]string{digest(t, base, "abc"): "itself"}
	for name, change := range map[string]func(h *tar.Header) string{
		"content": func(*tar.Header) string { return "abd" },
		"size":    func(h *tar.Header) string { h.Size = 2; return "ab" },
		"name":    func(h *tar.Header) string { h.Name = "b"; return "abc" },
		"mode":    func(h *tar.Header) string { h.Mode = 0o600; return "abc" },
		"owner":   func(h *tar.Header) string { h.Uid = 1; return "abc" },
		"time":    func(h *tar.Header) string { h.ModTime = time.Unix(1, 0); return "abc" },
		"xattr": func(h *tar.Header) string {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1"}
			return "abc"
		},
		"type":   func(h *tar.Header) string { h.Typeflag, h.Size = tar.TypeFifo, 0; return "" },
		"link":   func(h *tar.Header) string { h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, "x"; return "" },
		"link 2": func(h *tar.Header) string { h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, "y"; return "" },
		"hard":   func(h *tar.Header) string { h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, "x"; return "" },
	} {
		h := *base
		content := change(&h)
		d := digest(t, &h, content)
		require.NotContains(t, seen, d, "%s as %s", name, seen[d])
		seen[d] = name
	}
}

func TestPutContextRefusesHostileEntries(t *testing.T) {
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "/etc/passwd"},
		{Typeflag: tar.TypeReg, Name: "../x"},
		{Typeflag: tar.TypeReg, Name: "a/../../x"},
		{Typeflag: tar.TypeDir, Name: ".."},
		{Typeflag: tar.TypeLink, Name: "a", Linkname: "../x"},
		{Typeflag: tar.TypeLink, Name: "a", Linkname: "/x"},
		{Typeflag: tar.TypeCont, Name: "a"},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		require.NoError(t, w.WriteHeader(h))
		require.NoError(t, w.Close())
		bucket := memblob.OpenBucket(nil)
		_, _, err := staging.New(bucket).PutContext(t.Context(), writes(buf.Bytes()))
		require.ErrorContains(t, err, fmt.Sprintf("%q", h.Name))
		_, _, err = staging.New(bucket).Put(t.Context(), staging.Tree{{Header: h}}, nil)
		require.ErrorContains(t, err, fmt.Sprintf("%q", h.Name))
		require.Empty(t, keys(t, bucket))
		require.NoError(t, bucket.Close())
	}
}
