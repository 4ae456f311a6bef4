package buildctx

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func lstat(t *testing.T, name string) os.FileInfo {
	t.Helper()
	fi, err := os.Lstat(name)
	require.NoError(t, err)
	return fi
}

// what returns what the cache knows of a file's content.
func what(c *statCache, fi os.FileInfo) []byte {
	_, b := c.get(fi)
	return b
}

func TestStatCache(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	require.NoError(t, os.WriteFile(a, []byte("one"), 0o644))
	require.NoError(t, os.WriteFile(b, []byte("two"), 0o644))
	later := time.Now().Add(time.Minute)

	c := openStatCache(dir, root, later)
	require.Nil(t, what(c, lstat(t, a)))
	c.put(lstat(t, a), []byte("A"))
	c.putPlain(lstat(t, b))
	require.NoError(t, c.save())

	c = openStatCache(dir, root, later)
	require.Equal(t, []byte("A"), what(c, lstat(t, a)))
	plain, got := c.get(lstat(t, b))
	require.True(t, plain)
	require.Nil(t, got)
	plain, _ = c.get(lstat(t, a))
	require.False(t, plain)
	require.Nil(t, what(openStatCache(dir, dir, later), lstat(t, a)), "another tree has another cache")

	// The same size and the same modification time do not deceive it.
	was := lstat(t, a)
	require.NoError(t, os.WriteFile(a, []byte("ONE"), 0o644))
	require.NoError(t, os.Chtimes(a, was.ModTime(), was.ModTime()))
	require.Equal(t, was.ModTime(), lstat(t, a).ModTime())
	require.Nil(t, what(c, lstat(t, a)))

	// What was not seen again is forgotten.
	require.NotNil(t, what(openStatCache(dir, root, later), was))
	c = openStatCache(dir, root, later)
	c.get(lstat(t, b))
	require.NoError(t, c.save())
	require.Nil(t, what(openStatCache(dir, root, later), was))
}

// A file that changed just before it was read may change again without a trace.
func TestStatCacheDistrustsFreshFiles(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	a := filepath.Join(root, "a")
	require.NoError(t, os.WriteFile(a, []byte("one"), 0o644))
	fi := lstat(t, a)
	changed, ok := changeTime(fi)
	require.True(t, ok)
	for _, tt := range []struct {
		after time.Duration
		keeps bool
	}{{0, false}, {grain - 1, false}, {grain + 1, true}, {-time.Hour, false}} {
		c := openStatCache(dir, root, changed.Add(tt.after))
		c.put(fi, []byte("A"))
		require.NoError(t, c.save())
		require.Equal(t, tt.keeps, what(openStatCache(dir, root, changed), fi) != nil, "%v after the change", tt.after)
		require.NoError(t, os.RemoveAll(dir))
	}
}

func TestStatCacheIgnoresDamage(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	a := filepath.Join(root, "a")
	require.NoError(t, os.WriteFile(a, []byte("one"), 0o644))
	later := time.Now().Add(time.Minute)
	c := openStatCache(dir, root, later)
	c.put(lstat(t, a), []byte("A"))
	require.NoError(t, c.save())
	good, err := os.ReadFile(c.file)
	require.NoError(t, err)
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		require.NoError(t, os.WriteFile(c.file, bad, 0o600))
		require.Nil(t, what(openStatCache(dir, root, later), lstat(t, a)), "bit in byte %d", i)
		require.NoError(t, os.WriteFile(c.file, good[:i], 0o600))
		require.Nil(t, what(openStatCache(dir, root, later), lstat(t, a)), "%d bytes", i)
	}
	require.NoError(t, os.RemoveAll(dir))
	require.Nil(t, what(openStatCache(dir, root, later), lstat(t, a)))
	require.NoError(t, c.save(), "the directory is made again")
}

func FuzzDecodeCache(f *testing.F) {
	f.Add(encodeCache(map[uint64]record{1: {2, 3, 4, false, []byte("5")}, 6: {plain: true}}, summary{what: []byte("7")}))
	f.Add([]byte(cacheMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, tree := decodeCache(data)
		if records == nil {
			return
		}
		again, sameTree := decodeCache(encodeCache(records, tree))
		if len(again) != len(records) || sameTree.print != tree.print || !bytes.Equal(sameTree.what, tree.what) {
			t.Fatalf("%v became %v, %v became %v", records, again, tree, sameTree)
		}
	})
}

// FuzzIgnore checks that reading line by line is reading the file, and that every
// rule has its line.
func FuzzIgnore(f *testing.F) {
	for _, seed := range []string{"", "a\n!b\n", "\ufeff#x\n \ufeffa\r\n\n**/*.md", "[", "!", "! \n", "/\n//a//\n../x", "\\", "a\x00b"} {
		f.Add(seed, "a/b.md")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		checkIgnore(t, text, path)
	})
}
