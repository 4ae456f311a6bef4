package hdfsblob_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"

	"github.com/org/portainer/internal/hdfsblob"
	"github.com/org/portainer/internal/hdfsblob/webhdfstest"
	"github.com/org/portainer/internal/storagetest"
)

// TestIndependentClient has npm's webhdfs do what a user would with the test cluster,
// beside our driver: what one writes the other reads.
func TestIndependentClient(t *testing.T) {
	dir, err := storagetest.NPM(t.Context(), "webhdfs", "1.2.0")
	require.NoError(t, err)
	c := start(t, webhdfstest.Options{AnyoneWrites: true})
	b := open(t, c, "/", hdfsblob.Options{User: "alice"})
	content := random(1 << 20)
	require.NoError(t, b.WriteAll(t.Context(), "ours/file", content, &blob.WriterOptions{ContentType: "text/plain"}))
	local := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(local, content, 0o600))

	cmd := exec.CommandContext(t.Context(), "node", "testdata/client.js", filepath.Join(dir, "node_modules", "webhdfs"), c.Namenodes()[0], local)
	cmd.Env = append(os.Environ(), "NO_PROXY=*", "no_proxy=*")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var got map[string]any
	require.NoError(t, json.Unmarshal(out, &got), "%s", out)
	require.Equal(t, map[string]any{
		"same":       true,
		"length":     float64(len(content)),
		"owner":      "alice",
		"names":      []any{"appended", "theirs"},
		"gone":       false,
		"there":      true,
		"mode":       "600",
		"missing":    "File does not exist: /dir/missing",
		"forbidden":  "Permission denied: user=bob, access=WRITE, inode=\"/dir\":alice:supergroup:755",
		"notAFolder": "Parent path is not a directory: /dir/theirs",
	}, got)

	theirs, err := b.ReadAll(t.Context(), "dir/theirs")
	require.NoError(t, err)
	require.Equal(t, content, theirs)
	appended, err := b.ReadAll(t.Context(), "dir/appended")
	require.NoError(t, err)
	require.Equal(t, "one two", string(appended))
	attrs, err := b.Attributes(t.Context(), "dir/theirs")
	require.NoError(t, err)
	require.Equal(t, "application/octet-stream", attrs.ContentType)
	require.NoError(t, b.Delete(t.Context(), "dir/theirs"))
}
