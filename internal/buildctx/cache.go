package buildctx

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A statCache remembers something about files that look unchanged: same inode,
// size, modification and change time. The change time is the kernel's own, so that
// no tool can set it back.
//
// A file may be changed twice within the grain of those times, once before and once
// after it was read. So nothing is believed, or written down, of a file that had
// changed only just before it was looked at: git calls these entries racy.
type statCache struct {
	file  string
	began time.Time // before anything was looked at

	mu    sync.Mutex
	known map[uint64]record // by inode, from earlier runs
	seen  map[uint64]record // of this run, to be saved
	tree  summary           // the last one
	news  bool              // there is something that the file has not
}

// A summary is something about a whole tree.
type summary struct {
	print [sha256.Size]byte
	what  []byte // nil if there is nothing
}

type record struct {
	size, mtime, ctime int64
	plain              bool   // it has no extended attributes
	what               []byte // of its content; nil if nothing
}

// grain is how coarse the times of a file system may be: FAT's is 2 s.
const grain = 2500 * time.Millisecond

// cacheMagic begins a cache file; another format, or another way to make entries of
// files, has another name.
const cacheMagic = "portainer stat cache 3\n"

// openStatCache reads the cache for the tree at root. A cache that cannot be read
// is an empty one.
func openStatCache(dir, root string, now time.Time) *statCache {
	sum := sha256.Sum256([]byte(root))
	c := &statCache{
		file:  filepath.Join(dir, "contexts", hex.EncodeToString(sum[:16])),
		began: now,
		seen:  map[uint64]record{},
	}
	if data, err := os.ReadFile(c.file); err == nil {
		c.known, c.tree = decodeCache(data)
	}
	return c
}

// get returns what is known of a file: that it has no extended attributes, and what
// put was told of its content.
func (c *statCache) get(fi fs.FileInfo) (plain bool, what []byte) {
	ino, r, ok := recordOf(fi)
	if !ok {
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.known[ino]
	if !ok || k.size != r.size || k.mtime != r.mtime || k.ctime != r.ctime {
		return false, nil
	}
	c.seen[ino] = k
	return k.plain, k.what
}

// put notes something about the content of a file that was looked at after the
// cache was opened.
func (c *statCache) put(fi fs.FileInfo, what []byte) {
	c.note(fi, func(r *record) { r.what = what })
}

// putPlain notes that a file has no extended attributes.
func (c *statCache) putPlain(fi fs.FileInfo) {
	c.note(fi, func(r *record) { r.plain = true })
}

func (c *statCache) note(fi fs.FileInfo, change func(*record)) {
	ino, r, ok := recordOf(fi)
	if !ok || c.racy(fi) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, ok := c.seen[ino]; ok && was.size == r.size && was.mtime == r.mtime && was.ctime == r.ctime {
		r = was
	}
	change(&r)
	c.seen[ino] = r
	c.news = true
}

// racy reports whether a file may change, or has changed, without a trace.
func (c *statCache) racy(fi fs.FileInfo) bool {
	changed, ok := changeTime(fi)
	return !ok || changed.After(c.began.Add(-grain))
}

// whole returns what putWhole was told of the tree with this print.
func (c *statCache) whole(print [sha256.Size]byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tree.print != print {
		return nil
	}
	return c.tree.what
}

// putWhole notes something about a tree of which no file is racy.
func (c *statCache) putWhole(print [sha256.Size]byte, what []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tree.print != print || !bytes.Equal(c.tree.what, what) {
		c.tree, c.news = summary{print, what}, true
	}
}

func recordOf(fi fs.FileInfo) (uint64, record, bool) {
	id, _ := inodeOf(fi)
	ctime, ok := changeTime(fi)
	if !ok {
		return 0, record{}, false
	}
	return id.ino, record{size: fi.Size(), mtime: fi.ModTime().UnixNano(), ctime: ctime.UnixNano()}, true
}

// save writes the cache anew, whole or not at all.
func (c *statCache) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.news && len(c.seen) == len(c.known) {
		return nil
	}
	data := encodeCache(c.seen, c.tree)
	if err := os.MkdirAll(filepath.Dir(c.file), 0o700); err != nil {
		return fmt.Errorf("write the cache of build contexts: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.file), ".new-")
	if err != nil {
		return fmt.Errorf("write the cache of build contexts: %w", err)
	}
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), c.file)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write the cache of build contexts: %w", err)
	}
	return nil
}

// encodeCache returns the records with a checksum at the end.
func encodeCache(records map[uint64]record, tree summary) []byte {
	b := append([]byte(cacheMagic), tree.print[:]...)
	b = binary.AppendUvarint(b, uint64(len(tree.what)))
	b = append(b, tree.what...)
	for _, ino := range slices.Sorted(maps.Keys(records)) {
		r := records[ino]
		b = binary.AppendUvarint(b, ino)
		b = binary.AppendVarint(b, r.size)
		b = binary.AppendVarint(b, r.mtime)
		b = binary.AppendVarint(b, r.ctime)
		plain := byte(0)
		if r.plain {
			plain = 1
		}
		b = append(b, plain)
		b = binary.AppendUvarint(b, uint64(len(r.what)))
		b = append(b, r.what...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeCache reads what encodeCache wrote; anything else is nothing.
func decodeCache(data []byte) (map[uint64]record, summary) {
	var tree summary
	if len(data) < len(cacheMagic)+2*sha256.Size || !bytes.HasPrefix(data, []byte(cacheMagic)) {
		return nil, summary{}
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, summary{}
	}
	records := map[uint64]record{}
	r := bytes.NewReader(body[len(cacheMagic):])
	_, _ = r.Read(tree.print[:]) // it is there
	var ok bool
	if tree.what, ok = readBytes(r); !ok {
		return nil, summary{}
	}
	for r.Len() > 0 {
		ino, _ := binary.ReadUvarint(r)
		var rec record
		rec.size, _ = binary.ReadVarint(r)
		rec.mtime, _ = binary.ReadVarint(r)
		rec.ctime, _ = binary.ReadVarint(r)
		plain, _ := r.ReadByte()
		rec.plain = plain == 1
		if rec.what, ok = readBytes(r); !ok {
			return nil, summary{}
		}
		records[ino] = rec
	}
	return records, tree
}

// readBytes reads bytes after their number; nil if there are none.
func readBytes(r *bytes.Reader) (b []byte, ok bool) {
	n, err := binary.ReadUvarint(r)
	if err != nil || n > uint64(r.Len()) {
		return nil, false
	}
	if n > 0 {
		b = make([]byte, n)
		_, _ = r.Read(b) // n bytes are there
	}
	return b, true
}
