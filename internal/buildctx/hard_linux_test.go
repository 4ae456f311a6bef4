package buildctx_test

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/buildctx"
)

// TestUnreadable lets the thread of the test be nobody, whom permissions stop.
func TestUnreadable(t *testing.T) {
	for name, unreadable := range map[string]string{"file": "a/secret", "directory": "a"} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, "a/secret\nx", "b")
			require.NoError(t, os.Chmod(filepath.Join(dir, unreadable), 0))
			t.Cleanup(func() { require.NoError(t, os.Chmod(filepath.Join(dir, unreadable), 0o700)) })
			for above := dir; above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
				require.NoError(t, os.Chmod(above, 0o755))
			}
			pack := func(opt buildctx.Options) (err error) {
				done := make(chan struct{})
				go func() {
					defer close(done)
					runtime.LockOSThread() // and never unlocked: the thread ends with this
					if os.Geteuid() == 0 {
						if err = unix.Setfsuid(65534); err != nil {
							return
						}
					}
					err = buildctx.Pack(t.Context(), io.Discard, opt)
				}()
				<-done
				return err
			}
			err := pack(buildctx.Options{Dir: dir})
			require.ErrorIs(t, err, fs.ErrPermission)
			require.ErrorContains(t, err, filepath.Join(dir, unreadable))
			// What is left out need not be readable.
			df := filepath.Join(dir, "D")
			require.NoError(t, os.WriteFile(df+".dockerignore", []byte("a\n"), 0o644))
			require.NoError(t, pack(buildctx.Options{Dir: dir, Dockerfile: df}))
		})
	}
}

// A file beyond 8 GiB does not fit the old header's field.
func TestHugeFile(t *testing.T) {
	const size = 9 << 30
	dir := tree(t, "huge", "small\nx")
	require.NoError(t, os.Truncate(filepath.Join(dir, "huge"), size))
	got, err := buildctx.Scan(t.Context(), buildctx.Options{Dir: dir})
	require.NoError(t, err)
	require.Equal(t, int64(size+1), got.Size())
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		tw := tar.NewWriter(w)
		for _, e := range got.Entries {
			if err := tw.WriteHeader(e.Header); err != nil || e.Header.Size > 0 {
				w.CloseWithError(err)
				return
			}
		}
	}()
	tr := tar.NewReader(r)
	_, err = tr.Next() // the root
	require.NoError(t, err)
	h, err := tr.Next()
	require.NoError(t, err)
	require.Equal(t, "huge", h.Name)
	require.Equal(t, int64(size), h.Size)

	_, err = buildctx.Scan(t.Context(), buildctx.Options{Dir: dir, Limit: 4 << 30})
	require.ErrorContains(t, err, "9.0 GiB  huge")
}
