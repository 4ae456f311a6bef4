package staging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"
)

// ErrCannotSign reports a bucket that gives no URLs of its objects to those who have no
// credentials for it.
var ErrCannotSign = errors.New("the staging bucket cannot sign URLs")

// signers is how many URLs are signed together: some services are asked for each.
const signers = 8

// Sign returns URLs, by key, of all objects that Open reads for ref. They are good for
// life, for whoever has them, and for reading these objects only. signer signs; it is
// the Store's bucket, or the same by another address. The error wraps ErrCannotSign if
// that bucket never does.
func (s *Store) Sign(ctx context.Context, signer *blob.Bucket, ref Ref, life time.Duration) (map[string]string, error) {
	if _, err := sign(ctx, signer, ref.Key, life); err != nil {
		return nil, err // before anything is read
	}
	packs, err := s.packsOf(ctx, ref.Key)
	if err != nil {
		return nil, fmt.Errorf("read staged context %s: %w", ref.Key, err)
	}
	urls := map[string]string{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(signers)
	add := func(key string) {
		g.Go(func() error {
			signed, err := sign(ctx, signer, key, life)
			mu.Lock()
			defer mu.Unlock()
			urls[key] = signed
			return err
		})
	}
	add(ref.Key)
	for _, p := range packs {
		add(p.key())
	}
	return urls, g.Wait()
}

func sign(ctx context.Context, signer *blob.Bucket, key string, life time.Duration) (string, error) {
	signed, err := signer.SignedURL(ctx, key, &blob.SignedURLOptions{Expiry: life})
	if gcerrors.Code(err) == gcerrors.Unimplemented {
		return "", fmt.Errorf("%w: %w", ErrCannotSign, err)
	}
	if err != nil {
		return "", fmt.Errorf("sign a URL of %s: %w", key, err)
	}
	return signed, nil
}

// CanSign returns why signer signs no URLs. The error wraps ErrCannotSign if it never
// does.
func CanSign(ctx context.Context, signer *blob.Bucket, ref Ref) error {
	_, err := sign(ctx, signer, ref.Key, time.Minute)
	return err
}

// A URLFunc returns the URL at which an object can be read. fresh says that the last one
// was refused.
type URLFunc func(ctx context.Context, key string, fresh bool) (string, error)

// NewReader returns a Store for reading at the URLs that urls finds. The methods that
// open contexts are all that may be called.
func NewReader(urls URLFunc) *Store {
	return &Store{objects: &webReader{urls: urls, client: &http.Client{Transport: http.DefaultTransport}}}
}

// objects is where a Store reads. Offset and length are as with blob.Bucket.
type objects interface {
	open(ctx context.Context, key string, offset, length int64) (object, error)
}

// An object is one under way; Size is that of the whole.
type object interface {
	io.ReadCloser
	Size() int64
}

// A bucketReader reads in a bucket.
type bucketReader struct{ *blob.Bucket }

func (b bucketReader) open(ctx context.Context, key string, offset, length int64) (object, error) {
	r, err := b.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return nil, err // and no object around nil
	}
	return r, nil
}

// A webReader reads at URLs.
type webReader struct {
	urls   URLFunc
	client *http.Client
}

func (w *webReader) open(ctx context.Context, key string, offset, length int64) (object, error) {
	for fresh := false; ; fresh = true {
		address, err := w.urls(ctx, key, fresh)
		if err != nil {
			return nil, &refusal{err}
		}
		o, err := w.get(ctx, address, offset, length)
		var status *statusError
		if errors.As(err, &status) && status.denied() && !fresh {
			continue // it may just have expired
		}
		return o, err
	}
}

// get reads at a URL. Nothing of that, which is a secret, is in its errors.
func (w *webReader) get(ctx context.Context, address string, offset, length int64) (object, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, &refusal{errors.New("its signed URL is none")}
	}
	// An answer that was compressed on the way would have other offsets.
	req.Header.Set("Accept-Encoding", "identity")
	switch {
	case length >= 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	o := &webObject{ReadCloser: resp.Body, size: resp.ContentLength}
	switch resp.StatusCode {
	case http.StatusOK:
		// A server that knows no ranges.
		_, err = io.CopyN(io.Discard, resp.Body, offset)
	case http.StatusPartialContent:
		o.size, err = totalSize(resp.Header.Get("Content-Range"), offset)
	default:
		err = newStatusError(resp)
	}
	if err == nil && o.size < 0 {
		err = errors.New("the server does not say how long it is")
	}
	if err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	return o, nil
}

type webObject struct {
	io.ReadCloser
	size int64
}

func (o *webObject) Size() int64 { return o.size }

// totalSize reads "bytes <first>-<last>/<size>" (RFC 9110, section 14.4).
func totalSize(contentRange string, offset int64) (int64, error) {
	spec, total, _ := strings.Cut(strings.TrimPrefix(contentRange, "bytes "), "/")
	first, _, _ := strings.Cut(spec, "-")
	size, err := strconv.ParseInt(total, 10, 64)
	if start, startErr := strconv.ParseInt(first, 10, 64); err != nil || startErr != nil || start != offset {
		return 0, fmt.Errorf("the server sends %q, but byte %d on was asked for", contentRange, offset)
	}
	return size, nil
}

// A refusal is an error that trying again does not mend.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// A statusError is an answer that is none of ours.
type statusError struct {
	status int
	code   string // what the server calls it
}

// codePattern finds what S3, Azure and Google Cloud Storage call an error. The rest of
// what they say may repeat the signature.
var codePattern = regexp.MustCompile(`<Code>(\w{1,64})</Code>`)

func newStatusError(resp *http.Response) error {
	head, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // as much as there is will do
	e := &statusError{status: resp.StatusCode}
	if found := codePattern.FindSubmatch(head); found != nil {
		e.code = string(found[1])
	}
	if e.status == http.StatusNotFound || e.status == http.StatusGone {
		return fmt.Errorf("%w: %w", ErrGone, e)
	}
	if e.status == http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("%w: it is too short: %w", ErrCorrupt, e)
	}
	return e
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("the storage answers %d %s", e.status, http.StatusText(e.status))
	if e.code != "" {
		text += " (" + e.code + ")"
	}
	return text
}

// denied reports whether the URL was refused.
func (e *statusError) denied() bool {
	return e.status == http.StatusForbidden || e.status == http.StatusUnauthorized || e.status == http.StatusBadRequest
}

// retriable reports whether it may be another time.
func (e *statusError) retriable() bool {
	return e.status >= 500 || e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout
}
