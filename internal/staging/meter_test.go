package staging_test

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

func TestMeter(t *testing.T) {
	files := append(sources(1, 20, 10_000), file{"empty", ""}, file{"big", random(9 << 20)})
	var size int64
	for _, f := range files {
		size += int64(len(f.content))
	}
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	var reads atomic.Int64
	var m staging.Meter
	require.Zero(t, m.Reading())
	_, stats, err := staging.New(bucket).Put(t.Context(), treeOf(&reads, files...), &m)
	require.NoError(t, err)
	require.Equal(t, staging.Reading{Size: size, Read: size, Lacking: size, Done: size, Sent: stats.Sent}, m.Reading())

	t.Run("what is there already", func(t *testing.T) {
		var m staging.Meter
		_, _, err := staging.New(bucket).Put(t.Context(), treeOf(&reads, files...), &m)
		require.NoError(t, err)
		require.Equal(t, staging.Reading{Size: size, Read: size}, m.Reading())
	})
	t.Run("a stream of unknown size", func(t *testing.T) {
		var m staging.Meter
		_, stats, err := staging.New(bucket).Put(t.Context(), staging.Bundle(writes(tarOf(t, file{"a", random(300_000)}))), &m)
		require.NoError(t, err)
		require.Equal(t, staging.Reading{Read: 300_000, Lacking: 300_000, Done: 300_000, Sent: stats.Sent}, m.Reading())
	})
}
