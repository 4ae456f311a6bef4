package portainer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

// oneFile returns a bundle of one file with this content.
func oneFile(content string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		archive := tar.NewWriter(w)
		header := &tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Size: int64(len(content)), Format: tar.FormatPAX}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.WriteString(archive, content); err != nil {
			return err
		}
		return archive.Close()
	}
}

func newTestStager(t *testing.T) (*stager, *blob.Bucket) {
	bucket := memblob.OpenBucket(nil)
	t.Cleanup(func() { require.NoError(t, bucket.Close()) })
	return newStager(staging.New(bucket)), bucket
}

func staged(t *testing.T, bucket *blob.Bucket, ref staging.Ref) bool {
	t.Helper()
	there, err := bucket.Exists(context.WithoutCancel(t.Context()), ref.Key)
	require.NoError(t, err)
	return there
}

// TestStagerShares checks that equal contexts are one object, which goes with its
// last build.
func TestStagerShares(t *testing.T) {
	s, bucket := newTestStager(t)
	first, stats, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	require.True(t, stats.Uploaded)
	second, stats, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	require.False(t, stats.Uploaded)
	require.Equal(t, first, second)
	other, _, err := s.put(t.Context(), bundled(t.Context(), oneFile("y")))
	require.NoError(t, err)
	require.NotEqual(t, first.Key, other.Key)

	s.release(first)
	s.release(other)
	require.NoError(t, s.sweep(t.Context()))
	require.True(t, staged(t, bucket, first))
	require.False(t, staged(t, bucket, other))

	s.release(second)
	require.True(t, staged(t, bucket, first), "release does no I/O")
	require.NoError(t, s.sweep(t.Context()))
	require.False(t, staged(t, bucket, first))
	require.NoError(t, s.sweep(t.Context()), "nothing to do")
}

// TestStagerPutDuringRelease checks that a put that relies on an object keeps it
// from being removed, and that the object goes after a put that failed.
func TestStagerPutDuringRelease(t *testing.T) {
	for _, fails := range []bool{false, true} {
		s, bucket := newTestStager(t)
		first, _, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
		require.NoError(t, err)

		under, proceed := make(chan struct{}), make(chan struct{})
		var once sync.Once
		type answer struct {
			ref staging.Ref
			err error
		}
		answers := make(chan answer, 1)
		broken := errors.New("file vanished")
		go func() {
			ref, _, err := s.put(context.WithoutCancel(t.Context()), bundled(t.Context(), func(ctx context.Context, w io.Writer) error {
				once.Do(func() { close(under); <-proceed })
				if fails {
					return broken
				}
				return oneFile("x")(ctx, w)
			}))
			answers <- answer{ref, err}
		}()
		<-under
		s.release(first)
		require.NoError(t, s.sweep(t.Context()))
		require.True(t, staged(t, bucket, first), "swept while a put is under way")
		close(proceed)
		got := <-answers
		if fails {
			require.ErrorIs(t, got.err, broken)
		} else {
			require.NoError(t, got.err)
			require.Equal(t, first, got.ref)
		}
		require.NoError(t, s.sweep(t.Context()))
		require.Equal(t, !fails, staged(t, bucket, first))
	}
}

// TestStagerConcurrently checks that whoever has put a context finds it until it
// lets go, whatever others do meanwhile, and that nothing is left when all have.
func TestStagerConcurrently(t *testing.T) {
	s, bucket := newTestStager(t)
	contents := []string{"x", "y", "z"}
	refs := make(chan staging.Ref, 8*40)
	failures := make(chan error, 8)
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 4))
			failures <- func() error {
				for range 40 {
					ref, _, err := s.put(t.Context(), bundled(t.Context(), oneFile(contents[random.IntN(len(contents))])))
					if err != nil {
						return err
					}
					refs <- ref
					there, err := bucket.Exists(t.Context(), ref.Key)
					if err == nil && !there {
						err = errors.New("a context that is in use was removed")
					}
					s.release(ref)
					if err := errors.Join(err, s.sweep(t.Context())); err != nil {
						return err
					}
				}
				return nil
			}()
		})
	}
	workers.Wait()
	close(failures)
	for err := range failures {
		require.NoError(t, err)
	}
	close(refs)
	require.NoError(t, s.sweep(t.Context()))
	for ref := range refs {
		require.False(t, staged(t, bucket, ref))
	}
}

// TestStagerAdopts checks that uses counted in an earlier life are counted again.
func TestStagerAdopts(t *testing.T) {
	earlier, bucket := newTestStager(t)
	ref, _, err := earlier.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)

	s := newStager(earlier.store)
	s.adopt(ref)
	s.adopt(ref)
	s.release(ref)
	require.NoError(t, s.sweep(t.Context()))
	require.True(t, staged(t, bucket, ref))
	s.release(ref)
	require.NoError(t, s.sweep(t.Context()))
	require.False(t, staged(t, bucket, ref))
}

// TestStagerSweepFails checks that what could not be removed is tried again.
func TestStagerSweepFails(t *testing.T) {
	s, bucket := newTestStager(t)
	ref, _, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	s.release(ref)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, s.sweep(ctx))
	require.True(t, staged(t, bucket, ref))
	require.NoError(t, s.sweep(t.Context()))
	require.False(t, staged(t, bucket, ref))
}

// bundled stages what bundle writes.
func bundled(ctx context.Context, bundle func(context.Context, io.Writer) error) func(*staging.Store) (staging.Ref, staging.PutStats, error) {
	return func(store *staging.Store) (staging.Ref, staging.PutStats, error) {
		return store.PutContext(ctx, bundle)
	}
}

// TestStagerKeeps checks that a context outlives its last build if it should, and that
// the leases of living builds are renewed.
func TestStagerKeeps(t *testing.T) {
	s, bucket := newTestStager(t)
	s.store.TTL = time.Hour
	ref, _, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	lease := "portainer/leases/" + strings.TrimPrefix(ref.Digest, "sha256:") + "/" + s.store.ID
	before, err := bucket.Attributes(t.Context(), lease)
	require.NoError(t, err)
	require.NoError(t, s.renew(t.Context()))
	after, err := bucket.Attributes(t.Context(), lease)
	require.NoError(t, err)
	require.True(t, after.ModTime.After(before.ModTime))

	s.release(ref)
	require.NoError(t, s.sweep(t.Context()))
	require.NoError(t, s.renew(t.Context()))
	require.True(t, staged(t, bucket, ref))
	there, err := bucket.Exists(t.Context(), lease)
	require.NoError(t, err)
	require.False(t, there)
	_, stats, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	require.False(t, stats.Uploaded)
}

// TestStagerRenewsNothingThatGoes checks that no lease is written while contexts are
// removed: it might be one that was just given up.
func TestStagerRenewsNothingThatGoes(t *testing.T) { synctest.Test(t, testStagerRenewsNothingThatGoes) }

func testStagerRenewsNothingThatGoes(t *testing.T) {
	s, bucket := newTestStager(t)
	ref, _, err := s.put(t.Context(), bundled(t.Context(), oneFile("x")))
	require.NoError(t, err)
	lease := "portainer/leases/" + strings.TrimPrefix(ref.Digest, "sha256:") + "/" + s.store.ID
	sweep := make(chan struct{})
	s.sweeping = sweep
	require.NoError(t, s.store.Delete(t.Context(), ref)) // what the sweep does
	renewed := make(chan error, 1)
	go func() { renewed <- s.renew(t.Context()) }()
	synctest.Wait()
	gone := func() {
		t.Helper()
		there, err := bucket.Exists(t.Context(), lease)
		require.NoError(t, err)
		require.False(t, there)
	}
	gone()
	s.mu.Lock()
	delete(s.uses, ref.Key)
	s.sweeping = nil
	s.mu.Unlock()
	close(sweep)
	require.NoError(t, <-renewed)
	gone()
	require.Zero(t, s.puts)
}

// TestStagerLetsGoOfWhatNobodyWaitedFor checks that a staging which succeeds although
// all who wanted it have left is not forgotten.
func TestStagerLetsGoOfWhatNobodyWaitedFor(t *testing.T) {
	synctest.Test(t, testStagerLetsGoOfWhatNobodyWaitedFor)
}

func testStagerLetsGoOfWhatNobodyWaitedFor(t *testing.T) {
	s, bucket := newTestStager(t)
	var desk stagingDesk
	ctx, cancel := context.WithCancel(t.Context())
	proceed := make(chan struct{})
	done := make(chan struct{})
	var ref staging.Ref
	var err error
	go func() {
		defer close(done)
		ref, _, err = s.put(ctx, func(store *staging.Store) (staging.Ref, staging.PutStats, error) {
			return desk.do(ctx, "x", func(ctx context.Context) (staging.Ref, staging.PutStats, error) {
				<-proceed // it is too far to be stopped
				return store.PutContext(context.WithoutCancel(ctx), oneFile("x"))
			})
		})
	}()
	synctest.Wait()
	cancel()
	synctest.Wait()
	close(proceed)
	<-done
	require.NoError(t, err)
	require.True(t, staged(t, bucket, ref))
	s.release(ref)
	require.NoError(t, s.sweep(t.Context()))
	require.False(t, staged(t, bucket, ref))
}
