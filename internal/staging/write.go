package staging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

const contentType = "application/octet-stream"

// write makes an object of what r yields, whole or not at all. Errors of r come back as
// they are.
func (s *Store) write(ctx context.Context, key string, r io.Reader) error {
	return s.writeWith(ctx, key, r, &blob.WriterOptions{ContentType: contentType})
}

// writeRecipe writes a recipe unless there is one of that name: another one, of the
// same context, may have its chunks in other packs, and whoever is reading it needs
// those.
func (s *Store) writeRecipe(ctx context.Context, key string, object []byte) error {
	err := s.writeWith(ctx, key, bytes.NewReader(object), &blob.WriterOptions{ContentType: contentType, IfNotExist: true})
	if gcerrors.Code(err) == gcerrors.Unimplemented {
		// Not every bucket can tell. Two who stage the same context at the same
		// moment, from parts of different others, are rare.
		err = s.write(ctx, key, bytes.NewReader(object))
	}
	return err
}

// note writes an object that says something by its name and its age alone.
func (s *Store) note(ctx context.Context, key string) error {
	return s.write(ctx, key, bytes.NewReader([]byte("{}\n")))
}

// writeWith uploads r by Bucket.Upload, and not by a blob.Writer: that of Azure panics in
// Close when its upload has failed (gocloud.dev v0.47.0, blob/azureblob/azureblob.go: the
// field pr becomes nil between Close's look at it and its use).
func (s *Store) writeWith(ctx context.Context, key string, r io.Reader, opts *blob.WriterOptions) error {
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := s.bucket.Upload(own, key, &feed{ctx: own, cancel: cancel, r: r}, opts)
	if err == nil {
		return nil
	}
	var bad *feedError
	switch {
	case errors.As(context.Cause(own), &bad):
		return bad.err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("write %s: %w", key, told(err))
}

// A feed is what a bucket uploads. Many drivers pass the data on bit by bit, and when
// that goes wrong keep what they have got, unless their context is done when they are
// closed. So a feed cancels it before the driver hears of an error.
type feed struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	r      io.Reader
}

// A feedError is an error of what was to be uploaded.
type feedError struct{ err error }

func (e *feedError) Error() string { return e.err.Error() }
func (e *feedError) Unwrap() error { return e.err }

// Read is for drivers that send the data themselves, all or nothing.
func (f *feed) Read(b []byte) (int, error) {
	if f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &feedError{err}
		f.cancel(err)
	}
	return n, err
}

// WriteTo is for those that are written to, and sees their errors, too.
func (f *feed) WriteTo(w io.Writer) (int64, error) {
	n, err := io.CopyBuffer(w, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err != nil {
		f.cancel(err)
	}
	return n, err
}
