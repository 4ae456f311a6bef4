package staging

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"
)

// recipeOf takes a tar stream apart, and checks nothing.
func recipeOf(t testing.TB, data []byte, contents map[[sha256.Size]byte][]byte) *recipe {
	t.Helper()
	b := newBuilder()
	rec := &recorder{r: bytes.NewReader(data), to: &b.r.skeleton}
	for tr := tar.NewReader(rec); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if h.Size == 0 {
			continue
		}
		rec.paused = true
		content, err := io.ReadAll(tr)
		require.NoError(t, err)
		rec.paused = false
		c := Chunk{sha256.Sum256(content), len(content)}
		contents[c.Sum] = content
		b.content([]Chunk{c})
	}
	_, err := io.Copy(io.Discard, rec)
	require.NoError(t, err)
	return b.finish()
}

func tarWith(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// TestHostileRecipes has contexts that no Store of ours would stage, each with its
// right digest.
func TestHostileRecipes(t *testing.T) {
	reg := func(name string, size int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
	}
	good := tarWith(t, reg("a", 600), &tar.Header{Typeflag: tar.TypeDir, Name: "d/"}, reg("d/b", 0), reg("d/c", 5))
	contents := map[[sha256.Size]byte][]byte{}
	require.NoError(t, recipeOf(t, good, contents).checkStream())

	for name, data := range map[string][]byte{
		"a way out":             tarWith(t, reg("../../etc/cron.d/x", 5)),
		"an absolute path":      tarWith(t, reg("/etc/passwd", 5)),
		"a hidden way out":      tarWith(t, reg("a/../../b", 0)),
		"a hard link out":       tarWith(t, &tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "../../etc/shadow"}),
		"an absolute hard link": tarWith(t, &tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "/etc/shadow"}),
		"a global header":       tarWith(t, &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "/etc/x"}}, reg("a", 1)),
		"no end marks":          good[:len(good)-1024],
		"something at the end":  append(bytes.Clone(good), "more"...),
	} {
		require.Error(t, recipeOf(t, data, contents).checkStream(), name)
	}
	for name, change := range map[string]func(*recipe){
		"headers out of chunks":     func(r *recipe) { r.parts[0].skeleton -= 512; r.parts[1].skeleton += 512 },
		"content in two places":     func(r *recipe) { r.parts[1].content = append(r.parts[1].content, 0) },
		"content that is too short": func(r *recipe) { r.chunks[0].Size = 599 },
		"content that is missing":   func(r *recipe) { r.parts[0].content = nil },
		"content at the end":        func(r *recipe) { r.parts[len(r.parts)-1].content = []int{0} },
	} {
		r := recipeOf(t, good, contents)
		change(r)
		require.Error(t, r.checkStream(), name)
	}

	// None of it comes through Open, whose digest is right.
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := New(bucket)
	bad := tarWith(t, reg("../x", 5))
	r := recipeOf(t, bad, contents)
	data := contents[r.chunks[0].Sum]
	pack := packRef{sha256.Sum256(data), int64(len(data))}
	r.packs, r.blocks, r.places = []packRef{pack}, []block{{0, 0, len(data), len(data)}}, []place{{0, 0}}
	require.NoError(t, bucket.WriteAll(t.Context(), pack.key(), data, nil))
	object, err := r.encode()
	require.NoError(t, err)
	ref := Ref{Key: ContextPrefix + hexOf(r.digest()), Size: int64(len(object)), Digest: r.digest()}
	require.NoError(t, bucket.WriteAll(t.Context(), ref.Key, object, nil))
	_, err = s.Open(t.Context(), ref)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "the path leaves the context")
}

// FuzzCheckStream checks that what passes is a tar stream of harmless names, whatever
// the chunks hold.
func FuzzCheckStream(f *testing.F) {
	for _, r := range []*recipe{
		sampleRecipe(),
		recipeOf(f, tarWith(f, &tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("d/", 120) + "f", Size: 700, Format: tar.FormatPAX}), map[[32]byte][]byte{}),
		recipeOf(f, tarWith(f, &tar.Header{Typeflag: tar.TypeReg, Name: "../f", Size: 7}), map[[32]byte][]byte{}),
	} {
		if r.places == nil {
			r.packs, r.blocks, r.places = []packRef{{size: 700}}, []block{{0, 0, 700, 700}}, []place{{0, 0}}
		}
		data, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, byte(0))
	}
	f.Fuzz(func(t *testing.T, data []byte, fill byte) {
		r, err := decodeRecipe(data)
		if err != nil || r.tarSize() > 1<<20 || r.checkStream() != nil {
			return
		}
		var stream []byte
		skeleton := r.skeleton
		for _, p := range r.parts {
			stream = append(stream, skeleton[:p.skeleton]...)
			skeleton = skeleton[p.skeleton:]
			for _, c := range p.content {
				stream = append(stream, bytes.Repeat([]byte{fill}, r.chunks[c].Size)...)
			}
		}
		for tr := tar.NewReader(bytes.NewReader(stream)); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{h.Name, h.Linkname} {
				if h.Typeflag == tar.TypeSymlink && name == h.Linkname {
					continue
				}
				if clean := path.Clean(name); path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") {
					t.Fatalf("%q leaves the context", name)
				}
			}
		}
	})
}

// FuzzTamper changes a byte of, or cuts, one of the objects of a staged context: it is
// read whole and right, or not at all.
func FuzzTamper(f *testing.F) {
	bucket := memblob.OpenBucket(nil)
	f.Cleanup(func() { bucket.Close() })
	s := New(bucket)
	want := tarWith(f, &tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 3000}, &tar.Header{Typeflag: tar.TypeReg, Name: "b", Size: 100})
	ref, _, err := s.PutContext(f.Context(), func(_ context.Context, w io.Writer) error { _, err := w.Write(want); return err })
	if err != nil {
		f.Fatal(err)
	}
	packs, err := s.packsOf(f.Context(), ref.Key)
	if err != nil {
		f.Fatal(err)
	}
	objects := []string{ref.Key, packs[0].key()}
	var originals [2][]byte
	for i, key := range objects {
		if originals[i], err = bucket.ReadAll(f.Context(), key); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(false, uint16(0), byte(1), false)
	f.Add(false, uint16(60), byte(0x80), false)
	f.Add(true, uint16(3), byte(1), false)
	f.Add(true, uint16(8), byte(0), true)
	f.Fuzz(func(t *testing.T, inPack bool, at uint16, flip byte, cutThere bool) {
		i := 0
		if inPack {
			i = 1
		}
		bad := bytes.Clone(originals[i])
		n := int(at) % len(bad)
		if bad[n] ^= flip; cutThere {
			bad = bad[:n]
		}
		if err := bucket.WriteAll(t.Context(), objects[i], bad, nil); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := bucket.WriteAll(t.Context(), objects[i], originals[i], nil); err != nil {
				t.Fatal(err)
			}
		}()
		r, err := s.Open(t.Context(), ref)
		if err != nil {
			return
		}
		got, err := io.ReadAll(r)
		if cerr := r.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil && !bytes.Equal(want, got) {
			t.Fatalf("%q became %q", want, got)
		}
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("%q is not the beginning of %q", got, want)
		}
	})
}
