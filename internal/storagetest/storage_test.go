package storagetest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/storagetest"
)

// patience is how long a storage that does not work may take to say so.
const patience = 2 * time.Minute

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// archive is a build context with a Dockerfile and so many random bytes.
func archive(seed byte, size int) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	const files = 8
	for i := range files + 1 {
		name, content := "Dockerfile", []byte("FROM scratch\nCOPY . /\n")
		if i > 0 {
			name, content = fmt.Sprintf("data/%d", i), random(16*seed+byte(i), size/files)
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

func writes(content []byte) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := w.Write(content)
		return err
	}
}

// bundle returns an archive as a function that writes it and as it is.
func bundle(t testing.TB, seed byte, size int) (func(context.Context, io.Writer) error, []byte) {
	t.Helper()
	content, err := archive(seed, size)
	require.NoError(t, err)
	return writes(content), content
}

func keys(t testing.TB, b *blob.Bucket) []string {
	t.Helper()
	keys := []string{}
	for it := b.List(nil); ; {
		o, err := it.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return keys
		}
		require.NoError(t, err)
		keys = append(keys, o.Key)
	}
}

// requireContext reads a staged context and compares it.
func requireContext(t testing.TB, s *staging.Store, ref staging.Ref, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := s.Open(ctx, ref)
	require.NoError(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "the context came back otherwise")
}

func newRelay(t testing.TB) *storagetest.Relay {
	r, err := storagetest.NewRelay()
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r
}

func TestStorage(t *testing.T) {
	relays := map[string]*storagetest.Relay{}
	for name, k := range kinds {
		relays[name] = newRelay(t)
		k.setenv(t, relays[name], true)
	}
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time goes into waiting for what is dead
			s := kinds[name].start(t, relays[name])
			t.Run("put, open and delete", func(t *testing.T) { testRoundTrip(t, s) })
			t.Run("cancelled upload", func(t *testing.T) { testCancelled(t, s) })
			if s.missing != nil {
				t.Run("missing bucket", func(t *testing.T) { requireRefused(t, s, s.missing(t), gcerrors.NotFound) })
			}
			if s.breakReads != nil {
				t.Run("broken reads", func(t *testing.T) { testBrokenReads(t, s) })
			}
			if s.dieAfter != nil {
				t.Run("server killed", func(t *testing.T) { testKilled(t, s) })
			}
		})
	}
}

func TestWrongCredentials(t *testing.T) {
	for _, name := range []string{"s3", "azblob", "hdfs"} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t)
			k := kinds[name]
			k.setenv(t, r, true)
			s := k.start(t, r)
			right := s.bucket(t)
			k.setenv(t, r, false)
			requireRefused(t, s, s.wrong(t), s.wrongCode)
			require.Empty(t, keys(t, right))
		})
	}
}

// requireRefused checks that a bucket cannot be written to, and says so soon.
func requireRefused(t testing.TB, s *server, b *blob.Bucket, code gcerrors.ErrorCode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := b.Upload(ctx, "a", strings.NewReader("x"), &blob.WriterOptions{ContentType: "text/plain"})
	require.Error(t, err)
	require.Equal(t, code, gcerrors.Code(err), "%v", err)
	write, _ := bundle(t, 1, 100_000)
	_, _, err = staging.New(b).PutContext(ctx, write)
	require.Error(t, err)
	require.Equal(t, code, gcerrors.Code(err), "%v", err)
	require.NoError(t, ctx.Err(), "no need to wait for that: %v", err)
}

func testRoundTrip(t *testing.T, k *server) {
	b := k.bucket(t)
	require.Empty(t, keys(t, b))
	write, content := bundle(t, 1, 6<<20)
	s := staging.New(b)
	ref, stats, err := s.PutContext(t.Context(), write)
	require.NoError(t, err)
	require.True(t, stats.Uploaded)
	require.Equal(t, int64(len(content)), stats.TarSize)
	require.Greater(t, stats.Sent, int64(6<<20))

	other := staging.New(b)
	again, stats, err := other.PutContext(t.Context(), write)
	require.NoError(t, err)
	require.Equal(t, ref.Digest, again.Digest)
	require.False(t, stats.Uploaded)
	require.Zero(t, stats.Sent, "what is there is not sent")

	requireContext(t, other, again, content)
	require.NoError(t, s.Delete(t.Context(), ref))
	requireContext(t, other, again, content) // someone else's still
	require.NoError(t, other.Delete(t.Context(), again))
	require.Empty(t, keys(t, b))
	_, err = other.Open(t.Context(), again)
	require.ErrorIs(t, err, staging.ErrGone)

	name := filepath.Join(t.TempDir(), "executor")
	program := random(99, 1<<20)
	require.NoError(t, os.WriteFile(name, program, 0o700))
	key, err := s.PutFile(t.Context(), name)
	require.NoError(t, err)
	got, err := b.ReadAll(t.Context(), key)
	require.NoError(t, err)
	require.True(t, bytes.Equal(program, got))
	empty(t, b)
}

// empty empties a bucket for the next test.
func empty(t testing.TB, b *blob.Bucket) {
	t.Helper()
	for _, key := range keys(t, b) {
		require.NoError(t, b.Delete(t.Context(), key))
	}
}

func testCancelled(t *testing.T, k *server) {
	b := k.bucket(t)
	_, content := bundle(t, 2, 6<<20)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pass := 0
	_, _, err := staging.New(b).PutContext(ctx, func(_ context.Context, w io.Writer) error {
		if pass++; pass == 1 {
			_, err := w.Write(content)
			return err
		}
		if _, err := w.Write(content[:len(content)/2]); err != nil {
			return err
		}
		cancel()
		_, err := w.Write(content[len(content)/2:])
		return err
	})
	require.ErrorIs(t, err, context.Canceled)
	requireNoContext(t, b)
	empty(t, b)
}

// requireNoContext checks that nothing in a bucket may be taken for a context.
func requireNoContext(t testing.TB, b *blob.Bucket) {
	t.Helper()
	objects, err := staging.New(b).List(t.Context())
	require.NoError(t, err)
	for _, o := range objects {
		require.True(t, o.Pending, "%s is staged", o.Key)
	}
}

func testBrokenReads(t *testing.T, k *server) {
	b := k.bucket(t)
	write, content := bundle(t, 3, 6<<20)
	s := staging.New(b)
	ref, _, err := s.PutContext(t.Context(), write)
	require.NoError(t, err)
	k.breakReads(1<<20, 4)
	requireContext(t, s, ref, content)
	k.breakReads(0, 0)
	empty(t, b)
}

func testKilled(t *testing.T, k *server) {
	b := k.bucket(t)
	// As one object.
	content := random(97, 8<<20)
	name := filepath.Join(t.TempDir(), "executor")
	require.NoError(t, os.WriteFile(name, content, 0o700))
	key := ""
	put := func(ctx context.Context) (err error) {
		key, err = staging.New(b).PutFile(ctx, name)
		return err
	}
	k.requireGivesUp(t, b, put)
	for _, key := range keys(t, b) {
		require.False(t, strings.HasPrefix(key, staging.ExecutorPrefix), "half of it is there: %s", key)
	}
	require.NoError(t, put(t.Context()))
	got, err := b.ReadAll(t.Context(), key)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	empty(t, b)

	write, whole := bundle(t, 4, 8<<20)
	k.requireGivesUp(t, b, func(ctx context.Context) error {
		_, _, err := staging.New(b).PutContext(ctx, write)
		return err
	})
	s := staging.New(b)
	ref, stats, err := s.PutContext(t.Context(), write)
	require.NoError(t, err)
	require.True(t, stats.Uploaded, "what was sent before was taken for the context")
	requireContext(t, s, ref, whole)
	empty(t, b)
}

// requireGivesUp kills the server while upload is at work, which must fail in bounded
// time, and starts it again.
func (s *server) requireGivesUp(t *testing.T, b *blob.Bucket, upload func(context.Context) error) {
	t.Helper()
	limit := patience
	if s.patient {
		limit = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s.dieAfter(2 << 20)
	began := time.Now()
	require.Error(t, upload(ctx))
	took := time.Since(began)
	t.Logf("it took %.1f s to give up", took.Seconds())
	require.Less(t, took, limit+15*time.Second)
	if !s.patient {
		require.NoError(t, ctx.Err(), "it never gave up")
	}
	s.revive(t)
	// Until the client has seen that its connections are dead.
	require.Eventually(t, func() bool {
		_, err := b.IsAccessible(t.Context())
		return err == nil
	}, startTime, 10*time.Millisecond)
}
