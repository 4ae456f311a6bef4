package hdfsblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"gocloud.dev/blob/driver"
)

// A reader is a part of a file on its way.
type reader struct {
	body  io.ReadCloser
	left  int64 // what body must still give
	attrs driver.ReaderAttributes
}

func (b *bucket) NewRangeReader(ctx context.Context, key string, offset, length int64, opts *driver.ReaderOptions) (driver.Reader, error) {
	name, status, a, err := b.file(ctx, key)
	if err != nil {
		return nil, err
	}
	if opts.BeforeRead != nil {
		if err := opts.BeforeRead(func(any) bool { return false }); err != nil {
			return nil, err
		}
	}
	r := &reader{
		body:  http.NoBody,
		left:  max(status.Length-offset, 0),
		attrs: driver.ReaderAttributes{ContentType: a.ContentType, ModTime: status.modTime(), Size: status.Length},
	}
	if length >= 0 {
		r.left = min(r.left, length)
	}
	if r.left == 0 {
		return r, nil // namenodes refuse an offset that is not within the file
	}
	q := url.Values{}
	if offset > 0 {
		q.Set("offset", strconv.FormatInt(offset, 10))
	}
	if length >= 0 {
		q.Set("length", strconv.FormatInt(r.left, 10))
	}
	resp, err := b.transfer(ctx, request{method: http.MethodGet, op: "OPEN", path: name, params: q}, nil)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength >= 0 && resp.ContentLength < r.left {
		resp.Body.Close()
		return nil, fmt.Errorf("OPEN %s: the file has changed: %d bytes come where %d were expected", name, resp.ContentLength, r.left)
	}
	r.body = resp.Body
	return r, nil
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && r.left > 0:
		return n, io.ErrUnexpectedEOF
	case r.left == 0:
		return n, nil // io.EOF comes next
	}
	return n, err
}

func (r *reader) Close() error { return r.body.Close() }

func (r *reader) Attributes() *driver.ReaderAttributes { return &r.attrs }

func (r *reader) As(any) bool { return false }
