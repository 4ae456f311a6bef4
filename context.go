package portainer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/dockerfile"
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
func (f BundlerFunc) Bundle(ctx context.Context, req Request, w io.Writer) error {
	return f(ctx, req, w)
}

// DirBundler is the ContextBundler that bundles the directory Request.Dir, or
// where that is empty the directory of Request.Dockerfile, just as docker build
// with BuildKit would send it: everything but what "<Dockerfile>.dockerignore",
// or else ".dockerignore", leaves out; links as links; modes, modification times
// and empty directories kept; owners always 0:0.
//
// Before it writes anything it checks that the local files which the Dockerfile
// copies are there. If one is missing, the error wraps ErrInvalid and names the
// line and the path.
//
// The Dockerfile itself is only part of the context if it lies in the directory:
// the engine gets its text apart from the context.
//
// The zero value is ready to use.
type DirBundler struct {
	// Progress, if not nil, is told how many bytes of a context have been
	// written so far. It is called in the goroutine that called Bundle.
	Progress func(req Request, written int64)
}

var _ ContextBundler = DirBundler{}

// Bundle implements ContextBundler.
func (b DirBundler) Bundle(ctx context.Context, req Request, w io.Writer) error {
	opt := b.options(req)
	sources, err := localSources(req)
	if err != nil {
		return err
	}
	if err := buildctx.CheckSources(ctx, opt, sources); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return err
	}
	return buildctx.Pack(ctx, w, opt)
}

func (b DirBundler) options(req Request) buildctx.Options {
	opt := buildctx.Options{Dir: req.Dir, Dockerfile: req.Dockerfile}
	switch {
	case opt.Dir == "" && opt.Dockerfile == "":
		opt.Dir = "."
	case opt.Dir == "":
		opt.Dir = filepath.Dir(opt.Dockerfile)
	}
	if opt.Dockerfile == "" {
		opt.Dockerfile = filepath.Join(opt.Dir, "Dockerfile")
	}
	if b.Progress != nil {
		opt.Progress = func(n int64) { b.Progress(req, n) }
	}
	return opt
}

// localSources returns what the Dockerfile of req copies from the context, as far
// as that is certain before the build.
func localSources(req Request) ([]buildctx.Source, error) {
	text, name := req.Source, req.Dockerfile
	if name == "" {
		name = filepath.Join(req.Dir, "Dockerfile")
	}
	if text == nil {
		var err error
		if text, err = os.ReadFile(name); err != nil {
			return nil, fmt.Errorf("%w: read the Dockerfile: %w", ErrInvalid, err)
		}
	}
	f, err := dockerfile.Parse(name, text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if f, err = f.With(dockerfile.Options{Args: req.Args}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	found, err := f.TargetSources(req.Target)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var sources []buildctx.Source
	for _, s := range found {
		if !s.Sure || s.Instruction == "RUN" && s.Path == "" {
			continue
		}
		sources = append(sources, buildctx.Source{
			Where: fmt.Sprintf("%s:%d", name, s.Line), Path: s.Path, Clean: s.Clean(),
			Wildcard: s.Wildcard() && s.Instruction != "RUN", Outside: s.Outside(),
		})
	}
	return sources, nil
}
