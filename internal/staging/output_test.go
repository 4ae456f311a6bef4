package staging_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

const outputs = staging.OutputPrefix + "b1/"

func TestOutput(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

	o, err := s.PutOutput(t.Context(), outputs+"1-0", iotest.HalfReader(bytes.NewReader(data)))
	require.NoError(t, err)
	require.Equal(t, int64(len(data)), o.Size)
	var got bytes.Buffer
	require.NoError(t, s.GetOutput(t.Context(), o, &got))
	require.Equal(t, data, got.Bytes())

	empty, err := s.PutOutput(t.Context(), outputs+"1-1", strings.NewReader(""))
	require.NoError(t, err)
	require.NoError(t, s.GetOutput(t.Context(), empty, io.Discard))

	other := o
	other.Digest = empty.Digest
	require.ErrorIs(t, s.GetOutput(t.Context(), other, io.Discard), staging.ErrCorrupt)
	data[7]++
	require.NoError(t, bucket.WriteAll(t.Context(), o.Key, data, nil))
	require.ErrorIs(t, s.GetOutput(t.Context(), o, io.Discard), staging.ErrCorrupt)
	full := errors.New("full")
	require.ErrorIs(t, s.GetOutput(t.Context(), o, failing{full}), full)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestOutputFails checks that half an output is none.
func TestOutputFails(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	broken := errors.New("broken")
	_, err := s.PutOutput(t.Context(), outputs+"1-0", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	_, err = s.PutOutput(ctx, outputs+"1-0", strings.NewReader("whole"))
	require.ErrorIs(t, err, broken)
	_, err = bucket.List(nil).Next(t.Context())
	require.ErrorIs(t, err, io.EOF)
	require.ErrorIs(t, s.GetOutput(t.Context(), staging.Output{Key: outputs + "1-0", Size: 4}, io.Discard), staging.ErrGone)
}

// TestStalledOutputIsTakenUpAgain: a connection that brings nothing is given up.
func TestStalledOutputIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, bucket := newFaulty()
		defer bucket.Close()
		s := staging.New(bucket)
		o, err := s.PutOutput(t.Context(), outputs+"1-0", strings.NewReader("whole"))
		require.NoError(t, err)
		stalls := 2
		f.onRead = func(string, int64) int64 {
			if stalls--; stalls >= 0 {
				return stall
			}
			return -1
		}
		var got bytes.Buffer
		require.NoError(t, s.GetOutput(t.Context(), o, &got))
		require.Equal(t, "whole", got.String())
		require.Negative(t, stalls)
	})
}

func TestDeleteOutputs(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	put := func(key string) staging.Output {
		o, err := s.PutOutput(t.Context(), key, strings.NewReader(key))
		require.NoError(t, err)
		return o
	}
	put(outputs + "1-0")
	keep := put(outputs + "2-0")
	put(staging.OutputPrefix + "b2/1-0")
	require.NoError(t, s.DeleteOutputs(t.Context(), outputs, keep))
	var keys []string
	list, err := s.List(t.Context())
	require.NoError(t, err)
	for _, o := range list {
		keys = append(keys, o.Key)
	}
	require.Equal(t, []string{keep.Key, staging.OutputPrefix + "b2/1-0"}, keys)
	require.Error(t, s.DeleteOutputs(t.Context(), staging.OutputPrefix))
	require.Error(t, s.DeleteOutputs(t.Context(), staging.ContextPrefix+"x"))

	removed, err := s.GC(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Empty(t, removed)
	removed, err = s.GC(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, removed, 2)
}
