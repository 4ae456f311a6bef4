package buildctx

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io/fs"
	"maps"
	"slices"
)

// A printer makes the print of a tree: all that its headers are made of, and of
// files with content what the stat cache goes by. While the print is the same, so is
// the tree, but for files that are racy.
type printer struct {
	h   hash.Hash
	buf []byte
}

func newPrinter() *printer { return &printer{h: sha256.New()} }

// add takes the next entry; info is that of a file with content.
func (p *printer) add(h *tar.Header, info fs.FileInfo) {
	b := append(p.buf[:0], h.Typeflag)
	b = appendText(b, h.Name)
	b = appendText(b, h.Linkname)
	for _, n := range []int64{h.Mode, h.Size, h.ModTime.Unix(), int64(h.ModTime.Nanosecond()), h.Devmajor, h.Devminor} {
		b = binary.AppendVarint(b, n)
	}
	b = binary.AppendUvarint(b, uint64(len(h.PAXRecords)))
	if len(h.PAXRecords) > 0 {
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			b = appendText(b, k)
			b = appendText(b, h.PAXRecords[k])
		}
	}
	if info != nil {
		ino, r, _ := recordOf(info) // a tree with one that has none is fresh
		b = binary.AppendUvarint(b, ino)
		b = binary.AppendVarint(b, r.ctime)
	}
	p.buf = b
	p.h.Write(b)
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func (p *printer) sum() (sum [sha256.Size]byte) {
	p.h.Sum(sum[:0])
	return sum
}
