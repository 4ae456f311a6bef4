package buildctx

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// HeadSize is how many bytes of a stream IsArchive wants to see.
const HeadSize = 1024

// The first bytes of compressed streams.
var (
	bzip2Magic = []byte("BZh")
	gzipMagic  = []byte{0x1f, 0x8b, 0x08}
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// IsArchive reports whether a stream that begins with head is an archive and not a
// Dockerfile, as docker build tells them apart: by the magic bytes of a compression, or
// a tar header (moby builder/remotecontext, buildkit frontend/dockerui).
func IsArchive(head []byte) bool {
	for _, magic := range [][]byte{bzip2Magic, gzipMagic, xzMagic, zstdMagic} {
		if bytes.HasPrefix(head, magic) {
			return true
		}
	}
	if isSkippable(head) {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil
}

// isSkippable reports whether head begins a frame that zstd leaves out (RFC 8878, 3.1.2).
func isSkippable(head []byte) bool {
	return len(head) >= 8 && binary.LittleEndian.Uint32(head)&^0xf == 0x184d2a50
}

// maxWindow bounds what a zstd stream can make its reader remember.
const maxWindow = 128 << 20

// decompress returns what r holds. close ends the reading.
func decompress(r io.Reader) (_ io.Reader, end func(), err error) {
	in := bufio.NewReaderSize(r, 256<<10)
	head, err := in.Peek(HeadSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(in)
		return z, func() {}, err
	case bytes.HasPrefix(head, bzip2Magic):
		return bzip2.NewReader(in), func() {}, nil
	case bytes.HasPrefix(head, zstdMagic), isSkippable(head):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, xzMagic):
		return nil, nil, errors.New("it is compressed with xz, which is not known here: unpack it with xz -d, or use zstd")
	}
	return in, func() {}, nil
}

// An Archive is a build context that came as a tar. It lies in a temporary file
// without a name. It may be read by many goroutines.
type Archive struct {
	file *os.File
	size int64
	name string // to be removed by Close; "" if that is done
}

// maxOverhead is how much of an archive may be other than its files' contents.
const maxOverhead = 1 << 30

// ReadArchive reads a tar to its end: as it is, or compressed with gzip, zstd or bzip2.
// Its files may have limit bytes in all; 0 means no limit. The caller closes the
// Archive.
//
// Nothing in a tar is trusted. Names that leave the root, devices, entries below a
// link and types that are not of files are errors. The rest stays as it is, owners
// and order included, but sparse files become ordinary ones.
func ReadArchive(ctx context.Context, r io.Reader, limit int64) (_ *Archive, err error) {
	plain, end, err := decompress(r)
	if err != nil {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	defer end()
	f, err := os.CreateTemp("", "portainer-context-")
	if err != nil {
		return nil, err
	}
	a := &Archive{file: f, name: f.Name()}
	if os.Remove(a.name) == nil {
		a.name = "" // systems that can, remove it now: a kill leaves nothing
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	out := bufio.NewWriterSize(f, 256<<10)
	watched := &endWatcher{r: &stoppable{ctx, plain}}
	c := &archiveCopy{ctx: ctx, in: tar.NewReader(watched), out: tar.NewWriter(out), limit: limit, links: map[string]bool{}}
	err = c.run()
	if err == nil && watched.ended {
		// A tar reader also ends well where the stream breaks off between two entries.
		err = fmt.Errorf("%w: it has no end marks", io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = drain(watched)
	}
	if err != nil {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	if err := errors.Join(c.out.Close(), out.Flush()); err != nil {
		return nil, err
	}
	a.size, err = f.Seek(0, io.SeekEnd)
	return a, err
}

// Close removes the archive.
func (a *Archive) Close() error {
	err := a.file.Close()
	if a.name != "" {
		err = errors.Join(err, os.Remove(a.name))
	}
	return err
}

// An archiveCopy copies a tar, entry by entry.
type archiveCopy struct {
	ctx     context.Context
	in      *tar.Reader
	out     *tar.Writer
	limit   int64
	files   int64 // bytes of them so far
	entries int64
	links   map[string]bool // paths of what is no directory and might be followed
}

func (c *archiveCopy) run() error {
	buf := make([]byte, 256<<10)
	for {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		h, err := c.in.Next()
		if errors.Is(err, io.EOF) {
			return c.ensureEntry()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // git archive begins with one
		}
		if h, err = c.clean(h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		c.entries++
		if c.files += h.Size; c.limit > 0 && (c.files > c.limit || c.entries*headerBlock > c.limit+maxOverhead) {
			return fmt.Errorf("it holds more than %s, and that is the limit", size(c.limit))
		}
		if err := c.out.WriteHeader(h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{c.out}, struct{ io.Reader }{c.in}, buf); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// headerBlock is the least that an entry takes.
const headerBlock = 512

// ensureEntry gives an empty archive an entry: BuildKit takes a tar without one for a
// file.
func (c *archiveCopy) ensureEntry() error {
	if c.entries > 0 {
		return nil
	}
	return c.out.WriteHeader(emptyRoot())
}

func emptyRoot() *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
}

// clean returns h as it goes into the context, or why it cannot. It returns h with an
// error, too.
func (c *archiveCopy) clean(h *tar.Header) (*tar.Header, error) {
	n := &tar.Header{
		Typeflag: h.Typeflag, Name: strings.TrimLeft(h.Name, "/"), Linkname: h.Linkname, Size: h.Size, Mode: h.Mode,
		Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Format: tar.FormatPAX,
	}
	if n.Name == "" && h.Name != "" {
		n.Name = "./"
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			if n.PAXRecords == nil {
				n.PAXRecords = map[string]string{}
			}
			n.PAXRecords[k] = v
		}
	}
	if err := checkInside(n.Name); err != nil {
		return h, err
	}
	p := path.Clean(n.Name)
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if c.links[dir] {
			return h, fmt.Errorf("it lies below %q, which is a link", dir)
		}
	}
	delete(c.links, p)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeFifo:
	case tar.TypeGNUSparse:
		n.Typeflag = tar.TypeReg
	case tar.TypeSymlink:
		c.links[p] = true
	case tar.TypeLink:
		n.Linkname = strings.TrimLeft(h.Linkname, "/")
		if err := checkInside(n.Linkname); err != nil {
			return h, fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		c.links[p] = c.links[path.Clean(n.Linkname)]
	case tar.TypeChar, tar.TypeBlock:
		return h, errors.New("it is a device")
	default:
		return h, fmt.Errorf("its type %q is not that of a file", h.Typeflag)
	}
	return n, nil
}

// checkInside refuses names that leave the root.
func checkInside(name string) error {
	p := path.Clean(name)
	switch {
	case name == "" || strings.ContainsRune(name, 0):
		return errors.New("not a path")
	case p == ".." || strings.HasPrefix(p, "../"):
		return errors.New("the path leaves the context")
	}
	return nil
}

// A stoppable reader stops when its context is done.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(b)
}

// drain reads the padding after a tar, and so the checksum that a compression ends with.
func drain(r io.Reader) error {
	_, err := io.CopyN(io.Discard, r, maxOverhead)
	switch {
	case err == nil:
		return errors.New("too much follows its end")
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// An endWatcher tells whether its reader was read to its end.
type endWatcher struct {
	r     io.Reader
	ended bool
}

func (e *endWatcher) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	e.ended = e.ended || n == 0 && errors.Is(err, io.EOF)
	return n, err
}

// WriteTo writes the tar, uncompressed.
func (a *Archive) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, io.NewSectionReader(a.file, 0, a.size))
}

// WriteEmpty writes the tar of a context with nothing in it.
func WriteEmpty(w io.Writer) error {
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(emptyRoot()); err != nil {
		return err
	}
	return tw.Close()
}

// ReadFile returns the content of the file with that path, which must have limit bytes
// at most. Links are followed inside the archive. The error is fs.ErrNotExist if there
// is none.
func (a *Archive) ReadFile(name string, limit int64) ([]byte, error) {
	at := inRoot(name)
	for range maxLinks {
		h, data, err := a.find(at, limit)
		switch {
		case err != nil:
			return nil, err
		case h == nil:
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		case h.Typeflag == tar.TypeLink:
			at = inRoot(h.Linkname)
		case h.Typeflag == tar.TypeSymlink && path.IsAbs(h.Linkname):
			at = inRoot(h.Linkname)
		case h.Typeflag == tar.TypeSymlink:
			at = inRoot(path.Join(path.Dir(at), h.Linkname))
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%s: it is not a regular file", name)
		default:
			return data, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", name, ErrLoop)
}

// inRoot returns a path below the root without anything that does not matter.
func inRoot(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find returns the last entry of that path, and its content if it is a file; nil if
// there is none.
func (a *Archive) find(at string, limit int64) (found *tar.Header, data []byte, err error) {
	in := tar.NewReader(io.NewSectionReader(a.file, 0, a.size))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return found, data, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if inRoot(h.Name) != at {
			continue
		}
		found, data = h, nil
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > limit {
			return nil, nil, fmt.Errorf("%s: it has %s, and the limit is %s", h.Name, size(h.Size), size(limit))
		}
		if data, err = io.ReadAll(in); err != nil {
			return nil, nil, err
		}
	}
}
