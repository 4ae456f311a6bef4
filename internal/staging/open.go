package staging

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"gocloud.dev/gcerrors"
)

// Errors of staged contexts that no further attempt can mend.
var (
	// ErrCorrupt reports a staged object that does not hold what its Ref says.
	ErrCorrupt = errors.New("the staged context is damaged")
	// ErrTooLarge reports a context beyond the Store's limit.
	ErrTooLarge = errors.New("the staged context is too large")
	// ErrGone reports a staged context that is no longer there.
	ErrGone = errors.New("the staged context is gone")
)

const (
	// runSize is how much of a pack is read at a time.
	runSize = 4 << 20
	// ahead is how many such reads are under way, or done, before they are needed.
	ahead = 3
	// maxRun is how many blocks one read is for.
	maxRun = 4
	// keptBlocks is how many blocks are kept for the next chunks.
	keptBlocks = 8
)

// Open returns the staged context as an uncompressed tar stream. The caller closes
// it.
//
// Every byte that it yields has been checked: the recipe against ref.Digest, each
// chunk against the recipe. Damage, a short object or a foreign one is an error,
// and never an early io.EOF. Broken connections are taken up again where they
// broke. Reads end soon after ctx is done.
func (s *Store) Open(ctx context.Context, ref Ref) (io.ReadCloser, error) {
	return s.open(ctx, ref, func(*recipe) readFunc { return s.readObject }, nil)
}

// A readFunc reads a piece of a pack.
type readFunc func(ctx context.Context, p packRef, offset, length int64) ([]byte, error)

// open returns an assembler that reads with what reader returns. If drop is not
// nil, what was read may have been damaged on the way: it is then told of a bad
// pack, which is read anew from the bucket.
func (s *Store) open(ctx context.Context, ref Ref, reader func(*recipe) readFunc, drop func(packRef)) (io.ReadCloser, error) {
	data, err := s.readAgain(ctx, ref.Key, 0, -1)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecipe(data)
	if err != nil {
		return nil, fmt.Errorf("read staged context %s: %w: %w", ref.Key, ErrCorrupt, err)
	}
	if got := r.digest(); got != ref.Digest {
		return nil, fmt.Errorf("read staged context %s: %w: it makes %s, not %s", ref.Key, ErrCorrupt, got, ref.Digest)
	}
	if err := r.checkStream(); err != nil {
		return nil, fmt.Errorf("read staged context %s: %w: %w", ref.Key, ErrCorrupt, err)
	}
	limit := s.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	if size := r.tarSize(); size > limit {
		return nil, fmt.Errorf("read staged context %s: %w: %d bytes, and the limit is %d", ref.Key, ErrTooLarge, size, limit)
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &assembler{ctx: ctx, cancel: cancel, key: ref.Key, r: r, read: reader(r), blocks: newBlockCache()}
	if drop != nil {
		a.drop, a.direct = drop, s.readObject
	}
	a.fetches = make(chan *fetch, ahead)
	a.decoders.New = func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxBlock))
		if err != nil {
			panic(err) // the options are constants
		}
		return z
	}
	a.work.Go(a.prefetch)
	return a, nil
}

// readObject is the readFunc that reads from the bucket.
func (s *Store) readObject(ctx context.Context, p packRef, offset, length int64) ([]byte, error) {
	return s.readAgain(ctx, p.key(), offset, length)
}

// readAgain reads length bytes of an object from offset on, all of it if length is
// negative. Where the connection breaks, it goes on from there.
func (s *Store) readAgain(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	var data []byte
	if length > 0 {
		data = make([]byte, 0, length)
	}
	size := length // what is wanted, once known
	var t trial
	for {
		before := len(data)
		var err error
		data, size, err = s.readOnce(ctx, key, offset, data, size)
		if int64(len(data)) == size && size >= 0 {
			return data, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case gcerrors.Code(err) == gcerrors.NotFound:
			return nil, fmt.Errorf("read staged object %s: %w: %w", key, ErrGone, told(err))
		case errors.Is(err, ErrGone) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrCorrupt):
			return nil, fmt.Errorf("read staged object %s: %w", key, err)
		case err == nil || errors.Is(err, io.EOF):
			err = fmt.Errorf("%w: it ends after %d bytes", ErrCorrupt, offset+int64(len(data)))
		}
		if !t.again(ctx, err, len(data) > before) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, fmt.Errorf("read staged object %s at byte %d: %w", key, offset+int64(len(data)), told(err))
		}
	}
}

// readOnce reads what is missing in data, which begins at offset and is to have size
// bytes; negative means what there is. It returns both as far as they are known.
func (s *Store) readOnce(ctx context.Context, key string, offset int64, data []byte, size int64) (_ []byte, _ int64, err error) {
	ctx, stall := watchStall(ctx)
	defer func() { err = stall.end(err) }()
	r, err := s.objects.open(ctx, key, offset+int64(len(data)), remaining(size, len(data)))
	if err != nil {
		return data, size, err
	}
	defer r.Close()
	if size < 0 {
		size = r.Size()
	}
	if size > maxRecipe {
		return data, size, fmt.Errorf("%w: %d bytes", ErrTooLarge, size)
	}
	if r.Size() < offset+size {
		return data, size, fmt.Errorf("%w: it has only %d bytes", ErrCorrupt, r.Size())
	}
	data, err = appendAll(data, stall.reader(r), size)
	return data, size, err
}

func remaining(size int64, have int) int64 {
	if size < 0 {
		return -1
	}
	return size - int64(have)
}

// appendAll appends what r has to data, up to limit bytes in all.
func appendAll(data []byte, r io.Reader, limit int64) ([]byte, error) {
	for int64(len(data)) < limit {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		room := data[len(data):min(int64(cap(data)), limit)]
		n, err := r.Read(room)
		data = data[:len(data)+n]
		if err != nil {
			return data, err
		}
	}
	return data, nil
}

// An assembler makes the stream of a recipe.
type assembler struct {
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	r      *recipe
	read   readFunc
	// drop and direct mend what a cache has spoilt; nil where there is none.
	drop   func(packRef)
	direct readFunc

	decoders sync.Pool
	fetches  chan *fetch // in the order of need
	work     sync.WaitGroup

	part, chunk, skeleton int    // what comes next
	intoPart              int    // bytes of its skeleton that are done
	rest                  []byte // of the present piece
	blocks                *blockCache
	fetched               []piece // and not yet needed
	err                   error
}

// Read implements io.Reader.
func (a *assembler) Read(b []byte) (int, error) {
	for len(a.rest) == 0 && a.err == nil {
		a.err = a.next()
	}
	if len(a.rest) == 0 {
		return 0, a.err
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// next sets the next piece of the stream.
func (a *assembler) next() error {
	if a.part == len(a.r.parts) {
		return io.EOF
	}
	p := a.r.parts[a.part]
	switch {
	case a.intoPart < p.skeleton:
		a.rest = a.r.skeleton[a.skeleton : a.skeleton+p.skeleton]
		a.skeleton += p.skeleton
		a.intoPart = p.skeleton
	case a.chunk < len(p.content):
		data, err := a.content(p.content[a.chunk])
		if err != nil {
			return err
		}
		a.rest = data
		a.chunk++
	default:
		a.part, a.chunk, a.intoPart = a.part+1, 0, 0
	}
	return nil
}

// content returns the data of a chunk, checked.
func (a *assembler) content(i int) ([]byte, error) {
	at, c := a.r.places[i], a.r.chunks[i]
	data, err := a.block(at.block)
	if err != nil {
		return nil, err
	}
	data = data[at.offset : at.offset+c.Size]
	if sha256.Sum256(data) != c.Sum && a.drop != nil {
		pieces, err := a.fetchDirectly([]int{at.block})
		if err != nil {
			return nil, err
		}
		a.blocks.data[at.block] = pieces[0].data
		data = pieces[0].data[at.offset : at.offset+c.Size]
	}
	if sha256.Sum256(data) != c.Sum {
		return nil, fmt.Errorf("read staged context %s: %w: a part of pack %s is not what it was",
			a.key, ErrCorrupt, a.r.packs[a.r.blocks[at.block].pack].key())
	}
	return data, nil
}

// block returns an uncompressed block: one of the last ones, or one that was
// fetched for now. Blocks come and go in the very order that prefetch foresaw.
func (a *assembler) block(b int) ([]byte, error) {
	if data, ok := a.blocks.get(b); ok {
		return data, nil
	}
	if len(a.fetched) == 0 {
		select {
		case f, ok := <-a.fetches:
			if !ok {
				return nil, errors.Join(errors.New("the reading of the staged context has ended"), context.Cause(a.ctx))
			}
			<-f.done
			if f.err != nil && a.drop != nil && errors.Is(f.err, ErrCorrupt) {
				f.pieces, f.err = a.fetchDirectly(f.blocks)
			}
			if f.err != nil {
				return nil, f.err
			}
			a.fetched = f.pieces
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		}
	}
	next := a.fetched[0]
	a.fetched = a.fetched[1:]
	if next.block != b {
		return nil, fmt.Errorf("internal error: block %d was fetched for block %d", next.block, b)
	}
	a.blocks.put(b, next.data)
	return next.data, nil
}

// Close ends the reading.
func (a *assembler) Close() error {
	a.cancel()
	for range a.fetches { // until prefetch has ended
	}
	a.work.Wait()
	if a.err == nil {
		a.err = errors.New("read of a closed context")
	}
	a.rest = nil
	return nil
}

// A fetch is a read of neighbouring blocks, under way or done.
type fetch struct {
	blocks []int
	pieces []piece
	err    error
	done   chan struct{}
}

// A piece is an uncompressed block.
type piece struct {
	block int
	data  []byte
}

// prefetch reads all blocks in the order of need.
func (a *assembler) prefetch() {
	defer close(a.fetches)
	var run []int
	var length int
	flush := func() bool {
		if len(run) == 0 {
			return true
		}
		f := &fetch{blocks: run, done: make(chan struct{})}
		run, length = nil, 0
		// The channel holds back the starting: at most ahead+1 are under way.
		select {
		case a.fetches <- f:
		case <-a.ctx.Done():
			return false
		}
		a.work.Go(func() {
			defer close(f.done)
			f.pieces, f.err = a.fetch(f.blocks)
		})
		return true
	}
	seen := newBlockCache() // as the reader's own will be at the same place
	for _, p := range a.r.parts {
		for _, c := range p.content {
			b := a.r.places[c].block
			if _, ok := seen.get(b); ok {
				continue
			}
			bl := a.r.blocks[b]
			if len(run) > 0 {
				last := a.r.blocks[run[len(run)-1]]
				if last.pack != bl.pack || last.offset+int64(last.length) != bl.offset || length+bl.length > runSize || len(run) == maxRun {
					if !flush() {
						return
					}
				}
			}
			run = append(run, b)
			length += bl.length
			seen.put(b, nil)
		}
	}
	flush()
}

// fetchDirectly fetches blocks past a cache that has spoilt them.
func (a *assembler) fetchDirectly(blocks []int) ([]piece, error) {
	a.drop(a.r.packs[a.r.blocks[blocks[0]].pack])
	return a.fetchWith(a.direct, blocks)
}

// fetch reads and uncompresses blocks that lie one after the other in a pack.
func (a *assembler) fetch(blocks []int) ([]piece, error) { return a.fetchWith(a.read, blocks) }

func (a *assembler) fetchWith(read readFunc, blocks []int) ([]piece, error) {
	first, last := a.r.blocks[blocks[0]], a.r.blocks[blocks[len(blocks)-1]]
	data, err := read(a.ctx, a.r.packs[first.pack], first.offset, last.offset+int64(last.length)-first.offset)
	if err != nil {
		return nil, err
	}
	out := make([]piece, len(blocks))
	for i, b := range blocks {
		bl := a.r.blocks[b]
		packed := data[bl.offset-first.offset:][:bl.length]
		out[i].block = b
		if bl.length == bl.size {
			out[i].data = packed
			continue
		}
		z := a.decoders.Get().(*zstd.Decoder)
		out[i].data, err = z.DecodeAll(packed, make([]byte, 0, bl.size))
		a.decoders.Put(z)
		if err == nil && len(out[i].data) != bl.size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read staged context %s: %w: pack %s: %w", a.key, ErrCorrupt, a.r.packs[bl.pack].key(), err)
		}
	}
	return out, nil
}

// A blockCache keeps the blocks that were put last. Reading from it changes nothing.
type blockCache struct {
	data  map[int][]byte
	order []int
}

func newBlockCache() *blockCache { return &blockCache{data: map[int][]byte{}} }

func (c *blockCache) get(b int) ([]byte, bool) {
	d, ok := c.data[b]
	return d, ok
}

func (c *blockCache) put(b int, data []byte) {
	if len(c.order) == keptBlocks {
		delete(c.data, c.order[0])
		c.order = c.order[1:]
	}
	c.order = append(c.order, b)
	c.data[b] = data
}
