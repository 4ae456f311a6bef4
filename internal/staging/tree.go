package staging

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// An Entry is one entry of a Tree.
type Entry struct {
	// Header is complete: of type tar.TypeReg with the Size of the content, or of
	// another type.
	Header *tar.Header
	// Chunks are those of the content if they are known; then the file need not
	// be read. They come from DecodeChunks.
	Chunks []Chunk
	// Open opens the content, for reading Header.Size bytes. It may be called
	// from several goroutines, and more than once. Close must fail if the content
	// is not, or is no longer, what Header says.
	Open func() (io.ReadCloser, error)
	// Learned, if not nil, is called with the chunks once they are known.
	Learned func([]Chunk)
}

// A Tree is a context whose entries are known one by one, so that what is known of
// a file need not be read again. They are in the order of the stream.
type Tree []Entry

func (t Tree) recipe(ctx context.Context, m *Meter) (*recipe, error) {
	m.expect(t.size())
	if err := t.learn(ctx, m); err != nil {
		return nil, err
	}
	spans, err := t.format()
	if err != nil {
		return nil, err
	}
	build := newBuilder()
	total := len(endMarks)
	for _, sp := range spans {
		total += len(sp.skeleton)
	}
	build.r.skeleton = make([]byte, 0, total)
	for _, sp := range spans {
		done := 0
		for k, i := range sp.contents {
			build.r.skeleton = append(build.r.skeleton, sp.skeleton[done:sp.ends[k]]...)
			done = sp.ends[k]
			build.content(t[i].Chunks)
		}
		build.r.skeleton = append(build.r.skeleton, sp.skeleton[done:]...)
	}
	build.r.skeleton = append(build.r.skeleton, endMarks[:]...)
	return build.finish(), nil
}

// size returns the bytes of all contents.
func (t Tree) size() int64 {
	var n int64
	for _, e := range t {
		if e.Header.Typeflag == tar.TypeReg {
			n += e.Header.Size
		}
	}
	return n
}

// A span is the skeleton of some neighbouring entries.
type span struct {
	skeleton []byte
	contents []int // the entries with content, and
	ends     []int // where in the skeleton it comes
}

// format writes the headers of the entries, in several spans at a time.
func (t Tree) format() ([]span, error) {
	spans := make([]span, min(len(t), runtime.GOMAXPROCS(0)))
	var g errgroup.Group
	for k := range spans {
		g.Go(func() error {
			from, to := k*len(t)/len(spans), (k+1)*len(t)/len(spans)
			return t.formatSpan(&spans[k], from, to)
		})
	}
	return spans, g.Wait()
}

// headerSize is what the header of an ordinary file takes: one for its time, which
// has no place in the old header, and the old one.
const headerSize = 1536

func (t Tree) formatSpan(sp *span, from, to int) error {
	sp.skeleton = make([]byte, 0, (to-from)*(headerSize+256))
	out := &appender{&sp.skeleton}
	tw := tar.NewWriter(out)
	for i := from; i < to; i++ {
		h := *t[i].Header
		if err := CheckHeader(&h); err != nil {
			return err
		}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("context entry %q: %w", h.Name, err)
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			continue
		}
		sp.contents, sp.ends = append(sp.contents, i), append(sp.ends, len(sp.skeleton))
		// A writer waits for the content, which does not come: the next entry gets
		// another one, and the padding is ours.
		tw = tar.NewWriter(out)
		sp.skeleton = append(sp.skeleton, endMarks[:-h.Size&511]...)
	}
	return nil
}

// learn reads the files whose chunks are not known, several at a time.
func (t Tree) learn(ctx context.Context, m *Meter) error {
	work := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		for i, e := range t {
			if e.Header.Typeflag != tar.TypeReg || e.Header.Size == 0 {
				continue
			}
			if e.Chunks != nil {
				m.addRead(e.Header.Size)
				continue
			}
			select {
			case work <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			var cutter chunker
			for i := range work {
				e := &t[i]
				var chunks []Chunk
				err := e.read(ctx, &cutter, func(c Chunk, _ []byte) error {
					chunks = append(chunks, c)
					m.addRead(int64(c.Size))
					return nil
				})
				if err != nil {
					return err
				}
				e.Chunks = chunks
				if e.Learned != nil {
					e.Learned(chunks)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// read calls fn with the chunks of the content.
func (e *Entry) read(ctx context.Context, cutter *chunker, fn func(Chunk, []byte) error) (err error) {
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if err := cutter.each(&contextReader{ctx, f}, e.Header.Size, fn); err != nil {
		return fmt.Errorf("read %s: %w", e.Header.Name, err)
	}
	return nil
}

func (t Tree) each(ctx context.Context, wanted func(Chunk) bool, fn func(Chunk, []byte) error) error {
	var cutter chunker
	for i := range t {
		e := &t[i]
		want := false
		for _, c := range e.Chunks {
			want = want || wanted(c)
		}
		if !want {
			continue
		}
		if err := e.read(ctx, &cutter, fn); err != nil {
			return err
		}
	}
	return nil
}

type appender struct{ to *[]byte }

func (a *appender) Write(b []byte) (int, error) {
	*a.to = append(*a.to, b...)
	return len(b), nil
}
