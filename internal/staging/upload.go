package staging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	// maxBlock is how much content is compressed together.
	maxBlock = 4 << 20
	// packSize is from where on a pack is not added to.
	packSize = 16 << 20
	// uploads is how many packs are sent at the same time.
	uploads = 4
)

// An uploader sends chunks in packs: a reader that hands out blocks, compressors,
// and senders of packs, which are done in the order of the chunks.
type uploader struct {
	store *Store
	r     *recipe
	meter *Meter

	encoder *zstd.Encoder
	buffers chan []byte // of maxBlock bytes, that are free
	sent    atomic.Int64
}

// buffer returns an empty buffer with room for a block.
func (u *uploader) buffer() []byte {
	select {
	case b := <-u.buffers:
		return b[:0]
	default:
		return make([]byte, 0, maxBlock)
	}
}

// free takes a buffer back.
func (u *uploader) free(b []byte) {
	if cap(b) < maxBlock {
		return
	}
	select {
	case u.buffers <- b:
	default:
	}
}

// A pressed is a block that was compressed, or will be.
type pressed struct {
	done   chan struct{}
	data   []byte // as it goes in the pack
	size   int    // uncompressed
	chunks []int
	places []int // offset of each chunk in the uncompressed block
}

// upload sends the chunks of r that have no place yet, and gives them one.
func (s *Store) upload(ctx context.Context, r *recipe, src Source, m *Meter) (int64, error) {
	missing := map[[sha256.Size]byte]int{}
	var size int64
	for i, p := range r.places {
		if p.block < 0 {
			missing[r.chunks[i].Sum] = i
			size += int64(r.chunks[i].Size)
		}
	}
	if len(missing) == 0 {
		return 0, nil
	}
	m.lack(size)
	processors := runtime.GOMAXPROCS(0)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(processors), zstd.WithEncoderCRC(false))
	if err != nil {
		return 0, fmt.Errorf("compress the context: %w", err)
	}
	defer z.Close()
	u := &uploader{store: s, r: r, meter: m, encoder: z, buffers: make(chan []byte, 4*processors)}
	g, ctx := errgroup.WithContext(ctx)
	ordered := make(chan *pressed, processors) // blocks in the order of the stream
	work := make(chan func())
	g.Go(func() error {
		defer close(ordered)
		defer close(work)
		return u.read(ctx, missing, src, func(raw []byte, chunks, places []int) error {
			p := &pressed{done: make(chan struct{}), size: len(raw), chunks: chunks, places: places}
			select {
			case work <- func() { p.data = u.press(raw); close(p.done) }:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			select {
			case ordered <- p:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for range processors {
		g.Go(func() error {
			for do := range work {
				do()
			}
			return nil
		})
	}
	g.Go(func() error { return u.pack(ctx, ordered) })
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return u.sent.Load(), nil
}

// read cuts what is missing into blocks.
func (u *uploader) read(ctx context.Context, missing map[[sha256.Size]byte]int, src Source, emit func(raw []byte, chunks, places []int) error) error {
	var raw []byte
	var chunks, places []int
	flush := func() error {
		if len(raw) == 0 {
			return nil
		}
		err := emit(raw, chunks, places)
		raw, chunks, places = nil, nil, nil
		return err
	}
	wanted := func(c Chunk) bool { _, ok := missing[c.Sum]; return ok }
	err := src.each(ctx, wanted, func(c Chunk, data []byte) error {
		i, ok := missing[c.Sum]
		if !ok {
			return nil
		}
		delete(missing, c.Sum)
		if len(raw)+len(data) > maxBlock {
			if err := flush(); err != nil {
				return err
			}
		}
		if raw == nil {
			raw = u.buffer()
		}
		chunks, places = append(chunks, i), append(places, len(raw))
		raw = append(raw, data...)
		return nil
	})
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return errOther
	}
	return flush()
}

// press compresses a block, or leaves it as it is when that gains little. What it does
// not return of its buffers is free again.
func (u *uploader) press(raw []byte) []byte {
	out := u.buffer()
	// What does not shrink in a sample is mostly media and archives, for which
	// compressing is lost time.
	const sample = 64 << 10
	if len(raw) > 4*sample && u.resists(raw[len(raw)/2:][:sample], out) && u.resists(raw[:sample], out) {
		u.free(out)
		return raw
	}
	out = u.encoder.EncodeAll(raw, out)
	if len(out) >= len(raw) {
		u.free(out)
		return raw
	}
	u.free(raw)
	return out
}

// resists reports whether compressing the sample gains little. It may write to buf.
func (u *uploader) resists(sample, buf []byte) bool {
	return len(u.encoder.EncodeAll(sample, buf)) > len(sample)*97/100
}

// pack collects blocks into packs and sends them, a few at a time.
func (u *uploader) pack(ctx context.Context, ordered <-chan *pressed) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	unused := make(chan []byte, uploads+1) // what packs were sent from
	var buf []byte
	var size int64 // of the content in buf
	flush := func() {
		if len(buf) == 0 {
			return
		}
		data := buf
		content := size
		buf, size = nil, 0
		ref := packRef{sha256.Sum256(data), int64(len(data))}
		u.r.packs = append(u.r.packs, ref)
		g.Go(func() error {
			err := u.send(ctx, ref, data, &sending{m: u.meter, size: content, length: ref.size})
			if err == nil {
				unused <- data[:0] // there is room for all that are sent, and the next
			}
			return err
		})
	}
	for p := range ordered {
		select {
		case <-p.done:
		case <-ctx.Done():
			return errors.Join(g.Wait(), context.Cause(ctx))
		}
		if buf == nil {
			select {
			case buf = <-unused:
			default:
				buf = make([]byte, 0, packSize+maxBlock/4)
			}
		}
		bl := block{pack: len(u.r.packs), offset: int64(len(buf)), length: len(p.data), size: p.size}
		for k, c := range p.chunks {
			u.r.places[c] = place{len(u.r.blocks), p.places[k]}
		}
		u.r.blocks = append(u.r.blocks, bl)
		buf = append(buf, p.data...)
		u.free(p.data)
		size += int64(p.size)
		if len(buf) >= packSize {
			flush()
		}
	}
	if ctx.Err() == nil {
		flush()
	}
	return g.Wait()
}

// send sends one pack unless it is there: an upload of the same content that was killed
// may have left it. A pack is written whole or not at all, and its name says what is in
// it; no removal can take it away, because of our lease on a context that is not there.
func (u *uploader) send(ctx context.Context, ref packRef, data []byte, on *sending) error {
	attrs, err := u.store.bucket.Attributes(ctx, ref.key())
	if err == nil && attrs.Size == ref.size {
		on.skip()
		return nil
	}
	if err := u.store.writePack(ctx, ref, data, on); err != nil {
		return err
	}
	u.sent.Add(ref.size)
	return nil
}

// writePack sends one pack, and tries again when the bucket fails.
func (s *Store) writePack(ctx context.Context, ref packRef, data []byte, on *sending) error {
	var t trial
	for {
		err := s.write(ctx, ref.key(), io.TeeReader(bytes.NewReader(data), on))
		if err == nil {
			return nil
		}
		on.undo()
		if !t.again(ctx, err, false) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("send a part of the context: %w", err)
		}
	}
}
