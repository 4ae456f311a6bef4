package buildctx

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// A Tree is a build context that has been looked at but not read: what Pack would
// write, entry by entry.
type Tree struct {
	// Entries are in the order of the stream.
	Entries []Entry

	cache *statCache
	print [sha256.Size]byte // of everything that was looked at
	fresh bool              // some file may change without a trace
}

// An Entry is one entry of a Tree.
type Entry struct {
	// Header is that of the tar stream.
	Header *tar.Header
	// Known is what Learn was given for the same file, unchanged since, in this
	// run or an earlier one; nil if there was nothing.
	Known []byte

	tree *Tree
	e    entry
}

// Scan walks the tree and reads no file. With a cache directory in the options it
// remembers what Learn is told about files, for later calls.
func Scan(ctx context.Context, opt Options) (*Tree, error) {
	root, ignore, err := open(opt)
	if err != nil {
		return nil, err
	}
	t := &Tree{}
	if opt.CacheDir != "" {
		t.cache = openStatCache(opt.CacheDir, root, time.Now())
	}
	h, err := rootHeader(root)
	if err != nil {
		return nil, err
	}
	t.Entries = append(t.Entries, Entry{Header: h})
	print := newPrinter()
	print.add(h, nil)
	links := map[inode]string{}
	var size int64
	walk := &walker{ctx: ctx, root: root, ignore: ignore, outside: opt.AllowOutside, grafts: opt.Grafts, ahead: true, inspect: t.inspect}
	walk.visit = func(e entry) error {
		if !e.inspected {
			if err := t.inspect(&e); err != nil {
				return err
			}
		}
		h, err := header(e, links)
		if err != nil {
			return err
		}
		entry := Entry{Header: h, tree: t, e: e}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			entry.Known = e.known
			print.add(h, e.info)
			t.fresh = t.fresh || t.cache != nil && t.cache.racy(e.info)
		} else {
			print.add(h, nil)
		}
		size += h.Size
		t.Entries = append(t.Entries, entry)
		return nil
	}
	if err := walk.run(); err != nil {
		return nil, err
	}
	t.print = print.sum()
	if opt.Limit > 0 && size > opt.Limit {
		return nil, &LimitError{Dir: opt.Dir, Limit: opt.Limit, Size: size, Largest: t.Largest(10)}
	}
	return t, nil
}

// inspect learns what takes system calls, or is in the cache, about an entry.
func (t *Tree) inspect(e *entry) error {
	plain := false
	e.inspected, e.known = true, nil
	if t.cache != nil {
		plain, e.known = t.cache.get(e.info)
	}
	if plain {
		return nil
	}
	var err error
	if e.attrs, err = xattrs(e.full); err != nil {
		return fmt.Errorf("read extended attributes of %s: %w", e.path, err)
	}
	if t.cache != nil && len(e.attrs) == 0 {
		t.cache.putPlain(e.info)
	}
	return nil
}

// Known returns what Learn was given for the very same tree, nothing of which has
// changed since; nil if there is nothing.
func (t *Tree) Known() []byte {
	if t.cache == nil {
		return nil
	}
	return t.cache.whole(t.print)
}

// Learn remembers something about the whole tree, as it was scanned.
func (t *Tree) Learn(what []byte) {
	if t.cache != nil && !t.fresh {
		t.cache.putWhole(t.print, what)
	}
}

// Open opens the content of a regular file. It, or closing the reader, fails if the
// file is no longer the one that was scanned.
func (e *Entry) Open() (io.ReadCloser, error) {
	f, err := openSame(e.e)
	if err != nil {
		return nil, err
	}
	return &sameFile{f, e.e}, nil
}

// Learn remembers something about the content of a regular file, as it was scanned.
// It may be called from several goroutines, for different entries.
func (e *Entry) Learn(what []byte) {
	if e.tree.cache != nil {
		e.tree.cache.put(e.e.info, what)
	}
}

// Save writes what was learnt to the cache directory. The cache can be deleted at
// any time, and a failure to write it harms nothing but the next scan.
func (t *Tree) Save() error {
	if t.cache == nil {
		return nil
	}
	return t.cache.save()
}

// Size returns the bytes of all contents.
func (t *Tree) Size() int64 {
	var n int64
	for _, e := range t.Entries {
		n += e.Header.Size
	}
	return n
}

// A Sized is a path of a context and how many bytes it holds.
type Sized struct {
	Path string
	Size int64
}

// Largest returns the n largest files, the largest first.
func (t *Tree) Largest(n int) []Sized {
	var all []Sized
	for _, e := range t.Entries {
		if e.Header.Size > 0 {
			all = append(all, Sized{e.Header.Name, e.Header.Size})
		}
	}
	slices.SortFunc(all, func(a, b Sized) int {
		if a.Size != b.Size {
			if a.Size > b.Size {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return all[:min(n, len(all))]
}

// A LimitError reports a context that is larger than it may be.
type LimitError struct {
	Dir         string
	Limit, Size int64
	Largest     []Sized
}

// Error names the largest files.
func (e *LimitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the build context %s has %s, and the limit is %s; leave out what the build does not need with .dockerignore; the largest files are:",
		e.Dir, size(e.Size), size(e.Limit))
	for _, l := range e.Largest {
		fmt.Fprintf(&b, "\n  %8s  %s", size(l.Size), l.Path)
	}
	return b.String()
}

func size(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d %s", n, units[0])
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

// A sameFile is an open file that must not change while it is open.
type sameFile struct {
	*os.File
	e entry
}

// Close fails if the file has changed.
func (f *sameFile) Close() error {
	err := checkSame(f.File, f.e)
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}

// A Verdict tells of one path whether it is in the context, and by which rule of
// the ignore file.
type Verdict struct {
	Path string // with a slash at the end if it is a directory
	In   bool
	Size int64 // of a file that is in; of one with several names, for the first
	Rule *Rule // the rule that left it out or, behind another one, took it in; nil if none matches
}

// Explain returns a verdict for every path of the tree. What lies below a directory
// that is left out is not listed, unless an exception may bring it back.
func Explain(ctx context.Context, opt Options) ([]Verdict, error) {
	root, ignore, err := open(opt)
	if err != nil {
		return nil, err
	}
	var all []Verdict
	add := func(path string, dir, in bool, size int64) {
		v := Verdict{Path: path, In: in, Size: size}
		if r, ok := ignore.explain(path); ok {
			v.Rule = &r
		}
		if dir {
			v.Path += "/"
		}
		all = append(all, v)
	}
	walk := &walker{ctx: ctx, root: root, ignore: ignore, outside: opt.AllowOutside, grafts: opt.Grafts}
	links := map[inode]bool{}
	walk.visit = func(e entry) error {
		var size int64
		if id, several := inodeOf(e.info); e.info.Mode().IsRegular() && !links[id] {
			size = e.info.Size()
			links[id] = several
		}
		add(e.path, e.info.IsDir(), true, size)
		return nil
	}
	walk.left = func(path string, dir bool) { add(path, dir, false, 0) }
	if err := walk.run(); err != nil {
		return nil, err
	}
	// A directory that was left out, and then taken in for an exception below it,
	// was seen twice.
	slices.SortStableFunc(all, func(a, b Verdict) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 || a.In == b.In {
			return c
		}
		if a.In {
			return -1
		}
		return 1
	})
	return slices.CompactFunc(all, func(a, b Verdict) bool { return a.Path == b.Path }), nil
}
