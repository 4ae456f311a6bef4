package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestMetadataFile(t *testing.T) {
	dir := t.TempDir()
	built := &job{file: "a/Dockerfile", result: &portainer.Result{
		ID: "b1", Agent: "agent", Image: "r/a", Digest: "sha256:1", ConfigDigest: "sha256:2", Refs: []string{"r/a:v1@sha256:1", "r/a:v2@sha256:1"},
		Descriptor: portainer.Descriptor{MediaType: "m", Digest: "sha256:1", Size: 7},
		Outputs:    []portainer.Written{{Type: "oci", Dest: "x", Size: 3, Digest: "sha256:3"}},
	}}
	failed := &job{file: "b/Dockerfile", err: errors.New("no")}
	image := map[string]any{
		"buildx.build.ref": "portainer/agent/b1", "containerimage.config.digest": "sha256:2", "containerimage.digest": "sha256:1",
		"containerimage.descriptor": map[string]any{"mediaType": "m", "digest": "sha256:1", "size": 7.0}, "image.name": "r/a:v1,r/a:v2",
	}
	c := &frameworkCommand{metadataFile: filepath.Join(dir, "meta"), iidFile: filepath.Join(dir, "iid")}
	write := func(list ...*job) map[string]any {
		require.NoError(t, errors.Join(c.writeMetadata(list), c.writeIID(list)))
		data, err := os.ReadFile(c.metadataFile)
		require.NoError(t, err)
		var got map[string]any
		require.NoError(t, json.Unmarshal(data, &got))
		return got
	}
	got := write(built)
	for key, want := range image {
		require.Equal(t, want, got[key], key)
	}
	require.Len(t, got["builds"], 1)
	require.Equal(t, []any{map[string]any{"type": "oci", "dest": "x", "size": 3.0, "digest": "sha256:3"}},
		got["builds"].([]any)[0].(map[string]any)["outputs"])
	id, err := os.ReadFile(c.iidFile)
	require.NoError(t, err)
	require.Equal(t, "sha256:2", string(id))

	require.NoError(t, os.Remove(c.iidFile))
	got = write(built, failed)
	require.Equal(t, image, got["a/Dockerfile"])
	require.Empty(t, got["b/Dockerfile"])
	require.Equal(t, "no", got["builds"].([]any)[1].(map[string]any)["error"])
	require.NotContains(t, got, "containerimage.digest")
	require.NoFileExists(t, c.iidFile)
	write(failed)
	require.NoFileExists(t, c.iidFile, "a failed build has no image")
}
