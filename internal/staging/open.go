package staging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Errors of staged contexts that no further attempt can mend.
var (
	// ErrCorrupt reports a staged object that does not hold what its Ref says.
	ErrCorrupt = errors.New("the staged context is damaged")
	// ErrTooLarge reports a context beyond the Store's limit.
	ErrTooLarge = errors.New("the staged context is too large")
	// ErrGone reports a staged context that is no longer there.
	ErrGone = errors.New("the staged context is gone")
)

// Open returns the staged context as an uncompressed tar stream. The caller closes
// it.
//
// Whoever reads the stream to io.EOF has got the very context that ref names, with
// names that stay in its root: damage, a short object or a foreign one is an error
// that comes before io.EOF. A broken connection is taken up again where it broke.
// Reads end soon after ctx is done.
func (s *Store) Open(ctx context.Context, ref Ref) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	raw := &resumingReader{ctx: ctx, bucket: s.bucket, key: ref.Key, size: ref.Size}
	if err := raw.connect(); err != nil {
		cancel()
		return nil, err
	}
	z, err := zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		raw.Close()
		cancel()
		return nil, fmt.Errorf("open staged context %s: %w", ref.Key, err)
	}
	limit := s.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	return &verifiedReader{ref: ref, raw: raw, z: z, digest: newDigestWriter(), left: limit, cancel: cancel}, nil
}

// A verifiedReader yields a stream and, at its end, io.EOF only if the stream has
// the right digest.
type verifiedReader struct {
	ref    Ref
	raw    *resumingReader
	z      *zstd.Decoder
	digest *digestWriter
	left   int64
	err    error // what every further Read returns
	ended  bool  // digest is finished
	cancel context.CancelFunc
}

func (v *verifiedReader) Read(b []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.z.Read(b)
	if v.left -= int64(n); v.left < 0 {
		v.err = fmt.Errorf("read staged context %s: %w", v.ref.Key, ErrTooLarge)
		return 0, v.err
	}
	if n > 0 {
		if _, werr := v.digest.Write(b[:n]); werr != nil {
			v.err = v.damaged(werr)
			return 0, v.err
		}
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		v.err = v.verify()
	case v.raw.err != nil && !errors.Is(v.raw.err, io.EOF):
		v.err = v.raw.err
	default:
		v.err = v.damaged(err)
	}
	return n, v.err
}

// verify returns io.EOF if the whole stream was right.
func (v *verifiedReader) verify() error {
	v.ended = true
	sum, err := v.digest.finish(nil)
	if err != nil {
		return v.damaged(err)
	}
	if sum != v.ref.Digest {
		return v.damaged(fmt.Errorf("it holds %s", sum))
	}
	return io.EOF
}

func (v *verifiedReader) damaged(err error) error {
	return fmt.Errorf("read staged context %s: %w: %w", v.ref.Key, ErrCorrupt, err)
}

// Close ends the reading.
func (v *verifiedReader) Close() error {
	if v.err == nil {
		v.err = errors.New("read of a closed context")
	}
	if !v.ended {
		v.ended = true
		v.digest.finish(io.ErrClosedPipe)
	}
	v.cancel()
	v.z.Close()
	return v.raw.Close()
}

// A resumingReader reads an object and, where the connection breaks, goes on from
// the same place.
type resumingReader struct {
	ctx    context.Context
	bucket *blob.Bucket
	key    string
	size   int64 // of the object; 0 if not known before it is opened
	offset int64
	r      *blob.Reader
	err    error
}

// connect opens the object at the present offset, with several attempts.
func (r *resumingReader) connect() error {
	wait := readBackoff
	for attempt := 1; ; attempt++ {
		br, err := r.bucket.NewRangeReader(r.ctx, r.key, r.offset, -1, nil)
		if err == nil {
			if r.size == 0 {
				r.size = br.Size()
			}
			if br.Size() != r.size {
				br.Close()
				return fmt.Errorf("read staged object %s: %w: it has %d bytes, not %d", r.key, ErrCorrupt, br.Size(), r.size)
			}
			r.r = br
			return nil
		}
		switch {
		case r.ctx.Err() != nil:
			return context.Cause(r.ctx)
		case gcerrors.Code(err) == gcerrors.NotFound:
			return fmt.Errorf("read staged object %s: %w: %w", r.key, ErrGone, err)
		case gcerrors.Code(err) == gcerrors.PermissionDenied, attempt > readRetries:
			return fmt.Errorf("read staged object %s: %w", r.key, err)
		}
		if !sleep(r.ctx, wait) {
			return context.Cause(r.ctx)
		}
		wait *= 2
	}
}

func (r *resumingReader) Read(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	wait := readBackoff
	for attempt := 1; ; attempt++ {
		if r.offset >= r.size {
			r.err = io.EOF
			return 0, r.err
		}
		if r.r == nil {
			if err := r.connect(); err != nil {
				r.err = err
				return 0, err
			}
		}
		n, err := r.r.Read(b)
		r.offset += int64(n)
		if n > 0 || err == nil {
			return n, nil // an error will come again, or be mended
		}
		r.r.Close()
		r.r = nil
		if r.ctx.Err() != nil {
			r.err = context.Cause(r.ctx)
			return 0, r.err
		}
		if attempt > readRetries {
			r.err = fmt.Errorf("read staged object %s at byte %d of %d: %w", r.key, r.offset, r.size, unexpected(err))
			return 0, r.err
		}
		if !sleep(r.ctx, wait) {
			r.err = context.Cause(r.ctx)
			return 0, r.err
		}
		wait *= 2
	}
}

// unexpected turns the EOF of a short object into an error.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close closes the connection.
func (r *resumingReader) Close() error {
	if r.r == nil {
		return nil
	}
	err := r.r.Close()
	r.r = nil
	return err
}

// sleep waits for d, and returns false if ctx is done first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
