package portainer

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

func TestPutContextReadsFilesOnce(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	store := staging.New(bucket)
	// This module's own sources are older than what the cache distrusts.
	b := DirBundler{CacheDir: t.TempDir()}
	req := Request{Dir: ".", Dockerfile: filepath.Join(t.TempDir(), "D"), Source: []byte("FROM scratch\nCOPY go.mod /\n")}
	ignore := "*\n!go.sum\n!go.mod\n!internal/staging/staging.go\n"
	require.NoError(t, os.WriteFile(req.Dockerfile+".dockerignore", []byte(ignore), 0o644))
	first, stats, err := new(stagingDesk).putContext(t.Context(), store, b, req, nil)
	require.NoError(t, err)
	require.True(t, stats.Uploaded)
	require.Greater(t, stats.TarSize, int64(50_000))

	t.Run("the same as a bundle", func(t *testing.T) {
		bundle := BundlerFunc(DirBundler{}.Bundle)
		again, stats, err := new(stagingDesk).putContext(t.Context(), store, bundle, req, nil)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.False(t, stats.Uploaded)
	})
	t.Run("unchanged", func(t *testing.T) {
		opt, err := b.prepare(t.Context(), req)
		require.NoError(t, err)
		tree, err := b.scan(t.Context(), opt)
		require.NoError(t, err)
		for _, e := range treeOf(tree) {
			require.Equal(t, e.Header.Size > 0, e.Chunks != nil, e.Header.Name)
		}
		again, stats, err := new(stagingDesk).putContext(t.Context(), store, b, req, nil)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.Zero(t, stats.Sent)
	})
	t.Run("missing source", func(t *testing.T) {
		req.Source = []byte("FROM scratch\nCOPY nothing /\n")
		_, _, err := new(stagingDesk).putContext(t.Context(), store, b, req, nil)
		var bundling *bundleError
		require.ErrorAs(t, err, &bundling)
		require.ErrorIs(t, err, ErrInvalid)
	})
	t.Run("too large", func(t *testing.T) {
		small := DirBundler{Limit: 100}
		req.Source = []byte("FROM scratch\nCOPY go.mod /\n")
		_, _, err := new(stagingDesk).putContext(t.Context(), store, small, req, nil)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "go.sum")
		require.ErrorIs(t, small.Bundle(t.Context(), req, io.Discard), ErrInvalid)
	})
}

func TestPutContextFromOutside(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "ctx"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "lib"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lib", "f"), []byte("x"), 0o644))
	req := Request{Dir: filepath.Join(dir, "ctx"), Dockerfile: "D", Source: []byte("FROM scratch\nADD ../lib /lib\n")}
	err := DirBundler{}.Bundle(t.Context(), req, io.Discard)
	require.ErrorContains(t, err, `D:2: "../lib" lies outside of the build context`)
	require.NoError(t, DirBundler{AllowOutside: true}.Bundle(t.Context(), req, io.Discard))
}
