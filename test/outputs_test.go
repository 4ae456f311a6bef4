package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// TestOutputs brings images back from the agent, in every form, and looks for what is
// left in the staging bucket.
func TestOutputs(t *testing.T) {
	daemon := startDaemon(t)
	tools, err := dockertest.Tools(t.Context())
	require.NoError(t, err)
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	staging, out := t.TempDir(), t.TempDir()
	dir := write(t, map[string]string{
		"Dockerfile": "FROM busybox\nCOPY a /from/context\nRUN echo made >/from/run && ln -s run /from/link\nCMD [\"cat\", \"/from/link\"]\n",
		"a":          "context\n",
	})
	build := func(want int, args ...string) *process {
		p := cli(t, want, append([]string{"build", "--from", registry, "--staging-uri", staging}, args...)...)
		require.Empty(t, filesOf(t, filepath.Join(staging, "portainer", "outputs")), "left in the staging bucket")
		return p
	}
	given := []string{"--docker-host", daemon.Host}

	// Through a pipe, with no registry nor name.
	p := build(0, append(given, "--output", "type=docker,dest=-", dir)...)
	archive := filepath.Join(out, "piped.tar")
	require.NoError(t, os.WriteFile(archive, []byte(p.stdout.String()), 0o644))
	id := strings.TrimSpace(strings.TrimPrefix(docker(t, daemon.Host, "load", "--input", archive), "Loaded image ID: "))
	require.Equal(t, "made\n", docker(t, daemon.Host, "run", "--rm", "--network", "none", id))
	docker(t, daemon.Host, "rmi", id)

	// Files and an archive, besides a push.
	local, file := filepath.Join(out, "rootfs"), filepath.Join(out, "image.tar")
	p = build(0, append(given, "--output", local, "--output", "type=docker,dest="+file, "--push",
		"--to", registry, "--repository", "test/outputs", "--tag", "v1", dir)...)
	config, err := pushed(t, refOf(t, p, "test/outputs")).ConfigName()
	require.NoError(t, err)
	image, err := tarball.ImageFromPath(file, nil)
	require.NoError(t, err)
	saved, err := image.ConfigName()
	require.NoError(t, err)
	require.Equal(t, config, saved, "another image than the pushed one")
	for name, want := range map[string]string{"from/context": "context\n", "from/run": "made\n", "from/link": "made\n"} {
		got, err := os.ReadFile(filepath.Join(local, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.Contains(t, p.stderr.String(), "output type=local,dest="+local+" written")

	// By a buildkitd, as OCI has it.
	layout := filepath.Join(out, "layout")
	p = build(0, "--engine", "buildkitd", "--output", "type=oci,tar=false,dest="+layout, "--output", "type=tar,dest=-", dir)
	require.FileExists(t, filepath.Join(layout, "index.json"))
	require.Contains(t, p.stdout.String(), "from/context")

	// A step that fails leaves nothing, nor does what cannot be.
	broken := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN exit 3\n"})
	none := filepath.Join(out, "none.tar")
	build(1, append(given, "--output", "type=docker,dest="+none, broken)...)
	build(2, append(given, "--output", "type=oci,dest="+none, dir)...)
	build(2, append(given, "--output", "type=docker,dest="+none, dir, broken)...)
	build(2, append(given, "--load", dir)...)
	require.NoFileExists(t, none)
	left, err := filepath.Glob(filepath.Join(out, ".*"))
	require.NoError(t, err)
	require.Empty(t, left)
	require.NotContains(t, docker(t, daemon.Host, "images", "--all", "--quiet", "--no-trunc"), saved.String(), "left in the daemon")
}
