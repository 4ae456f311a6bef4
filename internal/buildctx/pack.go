// Package buildctx makes build contexts: it walks a directory, leaves out what
// the ignore file says, and writes the rest as a tar stream.
//
// What the stream holds is what docker build with BuildKit would send of the same
// directory: contents, modes, modification times, symbolic and hard links, empty
// directories, extended attributes; owners are always 0:0.
package buildctx

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrChanged reports a tree that changed while it was read. Reading it again may
// work.
var ErrChanged = errors.New("the build context changed while it was read")

// Options say what is in a context, and how to read it.
type Options struct {
	// Dir is the root of the tree. It may be a link to a directory.
	Dir string
	// Dockerfile is the path of the Dockerfile, for the ignore file that is named
	// after it ("<Dockerfile>.dockerignore"). "" means that there is none.
	Dockerfile string
	// AllowOutside lets the context have what lies outside of Dir: a link that
	// leaves it becomes what it points to, and Grafts are added. Otherwise links
	// stay links, and grafts are an error.
	AllowOutside bool
	Grafts       []Graft
	// CacheDir is where Scan remembers what is known of files. "" means nowhere.
	CacheDir string
	// Limit is how many bytes the files may have in all. 0 means no limit.
	Limit int64
}

// Pack writes the tree as a tar stream to w. The same tree gives the same bytes:
// the entries are sorted, and nothing of the machine or the user gets in. It
// returns an error for anything that it could not read whole; w then has got a
// stream without end marks, which no reader takes for complete.
func Pack(ctx context.Context, w io.Writer, opt Options) error {
	root, ignore, err := open(opt)
	if err != nil {
		return err
	}
	p := &packer{ctx: ctx, root: root, tar: tar.NewWriter(w), links: map[inode]string{}}
	h, err := rootHeader(root)
	if err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the context: %w", err)
	}
	walk := &walker{ctx: ctx, root: root, ignore: ignore, outside: opt.AllowOutside, grafts: opt.Grafts, visit: p.add}
	if err := walk.run(); err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return fmt.Errorf("write the context: %w", err)
	}
	return nil
}

// open returns the real root of the tree and its ignore rules.
func open(opt Options) (string, *ignorer, error) {
	root, err := filepath.EvalSymlinks(opt.Dir)
	if err != nil {
		return "", nil, fmt.Errorf("build context: %w", err)
	}
	fi, err := os.Stat(root)
	if err != nil {
		return "", nil, fmt.Errorf("build context: %w", err)
	}
	if !fi.IsDir() {
		return "", nil, fmt.Errorf("build context: %s is not a directory", opt.Dir)
	}
	ignore, err := readIgnore(root, opt.Dockerfile)
	if err != nil {
		return "", nil, err
	}
	return root, ignore, nil
}

// A packer writes the entries of a tree.
type packer struct {
	ctx   context.Context
	root  string
	tar   *tar.Writer
	links map[inode]string // first path of each file that has several
	buf   []byte
}

// rootHeader returns the entry of the root, with a time in whole seconds, so that it
// needs no extended header: BuildKit looks at the first 1024 bytes of a context to
// tell whether it is an archive (frontend/dockerui/context.go, isArchive), and a
// header with extensions is longer.
func rootHeader(root string) (*tar.Header, error) {
	fi, err := os.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	h := &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: fi.ModTime().Truncate(time.Second), Format: tar.FormatUSTAR}
	if h.ModTime.Unix() < 0 || h.ModTime.Unix() >= 1<<33 {
		h.ModTime = time.Unix(0, 0)
	}
	return h, nil
}

func (p *packer) add(e entry) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	h, err := header(e, p.links)
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		if err := p.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("write the context: %s: %w", e.path, err)
		}
		return nil
	}
	f, err := openSame(e)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the context: %s: %w", e.path, err)
	}
	if p.buf == nil {
		p.buf = make([]byte, 256<<10)
	}
	for left := h.Size; left > 0; {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf[:min(left, int64(len(p.buf)))])
		if err == io.EOF {
			return fmt.Errorf("%s became shorter: %w", e.path, ErrChanged)
		}
		if err != nil {
			return fmt.Errorf("read the context: %w", err)
		}
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return fmt.Errorf("write the context: %s: %w", e.path, err)
		}
		left -= int64(n)
	}
	return checkSame(f, e)
}

// openSame opens the regular file that e tells of, and fails if another one, or a
// changed one, is there now.
func openSame(e entry) (*os.File, error) {
	f, err := os.OpenFile(e.full, os.O_RDONLY|openFlags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) || isNotDir(err):
		return nil, fmt.Errorf("%s vanished: %w", e.path, ErrChanged)
	case isLoop(err) || errors.Is(err, syscall.ENXIO): // what opening a link or a socket gives
		return nil, fmt.Errorf("%s became something else: %w", e.path, ErrChanged)
	}
	if err != nil {
		return nil, fmt.Errorf("read the context: %w", err)
	}
	if err := checkSame(f, e); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkSame fails if f is no longer what e tells of.
func checkSame(f *os.File, e entry) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read the context: %w", err)
	}
	if !os.SameFile(fi, e.info) || fi.Size() != e.info.Size() || !fi.ModTime().Equal(e.info.ModTime()) {
		return fmt.Errorf("%s was written to: %w", e.path, ErrChanged)
	}
	return nil
}
