package buildctx_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/buildctx"
)

func TestScanIsPack(t *testing.T) {
	dir := tree(t, "a\nhello", "d/b\nworld", "d/c = a", "l -> a", ".dockerignore\nd/x", "d/x")
	got, err := buildctx.Scan(t.Context(), buildctx.Options{Dir: dir})
	require.NoError(t, err)
	var names []string
	for i := range got.Entries {
		e := &got.Entries[i]
		name := e.Header.Name
		if e.Header.Typeflag == '1' {
			name += " = " + e.Header.Linkname
		} else if e.Header.Linkname != "" {
			name += " -> " + e.Header.Linkname
		}
		if name != "./" {
			names = append(names, name)
		}
		if e.Header.Size > 0 {
			r, err := e.Open()
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			require.Len(t, data, int(e.Header.Size))
		}
	}
	require.Equal(t, pack(t, buildctx.Options{Dir: dir}), names)
	require.Equal(t, int64(5+5+3), got.Size())
	require.Equal(t, []buildctx.Sized{{Path: "a", Size: 5}, {Path: "d/b", Size: 5}}, got.Largest(2))

	for i := range got.Entries {
		if got.Entries[i].Header.Name != "a" {
			continue
		}
		r, err := got.Entries[i].Open()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), []byte("hello, world"), 0o644))
		require.ErrorIs(t, r.Close(), buildctx.ErrChanged)
		_, err = got.Entries[i].Open()
		require.ErrorIs(t, err, buildctx.ErrChanged)
	}
}

func TestScanLimit(t *testing.T) {
	dir := tree(t, "small\n1", "d/large\n"+strings.Repeat("x", 3000), "larger\n"+strings.Repeat("x", 5000))
	_, err := buildctx.Scan(t.Context(), buildctx.Options{Dir: dir, Limit: 8001})
	require.NoError(t, err)
	_, err = buildctx.Scan(t.Context(), buildctx.Options{Dir: dir, Limit: 8000})
	var limit *buildctx.LimitError
	require.ErrorAs(t, err, &limit)
	require.Equal(t, []buildctx.Sized{{Path: "larger", Size: 5000}, {Path: "d/large", Size: 3000}, {Path: "small", Size: 1}}, limit.Largest)
	require.ErrorContains(t, err, "  4.9 KiB  larger")
}

func TestExplain(t *testing.T) {
	dir := tree(t, ".dockerignore\n*.o\nout\n!out/keep\n", "a.c\nx", "a.o", "out/keep", "out/x")
	verdicts, err := buildctx.Explain(t.Context(), buildctx.Options{Dir: dir})
	require.NoError(t, err)
	var got []string
	for _, v := range verdicts {
		line := "- " + v.Path
		if v.In {
			line = "+ " + v.Path
		}
		if v.Rule != nil {
			line += "  " + strings.TrimPrefix(v.Rule.String(), dir+"/")
		}
		got = append(got, line)
	}
	require.Equal(t, []string{
		"+ .dockerignore", "+ a.c", "- a.o  .dockerignore:1: *.o",
		"+ out/  .dockerignore:2: out", "+ out/keep  .dockerignore:3: !out/keep", "- out/x  .dockerignore:2: out",
	}, got)
}

func TestOutside(t *testing.T) {
	base := tree(t, "lib/x.c\nx", "lib/up -> ../ctx/a", "file\nf", "ctx/a\na", "ctx/in -> a", "ctx/abs/", "ctx/dir -> ../lib", "ctx/f -> ../file", "ctx/gone -> ../nothing", "ctx/sub/deep -> ../../lib")
	ctx := filepath.Join(base, "ctx")
	require.Equal(t, []string{"a", "abs/", "dir -> ../lib", "f -> ../file", "gone -> ../nothing", "in -> a", "sub/", "sub/deep -> ../../lib"},
		pack(t, buildctx.Options{Dir: ctx}), "links are links")
	opt := buildctx.Options{Dir: ctx, AllowOutside: true, Grafts: []buildctx.Graft{{At: "new/lib", From: filepath.Join(base, "lib")}, {At: "file", From: filepath.Join(base, "file")}}}
	require.Equal(t, []string{
		"a", "abs/", "dir/", "dir/up", "dir/x.c", "f", "gone -> ../nothing", "in -> a", "sub/", "sub/deep/", "sub/deep/up", "sub/deep/x.c",
		"new/", "new/lib/", "new/lib/up", "new/lib/x.c", "file",
	}, pack(t, opt))

	opt.Grafts = append(opt.Grafts, buildctx.Graft{At: "file", From: filepath.Join(base, "lib")})
	require.ErrorContains(t, buildctx.Pack(t.Context(), io.Discard, opt), "would be file in the build context")
	opt.Grafts = []buildctx.Graft{{At: "a", From: filepath.Join(base, "file")}}
	require.ErrorContains(t, buildctx.Pack(t.Context(), io.Discard, opt), "which has another a")

	require.NoError(t, os.Symlink("..", filepath.Join(ctx, "round")))
	err := buildctx.Pack(t.Context(), io.Discard, buildctx.Options{Dir: ctx, AllowOutside: true})
	require.ErrorContains(t, err, "the link round points to "+base+", which it is itself in")
}

// TestScanKnowsAnUnchangedTree changes one thing after the other: only the very same
// tree may be taken for known.
func TestScanKnowsAnUnchangedTree(t *testing.T) {
	dir, cache := tree(t, "a\nhello", "d/b\nworld", "l -> a", "run\n#!"), t.TempDir()
	opt := buildctx.Options{Dir: dir, CacheDir: cache}
	scan := func() *buildctx.Tree {
		t.Helper()
		got, err := buildctx.Scan(t.Context(), opt)
		require.NoError(t, err)
		return got
	}
	// The files are new, and may still change without a trace.
	fresh := scan()
	fresh.Learn([]byte("too early"))
	require.NoError(t, fresh.Save())
	require.Nil(t, scan().Known())

	// This package's own files are older.
	opt = buildctx.Options{Dir: ".", CacheDir: cache, Dockerfile: filepath.Join(dir, "D")}
	ignore := func(rules string) {
		require.NoError(t, os.WriteFile(opt.Dockerfile+".dockerignore", []byte("*\n!pack.go\n!header.go\n"+rules), 0o644))
	}
	ignore("")
	was := scan()
	was.Learn([]byte("known"))
	require.NoError(t, was.Save())
	require.Equal(t, []byte("known"), scan().Known())
	ignore("!cache.go\n")
	require.Nil(t, scan().Known(), "one more file")
	ignore("header.go\n")
	require.Nil(t, scan().Known(), "one less")
	ignore("# the same\n")
	require.Equal(t, []byte("known"), scan().Known())
	require.Nil(t, func() *buildctx.Tree { opt.CacheDir = t.TempDir(); return scan() }().Known())
}

func TestExplainCountsAFileOnce(t *testing.T) {
	dir := tree(t, "a\nhello", "b = a", "c\nxy")
	verdicts, err := buildctx.Explain(t.Context(), buildctx.Options{Dir: dir})
	require.NoError(t, err)
	sizes := map[string]int64{}
	for _, v := range verdicts {
		sizes[v.Path] = v.Size
	}
	require.Equal(t, map[string]int64{"a": 5, "b": 0, "c": 2}, sizes)
}
