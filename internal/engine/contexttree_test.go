package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// treeOf returns the tree of a tar.
func treeOf(t *testing.T, data []byte) *contextTree {
	t.Helper()
	tree := &contextTree{dir: t.TempDir(), in: &lazyBody{start: func() *body {
		return newBody(t.Context(), func(_ context.Context, w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	}}}
	t.Cleanup(func() { _ = tree.end() })
	return tree
}

// listing is what a walk tells, and the contents of the files.
func listing(t *testing.T, tree fsutil.FS, target string, skip func(path string) error) []string {
	t.Helper()
	var list []string
	err := tree.Walk(t.Context(), target, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		require.NoError(t, err)
		st := info.(*fsutil.StatInfo).Stat
		require.Equal(t, path, st.Path)
		line := fmt.Sprintf("%s %o %d:%d %d %d %q %d:%d", st.Path, st.Mode, st.Uid, st.Gid, st.Size, st.ModTime, st.Linkname, st.Devmajor, st.Devminor)
		if d.Type().IsRegular() {
			f, err := tree.Open(path)
			require.NoError(t, err)
			data, err := io.ReadAll(f)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			line += " " + string(data)
		}
		list = append(list, line)
		return skip(path)
	})
	require.NoError(t, err)
	return list
}

// A tree made of a tar is what fsutil makes of the directory that was packed,
// whatever the order in the tar.
func TestContextTreeIsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a", "deep", "er"), 0o750))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "empty"), 0o700))
	for name, data := range map[string]string{"a-b": "sorts after a's", "a/x": "x of a", "a/deep/er/y": "y", "z": "", "zz": "last", "a/deep/er/0": "zero"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o640))
	}
	require.NoError(t, os.Chmod(filepath.Join(dir, "zz"), 0o755|fs.ModeSetuid))
	require.NoError(t, os.Symlink("a/../zz", filepath.Join(dir, "link")))
	require.NoError(t, os.Link(filepath.Join(dir, "zz"), filepath.Join(dir, "a", "same")))
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		return os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000, 0))
	}))
	real, err := fsutil.NewFS(dir)
	require.NoError(t, err)
	for _, order := range [][]string{{"."}, {"zz", "z", "link", "empty", "a-b", "a"}, {"a/same", "zz", "a", "a-b", "link", "empty", "z"}} {
		t.Run(order[0], func(t *testing.T) {
			args := append([]string{"-C", dir, "--format=pax", "--no-recursion", "--numeric-owner", "-cf", "-"}, expand(t, dir, order)...)
			data, err := exec.CommandContext(t.Context(), "tar", args...).Output()
			require.NoError(t, err)
			tree := treeOf(t, data)
			require.NoError(t, tree.load())
			for _, target := range []string{"", "/", "a", "a/deep", "zz", "link", "missing"} {
				none := func(string) error { return nil }
				require.Equal(t, listing(t, real, target, none), listing(t, tree, target, none), target)
				for _, stop := range []string{"a", "a/deep/er", "a/deep/er/0", "a/x", "link", "zz"} {
					for _, how := range []error{fs.SkipDir, fs.SkipAll} {
						skip := func(path string) error {
							if path == stop {
								return how
							}
							return nil
						}
						require.Equal(t, listing(t, real, target, skip), listing(t, tree, target, skip), "%s at %s", target, stop)
					}
				}
			}
			// What the receiving side checks.
			filtered, err := fsutil.NewFilterFS(tree, &fsutil.FilterOpt{FollowPaths: []string{"link", "a/d*/er"}})
			require.NoError(t, err)
			theirs, err := fsutil.NewFilterFS(real, &fsutil.FilterOpt{FollowPaths: []string{"link", "a/d*/er"}})
			require.NoError(t, err)
			require.Equal(t, listing(t, theirs, "", func(string) error { return nil }), listing(t, filtered, "", func(string) error { return nil }))
			require.NoError(t, tree.end())
		})
	}
}

// expand lists what is below names, directories first, without the top.
func expand(t *testing.T, dir string, names []string) []string {
	t.Helper()
	var all []string
	for _, name := range names {
		require.NoError(t, filepath.WalkDir(filepath.Join(dir, name), func(path string, _ fs.DirEntry, err error) error {
			rel, rerr := filepath.Rel(dir, path)
			if rel != "." && !slices.Contains(all, rel) {
				all = append(all, rel)
			}
			return errors.Join(err, rerr)
		}))
	}
	return all
}

func pack(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		require.NoError(t, tw.WriteHeader(&h))
		_, err := tw.Write(make([]byte, h.Size))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return buf.Bytes()
}

func TestContextTreeImpliesDirectories(t *testing.T) {
	tree := treeOf(t, pack(t, tar.Header{Name: "./p/q/f", Mode: 0o600, Size: 3}, tar.Header{Name: "p/", Typeflag: tar.TypeDir, Mode: 0o711}))
	require.NoError(t, tree.load())
	var got []string
	for _, e := range tree.entries {
		got = append(got, fmt.Sprint(e.path, " ", e.mode))
	}
	require.Equal(t, []string{"p drwx--x--x", "p/q drwxr-xr-x", "p/q/f -rw-------"}, got)
}

func TestContextsThatAreNoTrees(t *testing.T) {
	file := tar.Header{Name: "f", Mode: 0o644}
	for name, headers := range map[string][]tar.Header{
		"a capability":         {{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}},
		"name that is no text": {{Name: "caf\xe9"}},
		"link that is no text": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "caf\xe9"}},
		"a name twice":         {file, file},
		"a file as directory":  {file, {Name: "f/g"}},
		"link before its file": {{Name: "l", Typeflag: tar.TypeLink, Linkname: "f", Mode: 0o644}, file},
		"link with other mode": {file, {Name: "l", Typeflag: tar.TypeLink, Linkname: "f", Mode: 0o600}},
		"link to nothing":      {{Name: "l", Typeflag: tar.TypeLink, Linkname: "f"}},
		"before 1970":          {{Name: "f", ModTime: time.Unix(-5, 0)}},
		"an owner":             {{Name: "f", Uid: 1}},
		"outside":              {{Name: "../f"}},
		"absolute":             {{Name: "/f"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree := treeOf(t, pack(t, headers...))
			require.ErrorIs(t, tree.load(), errUnlike)
			require.NoError(t, tree.end(), "it is no error of the bundler")
		})
	}
	t.Run("broken off", func(t *testing.T) {
		data := pack(t, tar.Header{Name: "f", Size: 2000})
		tree := treeOf(t, data[:1000])
		require.ErrorIs(t, tree.load(), io.ErrUnexpectedEOF)
		require.ErrorIs(t, tree.end(), io.ErrUnexpectedEOF)
	})
	t.Run("never read", func(t *testing.T) {
		tree := treeOf(t, nil)
		require.NoError(t, tree.end())
		require.ErrorIs(t, tree.load(), errBodyClosed)
	})
}

func TestTakesTrees(t *testing.T) {
	for version, want := range map[string]bool{
		"v0.33.1": true, "0.12.0": true, "v1.0.0": true, "v0.13.0-rc2": true, "v0.11.6": false, "v0.8.4-pre": false, "(unknown version)": false, "": false,
	} {
		require.Equal(t, want, takesTrees(version), version)
	}
}
