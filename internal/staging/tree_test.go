package staging_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

// treeOf returns the files as a tree, whose reads it counts.
func treeOf(reads *atomic.Int64, files ...file) staging.Tree {
	var tree staging.Tree
	for _, f := range files {
		tree = append(tree, staging.Entry{
			Header: &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content))},
			Open: func() (io.ReadCloser, error) {
				reads.Add(1)
				return io.NopCloser(strings.NewReader(f.content)), nil
			},
		})
	}
	return tree
}

// sources returns n files of text, and some that do not compress.
func sources(seed uint64, n, size int) []file {
	r := rand.New(rand.NewPCG(seed, 1))
	var files []file
	for i := range n {
		var b strings.Builder
		for b.Len() < size {
			if i%7 == 0 {
				b.WriteByte(byte(r.Uint32()))
			} else {
				fmt.Fprintf(&b, "line %d of %d: %x\n", b.Len(), i, r.Uint32N(1000))
			}
		}
		files = append(files, file{fmt.Sprintf("f%04d", i), b.String()})
	}
	return files
}

func TestPutOfATreeIsPutContext(t *testing.T) {
	files := append(sources(1, 20, 10_000), file{"empty", ""}, file{"big", random(9 << 20)}, file{"block", random(512)})
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	ref, stats, err := s.Put(t.Context(), treeOf(&reads, files...), nil)
	require.NoError(t, err)
	require.True(t, stats.Uploaded)
	got, err := readAll(t, s, ref)
	require.NoError(t, err)
	require.Equal(t, tarOf(t, files...), got)
	require.Equal(t, int64(len(got)), stats.TarSize)
	again, stats, err := s.PutContext(t.Context(), writes(got))
	require.NoError(t, err)
	require.Equal(t, ref, again)
	require.False(t, stats.Uploaded)
}

func TestPutOfATreeReadsNothingThatIsKnown(t *testing.T) {
	files := append(sources(1, 50, 3_000), file{"big", random(5 << 20)})
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	known := map[string][]byte{}
	tree := treeOf(&reads, files...)
	for i := range tree {
		tree[i].Learned = func(c []staging.Chunk) { known[tree[i].Header.Name] = staging.EncodeChunks(c) }
	}
	var learned atomic.Int64
	for i := range tree {
		inner := tree[i].Learned
		tree[i].Learned = func(c []staging.Chunk) {
			for !learned.CompareAndSwap(0, 1) { // one writer of the map at a time
			}
			inner(c)
			learned.Store(0)
		}
	}
	ref, _, err := s.Put(t.Context(), tree, nil)
	require.NoError(t, err)
	require.Len(t, known, len(files))

	reads.Store(0)
	tree = treeOf(&reads, files...)
	for i := range tree {
		tree[i].Chunks = staging.DecodeChunks(known[tree[i].Header.Name], tree[i].Header.Size)
		require.NotNil(t, tree[i].Chunks)
	}
	again, stats, err := s.Put(t.Context(), tree, nil)
	require.NoError(t, err)
	require.Equal(t, ref, again)
	require.Zero(t, reads.Load())
	require.Zero(t, stats.Sent)

	require.NoError(t, s.Delete(t.Context(), ref))
	again, _, err = s.Put(t.Context(), tree, nil)
	require.NoError(t, err)
	require.Equal(t, ref.Digest, again.Digest)
	require.Equal(t, int64(len(files)), reads.Load(), "what must be sent again is read again")
	got, err := readAll(t, s, again)
	require.NoError(t, err)
	require.Equal(t, tarOf(t, files...), got)
}

func TestPutOfATreeWithWrongKnowledge(t *testing.T) {
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	files := []file{{"a", "hello"}, {"b", "world"}}
	other := treeOf(&reads, file{"a", "other"})
	_, _, err := s.Put(t.Context(), other, nil)
	require.NoError(t, err)
	before := keys(t, bucket)
	tree := treeOf(&reads, files...)
	tree[1].Chunks = []staging.Chunk{{Sum: [32]byte{1}, Size: 5}}
	_, _, err = s.Put(t.Context(), tree, nil)
	require.ErrorIs(t, err, staging.ErrChanged)
	require.Equal(t, before, keys(t, bucket))
}

// objects returns the sizes of the objects below a prefix.
func objects(t *testing.T, b *blob.Bucket, prefix string) []int64 {
	t.Helper()
	var sizes []int64
	for it := b.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := it.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return sizes
		}
		require.NoError(t, err)
		sizes = append(sizes, o.Size)
	}
}

func TestOneChangedFileSendsLittle(t *testing.T) {
	files := sources(1, 300, 20_000) // 6 MB
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	first, stats, err := staging.New(bucket).Put(t.Context(), treeOf(&reads, files...), nil)
	require.NoError(t, err)
	whole := stats.Sent
	packs := len(objects(t, bucket, staging.PackPrefix))
	require.LessOrEqual(t, packs, 2)

	last := first
	for i := range 12 {
		k := (i * 37) % len(files)
		files = slices.Clone(files)
		files[k].content = fmt.Sprintf("changed %d\n%s", i, files[k].content)
		s := staging.New(bucket)
		ref, stats, err := s.Put(t.Context(), treeOf(&reads, files...), nil)
		require.NoError(t, err)
		require.True(t, stats.Uploaded)
		require.Less(t, stats.Sent*50, whole, "more than 2%% were sent after change %d", i)
		got, err := readAll(t, s, ref)
		require.NoError(t, err)
		require.True(t, bytes.Equal(tarOf(t, files...), got))
		last = ref
	}
	// The first context still is what it was, and the packs of all are few.
	_, err = readAll(t, staging.New(bucket), first)
	require.NoError(t, err)
	require.LessOrEqual(t, len(objects(t, bucket, staging.PackPrefix)), packs+12)

	// An insertion in a large file moves little.
	big := sources(2, 1, 8<<20)
	ref, stats, err := staging.New(bucket).Put(t.Context(), treeOf(&reads, big...), nil)
	require.NoError(t, err)
	all := stats.Sent
	big[0].content = big[0].content[:3<<20] + "inserted" + big[0].content[3<<20:]
	changed, stats, err := staging.New(bucket).Put(t.Context(), treeOf(&reads, big...), nil)
	require.NoError(t, err)
	require.Less(t, stats.Sent*2, all)
	require.NotEqual(t, ref, changed)
	got, err := readAll(t, staging.New(bucket), changed)
	require.NoError(t, err)
	require.True(t, bytes.Equal(tarOf(t, big...), got))

	removed, err := staging.New(bucket).GC(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, removed, 15)
	require.Empty(t, keys(t, bucket))
	_, err = staging.New(bucket).Open(t.Context(), last)
	require.ErrorIs(t, err, staging.ErrGone)
}

func TestDeleteKeepsSharedPacks(t *testing.T) {
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	one, two := sources(1, 40, 10_000), sources(1, 40, 10_000)
	two[3].content += "!"
	s := staging.New(bucket)
	a, _, err := s.Put(t.Context(), treeOf(&reads, one...), nil)
	require.NoError(t, err)
	b, _, err := s.Put(t.Context(), treeOf(&reads, two...), nil)
	require.NoError(t, err)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 2)
	for _, o := range list {
		require.Equal(t, 1, o.Leases)
		require.False(t, o.Pending)
		require.Greater(t, o.Size, int64(50_000))
	}
	require.NoError(t, s.Delete(t.Context(), a))
	got, err := readAll(t, s, b)
	require.NoError(t, err)
	require.Equal(t, tarOf(t, two...), got)
	require.NoError(t, s.Delete(t.Context(), b))
	require.Empty(t, keys(t, bucket))
}

func TestGCKeepsWhatIsUsed(t *testing.T) {
	var reads atomic.Int64
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s := staging.New(bucket)
	ref, _, err := s.Put(t.Context(), treeOf(&reads, sources(1, 5, 1000)...), nil)
	require.NoError(t, err)
	removed, err := s.GC(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Empty(t, removed)
	_, err = readAll(t, s, ref)
	require.NoError(t, err)

	// A pack that no recipe knows is removed, but not while someone uploads.
	orphan := staging.PackPrefix + strings.Repeat("0", 64)
	require.NoError(t, bucket.WriteAll(t.Context(), orphan, []byte("x"), nil))
	lease := "portainer/leases/" + strings.Repeat("1", 64) + "/someone"
	require.NoError(t, bucket.WriteAll(t.Context(), lease, []byte("{}"), nil))
	other, _, err := s.Put(t.Context(), treeOf(&reads, sources(2, 1, 1000)...), nil)
	require.NoError(t, err)
	require.NoError(t, s.Delete(t.Context(), other))
	require.Contains(t, keys(t, bucket), orphan)
	require.NoError(t, bucket.Delete(t.Context(), lease))
	_, err = s.GC(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Contains(t, keys(t, bucket), orphan, "it is new: someone may go on with what was killed")
	require.NoError(t, s.Delete(t.Context(), other))
	require.NotContains(t, keys(t, bucket), orphan)
}

// TestManyStoresOnOneBucket has several stores put, read and delete contexts that
// share files. No reader may ever miss anything of a context that it staged.
func TestManyStoresOnOneBucket(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	base := sources(1, 12, 2_000)
	run := func(seed uint64) error {
		r := rand.New(rand.NewPCG(seed, 2))
		s := staging.New(bucket)
		for range 8 {
			files := slices.Clone(base)
			k := r.IntN(len(files))
			files[k].content = fmt.Sprint(r.IntN(4), files[k].content)
			var reads atomic.Int64
			ref, _, err := s.Put(context.Background(), treeOf(&reads, files...), nil)
			if err != nil {
				return err
			}
			in, err := s.Open(context.Background(), ref)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, in)
			if err := errors.Join(err, in.Close()); err != nil {
				return err
			}
			if err := s.Delete(context.Background(), ref); err != nil {
				return err
			}
		}
		return nil
	}
	const n = 3
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- run(uint64(i)) }()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	_, err := staging.New(bucket).GC(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, keys(t, bucket))
}

func TestFind(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer bucket.Close()
	s, other := staging.New(bucket), staging.New(bucket)
	var reads atomic.Int64
	ref, _, err := s.Put(t.Context(), treeOf(&reads, sources(1, 3, 100)...), nil)
	require.NoError(t, err)
	got, ok, err := other.Find(t.Context(), ref.Digest)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, ref, got)

	// It stays until both have given it up.
	require.NoError(t, s.Delete(t.Context(), ref))
	_, err = readAll(t, other, got)
	require.NoError(t, err)
	require.NoError(t, other.Delete(t.Context(), ref))

	_, ok, err = other.Find(t.Context(), ref.Digest)
	require.NoError(t, err)
	require.False(t, ok)
	_, err = bucket.List(nil).Next(t.Context())
	require.ErrorIs(t, err, io.EOF, "looking leaves nothing behind")
}
