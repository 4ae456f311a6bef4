package staging

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func sampleRecipe() *recipe {
	return &recipe{
		skeleton: []byte("header padding header end"),
		parts:    []part{{6, []int{0, 1}}, {8, []int{1}}, {11, nil}},
		chunks:   []Chunk{{sha256.Sum256([]byte("a")), 5}, {sha256.Sum256([]byte("b")), 7}},
		packs:    []packRef{{sha256.Sum256([]byte("p")), 100}},
		blocks:   []block{{0, 0, 10, 12}},
		places:   []place{{0, 0}, {0, 5}},
	}
}

func TestRecipeRoundTrip(t *testing.T) {
	r := sampleRecipe()
	data, err := r.encode()
	require.NoError(t, err)
	got, err := decodeRecipe(data)
	require.NoError(t, err)
	got.parts[2].content = nil // an empty one, decoded
	require.Equal(t, r, got)
	require.Equal(t, r.digest(), got.digest())
	require.Equal(t, int64(25+5+7+7), got.tarSize())

	// Where the chunks lie does not count.
	got.blocks[0].offset = 50
	require.Equal(t, r.digest(), got.digest())
	got.parts[0].skeleton, got.parts[1].skeleton = 7, 7
	require.NotEqual(t, r.digest(), got.digest())
}

// TestLongRecipe has one that is longer than the window with which it is compressed.
func TestLongRecipe(t *testing.T) {
	r := sampleRecipe()
	r.skeleton = make([]byte, 2*recipeWindow+1)
	rand.NewChaCha8([32]byte{8}).Read(r.skeleton)
	r.parts[2].skeleton = len(r.skeleton) - 14
	data, err := r.encode()
	require.NoError(t, err)
	got, err := decodeRecipe(data)
	require.NoError(t, err)
	require.Equal(t, r.digest(), got.digest())
}

func TestRecipeRefusesLies(t *testing.T) {
	for name, lie := range map[string]func(*recipe){
		"pack":             func(r *recipe) { r.blocks[0].pack = 1 },
		"block":            func(r *recipe) { r.places[0].block = 1 },
		"beyond the pack":  func(r *recipe) { r.blocks[0].offset = 91 },
		"beyond the block": func(r *recipe) { r.places[1].offset = 6 },
		"chunk":            func(r *recipe) { r.parts[0].content[0] = 2 },
		"skeleton":         func(r *recipe) { r.parts[0].skeleton = 5 },
		"huge block":       func(r *recipe) { r.blocks[0].size = 1 << 40 },
		"grown block":      func(r *recipe) { r.blocks[0].length = 13 },
		"empty chunk":      func(r *recipe) { r.chunks[0].Size = 0 },
	} {
		r := sampleRecipe()
		lie(r)
		data, err := r.encode()
		require.NoError(t, err)
		_, err = decodeRecipe(data)
		require.ErrorIs(t, err, errRecipe, name)
	}
}

// TestHostileRecipeTakesNoMemory checks that what is small in the bucket is not made large
// by what it says of itself.
func TestHostileRecipeTakesNoMemory(t *testing.T) {
	head := append([]byte(recipeMagic), 0)
	compressed := func(body []byte) []byte {
		z, err := zstd.NewWriter(nil, zstd.WithWindowSize(recipeWindow))
		require.NoError(t, err)
		defer z.Close()
		return z.EncodeAll(body, bytes.Clone(head))
	}
	// A frame with an empty block (RFC 8878, 3.1.1) that is said to have 1 GiB.
	const magic, size = "\x28\xb5\x2f\xfd", "\xff\xff\xff\x3f\x00\x00\x00\x00"
	const many = 1 << 20
	parts := append(binary.AppendUvarint([]byte{0, 0}, many), make([]byte, 2*many)...)
	for _, tt := range []struct {
		name  string
		data  []byte
		limit int64
	}{
		{"claimed size", append(bytes.Clone(head), magic+"\xc0\x68"+size+"\x01\x00\x00"...), maxRecipe},
		{"claimed window", append(bytes.Clone(head), magic+"\xe0"+size+"\x01\x00\x00"...), maxRecipe},
		{"more than the limit", compressed(make([]byte, 64<<20)), 1 << 20},
		{"parts of nothing", compressed(append(parts, 0)), 16 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := decodeRecipeWithin(tt.data, tt.limit)
			runtime.ReadMemStats(&after)
			require.ErrorIs(t, err, errRecipe)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(96<<20))
		})
	}
}

func FuzzDecodeRecipe(f *testing.F) {
	data, err := sampleRecipe().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(recipeMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecipe(data)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := decodeRecipe(again)
		if err != nil || same.digest() != r.digest() {
			t.Fatalf("%v: it changed when it was written", err)
		}
	})
}

func TestChunksDependOnContentOnly(t *testing.T) {
	data := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	chunks := func(b []byte) (all []Chunk) {
		var c chunker
		require.NoError(t, c.each(bytes.NewReader(b), int64(len(b)), func(ch Chunk, piece []byte) error {
			require.Equal(t, sha256.Sum256(piece), ch.Sum)
			require.LessOrEqual(t, ch.Size, maxChunk)
			all = append(all, ch)
			return nil
		}))
		return all
	}
	one := chunks(data)
	require.Greater(t, len(one), 8)
	require.Less(t, len(one), 40)
	two := chunks(append([]byte("inserted"), data...))
	shared := 0
	for _, c := range one {
		for _, d := range two {
			if c == d {
				shared++
			}
		}
	}
	require.GreaterOrEqual(t, shared, len(one)-2)
	require.Equal(t, one, DecodeChunks(EncodeChunks(one), int64(len(data))))
	require.Nil(t, DecodeChunks(EncodeChunks(one), int64(len(data))+1))
	require.Nil(t, DecodeChunks([]byte("x"), 1))
}

// FuzzReadTar checks that what is taken apart can be put together again.
func FuzzReadTar(f *testing.F) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: strings.Repeat("d/", 120) + "f", Size: 5, Format: tar.FormatPAX},
		{Typeflag: tar.TypeReg, Name: "g", Size: 600},
		{Typeflag: tar.TypeLink, Name: "h", Linkname: "g"},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:2048])
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBuilder()
		var chunks []Chunk
		contents := map[[32]byte][]byte{}
		err := readTar(bytes.NewReader(data), &b.r.skeleton, func() { b.content(chunks); chunks = nil }, func(c Chunk, piece []byte) error {
			chunks = append(chunks, c)
			contents[c.Sum] = bytes.Clone(piece)
			return nil
		})
		if err != nil {
			return
		}
		r := b.finish()
		if err := r.checkStream(); err != nil {
			t.Fatalf("what may be staged may not be read: %v", err)
		}
		var again []byte
		skeleton := r.skeleton
		for _, p := range r.parts {
			again = append(again, skeleton[:p.skeleton]...)
			skeleton = skeleton[p.skeleton:]
			for _, c := range p.content {
				again = append(again, contents[r.chunks[c].Sum]...)
			}
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("%q became %q", data, again)
		}
	})
}
