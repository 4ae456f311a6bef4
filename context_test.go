package portainer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
	}
	return dir
}

func bundled(t *testing.T, b portainer.ContextBundler, req portainer.Request) []string {
	t.Helper()
	var buf bytes.Buffer
	require.NoError(t, b.Bundle(t.Context(), req, &buf))
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
		names = append(names, h.Name)
	}
}

func TestDirBundler(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY src/*.c /\n", "src/a.c": "int a;", "src/a.o": "", "big/x": "", ".dockerignore": "*.o\n**/*.o\nbig\n",
		"other.Dockerfile": "FROM scratch\nCOPY big /\n", "other.Dockerfile.dockerignore": "*\n!big\n",
	})
	t.Run("directory of the Dockerfile", func(t *testing.T) {
		require.Equal(t, []string{".dockerignore", "Dockerfile", "other.Dockerfile", "other.Dockerfile.dockerignore", "src/", "src/a.c"},
			bundled(t, portainer.DirBundler{}, portainer.Request{Dockerfile: filepath.Join(dir, "Dockerfile")}))
	})
	t.Run("ignore file of the Dockerfile", func(t *testing.T) {
		require.Equal(t, []string{"big/", "big/x"},
			bundled(t, portainer.DirBundler{}, portainer.Request{Dockerfile: filepath.Join(dir, "other.Dockerfile")}))
	})
	t.Run("Dockerfile elsewhere", func(t *testing.T) {
		require.Equal(t, []string{"a.c", "a.o"}, bundled(t, portainer.DirBundler{}, portainer.Request{
			Dir: filepath.Join(dir, "src"), Dockerfile: filepath.Join(dir, "elsewhere"), Source: []byte("FROM scratch\nCOPY . /\n")}))
	})
	t.Run("missing source", func(t *testing.T) {
		err := portainer.DirBundler{}.Bundle(t.Context(), portainer.Request{
			Dir: dir, Dockerfile: "D", Source: []byte("FROM scratch\nARG X=a\nCOPY $X.c README /\n")}, io.Discard)
		require.ErrorIs(t, err, portainer.ErrInvalid)
		require.ErrorContains(t, err, `D:3: "a.c" is not in the build context`)
		require.ErrorContains(t, err, `D:3: "README" is not in the build context`)
	})
}
