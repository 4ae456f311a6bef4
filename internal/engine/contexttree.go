package engine

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// A contextTree is a build context as BuildKit asks for it: entry by entry, in
// order. It reads the bundler's tar when BuildKit asks for the first entry, and keeps
// it in a file, because BuildKit asks for contents in an order of its own.
//
// BuildKit can also be given the tar itself (see inputs.upload). It then writes it to
// a file, unpacks that and reads all of it once more for the keys of its cache, where
// it hashes the files of a tree as they come.
type contextTree struct {
	in    *lazyBody
	dir   string // where the file is made
	close sync.Once

	reading sync.Once
	err     error       // of reading
	file    *os.File    // the whole tar; it has no name any more
	entries []treeEntry // sorted as fsutil.ComparePath does
}

// A treeEntry is a file, directory, symbolic link, device or further name of a file.
type treeEntry struct {
	path         string
	mode         fs.FileMode
	modTime      int64  // in nanoseconds since 1970
	link         string // target of a symbolic link; in a tar, first name of a file
	offset       int64  // of the contents
	size         int64
	major, minor int64 // of a device
}

// errUnlike is why a tar is not handed on as a tree: something in it would not arrive
// as it does where the tar is unpacked.
var errUnlike = errors.New("this build context must be sent as an archive")

// load reads the tar, once.
func (t *contextTree) load() error {
	t.reading.Do(func() { t.err = t.read() })
	return t.err
}

// read copies the tar into a file and notes what is where.
func (t *contextTree) read() (err error) {
	if t.file, err = os.CreateTemp(t.dir, "context-"); err != nil {
		return err
	}
	// Nothing of it is left, however this process ends.
	if err := os.Remove(t.file.Name()); err != nil {
		return err
	}
	const size = 1 << 20
	out := bufio.NewWriterSize(t.file, size)
	in := &copied{r: bufio.NewReaderSize(t.in, size), w: out}
	tr := tar.NewReader(in)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		// A tar reader reads nothing ahead.
		if err := t.add(hdr, in.n); err != nil {
			return err
		}
	}
	// The end of the tar is not the end of the stream.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if err := t.arrange(); err != nil {
		return err
	}
	return out.Flush()
}

// end ends the reading, waits for it and returns why the context could not be read, if
// that was not for want of a reader.
func (t *contextTree) end() error {
	err := t.in.end()
	t.reading.Do(func() { t.err = errBodyClosed })
	t.close.Do(func() {
		if t.file != nil {
			_ = t.file.Close() // nothing is to be kept
		}
	})
	if err == nil && !errors.Is(t.err, errBodyClosed) && !errors.Is(t.err, errUnlike) {
		err = t.err
	}
	return err
}

// A copied reader writes what is read through it to w.
type copied struct {
	r io.Reader
	w io.Writer
	n int64
}

func (c *copied) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if _, werr := c.w.Write(b[:n]); werr != nil {
		return n, werr
	}
	return n, err
}

// add notes an entry whose contents are at offset.
func (t *contextTree) add(hdr *tar.Header, offset int64) error {
	e := treeEntry{
		path:    path.Clean(hdr.Name),
		mode:    hdr.FileInfo().Mode(),
		modTime: hdr.ModTime.UnixNano(),
		major:   hdr.Devmajor,
		minor:   hdr.Devminor,
	}
	if e.path == "." {
		return nil
	}
	var kind fs.FileMode
	switch hdr.Typeflag {
	case tar.TypeDir:
		kind = fs.ModeDir
	case tar.TypeReg:
		e.offset, e.size = offset, hdr.Size
	case tar.TypeLink:
		e.link = path.Clean(hdr.Linkname)
	case tar.TypeSymlink:
		kind = fs.ModeSymlink
		e.link, e.size = hdr.Linkname, int64(len(hdr.Linkname))
	case tar.TypeFifo:
		kind = fs.ModeNamedPipe
	case tar.TypeChar:
		kind = fs.ModeDevice | fs.ModeCharDevice
	case tar.TypeBlock:
		kind = fs.ModeDevice
	default:
		return errUnlike
	}
	switch year := hdr.ModTime.Year(); {
	case e.mode.Type() != kind, year < 1970, year > 2200:
		return errUnlike
	case path.IsAbs(e.path), e.path == "..", strings.HasPrefix(e.path, "../"):
		return errUnlike
	case hdr.Uid != 0, hdr.Gid != 0:
		return errUnlike // BuildKit's client makes root the owner
	case !utf8.ValidString(e.path), !utf8.ValidString(e.link):
		return errUnlike // protobuf has no other strings
	}
	for k := range hdr.PAXRecords {
		// BuildKit sets attributes first and then what clears capabilities.
		if strings.HasPrefix(k, "SCHILY.xattr.") || strings.HasPrefix(k, "GNU.sparse.") {
			return errUnlike
		}
	}
	t.entries = append(t.entries, e)
	return nil
}

// arrange resolves further names of files, adds directories that the tar only implies,
// and sorts.
func (t *contextTree) arrange() error {
	at := make(map[string]int, len(t.entries))
	for i := range t.entries {
		e := &t.entries[i]
		if _, twice := at[e.path]; twice {
			return errUnlike
		}
		if e.mode.IsRegular() && e.link != "" {
			first, ok := at[e.link]
			if !ok || !t.entries[first].mode.IsRegular() || !e.agrees(t.entries[first]) {
				return errUnlike
			}
			e.offset, e.size = t.entries[first].offset, t.entries[first].size
		}
		at[e.path] = i
	}
	for _, e := range t.entries {
		for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
			if i, ok := at[dir]; ok {
				if !t.entries[i].mode.IsDir() {
					return errUnlike
				}
				break
			}
			at[dir] = len(t.entries)
			t.entries = append(t.entries, treeEntry{path: dir, mode: fs.ModeDir | 0o755, modTime: e.modTime})
		}
	}
	slices.SortFunc(t.entries, func(a, b treeEntry) int { return fsutil.ComparePath(a.path, b.path) })
	return nil
}

// agrees reports whether two names of a file agree on what it is.
func (e *treeEntry) agrees(first treeEntry) bool {
	return e.mode == first.mode && e.modTime == first.modTime
}

// find returns the index of the entry of that path, or where it would be.
func (t *contextTree) find(name string) (i int, ok bool) {
	i = sort.Search(len(t.entries), func(i int) bool { return fsutil.ComparePath(t.entries[i].path, name) >= 0 })
	return i, i < len(t.entries) && t.entries[i].path == name
}

// Walk implements fsutil.FS.
func (t *contextTree) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	if err := t.load(); err != nil {
		return err
	}
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	i, below := 0, ""
	if target != "" {
		var ok bool
		if i, ok = t.find(target); !ok {
			err := fn(target, nil, &fs.PathError{Op: "lstat", Path: target, Err: fs.ErrNotExist})
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
				return nil
			}
			return err
		}
		below = target + "/"
	}
	seen := map[int64]string{}
	for first := i; i < len(t.entries); {
		e := &t.entries[i]
		if i > first && !strings.HasPrefix(e.path, below) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		i++
		switch err := fn(e.path, &walked{treeEntry: e, seen: seen}, nil); {
		case err == nil:
		case errors.Is(err, fs.SkipAll):
			return nil
		case !errors.Is(err, fs.SkipDir):
			return err
		case e.mode.IsDir():
			i = t.after(i, e.path)
		default:
			i = t.after(i, path.Dir(e.path))
		}
	}
	return nil
}

// after returns the index of the first entry from i on that is not below dir.
func (t *contextTree) after(i int, dir string) int {
	if dir == "." {
		return len(t.entries)
	}
	return i + sort.Search(len(t.entries)-i, func(k int) bool { return !strings.HasPrefix(t.entries[i+k].path, dir+"/") })
}

// A walked entry is one that a walk has come to.
type walked struct {
	*treeEntry
	seen map[int64]string // by where contents are, the first file of this walk that has them
	stat *fstypes.Stat    // nil until it is asked for
}

// Name implements fs.DirEntry.
func (w *walked) Name() string { return path.Base(w.path) }

// IsDir implements fs.DirEntry.
func (w *walked) IsDir() bool { return w.mode.IsDir() }

// Type implements fs.DirEntry.
func (w *walked) Type() fs.FileMode { return w.mode.Type() }

// Info implements fs.DirEntry. It tells of the entry what fsutil does of one of a real
// directory: the first file that is asked about has the contents, whichever has them in
// the tar, and those after it are links to it.
func (w *walked) Info() (fs.FileInfo, error) {
	if w.stat == nil {
		w.stat = &fstypes.Stat{
			Path: w.path, Mode: uint32(w.mode), Size: w.size, ModTime: w.modTime,
			Linkname: w.link, Devmajor: w.major, Devminor: w.minor,
		}
		if w.mode.IsRegular() {
			first, ok := w.seen[w.offset]
			w.stat.Linkname = first
			if !ok {
				w.seen[w.offset] = w.path
			}
		}
	}
	return &fsutil.StatInfo{Stat: w.stat.Clone()}, nil
}

// Open implements fsutil.FS.
func (t *contextTree) Open(name string) (io.ReadCloser, error) {
	if err := t.load(); err != nil {
		return nil, err
	}
	i, ok := t.find(path.Clean(name))
	if !ok || !t.entries[i].mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	e := t.entries[i]
	return io.NopCloser(io.NewSectionReader(t.file, e.offset, e.size)), nil
}
