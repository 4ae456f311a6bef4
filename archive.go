package portainer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/org/portainer/internal/buildctx"
)

// A TarBundler is the ContextBundler of a build context that came as a tar archive,
// for Request.Bundler. Ignore files do not count in it, as docker build has it. The
// zero value is the empty context.
//
// It may be used by many goroutines, and for many builds, until it is closed.
type TarBundler struct {
	archive *buildctx.Archive
}

var _ ContextBundler = (*TarBundler)(nil)

// ReadTar reads a tar archive from r to its end: plain, or compressed with gzip, zstd
// or bzip2. It keeps it in a temporary file, so that memory does not grow with it. Its
// files may have limit bytes in all; 0 means no limit. The caller closes the bundler.
//
// The error wraps ErrInvalid for what is no tar, or has in it what no build context
// has: paths that leave it, devices, entries below links.
func ReadTar(ctx context.Context, r io.Reader, limit int64) (*TarBundler, error) {
	a, err := buildctx.ReadArchive(ctx, r, limit)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return &TarBundler{a}, nil
}

// IsTar reports whether what begins with head is an archive for ReadTar, and not a
// Dockerfile. 1024 bytes are enough, or all there are.
func IsTar(head []byte) bool { return buildctx.IsArchive(head) }

// Bundle implements ContextBundler.
func (b *TarBundler) Bundle(ctx context.Context, _ Request, w io.Writer) error {
	if b.archive == nil {
		return buildctx.WriteEmpty(w)
	}
	_, err := b.archive.WriteTo(&untilDone{ctx, w})
	return err
}

// Dockerfile returns the text of the Dockerfile with that path in the archive. "" means
// "Dockerfile", or else "dockerfile".
func (b *TarBundler) Dockerfile(name string) ([]byte, error) {
	if name == "" {
		name = "Dockerfile"
	}
	if b.archive == nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist})
	}
	text, err := b.archive.ReadFile(name, maxDockerfile)
	if dir, base := path.Split(name); errors.Is(err, fs.ErrNotExist) && base == "Dockerfile" {
		if text, lower := b.archive.ReadFile(dir+strings.ToLower(base), maxDockerfile); lower == nil {
			return text, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: Dockerfile of the archive: %w", ErrInvalid, err)
	}
	return text, nil
}

// Close removes what ReadTar has kept.
func (b *TarBundler) Close() error {
	if b.archive == nil {
		return nil
	}
	return b.archive.Close()
}

// An untilDone writer stops when its context is done.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u *untilDone) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(b)
}
