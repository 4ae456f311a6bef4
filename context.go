package portainer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/dockerfile"
	"github.com/org/portainer/internal/staging"
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
	// CacheDir is where the bundler remembers, in files of its own, the digests
	// of files that it has read, so that a context that is staged again need not
	// be read again. It may be removed at any time. "" means that nothing is
	// remembered.
	CacheDir string
	// Limit is how many bytes the files of a context may have in all; a larger
	// one is an error that wraps ErrInvalid and names the largest files. 0 means
	// no limit.
	Limit int64
	// AllowOutside lets the context have what lies outside of its directory:
	// links that leave it become what they point to, and "ADD ../lib /lib" finds
	// ../lib. Otherwise such links stay links, as with docker build, and such a
	// source is an error.
	AllowOutside bool
}

var _ ContextBundler = DirBundler{}

// Bundle implements ContextBundler.
func (b DirBundler) Bundle(ctx context.Context, req Request, w io.Writer) error {
	opt, err := b.prepare(ctx, req)
	if err != nil {
		return err
	}
	if b.Limit > 0 {
		if _, err := b.scan(ctx, opt); err != nil {
			return err
		}
	}
	return buildctx.Pack(ctx, w, opt)
}

// prepare checks that the context has what the Dockerfile wants of it.
func (b DirBundler) prepare(ctx context.Context, req Request) (buildctx.Options, error) {
	opt := b.options(req)
	sources, err := localSources(req)
	if err != nil {
		return opt, err
	}
	if b.AllowOutside {
		sources, opt.Grafts = grafts(opt.Dir, sources)
	}
	if err := buildctx.CheckSources(ctx, opt, sources); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return opt, err
	}
	return opt, nil
}

// scan looks at the tree without reading it.
func (b DirBundler) scan(ctx context.Context, opt buildctx.Options) (*buildctx.Tree, error) {
	t, err := buildctx.Scan(ctx, opt)
	if limit := (*buildctx.LimitError)(nil); errors.As(err, &limit) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return t, err
}

func (b DirBundler) options(req Request) buildctx.Options {
	opt := buildctx.Options{Dir: req.Dir, Dockerfile: req.Dockerfile, CacheDir: b.CacheDir, Limit: b.Limit, AllowOutside: b.AllowOutside}
	switch {
	case opt.Dir == "" && opt.Dockerfile == "":
		opt.Dir = "."
	case opt.Dir == "":
		opt.Dir = filepath.Dir(opt.Dockerfile)
	}
	if opt.Dockerfile == "" {
		opt.Dockerfile = filepath.Join(opt.Dir, "Dockerfile")
	}
	return opt
}

// grafts takes those sources that lie outside of dir and exist there, but not in
// dir, where an engine would look for them.
func grafts(dir string, sources []buildctx.Source) ([]buildctx.Source, []buildctx.Graft) {
	var inside []buildctx.Source
	var found []buildctx.Graft
	for _, s := range sources {
		from := filepath.Join(dir, filepath.FromSlash(s.Path))
		_, outsideErr := os.Stat(from)
		_, insideErr := os.Lstat(filepath.Join(dir, filepath.FromSlash(s.Clean)))
		if s.Outside && !s.Wildcard && outsideErr == nil && insideErr != nil {
			found = append(found, buildctx.Graft{At: s.Clean, From: from})
			continue
		}
		inside = append(inside, s)
	}
	return inside, found
}

// rescans is how often a directory is looked at anew when it changes meanwhile.
const rescans = 3

// putContext stages the context of req, and meter shows how far that is. What bundler
// is known to read from a directory is not read again where the bundler remembers
// it. Errors of the bundler are of type *bundleError.
func (d *stagingDesk) putContext(ctx context.Context, store *staging.Store, bundler ContextBundler, req Request, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
	dir, ok := bundler.(DirBundler)
	if !ok {
		return store.Put(ctx, staging.Bundle(func(ctx context.Context, w io.Writer) error {
			if err := bundler.Bundle(ctx, req, w); err != nil {
				return &bundleError{err}
			}
			return nil
		}), meter)
	}
	opt, err := dir.prepare(ctx, req)
	if err != nil {
		return staging.Ref{}, staging.PutStats{}, &bundleError{err}
	}
	return d.putDir(ctx, store, dir, opt, meter)
}

// putDir is putContext for the directory of opt.
func (d *stagingDesk) putDir(ctx context.Context, store *staging.Store, dir DirBundler, opt buildctx.Options, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
	return d.do(ctx, contextKey(opt), func(ctx context.Context) (staging.Ref, staging.PutStats, error) {
		return scanAndPut(ctx, store, dir, opt, meter)
	})
}

func scanAndPut(ctx context.Context, store *staging.Store, dir DirBundler, opt buildctx.Options, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
	for attempt := 1; ; attempt++ {
		t, err := dir.scan(ctx, opt)
		if err == nil {
			var ref staging.Ref
			var stats staging.PutStats
			if ref, stats, err = putTree(ctx, store, t, meter); err == nil {
				return ref, stats, nil
			}
		} else {
			err = &bundleError{err}
		}
		if attempt == rescans || !errors.Is(err, buildctx.ErrChanged) && !errors.Is(err, staging.ErrChanged) {
			return staging.Ref{}, staging.PutStats{}, err
		}
		if errors.Is(err, staging.ErrChanged) {
			opt.CacheDir = "" // it may be what is wrong
		}
	}
}

// putTree stages a tree. If it was staged before and nothing in it has changed since,
// that is found out without making its headers, let alone reading its files.
func putTree(ctx context.Context, store *staging.Store, t *buildctx.Tree, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
	var known knownContext
	if json.Unmarshal(t.Known(), &known) == nil && known.Digest != "" {
		ref, ok, err := store.Find(ctx, known.Digest)
		if ok || err != nil {
			return ref, staging.PutStats{TarSize: known.TarSize}, err
		}
	}
	ref, stats, err := store.Put(ctx, treeOf(t), meter)
	if err != nil {
		return ref, stats, err
	}
	if note, err := json.Marshal(knownContext{ref.Digest, stats.TarSize}); err == nil {
		t.Learn(note)
	}
	// Without the cache the next build is slower, and that is all.
	_ = t.Save()
	return ref, stats, nil
}

// A knownContext is what is remembered of a tree that was staged.
type knownContext struct {
	Digest  string `json:"digest"`
	TarSize int64  `json:"tarSize"`
}

// treeOf gives a scanned tree to staging.
func treeOf(t *buildctx.Tree) staging.Tree {
	tree := make(staging.Tree, len(t.Entries))
	for i := range t.Entries {
		e := &t.Entries[i]
		tree[i] = staging.Entry{
			Header: e.Header,
			Chunks: staging.DecodeChunks(e.Known, e.Header.Size),
			Open: func() (io.ReadCloser, error) {
				r, err := e.Open()
				if err != nil {
					return nil, &bundleError{err}
				}
				return &bundleReader{r}, nil
			},
			Learned: func(c []staging.Chunk) { e.Learn(staging.EncodeChunks(c)) },
		}
	}
	return tree
}

// A bundleReader marks its errors as the bundler's.
type bundleReader struct{ io.ReadCloser }

func (r *bundleReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &bundleError{err}
	}
	return n, err
}

func (r *bundleReader) Close() error {
	if err := r.ReadCloser.Close(); err != nil {
		return &bundleError{err}
	}
	return nil
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
	if f, err = f.With(dockerfileOptions(req)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	found, err := f.TargetSources(cmp.Or(req.Target, f.Metadata().Target))
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
