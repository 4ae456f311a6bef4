package portainer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/staging"
)

// TestPutTreeThatChanges has files change after they were looked at: what is staged is
// never a mixture.
func TestPutTreeThatChanges(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"shorter":   func(file string) error { return os.Truncate(file, 10) },
		"longer":    func(file string) error { return os.Truncate(file, 100_000) },
		"written":   func(file string) error { return os.WriteFile(file, bytes.Repeat([]byte("y"), 50_000), 0o644) },
		"gone":      os.Remove,
		"a link":    func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) },
		"a folder":  func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) },
		"a pipe":    func(file string) error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o644)) },
		"another":   func(file string) error { return errors.Join(os.Rename(file, file+"1"), os.Rename(file+"2", file)) },
		"its above": func(file string) error { return os.RemoveAll(filepath.Dir(file)) },
	} {
		t.Run(name, func(t *testing.T) {
			bucket := memblob.OpenBucket(nil)
			defer bucket.Close()
			store := staging.New(bucket)
			dir := t.TempDir()
			file := filepath.Join(dir, "d", "file")
			require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
			for _, name := range []string{file, file + "2"} {
				require.NoError(t, os.WriteFile(name, bytes.Repeat([]byte("x"), 50_000), 0o644))
			}
			was := time.Now().Add(-time.Hour)
			require.NoError(t, os.Chtimes(file, was, was))
			opt := buildctx.Options{Dir: dir}
			tree, err := DirBundler{}.scan(t.Context(), opt)
			require.NoError(t, err)
			require.NoError(t, change(file))
			_, _, err = putTree(t.Context(), store, tree, nil)
			require.ErrorIs(t, err, buildctx.ErrChanged)
			_, err = bucket.List(nil).Next(t.Context())
			require.ErrorIs(t, err, io.EOF)

			_, stats, err := scanAndPut(t.Context(), store, DirBundler{}, opt, nil)
			require.NoError(t, err)
			require.True(t, stats.Uploaded)
		})
	}
}
