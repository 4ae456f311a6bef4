package buildctx_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/buildctx"
)

// tree makes files below a new directory: "name" → content, "name/" is a
// directory, "name -> target" a link, "name = other" a hard link.
func tree(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		name, content, _ := strings.Cut(f, "\n")
		if link, target, ok := strings.Cut(name, " -> "); ok {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755))
			require.NoError(t, os.Symlink(target, filepath.Join(dir, link)))
		} else if link, target, ok := strings.Cut(name, " = "); ok {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755))
			require.NoError(t, os.Link(filepath.Join(dir, target), filepath.Join(dir, link)))
		} else if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		} else {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
	}
	return dir
}

// pack returns the entries that Pack writes, as "name", "name -> target", "name = target".
func pack(t testing.TB, opt buildctx.Options) []string {
	t.Helper()
	var buf bytes.Buffer
	require.NoError(t, buildctx.Pack(context.Background(), &buf, opt))
	var names []string
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			require.Equal(t, "./", names[0], "the root comes first")
			if len(names) == 1 {
				return nil
			}
			return names[1:]
		}
		require.NoError(t, err)
		switch h.Typeflag {
		case tar.TypeSymlink:
			h.Name += " -> " + h.Linkname
		case tar.TypeLink:
			h.Name += " = " + h.Linkname
		}
		names = append(names, h.Name)
	}
}

func TestPackIgnores(t *testing.T) {
	files := []string{"a", "b/c", "b/d/e", "b/d/f.md", "README.md", "x.md", "z/", "l -> ../out"}
	tests := []struct {
		name, ignore string
		want         []string
	}{
		{"nothing", "", []string{"README.md", "a", "b/", "b/c", "b/d/", "b/d/e", "b/d/f.md", "l -> ../out", "x.md", "z/"}},
		{"all", "*", nil},
		{"directory", "b", []string{"README.md", "a", "l -> ../out", "x.md", "z/"}},
		{"exception brings its directories", "*\n!b/d/e", []string{"b/", "b/d/", "b/d/e"}},
		{"exception with wildcard", "*\n!b/*/e", []string{"b/", "b/d/", "b/d/e"}},
		{"last match wins", "*.md\n!README.md\n!x.md\nx*", []string{"README.md", "a", "b/", "b/c", "b/d/", "b/d/e", "b/d/f.md", "l -> ../out", "z/"}},
		{"double star", "**/*.md", []string{"a", "b/", "b/c", "b/d/", "b/d/e", "l -> ../out", "z/"}},
		{"BOM, CRLF, comments, slashes", "\ufeff/b/\r\n# no\r\n  l  \r\n\r\n", []string{"README.md", "a", "x.md", "z/"}},
		{"above the root", "../a\n../../b", []string{"README.md", "a", "b/", "b/c", "b/d/", "b/d/e", "b/d/f.md", "l -> ../out", "x.md", "z/"}},
		{"directory with exception inside and out again", "b\n!b/d\nb/d/e", []string{"README.md", "a", "b/", "b/d/", "b/d/f.md", "l -> ../out", "x.md", "z/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tree(t, files...)
			// The ignore file lies beside the tree, named after the Dockerfile.
			df := filepath.Join(t.TempDir(), "my.Dockerfile")
			require.NoError(t, os.WriteFile(df+".dockerignore", []byte(tt.ignore), 0o644))
			require.Equal(t, tt.want, pack(t, buildctx.Options{Dir: dir, Dockerfile: df}))
			// And in the tree.
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(tt.ignore+"\n.dockerignore"), 0o644))
			require.Equal(t, tt.want, pack(t, buildctx.Options{Dir: dir}))
		})
	}
}

func TestPackIgnoreFileErrors(t *testing.T) {
	dir := tree(t, ".dockerignore\na\n[\n", "a")
	err := buildctx.Pack(t.Context(), io.Discard, buildctx.Options{Dir: dir})
	require.EqualError(t, err, fmt.Sprintf(`%s/.dockerignore:2: "[": syntax error in pattern`, dir))
	dir = tree(t, ".dockerignore/")
	err = buildctx.Pack(t.Context(), io.Discard, buildctx.Options{Dir: dir})
	require.ErrorContains(t, err, "is not a regular file")
	dir = tree(t, "rules\na\n", ".dockerignore -> rules", "a", "b")
	require.Equal(t, []string{".dockerignore -> rules", "b", "rules"}, pack(t, buildctx.Options{Dir: dir}))
}

func TestPackKeepsWhatFilesAre(t *testing.T) {
	long := strings.Repeat("n", 200)
	odd := "sp ace\nnew line \xff ünï"
	dir := tree(t, "run.sh\n#!", "dir/", long+"/"+long+"/x\n1", "h1\nsame", "h2 = h1", "dang -> nowhere/at/all", "loop -> loop", "abs -> /etc")
	require.NoError(t, os.WriteFile(filepath.Join(dir, odd), []byte("!"), 0o600))
	require.NoError(t, os.Chmod(filepath.Join(dir, "run.sh"), 0o755|fs.ModeSetuid))
	require.NoError(t, os.Chmod(filepath.Join(dir, "dir"), 0o777|fs.ModeSticky))
	when := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "run.sh"), when, when))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o640))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))

	var buf, again bytes.Buffer
	require.NoError(t, buildctx.Pack(t.Context(), &buf, buildctx.Options{Dir: link}))
	require.NoError(t, buildctx.Pack(t.Context(), &again, buildctx.Options{Dir: dir}))
	require.Equal(t, buf.Bytes(), again.Bytes(), "the same tree gives the same bytes")

	got := map[string]*tar.Header{}
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Zero(t, h.Uid)
		require.Zero(t, h.Gid)
		require.Empty(t, h.Uname+h.Gname)
		got[h.Name] = h
	}
	require.Equal(t, int64(0o4755), got["run.sh"].Mode)
	require.True(t, when.Equal(got["run.sh"].ModTime))
	require.Equal(t, int64(0o1777), got["dir/"].Mode)
	require.Contains(t, got, odd)
	require.Contains(t, got, long+"/"+long+"/x")
	require.Equal(t, byte(tar.TypeLink), got["h2"].Typeflag)
	require.Equal(t, "h1", got["h2"].Linkname)
	require.Equal(t, "nowhere/at/all", got["dang"].Linkname)
	require.Equal(t, "loop", got["loop"].Linkname)
	require.Equal(t, "/etc", got["abs"].Linkname)
	require.Equal(t, byte(tar.TypeFifo), got["pipe"].Typeflag)
}

// growing calls change when the content of the packed files goes by.
type growing struct {
	io.Writer
	change func()
}

func (g *growing) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("MARK")) && g.change != nil {
		g.change()
		g.change = nil
	}
	return g.Writer.Write(b)
}

func TestPackOfAChangingTree(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	tests := []struct {
		name   string
		change func(dir string) error
	}{
		{"shrinks", func(dir string) error { return os.Truncate(filepath.Join(dir, "b"), 600_000) }},
		{"grows", func(dir string) error { return os.Truncate(filepath.Join(dir, "b"), 2<<20) }},
		{"vanishes", func(dir string) error { return os.Remove(filepath.Join(dir, "c")) }},
		{"becomes a link", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "c")), os.Symlink("/etc/passwd", filepath.Join(dir, "c")))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tree(t, "b\nMARK"+big, "c\nhello")
			var changed error
			var buf bytes.Buffer
			err := buildctx.Pack(t.Context(), &growing{&buf, func() { changed = tt.change(dir) }}, buildctx.Options{Dir: dir})
			require.NoError(t, changed)
			if tt.name == "becomes a link" && err == nil {
				require.NotContains(t, buf.String(), "root:", "the link's target must not be read")
				return
			}
			if tt.name == "vanishes" && err == nil {
				require.NotContains(t, buf.String(), "hello")
				return
			}
			require.ErrorIs(t, err, buildctx.ErrChanged)
		})
	}
}

func TestPackCancelled(t *testing.T) {
	dir := tree(t, "a\nMARK", "b\nx")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	err := buildctx.Pack(ctx, &growing{io.Discard, func() { cancel(why) }}, buildctx.Options{Dir: dir})
	require.ErrorIs(t, err, why)
}

func TestPackWithoutDirectory(t *testing.T) {
	err := buildctx.Pack(t.Context(), io.Discard, buildctx.Options{Dir: filepath.Join(t.TempDir(), "no")})
	require.ErrorIs(t, err, fs.ErrNotExist)
	err = buildctx.Pack(t.Context(), io.Discard, buildctx.Options{Dir: filepath.Join(tree(t, "f"), "f")})
	require.ErrorContains(t, err, "is not a directory")
}

func TestCheckSources(t *testing.T) {
	dir := tree(t, "a", "d/e/f.c", "in -> d/e", "out -> ../../up", "abs -> /d", "d/up -> ..", "gone -> nothing", "secret", "keep/only", "keep/not",
		".dockerignore\nsecret\nkeep\n!keep/only\nempty", "empty/x")
	tests := []struct {
		path, want string
	}{
		{".", ""},
		{"a", ""},
		{"d/e", ""},
		{"in/f.c", ""},
		{"abs/e", ""},
		{"d/up/a", ""},
		{"*.c", `D:1: "*.c" matches nothing in the build context DIR`},
		{"d/*/*.c", ""},
		{"in/*.c", ""},
		{"i*/f.c", ""},
		{"d/[", `D:1: "d/[": syntax error in pattern`},
		{"b", `D:1: "b" is not in the build context DIR`},
		{"a/b", `D:1: "a/b" is not in the build context DIR`},
		{"gone", `D:1: "gone" is not in the build context DIR`},
		{"out/x", `D:1: "out/x" goes through the link out, which leads out of the build context DIR`},
		{"../lib", `D:1: "../lib" lies outside of the build context DIR, and only what lies in it can be copied`},
		{"../a", ""},
		{"secret", `D:1: "secret" is left out of the build context by DIR/.dockerignore:1: secret`},
		{"keep", ""},
		{"keep/only", ""},
		{"keep/not", `D:1: "keep/not" is left out of the build context by DIR/.dockerignore:2: keep`},
		{"empty", `D:1: "empty" is left out of the build context by DIR/.dockerignore:4: empty`},
	}
	for _, tt := range tests {
		s := buildctx.Source{Where: "D:1", Path: tt.path, Wildcard: strings.ContainsAny(tt.path, "*["), Outside: strings.HasPrefix(tt.path, "..")}
		s.Clean = strings.TrimPrefix(filepath.Join("/", tt.path), "/")
		if s.Clean == "" {
			s.Clean = "."
		}
		err := buildctx.CheckSources(t.Context(), buildctx.Options{Dir: dir}, []buildctx.Source{s})
		if tt.want == "" {
			require.NoError(t, err, tt.path)
			continue
		}
		require.EqualError(t, err, strings.ReplaceAll(tt.want, "DIR", dir), tt.path)
	}
}
