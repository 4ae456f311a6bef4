package staging_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"

	"github.com/org/portainer/internal/staging"
)

// newKeeping returns a store that keeps what it is done with.
func newKeeping(b *blob.Bucket, ttl time.Duration) *staging.Store {
	s := staging.New(b)
	s.TTL = ttl
	return s
}

// below lists the keys with a prefix.
func (f *faulty) below(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(f.objects)), func(key string) bool { return !strings.HasPrefix(key, prefix) })
}

func TestExpiry(t *testing.T) { synctest.Test(t, testExpiry) }

func testExpiry(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	data := tarOf(t, file{"a", random(1 << 20)})
	s := newKeeping(bucket, time.Hour)
	expire := func(want int) {
		t.Helper()
		removed, err := s.Expire(t.Context())
		require.NoError(t, err)
		require.Len(t, removed, want)
	}
	ref, _, err := s.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	require.NoError(t, s.Delete(t.Context(), ref))
	<-time.After(59 * time.Minute)
	expire(0)
	again, stats, err := s.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	require.Equal(t, ref, again)
	require.Zero(t, stats.Sent, "it was kept")

	// Who relies on it keeps it, and its time begins anew.
	<-time.After(23 * time.Hour)
	expire(0)
	require.NoError(t, s.Delete(t.Context(), ref))
	<-time.After(59 * time.Minute)
	writes := len(f.writes)
	expire(0)
	require.Len(t, f.writes, writes, "nobody is disturbed for nothing")
	<-time.After(time.Minute)
	expire(1)
	require.Empty(t, f.objects)
	expire(0)
}

func TestLongestTTLHolds(t *testing.T) { synctest.Test(t, testLongestTTLHolds) }

func testLongestTTLHolds(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	data := tarOf(t, file{"a", random(1 << 20)})
	var stores []*staging.Store
	for _, ttl := range []time.Duration{time.Hour, 3 * time.Hour, 0} {
		stores = append(stores, newKeeping(bucket, ttl))
	}
	var ref staging.Ref
	for _, s := range stores {
		var err error
		ref, _, err = s.PutContext(t.Context(), writes(data))
		require.NoError(t, err)
	}
	objects, err := stores[0].List(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, objects[0].Leases)
	for _, s := range stores {
		require.NoError(t, s.Delete(t.Context(), ref))
	}
	objects, err = stores[0].List(t.Context())
	require.NoError(t, err)
	require.Equal(t, time.Now().Add(3*time.Hour), objects[0].Expires)
	<-time.After(2 * time.Hour)
	for _, s := range stores {
		_, err := s.Expire(t.Context())
		require.NoError(t, err)
	}
	got, err := readAll(t, stores[0], ref)
	require.NoError(t, err)
	require.Equal(t, data, got)
	<-time.After(time.Hour)
	_, err = stores[2].Expire(t.Context())
	require.NoError(t, err)
	require.Empty(t, f.objects)
}

// TestLeasesOfTheDeadExpire: a process that was killed gives nothing up.
func TestLeasesOfTheDeadExpire(t *testing.T) { synctest.Test(t, testLeasesOfTheDeadExpire) }

func testLeasesOfTheDeadExpire(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	data := tarOf(t, file{"a", random(1 << 20)})
	dead, alive, other := staging.New(bucket), staging.New(bucket), staging.New(bucket)
	_, _, err := dead.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	ref, _, err := alive.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	for range 30 {
		<-time.After(staging.RenewEvery)
		require.NoError(t, alive.Renew(t.Context(), ref))
		_, err := other.Expire(t.Context())
		require.NoError(t, err)
	}
	got, err := readAll(t, alive, ref)
	require.NoError(t, err, "someone relies on it")
	require.Equal(t, data, got)
	require.NoError(t, alive.Delete(t.Context(), ref))
	require.Empty(t, f.objects, "the lease of the dead one counts no more")
}

// TestLongUploadKeepsItsLease: who uploads for hours is not taken for dead.
func TestLongUploadKeepsItsLease(t *testing.T) { synctest.Test(t, testLongUploadKeepsItsLease) }

func testLongUploadKeepsItsLease(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s, other := staging.New(bucket), staging.New(bucket)
	data := tarOf(t, file{"a", random(24 << 20)})
	pass := 0
	ref, _, err := s.PutContext(t.Context(), func(_ context.Context, w io.Writer) error {
		if pass++; pass == 1 {
			_, err := w.Write(data)
			return err
		}
		if _, err := w.Write(data[:len(data)-1024]); err != nil {
			return err
		}
		synctest.Wait()
		if len(f.below(staging.PackPrefix)) == 0 {
			return errors.New("no pack was sent yet")
		}
		<-time.After(30 * time.Hour)
		mine, _, err := other.PutContext(t.Context(), writes(tarOf(t, file{"b", "b"})))
		if err != nil {
			return err
		}
		if err := other.Delete(t.Context(), mine); err != nil { // and all that nobody needs
			return err
		}
		_, err = w.Write(data[len(data)-1024:])
		return err
	})
	require.NoError(t, err)
	got, err := readAll(t, s, ref)
	require.NoError(t, err)
	require.Equal(t, data, got)
}

// TestFailedUploadIsResumed: what was sent of it need not be sent again, and goes in the
// end if it never is.
func TestFailedUploadIsResumed(t *testing.T) { synctest.Test(t, testFailedUploadIsResumed) }

func testFailedUploadIsResumed(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	data := tarOf(t, file{"a", random(36 << 20)})
	packs := 0
	f.onWrite = func(key string) error {
		if strings.HasPrefix(key, staging.PackPrefix) {
			if packs++; packs > 2 {
				return errDenied
			}
		}
		return nil
	}
	s := newKeeping(bucket, time.Hour)
	_, _, err := s.PutContext(t.Context(), writes(data))
	require.ErrorIs(t, err, errDenied)
	left := f.below(staging.PackPrefix)
	require.Len(t, left, 2)
	f.onWrite = nil

	// One that is short is not taken for whole.
	f.mu.Lock()
	f.objects[left[0]] = f.objects[left[0]][:1000]
	size := int64(len(f.objects[left[1]]))
	f.mu.Unlock()
	next := newKeeping(bucket, time.Hour)
	ref, stats, err := next.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	require.InDelta(t, int64(len(data))-size, stats.Sent, 1<<20)
	got, err := readAll(t, next, ref)
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.NoError(t, next.Delete(t.Context(), ref))
	<-time.After(time.Hour)
	_, err = next.Expire(t.Context())
	require.NoError(t, err)
	require.Empty(t, f.objects)

	f.onWrite = func(key string) error {
		if strings.HasPrefix(key, staging.ContextPrefix) {
			return errDenied
		}
		return nil
	}
	_, _, err = s.PutContext(t.Context(), writes(tarOf(t, file{"b", random(1000)})))
	require.ErrorIs(t, err, errDenied)
	f.onWrite = nil
	<-time.After(59 * time.Minute)
	_, err = s.Expire(t.Context())
	require.NoError(t, err)
	require.Len(t, f.below(staging.PackPrefix), 1)
	<-time.After(time.Minute)
	_, err = s.Expire(t.Context())
	require.NoError(t, err)
	require.Empty(t, f.objects)
}
