package buildctx_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/buildctx"
)

// archive makes a tar. The content of a file is its Linkname field.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		require.NoError(t, tw.WriteHeader(&h))
		_, err := io.WriteString(tw, content)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

func reg(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: 0o644}
}

func readArchive(t *testing.T, data []byte) *buildctx.Archive {
	t.Helper()
	a, err := buildctx.ReadArchive(t.Context(), bytes.NewReader(data), 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

func TestReadArchive(t *testing.T) {
	when := time.Date(2021, 2, 3, 4, 5, 6, 789, time.UTC)
	data := archive(t,
		tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "0123"}},
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o750},
		tar.Header{Typeflag: tar.TypeReg, Name: "/abs/file", Linkname: "x", Mode: 0o4755, Uid: 12, Gid: 34, Uname: "me", ModTime: when, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../etc"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "abs/file"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"},
		reg("again", "first"), reg("again", "second"),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "was", Linkname: "out"}, tar.Header{Typeflag: tar.TypeDir, Name: "was"}, reg("was/fine", ""),
	)
	var z, s bytes.Buffer
	zip := gzip.NewWriter(&z)
	_, err := zip.Write(data)
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	std, err := zstd.NewWriter(&s)
	require.NoError(t, err)
	_, err = std.Write(data)
	require.NoError(t, err)
	require.NoError(t, std.Close())
	bz := exec.CommandContext(t.Context(), "bzip2")
	bz.Stdin = bytes.NewReader(data)
	b, err := bz.Output()
	require.NoError(t, err)

	for name, stream := range map[string][]byte{"plain": data, "gzip": z.Bytes(), "zstd": s.Bytes(), "bzip2": b, "padded": append(slices.Clip(data), make([]byte, 9<<10)...)} {
		t.Run(name, func(t *testing.T) {
			require.True(t, buildctx.IsArchive(stream[:min(len(stream), buildctx.HeadSize)]))
			a := readArchive(t, stream)
			for range 2 { // as it is staged: read, then sent
				var out bytes.Buffer
				_, err := a.WriteTo(&out)
				require.NoError(t, err)
				var names []string
				tr := tar.NewReader(&out)
				for {
					h, err := tr.Next()
					if errors.Is(err, io.EOF) {
						break
					}
					require.NoError(t, err)
					names = append(names, h.Name)
					if h.Name == "abs/file" {
						require.Equal(t, []any{int64(0o4755), 12, 34, "", "b", when}, []any{h.Mode, h.Uid, h.Gid, h.Uname, h.PAXRecords["SCHILY.xattr.user.a"], h.ModTime.UTC()})
					}
				}
				require.Equal(t, []string{"./", "abs/file", "out", "hard", "fifo", "again", "again", "was", "was", "was/fine"}, names)
			}
			text, err := a.ReadFile("again", 100)
			require.NoError(t, err)
			require.Equal(t, "second", string(text))
			text, err = a.ReadFile("./hard", 100)
			require.NoError(t, err)
			require.Equal(t, "x", string(text))
		})
	}
}

func TestReadArchiveRefuses(t *testing.T) {
	whole := archive(t, reg("a", "x"), reg("b", "y"))
	var z bytes.Buffer
	zip := gzip.NewWriter(&z)
	_, err := zip.Write(whole)
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	for says, data := range map[string][]byte{
		`"../x": the path leaves`:      archive(t, reg("../x", "")),
		`"a/../../x": the path`:        archive(t, reg("a/../../x", "")),
		"hard link to \"../passwd\"":   archive(t, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../passwd"}),
		"is a device":                  archive(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}),
		`below "l", which is a link`:   archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}, reg("l/passwd", "x")),
		`below "l/m", which is a`:      archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "/etc"}, tar.Header{Typeflag: tar.TypeLink, Name: "l/m", Linkname: "s"}, reg("l/m/n/o", "x")),
		"no end marks":                 whole[:len(whole)-1024],
		"unexpected EOF":               whole[:700],
		"read the archive: unexpected": z.Bytes()[:z.Len()-9],
		"xz -d":                        {0xfd, '7', 'z', 'X', 'Z', 0, 0, 0},
		"its type '7'":                 archive(t, tar.Header{Typeflag: tar.TypeCont, Name: "c"}),
	} {
		_, err := buildctx.ReadArchive(t.Context(), bytes.NewReader(data), 0)
		require.ErrorContains(t, err, says, says)
	}
	_, err = buildctx.ReadArchive(t.Context(), bytes.NewReader(archive(t, reg("a", "12345"), reg("b", "67890"))), 9)
	require.ErrorContains(t, err, "more than 9 bytes")
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "portainer-context-*"))
	require.NoError(t, err)
	require.Empty(t, left)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = buildctx.ReadArchive(ctx, bytes.NewReader(whole), 0)
	require.ErrorIs(t, err, context.Canceled)
}

func TestArchiveReadFile(t *testing.T) {
	a := readArchive(t, archive(t, reg("d/file", "text"), tar.Header{Typeflag: tar.TypeSymlink, Name: "d/rel", Linkname: "../top"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "top", Linkname: "/d/file"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"},
		tar.Header{Typeflag: tar.TypeDir, Name: "dir"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../../d/file"}))
	for _, name := range []string{"d/file", "/d/./file", "d/rel", "top", "out"} {
		text, err := a.ReadFile(name, 4)
		require.NoError(t, err, name)
		require.Equal(t, "text", string(text))
	}
	_, err := a.ReadFile("none", 4)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = a.ReadFile("loop", 4)
	require.ErrorIs(t, err, buildctx.ErrLoop)
	_, err = a.ReadFile("dir", 4)
	require.ErrorContains(t, err, "not a regular file")
	_, err = a.ReadFile("d/file", 3)
	require.ErrorContains(t, err, "the limit is 3 bytes")
}

func TestIsArchive(t *testing.T) {
	for _, text := range []string{"", "FROM scratch\n", "# syntax=docker/dockerfile:1\nFROM a\n", "BZ", string(make([]byte, 100))} {
		require.False(t, buildctx.IsArchive([]byte(text)), "%q", text)
	}
	require.True(t, buildctx.IsArchive(archive(t, reg("a", "x"))[:1024]))
	require.True(t, buildctx.IsArchive([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}))
}

// TestEmptyArchive checks that a context with nothing in it has an entry: BuildKit
// would take it for a file otherwise.
func TestEmptyArchive(t *testing.T) {
	var direct, read bytes.Buffer
	require.NoError(t, buildctx.WriteEmpty(&direct))
	_, err := readArchive(t, archive(t)).WriteTo(&read)
	require.NoError(t, err)
	require.Equal(t, direct.Bytes(), read.Bytes())
	h, err := tar.NewReader(&read).Next()
	require.NoError(t, err)
	require.Equal(t, "./", h.Name)
}

// FuzzReadArchive checks that what is read is an archive that staging takes: no entry
// leaves the root or lies below a link.
func FuzzReadArchive(f *testing.F) {
	f.Add(archive(f, reg("a", "x"), tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "a"}))
	f.Add(archive(f, reg("../a", "x")))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := buildctx.ReadArchive(t.Context(), bytes.NewReader(data), 1<<20)
		if err != nil {
			return
		}
		defer a.Close()
		var out bytes.Buffer
		_, err = a.WriteTo(&out)
		require.NoError(t, err)
		tr := tar.NewReader(&out)
		for n := 0; ; n++ {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				require.Positive(t, n)
				return
			}
			require.NoError(t, err)
			require.True(t, filepath.IsLocal(h.Name) || h.Name == "./", "%q", h.Name)
		}
	})
}
