package staging

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// digestVersion begins what is hashed: another way of hashing gives other digests.
const digestVersion = "portainer build context 1\n"

// Digest returns the digest, "sha256:<hex>", of what a tar stream holds: paths,
// types, modes, link targets, extended attributes and contents, in the order of the
// stream. Times and owners' names do not count, so that two checkouts of the same
// files are the same context. It reads r to the end of the stream and fails on a
// stream that is cut short, and on one with names that leave its root.
func Digest(r io.Reader) (string, error) {
	d := newDigester()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("read the context: %w", err)
		}
		if err := CheckHeader(h); err != nil {
			return "", err
		}
		if err := d.add(h, tr); err != nil {
			return "", fmt.Errorf("read the context: %s: %w", h.Name, err)
		}
	}
	if err := drain(r); err != nil {
		return "", fmt.Errorf("read the context: %w", err)
	}
	return d.sum(), nil
}

// drain reads the padding that may follow a tar stream's end marks: a writer at the
// other end of a pipe wants it read. Anything but zeroes there is not padding.
func drain(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return errors.New("something follows the end of the tar stream")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
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

// A digester hashes the entries of a context.
type digester struct{ h hash.Hash }

func newDigester() *digester {
	d := &digester{sha256.New()}
	io.WriteString(d.h, digestVersion)
	return d
}

// add hashes one entry. The content of a file goes in as its own digest, so that a
// known file need not be read.
func (d *digester) add(h *tar.Header, content io.Reader) error {
	var sum [sha256.Size]byte
	if h.Typeflag == tar.TypeReg {
		c := sha256.New()
		n, err := io.Copy(c, content)
		if err != nil {
			return err
		}
		if n != h.Size {
			return io.ErrUnexpectedEOF
		}
		c.Sum(sum[:0])
	}
	d.addHashed(h, sum)
	return nil
}

// addHashed hashes one entry whose content has the digest sum.
func (d *digester) addHashed(h *tar.Header, sum [sha256.Size]byte) {
	d.field(path.Clean(h.Name))
	d.number(int64(h.Typeflag))
	d.number(h.Mode)
	d.number(int64(h.Uid))
	d.number(int64(h.Gid))
	d.field(h.Linkname)
	d.number(h.Devmajor)
	d.number(h.Devminor)
	attrs := slices.DeleteFunc(slices.Sorted(maps.Keys(h.PAXRecords)), func(k string) bool { return !strings.HasPrefix(k, "SCHILY.xattr.") })
	d.number(int64(len(attrs)))
	for _, k := range attrs {
		d.field(k)
		d.field(h.PAXRecords[k])
	}
	if h.Typeflag == tar.TypeReg {
		d.number(h.Size)
		d.h.Write(sum[:])
	}
}

// field hashes a string in a way that no other sequence of fields has.
func (d *digester) field(s string) {
	d.number(int64(len(s)))
	io.WriteString(d.h, s)
}

func (d *digester) number(n int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	d.h.Write(b[:])
}

func (d *digester) sum() string { return "sha256:" + hex.EncodeToString(d.h.Sum(nil)) }
