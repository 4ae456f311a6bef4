package staging

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
)

// Files up to wholeFile are one chunk. Larger ones are cut where their content
// says so (a gear hash, as in FastCDC), so that an insertion moves no more than
// the chunks around it.
const (
	wholeFile = 1 << 20
	minChunk  = 256 << 10
	maxChunk  = 4 << 20
	// cutBits of the hash are zero at a cut: one byte in 2^20 on the average.
	cutMask = uint64(1<<20-1) << 44
)

// A Chunk is a piece of a file's content.
type Chunk struct {
	Sum  [sha256.Size]byte
	Size int
}

// gear spreads the bits of a byte over a word. It is part of the format: other
// numbers would cut in other places.
var gear = func() (table [256]uint64) {
	x := uint64(0x706f727461696e65)
	for i := range table {
		// splitmix64
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		table[i] = z ^ z>>31
	}
	return table
}()

// cut returns how long the first chunk of data is. data must hold maxChunk bytes
// or everything that is left.
func cut(data []byte) int {
	if len(data) <= minChunk {
		return len(data)
	}
	end := min(len(data), maxChunk)
	var h uint64
	// A byte's influence is gone after 64 more: it suffices to begin shortly
	// before the first place where a cut may be.
	for i := minChunk - 64; i < minChunk; i++ {
		h = h<<1 + gear[data[i]]
	}
	for i := minChunk; i < end; i++ {
		h = h<<1 + gear[data[i]]
		if h&cutMask == 0 {
			return i + 1
		}
	}
	return end
}

// A chunker cuts contents into chunks. Its buffer serves one content after the
// other.
type chunker struct{ buf []byte }

// each reads size bytes from r and calls fn for each chunk of them. The data is
// valid during the call. It fails with io.ErrUnexpectedEOF if there is less.
func (c *chunker) each(r io.Reader, size int64, fn func(Chunk, []byte) error) error {
	if size <= wholeFile {
		data, err := c.fill(r, 0, int(size))
		if err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
		return fn(Chunk{sha256.Sum256(data), len(data)}, data)
	}
	have := 0
	for left := size; left > 0; {
		want := int(min(left, maxChunk))
		data, err := c.fill(r, have, want)
		if err != nil {
			return err
		}
		n := cut(data)
		if err := fn(Chunk{sha256.Sum256(data[:n]), n}, data[:n]); err != nil {
			return err
		}
		have = copy(c.buf, data[n:])
		left -= int64(n)
	}
	return nil
}

// fill reads until the buffer holds want bytes, of which have are there.
func (c *chunker) fill(r io.Reader, have, want int) ([]byte, error) {
	if len(c.buf) < want {
		grown := make([]byte, max(want, wholeFile))
		copy(grown, c.buf[:have])
		c.buf = grown
	}
	if _, err := io.ReadFull(r, c.buf[have:want]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return c.buf[:want], nil
}

// EncodeChunks returns chunks as bytes, to be kept until the same file is seen
// again.
func EncodeChunks(chunks []Chunk) []byte {
	b := make([]byte, 0, len(chunks)*(sha256.Size+3))
	for _, c := range chunks {
		b = append(b, c.Sum[:]...)
		b = binary.AppendUvarint(b, uint64(c.Size))
	}
	return b
}

// DecodeChunks reads what EncodeChunks wrote of a file of that size. It returns
// nil if it is anything else.
func DecodeChunks(b []byte, size int64) []Chunk {
	var chunks []Chunk
	for len(b) > 0 {
		if len(b) < sha256.Size {
			return nil
		}
		c := Chunk{Sum: [sha256.Size]byte(b)}
		n, k := binary.Uvarint(b[sha256.Size:])
		if k <= 0 || n == 0 || n > maxChunk {
			return nil
		}
		c.Size = int(n)
		b = b[sha256.Size+k:]
		chunks = append(chunks, c)
		size -= int64(n)
	}
	if size != 0 {
		return nil
	}
	return chunks
}
