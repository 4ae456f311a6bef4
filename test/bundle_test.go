package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bundle is the archive of an executor that brings its engine, made once in a
// clone of the repository, and the directory of the clone.
var bundle = sync.OnceValues(func() (archive string, err error) {
	clone := filepath.Join(scratch, "bundle")
	for _, argv := range [][]string{
		// This tree need not belong to whoever tests it.
		{"git", "-c", "safe.directory=*", "clone", "--quiet", root, clone},
		{"make", "--silent", "-C", clone, "executor", "BUNDLE=1"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		if err != nil {
			return "", fmt.Errorf("%v: %w", argv, err)
		}
		archive = filepath.Join(clone, strings.TrimSpace(string(out)))
	}
	return archive, nil
})

// theBundle returns the archive, and a directory with what is in it.
func theBundle(t *testing.T) (archive, dir string) {
	t.Helper()
	archive, err := bundle()
	require.NoError(t, err)
	dir = t.TempDir()
	out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "-xzf", archive).CombinedOutput()
	require.NoError(t, err, string(out))
	return archive, dir
}

// maxBundle is what an agent may have to fetch for a bundle.
const maxBundle = 45 << 20

// TestBundleArchive looks at what is in the archive: nothing of the place or the
// time of its making, so that a revision always makes the same.
func TestBundleArchive(t *testing.T) {
	archive, err := bundle()
	require.NoError(t, err)
	clone := filepath.Dir(filepath.Dir(archive))
	require.Regexp(t, `^portainer-executor-[0-9a-f]{12}\.linux-`+runtime.GOARCH+`\.bundle\.tar\.gz$`, filepath.Base(archive))
	packed, err := os.ReadFile(archive)
	require.NoError(t, err)
	t.Logf("the archive has %d bytes", len(packed))
	require.Less(t, len(packed), maxBundle)
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	require.NoError(t, err)
	require.True(t, zr.ModTime.IsZero())
	require.Empty(t, zr.Name)
	var names []string
	for tr := tar.NewReader(zr); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, hdr.Name)
		require.Equal(t, int64(0o755), hdr.Mode, hdr.Name)
		require.Equal(t, []any{0, 0, time.Unix(0, 0)}, []any{hdr.Uid, hdr.Gid, hdr.ModTime}, hdr.Name)
		program, err := io.ReadAll(tr)
		require.NoError(t, err)
		require.False(t, bytes.Contains(program, []byte(clone)), "%s has in it where it was built", hdr.Name)
		require.False(t, bytes.Contains(program, []byte("/ld-linux")), "%s is linked dynamically", hdr.Name)
	}
	require.Equal(t, []string{"portainer-executor", "buildkitd", "runc", "rootlesskit"}, names)
}

// fromSandbox is what the log says of the programs of a bundle.
const fromSandbox = `: [^ ]*/runs/[^ ]+/buildkitd and [^ ]*/runs/[^ ]+/runc are there\n`

// TestBundle builds on an agent whose PATH has no program at all.
func TestBundle(t *testing.T) {
	archive, err := bundle()
	require.NoError(t, err)
	t.Setenv("PATH", t.TempDir())
	before := look(t)
	p := cli(t, 0, "build", "--to", registry, "--from", registry, "--tag", "bundle", "--executor-uri", archive, "--staging-uri", t.TempDir(), "examples/hello")
	pushed(t, refOf(t, p, "examples/hello"))
	require.Regexp(t, `engine buildkitd v0\.[^ ]+ ready in [^:]+`+fromSandbox, p.stderr.String())
	before.nothingLeft(t, p)
}
