package staging_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

// A webBucket serves what a bucket holds, under URLs with a secret in them.
type webBucket struct {
	*httptest.Server
	handle func(w http.ResponseWriter, r *http.Request, data []byte) // nil means http.ServeContent
}

func newWebBucket(t *testing.T, f *faulty) *webBucket {
	w := &webBucket{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		data, ok := f.objects[strings.TrimPrefix(r.URL.Path, "/")]
		f.mu.Unlock()
		switch {
		case !ok:
			http.Error(rw, "<Error><Code>NoSuchKey</Code></Error>", http.StatusNotFound)
		case w.handle != nil:
			w.handle(rw, r, data)
		default:
			http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(data))
		}
	}))
	t.Cleanup(w.Close)
	return w
}

// url is a staging.URLFunc.
func (w *webBucket) url(_ context.Context, key string, fresh bool) (string, error) {
	return fmt.Sprintf("%s/%s?sig=secret&fresh=%v", w.URL, key, fresh), nil
}

func TestReadAtURLs(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	data := tarOf(t, file{"a", random(5 << 20)}, file{"b", strings.Repeat("b", 100)})
	ref, _, err := staging.New(bucket).PutContext(t.Context(), writes(data))
	require.NoError(t, err)

	var requests atomic.Int64
	tests := []struct {
		name   string
		handle func(w http.ResponseWriter, r *http.Request, data []byte)
		is     error  // nil means that the context is read
		says   string // by the error
	}{
		{name: "plainly"},
		{name: "expired URLs", handle: func(w http.ResponseWriter, r *http.Request, data []byte) {
			if r.FormValue("fresh") != "true" {
				http.Error(w, "<Code>AccessDenied</Code><Expired>sig=secret</Expired>", http.StatusForbidden)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}},
		{name: "refused URLs", is: errAny, says: "the storage answers 403 Forbidden (SignatureDoesNotMatch)", handle: func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			http.Error(w, "<Code>SignatureDoesNotMatch</Code><Message>sig=secret</Message>", http.StatusForbidden)
		}},
		{name: "no ranges", handle: func(w http.ResponseWriter, _ *http.Request, data []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data) // who has enough of it goes away
		}},
		{name: "another range", is: errAny, says: "was asked for", handle: func(w http.ResponseWriter, r *http.Request, data []byte) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=7-")
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}},
		{name: "broken connections and failures", handle: func(w http.ResponseWriter, r *http.Request, data []byte) {
			n := requests.Add(1)
			if n%3 == 0 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return
			}
			http.ServeContent(&breakingResponse{ResponseWriter: w, left: 1 << 20}, r, "", time.Time{}, bytes.NewReader(data))
		}},
		{name: "a short object", is: staging.ErrCorrupt, handle: func(w http.ResponseWriter, r *http.Request, data []byte) {
			if strings.Contains(r.URL.Path, staging.PackPrefix) {
				data = data[:1000]
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}},
		{name: "an object that is gone", is: staging.ErrGone, handle: func(w http.ResponseWriter, r *http.Request, data []byte) {
			if strings.Contains(r.URL.Path, staging.PackPrefix) {
				http.NotFound(w, r)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := newWebBucket(t, f)
			server.handle = tt.handle
			got, err := readAll(t, staging.NewReader(server.url), ref)
			if tt.is == nil {
				require.NoError(t, err)
				require.Equal(t, data, got)
				return
			}
			require.Error(t, err)
			require.NotContains(t, err.Error(), "secret")
			require.ErrorContains(t, err, tt.says)
			if !errors.Is(tt.is, errAny) {
				require.ErrorIs(t, err, tt.is)
			}
		})
	}

	// A server that is away says nothing of the URL either, nor is the lack of one
	// tried again.
	server := newWebBucket(t, f)
	server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = staging.NewReader(server.url).Open(ctx, ref)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotContains(t, err.Error(), "secret")
	why, calls := errors.New("no URL"), 0
	_, err = staging.NewReader(func(context.Context, string, bool) (string, error) { calls++; return "", why }).Open(t.Context(), ref)
	require.ErrorIs(t, err, why)
	require.Equal(t, 1, calls)
}

var errAny = errors.New("any")

// A breakingResponse breaks off.
type breakingResponse struct {
	http.ResponseWriter
	left int
}

func (b *breakingResponse) Write(p []byte) (int, error) {
	n, err := b.ResponseWriter.Write(p[:min(len(p), b.left)])
	if b.left -= n; err == nil && b.left == 0 {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestSign(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	ref, _, err := staging.New(bucket).PutContext(t.Context(), writes(tarOf(t, file{"a", "b"})))
	require.NoError(t, err)
	require.ErrorIs(t, staging.CanSign(t.Context(), bucket, ref), staging.ErrCannotSign)
	_, err = staging.New(bucket).Sign(t.Context(), bucket, ref, time.Hour)
	require.ErrorIs(t, err, staging.ErrCannotSign)
	_, denied := newFaulty()
	defer denied.Close()
	err = staging.CanSign(t.Context(), denied, ref)
	require.ErrorIs(t, err, errDenied)
	require.NotErrorIs(t, err, staging.ErrCannotSign)
}

// TestStalledReadIsTakenUpAgain: a connection that brings nothing is given up.
func TestStalledReadIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, testStalledReadIsTakenUpAgain)
}

func testStalledReadIsTakenUpAgain(t *testing.T) {
	f, bucket := newFaulty()
	defer bucket.Close()
	s := staging.New(bucket)
	data := tarOf(t, file{"a", random(1 << 20)})
	ref, _, err := s.PutContext(t.Context(), writes(data))
	require.NoError(t, err)
	stalls := 2
	f.onRead = func(string, int64) int64 {
		if stalls--; stalls >= 0 {
			return stall
		}
		return -1
	}
	began := time.Now()
	got, err := readAll(t, s, ref)
	require.NoError(t, err)
	require.Equal(t, data, got)
	require.Negative(t, stalls)
	require.GreaterOrEqual(t, time.Since(began), 2*time.Minute)
	f.onRead = func(string, int64) int64 { return stall }
	_, err = readAll(t, s, ref)
	require.ErrorContains(t, err, "nothing came for 1m0s")
}
