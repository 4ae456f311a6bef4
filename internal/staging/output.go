package staging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// OutputPrefix is where agents put what builds write that is no image in a registry.
const OutputPrefix = "portainer/outputs/"

// An Output is what a build has written, in the bucket.
type Output struct {
	Key    string
	Size   int64
	Digest string // "sha256:<hex>"
}

// PutOutput stages what r yields under key, whole or not at all: an error of r, or the
// end of ctx, leaves nothing.
func (s *Store) PutOutput(ctx context.Context, key string, r io.Reader) (Output, error) {
	m := &measured{r: r, hash: sha256.New()}
	if err := s.write(ctx, key, m); err != nil {
		return Output{}, err
	}
	return Output{Key: key, Size: m.size, Digest: "sha256:" + hex.EncodeToString(m.hash.Sum(nil))}, nil
}

// A measured reader learns what is read.
type measured struct {
	r    io.Reader
	hash hash.Hash
	size int64
}

func (m *measured) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.hash.Write(b[:n])
	m.size += int64(n)
	return n, err
}

// GetOutput writes a staged output to w. Where the connection breaks, it goes on from
// there. It returns an error that wraps ErrCorrupt, after w has got everything, if that
// is not what o says.
func (s *Store) GetOutput(ctx context.Context, o Output, w io.Writer) error {
	h := sha256.New()
	to := io.MultiWriter(w, h)
	var at int64
	var t trial
	for at < o.Size {
		n, err := s.copyFrom(ctx, o.Key, at, o.Size-at, to)
		at += n
		var broken *writeError
		switch {
		case err == nil:
			continue
		case errors.As(err, &broken):
			return broken.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case gcerrors.Code(err) == gcerrors.NotFound:
			return fmt.Errorf("read staged output %s: %w: %w", o.Key, ErrGone, told(err))
		}
		if !t.again(ctx, err, n > 0) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("read staged output %s at byte %d: %w", o.Key, at, told(err))
		}
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != o.Digest {
		return fmt.Errorf("read staged output %s: %w: it has %s, not %s", o.Key, ErrCorrupt, got, o.Digest)
	}
	return nil
}

// copyFrom copies a range of an object to w, and returns how much that was.
func (s *Store) copyFrom(ctx context.Context, key string, offset, length int64, w io.Writer) (n int64, err error) {
	ctx, stall := watchStall(ctx)
	defer func() { err = stall.end(err) }()
	r, err := s.bucket.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err = io.Copy(errWriter{w}, &contextReader{ctx, stall.reader(r)})
	if err == nil && n < length {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// An errWriter marks the errors of a writer: a copy does not tell whose error it
// returns.
type errWriter struct{ w io.Writer }

type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

func (e errWriter) Write(b []byte) (int, error) {
	n, err := e.w.Write(b)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}

// DeleteOutputs removes what is below prefix, which must be below OutputPrefix, except
// for the keys of keep.
func (s *Store) DeleteOutputs(ctx context.Context, prefix string, keep ...Output) error {
	if !strings.HasPrefix(prefix, OutputPrefix) || len(prefix) == len(OutputPrefix) {
		return fmt.Errorf("%q is not below %s", prefix, OutputPrefix)
	}
	kept := map[string]bool{}
	for _, o := range keep {
		kept[o.Key] = true
	}
	var keys []string // removing while listing confuses some drivers
	err := s.list(ctx, prefix, func(o *blob.ListObject) error {
		if !kept[o.Key] {
			keys = append(keys, o.Key)
		}
		return nil
	})
	for _, key := range keys {
		err = errors.Join(err, s.remove(ctx, key))
	}
	return err
}
