package logrelay

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codingZstd is the one coding there is, besides none.
const codingZstd = "zstd"

// An encoder compresses. The zero value is ready to use, by one goroutine.
type encoder struct{ z *zstd.Encoder }

// fit puts the beginning of plain into c, as much of it as one message carries.
func (e *encoder) fit(c *Chunk, plain []byte) error {
	if e.z == nil {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxPlain))
		if err != nil {
			return fmt.Errorf("compress the log: %w", err)
		}
		e.z = z
	}
	for plain = plain[:min(len(plain), maxPlain)]; ; plain = plain[:len(plain)/2] {
		packed := e.z.EncodeAll(plain, nil)
		switch {
		case len(packed) < len(plain) && len(packed) <= MaxPayload:
			c.Coding, c.payload = codingZstd, packed
			return nil
		case len(plain) <= MaxPayload:
			c.Coding, c.payload = "", plain
			return nil
		}
	}
}

// A decoder undoes what an encoder does. The zero value is ready to use, by one
// goroutine.
type decoder struct{ z *zstd.Decoder }

// open returns the log in c. It may alias c.
func (d *decoder) open(c Chunk) ([]byte, error) {
	switch c.Coding {
	case "":
		return c.payload, nil
	case codingZstd:
	default:
		return nil, fmt.Errorf("log in an unknown coding %q", c.Coding)
	}
	if d.z == nil {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPlain))
		if err != nil {
			return nil, fmt.Errorf("decompress the log: %w", err)
		}
		d.z = z
	}
	plain, err := d.z.DecodeAll(c.payload, nil)
	if err != nil {
		return nil, fmt.Errorf("decompress the log: %w", err)
	}
	return plain, nil
}
