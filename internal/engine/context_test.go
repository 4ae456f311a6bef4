package engine_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

// lastLayer lists what the last layer of an image says of each file.
func lastLayer(t *testing.T, image v1.Image) []string {
	t.Helper()
	layers, err := image.Layers()
	require.NoError(t, err)
	r, err := layers[len(layers)-1].Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	var list []string
	for tr := tar.NewReader(r); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		require.NoError(t, err)
		data, err := io.ReadAll(tr)
		require.NoError(t, err)
		list = append(list, fmt.Sprintf("%q %c %o %d:%d %s %q %q %q", strings.TrimSuffix(hdr.Name, "/"), hdr.Typeflag, hdr.Mode&0o7777, hdr.Uid, hdr.Gid,
			hdr.ModTime.UTC().Format(time.DateTime), hdr.Linkname, hdr.PAXRecords["SCHILY.xattr.security.capability"], data))
	}
}

// TestContextArrivesAsItIs builds an image of a context's files and nothing else. What
// a context means is what a BuildKit makes of it that gets the tar and unpacks it, as
// that in Docker before 23 does.
func TestContextArrivesAsItIs(t *testing.T) {
	r := theRig(t)
	at := time.Unix(1_600_000_000, 0)
	plain := []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o750},
		{Name: "dir/run", Mode: 0o4755, Size: 3},
		{Name: "dir/again", Typeflag: tar.TypeLink, Linkname: "dir/run", Mode: 0o4755},
		{Name: "dir/up", Typeflag: tar.TypeSymlink, Linkname: "../nowhere", Mode: 0o777},
		{Name: "dir/.dockerignore", Mode: 0o600, Size: 2},
		{Name: "dir-x", Mode: 0o644},
		{Name: "sticky/", Typeflag: tar.TypeDir, Mode: 0o1777},
	}
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	odd := append([]tar.Header{
		{Name: "caf\xe9", Mode: 0o644, Size: 1, Uid: 1000, Gid: 8},
		{Name: "able", Mode: 0o755, Size: 1, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}},
	}, plain...)
	for name, headers := range map[string][]tar.Header{"plain": plain, "odd": odd} {
		t.Run(name, func(t *testing.T) {
			images := map[string][]string{}
			for _, w := range ways {
				if w.kind == engine.KindDockerd || strings.HasSuffix(w.name, "classic") {
					continue // as with a given one; it loses bits and attributes
				}
				cfg := r.config(t, w.kind, nil)
				cfg.Bundler = portainer.BundlerFunc(func(_ context.Context, _ portainer.Request, out io.Writer) error {
					tw := tar.NewWriter(out)
					for _, h := range headers {
						h.ModTime = at
						if err := tw.WriteHeader(&h); err != nil {
							return err
						}
						if _, err := tw.Write([]byte("abc")[:h.Size]); err != nil {
							return err
						}
					}
					return tw.Close()
				})
				// The first stage makes a daemon with two builders take the one that is meant.
				req := r.request(t, "FROM BUSYBOX AS unused\nRUN "+w.mount+"true\nFROM BUSYBOX\nCOPY . /c/\n")
				res, err := open(t, cfg).Build(testContext(t), req)
				require.NoError(t, err, w.name)
				require.Contains(t, res.Engine, w.by)
				for _, line := range lastLayer(t, pull(t, res.Refs[0])) {
					if !strings.HasPrefix(line, `"c" `) { // made by COPY
						images[w.name] = append(images[w.name], line)
					}
				}
			}
			unpacked := images["given docker buildkit"]
			require.GreaterOrEqual(t, len(unpacked), len(headers))
			require.Equal(t, unpacked, images["own buildkitd"])
		})
	}
}
