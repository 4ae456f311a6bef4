package staging_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/staging"
)

// A faulty is a bucket that fails as the test says.
type faulty struct {
	mu      sync.Mutex
	objects map[string][]byte
	times   map[string]time.Time
	writes  []string

	onLook  func(key string) error                           // when its attributes are asked for
	onRead  func(key string, offset int64) (failAfter int64) // -1: not at all; or stall
	onData  func(key string) error                           // when a part of it comes
	onWrite func(key string) error                           // when the object is complete
}

func newFaulty() (*faulty, *blob.Bucket) {
	f := &faulty{objects: map[string][]byte{}, times: map[string]time.Time{}}
	return f, blob.NewBucket(f)
}

var (
	errMissing = errors.New("no such object")
	errBroken  = errors.New("connection reset")
	errDenied  = errors.New("denied")
)

func (f *faulty) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, errMissing):
		return gcerrors.NotFound
	case errors.Is(err, errDenied):
		return gcerrors.PermissionDenied
	}
	return gcerrors.Unknown
}
func (f *faulty) As(any) bool             { return false }
func (f *faulty) ErrorAs(error, any) bool { return false }
func (f *faulty) Close() error            { return nil }
func (f *faulty) Copy(context.Context, string, string, *driver.CopyOptions) error {
	return errDenied
}
func (f *faulty) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errDenied
}

func (f *faulty) Attributes(_ context.Context, key string) (*driver.Attributes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onLook != nil {
		if err := f.onLook(key); err != nil {
			return nil, err
		}
	}
	data, ok := f.objects[key]
	if !ok {
		return nil, errMissing
	}
	return &driver.Attributes{Size: int64(len(data)), ModTime: f.times[key]}, nil
}

func (f *faulty) ListPaged(_ context.Context, opts *driver.ListOptions) (*driver.ListPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := &driver.ListPage{}
	for key, data := range f.objects {
		if strings.HasPrefix(key, opts.Prefix) {
			page.Objects = append(page.Objects, &driver.ListObject{Key: key, Size: int64(len(data)), ModTime: f.times[key]})
		}
	}
	return page, nil
}

func (f *faulty) Delete(_ context.Context, key string, _ *driver.DeleteOptions) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.objects[key]; !ok {
		return errMissing
	}
	delete(f.objects, key)
	return nil
}

type faultyReader struct {
	io.Reader
	attrs driver.ReaderAttributes
}

func (r *faultyReader) Close() error                         { return nil }
func (r *faultyReader) Attributes() *driver.ReaderAttributes { return &r.attrs }
func (r *faultyReader) As(any) bool                          { return false }

type breaking struct{ io.Reader }

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errBroken
	}
	return n, err
}

// stall is what onRead returns for a connection that brings nothing.
const stall = -2

// A stalledReader waits for its context to end.
type stalledReader struct{ ctx context.Context }

func (s stalledReader) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (f *faulty) NewRangeReader(ctx context.Context, key string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.objects[key]
	if !ok {
		return nil, errMissing
	}
	piece := data[min(offset, int64(len(data))):]
	if length >= 0 {
		piece = piece[:min(length, int64(len(piece)))]
	}
	var r io.Reader = bytes.NewReader(piece)
	if f.onRead != nil {
		if n := f.onRead(key, offset); n == 0 {
			return nil, errBroken
		} else if n > 0 && n < int64(len(piece)) {
			r = breaking{bytes.NewReader(piece[:n])}
		} else if n == stall {
			r = stalledReader{ctx}
		}
	}
	return &faultyReader{r, driver.ReaderAttributes{Size: int64(len(data)), ModTime: f.times[key]}}, nil
}

type faultyWriter struct {
	bytes.Buffer
	ctx context.Context
	f   *faulty
	key string
}

func (w *faultyWriter) Write(b []byte) (int, error) {
	if w.f.onData != nil {
		if err := w.f.onData(w.key); err != nil {
			return 0, err
		}
	}
	return w.Buffer.Write(b)
}

// Close keeps what was written, as that of most drivers does, unless the context is done.
func (w *faultyWriter) Close() error {
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.f.onWrite != nil {
		if err := w.f.onWrite(w.key); err != nil {
			return err
		}
	}
	w.f.objects[w.key] = w.Bytes()
	w.f.times[w.key] = time.Now()
	w.f.writes = append(w.f.writes, w.key)
	return nil
}

func (f *faulty) NewTypedWriter(ctx context.Context, key, _ string, _ *driver.WriterOptions) (driver.Writer, error) {
	return &faultyWriter{ctx: ctx, f: f, key: key}, nil
}

func TestOpenGoesOnWhereItBroke(t *testing.T) { synctest.Test(t, testOpenGoesOnWhereItBroke) }

func testOpenGoesOnWhereItBroke(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s := staging.New(bucket)
	data := tarOf(t, file{"a", random(3 << 20)}, file{"b", strings.Repeat("b", 100)})
	ref, _, err := s.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	var breaks atomic.Int64
	f.onRead = func(_ string, offset int64) int64 {
		if breaks.Add(1)%4 == 0 {
			return 0 // not even opened
		}
		return 300_000
	}
	got, err := readAll(t, s, ref)
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.Greater(t, breaks.Load(), int64(10))

	// A bucket that is gone for good is an error, in bounded time.
	f.onRead = func(key string, _ int64) int64 {
		if strings.HasPrefix(key, staging.PackPrefix) {
			return 0
		}
		return -1
	}
	_, err = readAll(t, s, ref)
	require.ErrorIs(t, err, errBroken)

	// Who gives up need not wait for it.
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	f.onRead = func(key string, _ int64) int64 {
		if strings.HasPrefix(key, staging.PackPrefix) {
			cancel(why)
			return 0
		}
		return -1
	}
	r, err := s.Open(ctx, ref)
	require.NoError(t, err)
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, why)
	require.NoError(t, r.Close())
}

func TestPutRetriesWhatFails(t *testing.T) { synctest.Test(t, testPutRetriesWhatFails) }

func testPutRetriesWhatFails(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s := staging.New(bucket)
	data := tarOf(t, file{"a", random(1 << 20)})
	failures := 2
	f.onWrite = func(key string) error {
		if strings.HasPrefix(key, staging.PackPrefix) && failures > 0 {
			failures--
			return errBroken
		}
		return nil
	}
	var m staging.Meter
	ref, stats, err := s.Put(t.Context(), staging.Bundle(writes(data)), &m)
	require.NoError(t, err)
	require.Zero(t, failures)
	shown := m.Reading()
	require.Equal(t, shown.Lacking, shown.Done, "what was sent in vain does not count as done")
	require.Equal(t, stats.Sent+2<<20, shown.Sent)
	require.Equal(t, ref.Key, f.writes[len(f.writes)-1], "the recipe is the last thing that is written")
	require.NoError(t, s.Delete(t.Context(), ref))
	require.Empty(t, f.objects)

	// Wrong credentials are not tried again, and leave nothing behind.
	tried := 0
	f.onWrite = func(key string) error {
		if strings.HasPrefix(key, staging.PackPrefix) {
			tried++
			return errDenied
		}
		return nil
	}
	_, _, err = s.PutContext(t.Context(), writes(data))
	require.ErrorIs(t, err, errDenied)
	require.Equal(t, 1, tried)
	require.Empty(t, f.objects)

	// Neither does a recipe that cannot be written.
	f.onWrite = func(key string) error {
		if strings.HasPrefix(key, staging.ContextPrefix) {
			return errDenied
		}
		return nil
	}
	_, _, err = s.PutContext(t.Context(), writes(data))
	require.ErrorIs(t, err, errDenied)
	require.Empty(t, f.objects)
}

// TestFailedWriteLeavesNothing: a driver's writer does not know that it did not get
// everything.
func TestFailedWriteLeavesNothing(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s := staging.New(bucket)
	name := filepath.Join(t.TempDir(), "executor")
	content := []byte(random(3 << 20))
	require.NoError(t, os.WriteFile(name, content, 0o600))
	parts := 0
	f.onData = func(string) error {
		if parts++; parts == 3 {
			return errDenied
		}
		return nil
	}
	_, err := s.PutFile(t.Context(), name)
	require.ErrorIs(t, err, errDenied)
	require.Equal(t, gcerrors.PermissionDenied, gcerrors.Code(err))
	require.Empty(t, f.objects)

	f.onData = func(string) error { return os.WriteFile(name, content[:1<<20], 0o600) }
	_, err = s.PutFile(t.Context(), name)
	require.ErrorContains(t, err, "changed while it was read")
	require.Empty(t, f.objects)

	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	f.onData = func(string) error { cancel(why); return nil }
	_, err = s.PutFile(ctx, name)
	require.ErrorIs(t, err, why)
	require.Empty(t, f.objects)

	f.onData = nil
	key, err := s.PutFile(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, content[:1<<20], f.objects[key])
}

func TestPutWaitsForARemover(t *testing.T) { synctest.Test(t, testPutWaitsForARemover) }

func testPutWaitsForARemover(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s := staging.New(bucket)
	mark := "portainer/removing/someone"
	require.NoError(t, bucket.WriteAll(t.Context(), mark, []byte("{}"), nil))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _, err := s.PutContext(ctx, writes(tarOf(t, file{"a", "b"})))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	f.mu.Lock()
	f.times[mark] = time.Now().Add(-2 * time.Hour) // it was killed long ago
	f.mu.Unlock()
	_, _, err = s.PutContext(t.Context(), writes(tarOf(t, file{"a", "b"})))
	require.NoError(t, err)
}
