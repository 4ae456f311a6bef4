package staging

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// A Source is a context to be staged: a Bundle or a Tree.
type Source interface {
	// recipe returns the context's recipe, without the places of its chunks.
	recipe(ctx context.Context, m *Meter) (*recipe, error)
	// each calls fn with the data of the wanted chunks, in the order of the
	// stream. What comes may be more than what is wanted. The data is valid
	// during the call.
	each(ctx context.Context, wanted func(Chunk) bool, fn func(Chunk, []byte) error) error
}

// A builder collects the recipe of a stream.
type builder struct {
	r     recipe
	index map[[sha256.Size]byte]int
	mark  int // up to where the skeleton belongs to parts
}

func newBuilder() *builder { return &builder{index: map[[sha256.Size]byte]int{}} }

// content ends the present run of the skeleton and adds content.
func (b *builder) content(chunks []Chunk) {
	p := part{skeleton: len(b.r.skeleton) - b.mark}
	b.mark = len(b.r.skeleton)
	for _, c := range chunks {
		i, ok := b.index[c.Sum]
		if !ok {
			i = len(b.r.chunks)
			b.index[c.Sum] = i
			b.r.chunks = append(b.r.chunks, c)
		}
		p.content = append(p.content, i)
	}
	b.r.parts = append(b.r.parts, p)
}

func (b *builder) finish() *recipe {
	if len(b.r.skeleton) > b.mark {
		b.content(nil)
	}
	return &b.r
}

// A Bundle is the Source whose tar stream a function writes. It is called once to
// learn what the context is, and again to send what the bucket lacks of it; both
// times it must write the same. It must return an error for anything it could not
// read.
type Bundle func(ctx context.Context, w io.Writer) error

// stream calls fn with the stream. fn must read it to its end or fail.
func (b Bundle) stream(ctx context.Context, fn func(io.Reader) error) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := fn(r)
		r.CloseWithError(err)
		done <- err
	}()
	err := b(ctx, w)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	w.CloseWithError(err)
	if fnErr := <-done; err == nil || errors.Is(err, io.ErrClosedPipe) {
		return fnErr
	}
	return err
}

func (b Bundle) recipe(ctx context.Context, m *Meter) (*recipe, error) {
	build := newBuilder()
	err := b.stream(ctx, func(r io.Reader) error {
		var chunks []Chunk
		return readTar(r, &build.r.skeleton, func() { build.content(chunks); chunks = nil }, func(c Chunk, _ []byte) error {
			chunks = append(chunks, c)
			m.addRead(int64(c.Size))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return build.finish(), nil
}

func (b Bundle) each(ctx context.Context, _ func(Chunk) bool, fn func(Chunk, []byte) error) error {
	return b.stream(ctx, func(r io.Reader) error {
		var skeleton []byte
		return readTar(r, &skeleton, func() { skeleton = skeleton[:0] }, fn)
	})
}

// readTar takes a tar stream apart: what is not content goes to skeleton, and the
// content of each file, chunk by chunk, to chunk; after the last one comes end.
func readTar(r io.Reader, skeleton *[]byte, end func(), chunk func(Chunk, []byte) error) error {
	rec := &recorder{r: r, to: skeleton}
	tr := tar.NewReader(rec)
	var cutter chunker
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the context's tar stream: %w", err)
		}
		if err := CheckHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			continue
		}
		rec.paused = true
		if err := cutter.each(tr, h.Size, chunk); err != nil {
			return fmt.Errorf("read the context's tar stream: %s: %w", h.Name, err)
		}
		rec.paused = false
		end()
	}
	if err := readPadding(rec); err != nil {
		return fmt.Errorf("read the context's tar stream: %w", err)
	}
	// A tar reader also ends well where the stream breaks off between two entries.
	if !bytes.HasSuffix(*skeleton, endMarks[:]) {
		return fmt.Errorf("read the context's tar stream: %w: it has no end marks", io.ErrUnexpectedEOF)
	}
	return nil
}

var endMarks [1024]byte

// readPadding reads what may follow a tar stream's end marks: zeroes.
func readPadding(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return errors.New("something follows the end of the tar stream")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// A recorder keeps what is read through it, except while it is paused. A tar
// reader reads nothing ahead.
type recorder struct {
	r      io.Reader
	to     *[]byte
	paused bool
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if !r.paused {
		*r.to = append(*r.to, b[:n]...)
	}
	return n, err
}

// CheckHeader returns an error for a tar entry that has no place in a build
// context: a name, or the target of a hard link, that is absolute or leaves the
// root, or a type that is not a file's.
func CheckHeader(h *tar.Header) error {
	if err := checkName(h.Name); err != nil {
		return fmt.Errorf("context entry %q: %w", h.Name, err)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	case tar.TypeLink:
		if err := checkName(h.Linkname); err != nil {
			return fmt.Errorf("context entry %q: hard link to %q: %w", h.Name, h.Linkname, err)
		}
	default:
		return fmt.Errorf("context entry %q: entries of type %q do not belong in a build context", h.Name, h.Typeflag)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return fmt.Errorf("context entry %q: sparse entries do not belong in a build context", h.Name)
		}
	}
	return nil
}

func checkName(name string) error {
	switch clean := path.Clean(name); {
	case name == "" || strings.ContainsRune(name, 0):
		return errors.New("not a path")
	case path.IsAbs(name):
		return errors.New("the path is absolute")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return errors.New("the path leaves the context")
	}
	return nil
}
