package buildctx

import (
	"archive/tar"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPrintHasEverything(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, []byte("x"), 0o644))
	info := lstat(t, name)
	print := func(h tar.Header, info fs.FileInfo) [32]byte {
		p := newPrinter()
		p.add(&h, info)
		return p.sum()
	}
	base := tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 1, Mode: 0o644, ModTime: time.Unix(1, 2)}
	want := print(base, info)
	require.Equal(t, want, print(base, info))
	for what, change := range map[string]func(*tar.Header){
		"type":        func(h *tar.Header) { h.Typeflag = tar.TypeLink },
		"name":        func(h *tar.Header) { h.Name = "g" },
		"link":        func(h *tar.Header) { h.Linkname = "g" },
		"size":        func(h *tar.Header) { h.Size = 2 },
		"mode":        func(h *tar.Header) { h.Mode = 0o755 },
		"seconds":     func(h *tar.Header) { h.ModTime = time.Unix(2, 2) },
		"nanoseconds": func(h *tar.Header) { h.ModTime = time.Unix(1, 3) },
		"major":       func(h *tar.Header) { h.Devmajor = 1 },
		"minor":       func(h *tar.Header) { h.Devminor = 1 },
		"attributes":  func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"} },
	} {
		h := base
		change(&h)
		require.NotEqual(t, want, print(h, info), what)
	}
	require.NotEqual(t, print(tar.Header{Name: "a", Linkname: "bc"}, nil), print(tar.Header{Name: "ab", Linkname: "c"}, nil))

	other := name + "2"
	require.NoError(t, os.WriteFile(other, []byte("x"), 0o644))
	require.NotEqual(t, want, print(base, lstat(t, other)), "inode")
	before, _ := changeTime(info)
	for now := before; now.Equal(before); now, _ = changeTime(lstat(t, name)) {
		require.NoError(t, os.Chmod(name, 0o644))
	}
	require.NotEqual(t, want, print(base, lstat(t, name)), "change time")
}
