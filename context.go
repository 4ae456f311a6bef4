package portainer

import (
	"context"
	"io"
)

// A ContextBundler makes the build context of a Request.
//
// Bundle writes a complete, uncompressed tar stream to w and stops soon after
// ctx is done. Two calls for the same tree must write the same bytes: the
// context is hashed in one pass and, unless it is staged already, sent in
// another. Bundle may be called from many goroutines, must not keep w, and must
// return an error for anything it could not read: a context that is short of a
// file must never be staged.
type ContextBundler interface {
	Bundle(ctx context.Context, req Request, w io.Writer) error
}

// A BundlerFunc is a function that is a ContextBundler.
type BundlerFunc func(ctx context.Context, req Request, w io.Writer) error

// Bundle calls f.
func (f BundlerFunc) Bundle(ctx context.Context, req Request, w io.Writer) error { return f(ctx, req, w) }
