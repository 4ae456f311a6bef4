package staging_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/staging"
)

// TestLeaseOutlivesAnotherPutsFailure checks that a put which fails does not give up the
// lease of an earlier one of the same context, by the same Store or by one that died.
func TestLeaseOutlivesAnotherPutsFailure(t *testing.T) {
	for _, tt := range []struct {
		name string
		died bool // the process that staged the context, and another has taken over
	}{{"same process", false}, {"next process", true}} {
		t.Run(tt.name, func(t *testing.T) {
			f, bucket := newFaulty()
			defer bucket.Close()
			data := tarOf(t, file{"a", random(1 << 20)})
			s := staging.New(bucket)
			ref, _, err := s.PutContext(t.Context(), writes(data))
			require.NoError(t, err)
			if tt.died {
				earlier := s
				s = staging.New(bucket)
				s.ID = earlier.ID
				s.Hold(ref)
			}
			f.onLook = func(string) error { return errDenied }
			_, _, err = s.PutContext(t.Context(), writes(data))
			require.ErrorContains(t, err, errDenied.Error())
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, _, err = s.PutContext(ctx, writes(data))
			require.ErrorIs(t, err, context.Canceled)
			f.onLook = nil

			other := staging.New(bucket)
			_, _, err = other.PutContext(t.Context(), writes(data))
			require.NoError(t, err)
			require.NoError(t, other.Delete(t.Context(), ref))
			require.Equal(t, []string{ref.Key}, f.below(staging.ContextPrefix), "the first put relies on it")
			require.NoError(t, s.Delete(t.Context(), ref))
			require.Empty(t, f.below("portainer/"))

			// Now nobody holds it, and a put that fails leaves nothing.
			f.onLook = func(string) error { return errDenied }
			_, _, err = s.PutContext(t.Context(), writes(data))
			require.Error(t, err)
			require.Empty(t, f.below("portainer/"))
		})
	}
}

// TestLeaseOfOneWhoGaveUpWaiting checks that who stops waiting for a removal to end
// leaves no lease: it would be taken for an upload under way.
func TestLeaseOfOneWhoGaveUpWaiting(t *testing.T) { synctest.Test(t, testLeaseOfOneWhoGaveUpWaiting) }

func testLeaseOfOneWhoGaveUpWaiting(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	const mark = "portainer/removing/somebody"
	require.NoError(t, bucket.WriteAll(t.Context(), mark, nil, nil))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _, err := staging.New(bucket).PutContext(ctx, writes(tarOf(t, file{"a", random(1 << 10)})))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, []string{mark}, f.below("portainer/"))
}
