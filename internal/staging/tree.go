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

// PutTree stages the tar stream of tree, unless it is there already. It is
// otherwise like PutContext.
func (s *Store) PutTree(ctx context.Context, tree Tree) (Ref, PutStats, error) {
	return s.put(ctx, tree)
}

func (t Tree) recipe(ctx context.Context) (*recipe, error) {
	if err := t.learn(ctx); err != nil {
		return nil, err
	}
	build := newBuilder()
	skeleton := &appender{&build.r.skeleton}
	tw := tar.NewWriter(skeleton)
	for i, e := range t {
		if err := CheckHeader(e.Header); err != nil {
			return nil, err
		}
		h := *e.Header
		if err := tw.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("context entry %q: %w", e.Header.Name, err)
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			continue
		}
		build.content(t[i].Chunks)
		// The writer believes in the content; padding is ours.
		tw = tar.NewWriter(skeleton)
		if pad := -h.Size & 511; pad > 0 {
			build.r.skeleton = append(build.r.skeleton, endMarks[:pad]...)
		}
	}
	build.r.skeleton = append(build.r.skeleton, endMarks[:]...)
	return build.finish(), nil
}

// learn reads the files whose chunks are not known, several at a time.
func (t Tree) learn(ctx context.Context) error {
	work := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		for i, e := range t {
			if e.Header.Typeflag != tar.TypeReg || e.Header.Size == 0 || e.Chunks != nil {
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
