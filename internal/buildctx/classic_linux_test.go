package buildctx_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/buildctx"
)

// compareClassic builds dir, with its ignore file, by the classic builder: from docker's
// own client, and from the tar stream of Pack.
//
// The client puts the Dockerfile and the ignore file in the context whatever the rules
// say, and the daemon takes them out again; so what becomes of these two is not compared.
func (d *docker) compareClassic(t *testing.T, name, dir string, ignore []string) {
	t.Helper()
	dockerfile := filepath.Join(dir, "Dockerfile")
	require.NoError(t, os.WriteFile(dockerfile, []byte(copyAll), 0o644))
	want, wantErr := d.byClassic(t, nil, dir)
	var stream bytes.Buffer
	first := tar.NewWriter(&stream)
	require.NoError(t, first.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "Dockerfile", Mode: 0o644, Size: int64(len(copyAll))}))
	_, err := first.Write([]byte(copyAll))
	require.NoError(t, err)
	require.NoError(t, first.Flush())
	require.NoError(t, buildctx.Pack(t.Context(), &stream, buildctx.Options{Dir: dir}))
	got, gotErr := d.byClassic(t, &stream, "-")
	require.Equal(t, wantErr != nil, gotErr != nil, "%s, classic\n%s\ntheirs: %v\nours: %v", name, lines(ignore), wantErr, gotErr)
	for _, all := range []map[string]node{want, got} {
		maps.DeleteFunc(all, func(p string, _ node) bool { return p == "Dockerfile" || p == ".dockerignore" })
	}
	require.Greater(t, len(want), batch/2)
	none := func(string) bool { return false }
	require.NoError(t, d.differences(want, got, none, func(string) string { return lines(ignore) }), "%s, classic", name)
}

// byClassic returns what the classic builder makes of a context: a directory, or "-"
// for the tar stream in stdin.
func (d *docker) byClassic(t *testing.T, stdin io.Reader, context string) (map[string]node, error) {
	t.Helper()
	docker := func(stdin io.Reader, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), d.cli, args...)
		cmd.Env = append(d.env, "DOCKER_BUILDKIT=0")
		cmd.Stdin = stdin
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("docker %s: %w: %s", args[0], err, stderr.String())
		}
		return out, err
	}
	id, err := docker(stdin, "build", "--no-cache", "-q", context)
	if err != nil {
		return nil, err
	}
	image := strings.TrimSpace(string(id))
	saved, err := docker(nil, "save", image)
	require.NoError(t, err)
	_, err = docker(nil, "rmi", "-f", image)
	require.NoError(t, err)
	for tr := tar.NewReader(bytes.NewReader(saved)); ; {
		h, err := tr.Next()
		require.NoError(t, err, "the image has no layer")
		if path.Base(h.Name) == "layer.tar" {
			return layerNodes(t, tr), nil
		}
	}
}

// layerNodes returns everything in a layer, by path. Times there are whole seconds.
func layerNodes(t *testing.T, layer io.Reader) map[string]node {
	t.Helper()
	all := map[string]node{}
	for tr := tar.NewReader(layer); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		n := node{
			Mode: h.FileInfo().Mode(), Size: h.Size, Time: h.ModTime.UTC(), UID: uint32(h.Uid), GID: uint32(h.Gid),
			Rdev: uint64(h.Devmajor)<<32 | uint64(h.Devminor),
		}
		switch h.Typeflag {
		case tar.TypeLink:
			n.Same = h.Linkname
		case tar.TypeSymlink:
			n.Link = h.Linkname
		case tar.TypeReg:
			data, err := io.ReadAll(tr)
			require.NoError(t, err)
			n.Content = string(data)
		}
		all[strings.TrimSuffix(h.Name, "/")] = n
	}
}
