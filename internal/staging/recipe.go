package staging

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// A recipe says how to make the tar stream of a context out of chunks that lie in
// packs. The skeleton is all of the stream that is not content: headers, padding
// and end marks. A recipe is the last thing that is written of a context.
type recipe struct {
	skeleton []byte
	parts    []part
	chunks   []Chunk // each once, in the order of first use

	// Where the chunks are. This is no part of what the digest says.
	packs  []packRef
	blocks []block
	places []place // of chunks
}

// A part is a run of the skeleton and the content that comes after it.
type part struct {
	skeleton int   // bytes
	content  []int // indexes of chunks
}

// A packRef names a pack by the SHA-256 of its bytes.
type packRef struct {
	sum  [sha256.Size]byte
	size int64
}

func (p packRef) key() string { return PackPrefix + hex.EncodeToString(p.sum[:]) }

// A block is a piece of a pack that is compressed by itself.
type block struct {
	pack   int
	offset int64
	length int // in the pack
	size   int // uncompressed; equal to length if it is stored as it is
}

// A place is where a chunk lies in a block.
type place struct {
	block  int
	offset int // in the uncompressed block
}

// digest returns what identifies the context: the stream that the recipe makes,
// wherever its chunks lie.
func (r *recipe) digest() string {
	h := sha256.New()
	io.WriteString(h, "portainer context 1\n")
	var b []byte
	b = binary.AppendUvarint(b, uint64(len(r.skeleton)))
	h.Write(b)
	h.Write(r.skeleton)
	for _, p := range r.parts {
		b = binary.AppendUvarint(b[:0], uint64(p.skeleton))
		b = binary.AppendUvarint(b, uint64(len(p.content)))
		for _, c := range p.content {
			b = append(b, r.chunks[c].Sum[:]...)
			b = binary.AppendUvarint(b, uint64(r.chunks[c].Size))
		}
		h.Write(b)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// tarSize returns the length of the stream.
func (r *recipe) tarSize() int64 {
	n := int64(len(r.skeleton))
	for _, p := range r.parts {
		for _, c := range p.content {
			n += int64(r.chunks[c].Size)
		}
	}
	return n
}

// recipeMagic begins every recipe; the number is the version of the format.
const recipeMagic = "PRTR1\n"

// encode returns the recipe's object: the packs first and in the clear, so that
// who only wants to know them need not read the rest.
func (r *recipe) encode() ([]byte, error) {
	head := binary.AppendUvarint([]byte(recipeMagic), uint64(len(r.packs)))
	for _, p := range r.packs {
		head = append(head, p.sum[:]...)
		head = binary.AppendUvarint(head, uint64(p.size))
	}
	var b []byte
	b = binary.AppendUvarint(b, uint64(len(r.blocks)))
	for _, bl := range r.blocks {
		for _, n := range []int64{int64(bl.pack), bl.offset, int64(bl.length), int64(bl.size)} {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(r.chunks)))
	for i, c := range r.chunks {
		b = append(b, c.Sum[:]...)
		for _, n := range []int{c.Size, r.places[i].block, r.places[i].offset} {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(r.parts)))
	for _, p := range r.parts {
		b = binary.AppendUvarint(b, uint64(p.skeleton))
		b = binary.AppendUvarint(b, uint64(len(p.content)))
		for _, c := range p.content {
			b = binary.AppendUvarint(b, uint64(c))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(r.skeleton)))
	b = append(b, r.skeleton...)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(recipeWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(b, head), nil
}

const (
	// maxRecipe bounds a recipe in memory, and its object.
	maxRecipe = 1 << 30
	// recipeWindow is the window with which recipes are compressed: what reading one
	// takes before it has brought anything.
	recipeWindow = 8 << 20
)

var errRecipe = errors.New("not a recipe of a context")

// decodePacks reads the packs of a recipe's object, of which data is at least the
// head, and returns the rest.
func decodePacks(data []byte) ([]packRef, []byte, error) {
	rest, ok := bytes.CutPrefix(data, []byte(recipeMagic))
	if !ok {
		return nil, nil, errRecipe
	}
	d := decoder{data: rest}
	n := d.count(sha256.Size + 1)
	packs := make([]packRef, 0, n)
	for range n {
		var p packRef
		copy(p.sum[:], d.bytes(sha256.Size))
		p.size = d.number()
		packs = append(packs, p)
	}
	if d.data == nil {
		return nil, nil, errRecipe
	}
	return packs, d.data, nil
}

// decodeRecipe reads a recipe's object. Every number in it is checked: what it
// says can be used without further ado.
func decodeRecipe(data []byte) (*recipe, error) { return decodeRecipeWithin(data, maxRecipe) }

// decodeRecipeWithin is decodeRecipe for a recipe of about limit bytes in memory at most.
func decodeRecipeWithin(data []byte, limit int64) (*recipe, error) {
	packs, rest, err := decodePacks(data)
	if err != nil {
		return nil, err
	}
	body, err := inflate(rest, limit)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRecipe, err)
	}
	r := &recipe{packs: packs}
	d := decoder{body, limit - int64(len(body))}
	n := d.items(4, blockMemory)
	r.blocks = make([]block, 0, n)
	for range n {
		bl := block{pack: int(d.number()), offset: d.number(), length: int(d.number()), size: int(d.number())}
		if d.data == nil || bl.pack >= len(packs) || bl.length == 0 || bl.length > 2*maxBlock || bl.size > 2*maxBlock || bl.size < bl.length ||
			bl.offset > packs[bl.pack].size-int64(bl.length) {
			return nil, errRecipe
		}
		r.blocks = append(r.blocks, bl)
	}
	n = d.items(sha256.Size+3, chunkMemory)
	r.chunks, r.places = make([]Chunk, 0, n), make([]place, 0, n)
	for range n {
		var c Chunk
		copy(c.Sum[:], d.bytes(sha256.Size))
		c.Size = int(d.number())
		p := place{int(d.number()), int(d.number())}
		if d.data == nil || p.block >= len(r.blocks) || c.Size == 0 || p.offset > r.blocks[p.block].size-c.Size {
			return nil, errRecipe
		}
		r.chunks, r.places = append(r.chunks, c), append(r.places, p)
	}
	skeleton := 0
	n = d.items(2, partMemory)
	r.parts = make([]part, 0, n)
	for range n {
		p := part{skeleton: int(d.number())}
		skeleton += p.skeleton
		n := d.items(1, indexMemory)
		p.content = make([]int, 0, n)
		for range n {
			c := int(d.number())
			if d.data == nil || c >= len(r.chunks) {
				return nil, errRecipe
			}
			p.content = append(p.content, c)
		}
		r.parts = append(r.parts, p)
	}
	r.skeleton = slices.Clip(d.bytes(d.count(1)))
	if d.data == nil || len(d.data) != 0 || skeleton != len(r.skeleton) {
		return nil, errRecipe
	}
	return r, nil
}

// inflate uncompresses the rest of a recipe's object. What the object says of its own size
// is not relied on: memory is taken as content comes.
func inflate(data []byte, limit int64) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(recipeWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var body bytes.Buffer
	if _, err := io.Copy(&body, io.LimitReader(z, limit+1)); err != nil {
		return nil, err
	}
	if int64(body.Len()) > limit {
		return nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	return body.Bytes(), nil
}

// What a thing of a recipe takes in memory, on a machine of 64 bits.
const (
	blockMemory = 4 * 8
	chunkMemory = sha256.Size + 8 + 2*8 // with its place
	partMemory  = 4 * 8
	indexMemory = 8
)

// A decoder reads numbers and bytes. Its data is nil once something was wrong.
type decoder struct {
	data []byte
	room int64 // how much memory items may take yet
}

// number reads a number that fits an int on every machine we run on.
func (d *decoder) number() int64 {
	n, k := binary.Uvarint(d.data)
	if k <= 0 || n > 1<<50 {
		d.data = nil
		return 0
	}
	d.data = d.data[k:]
	if d.data == nil {
		d.data = []byte{}
	}
	return int64(n)
}

// count reads the number of things that take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.number()
	if n > int64(len(d.data)/size) {
		d.data = nil
		return 0
	}
	return int(n)
}

// items is count for things that take up memory, so many bytes each.
func (d *decoder) items(size int, memory int64) int {
	n := d.count(size)
	if d.room -= int64(n) * memory; d.room < 0 {
		d.data = nil
		return 0
	}
	return n
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.data) {
		d.data = nil
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}
