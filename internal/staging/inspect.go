package staging

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// checkStream returns an error unless the recipe makes a tar stream that may have been
// staged: every header is part of the skeleton, where the chunks cannot change it, all
// that comes out of chunks is the content of a file, and CheckHeader has nothing
// against any entry. So an agent need not trust whoever made the recipe.
func (r *recipe) checkStream() error {
	v := &inspector{r: r}
	tr := tar.NewReader(v)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := CheckHeader(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			if err := v.enter(h.Size); err != nil {
				return fmt.Errorf("context entry %q: %w", h.Name, err)
			}
		}
	}
	if err := readPadding(v); err != nil {
		return err
	}
	if !bytes.HasSuffix(r.skeleton, endMarks[:]) {
		return errors.New("it has no end marks")
	}
	return nil
}

var errNoContent = errors.New("its content is not where its header says")

// An inspector reads the stream of a recipe without its chunks: they can only be
// passed over, and only where a file's content is expected.
type inspector struct {
	r        *recipe
	part     int   // the present one
	skeleton int   // where in the skeleton
	run      int   // bytes of the present part's skeleton that were read
	content  int64 // bytes of content that may be passed over
	pos      int64 // in the stream
}

// Read implements io.Reader.
func (v *inspector) Read(b []byte) (int, error) {
	if v.content > 0 {
		// A tar reader passes over all of a content but its last bytes.
		n := int(min(v.content, int64(len(b))))
		clear(b[:n])
		v.content -= int64(n)
		v.pos += int64(n)
		return n, nil
	}
	for v.part < len(v.r.parts) {
		p := v.r.parts[v.part]
		if left := p.skeleton - v.run; left > 0 {
			n := copy(b, v.r.skeleton[v.skeleton:v.skeleton+left])
			v.skeleton += n
			v.run += n
			v.pos += int64(n)
			return n, nil
		}
		if len(p.content) > 0 {
			return 0, errNoContent
		}
		v.part, v.run = v.part+1, 0
	}
	return 0, io.EOF
}

// Seek implements io.Seeker, as far as a tar reader needs it to pass over a content.
func (v *inspector) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 || offset > v.content {
		return 0, errors.New("the inspector can only pass over contents")
	}
	v.content -= offset
	v.pos += offset
	return v.pos, nil
}

// enter expects the content of a file next.
func (v *inspector) enter(size int64) error {
	for v.part < len(v.r.parts) && v.run == v.r.parts[v.part].skeleton && len(v.r.parts[v.part].content) == 0 {
		v.part, v.run = v.part+1, 0
	}
	if v.part == len(v.r.parts) || v.run < v.r.parts[v.part].skeleton {
		return errNoContent
	}
	var have int64
	for _, c := range v.r.parts[v.part].content {
		have += int64(v.r.chunks[c].Size)
	}
	if have != size {
		return errNoContent
	}
	v.part, v.run, v.content = v.part+1, 0, size
	return nil
}
