package staging_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

func openCached(s *staging.Store, t *testing.T, ref staging.Ref, c *staging.Cache) ([]byte, error) {
	r, err := s.OpenCached(t.Context(), ref, c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// packsIn lists the packs of a cache.
func packsIn(t *testing.T, c *staging.Cache) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(c.Dir, "*"))
	require.NoError(t, err)
	return names
}

func TestOpenCached(t *testing.T) {
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	files := sources(3, 30, 20_000)
	want := tarOf(t, files...)
	ref, _, err := s.Put(t.Context(), treeOf(&reads, files...), nil)
	require.NoError(t, err)
	c := &staging.Cache{Dir: filepath.Join(t.TempDir(), "cache")}

	const n = 8
	type result struct {
		data []byte
		err  error
	}
	results := make(chan result, n)
	for range n {
		go func() {
			data, err := openCached(s, t, ref, c)
			results <- result{data, err}
		}()
	}
	for range n {
		r := <-results
		require.NoError(t, r.err)
		require.Equal(t, want, r.data)
	}
	packs := packsIn(t, c)
	require.Len(t, packs, 1, "one pack, and no lock or half written file")

	// It is there without the bucket.
	key := staging.PackPrefix + filepath.Base(packs[0])
	object, err := bucket.ReadAll(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, bucket.Delete(t.Context(), key))
	got, err := openCached(s, t, ref, c)
	require.NoError(t, err)
	require.Equal(t, want, got)
	_, err = readAll(t, s, ref)
	require.ErrorIs(t, err, staging.ErrGone)
	require.NoError(t, bucket.WriteAll(t.Context(), key, object, nil))

	// A spoilt cache is mended, a spoilt bucket is not.
	for i := 0; i < len(object); i += len(object)/20 + 1 {
		bad := append([]byte(nil), object...)
		bad[i] ^= 4
		require.NoError(t, os.WriteFile(packs[0], bad, 0o600))
		got, err = openCached(s, t, ref, c)
		require.NoError(t, err)
		require.Equal(t, want, got, "bit in byte %d", i)
	}
	require.NoError(t, os.WriteFile(packs[0], object[:100], 0o600))
	got, err = openCached(s, t, ref, c)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NoError(t, os.RemoveAll(c.Dir))
	bad := append([]byte(nil), object...)
	bad[len(bad)/2] ^= 4
	require.NoError(t, bucket.WriteAll(t.Context(), key, bad, nil))
	_, err = openCached(s, t, ref, c)
	require.ErrorIs(t, err, staging.ErrCorrupt)
	require.Empty(t, packsIn(t, c))
	require.NoError(t, bucket.WriteAll(t.Context(), key, object, nil))

	// A cache that cannot be is none.
	require.NoError(t, os.WriteFile(c.Dir+"-file", nil, 0o600))
	got, err = openCached(s, t, ref, &staging.Cache{Dir: filepath.Join(c.Dir+"-file", "x")})
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestCacheLimit(t *testing.T) {
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	c := &staging.Cache{Dir: t.TempDir(), Limit: 250_000}
	var first string
	for i := range 5 {
		ref, _, err := s.Put(t.Context(), treeOf(&reads, file{"x", random(100_000)[i:] + strings.Repeat("y", i)}), nil)
		require.NoError(t, err)
		_, err = openCached(s, t, ref, c)
		require.NoError(t, err)
		if i == 0 {
			first = packsIn(t, c)[0]
		}
	}
	require.Len(t, packsIn(t, c), 2)
	require.NoFileExists(t, first)
}
