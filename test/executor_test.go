package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// maxExecutor is how large the archive of the executor may be, with all drivers of
// storage and engines.
const maxExecutor = int64(25_000_000)

// TestExecutorArchive makes the archive in a clone of the repository, has agents
// fetch it, and builds with it.
func TestExecutorArchive(t *testing.T) {
	clone := filepath.Join(t.TempDir(), "clone")
	git := func(dir string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir}, args...)...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "git %v: %s", args, out)
		return strings.TrimSpace(string(out))
	}
	// This tree need not belong to whoever tests it.
	git("/", "-c", "safe.directory=*", "clone", "--quiet", root, clone)
	script := func(env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(clone, "scripts", "executor"))
		cmd.Env = append(os.Environ(), append(env, "PLATFORMS=linux/"+runtime.GOARCH)...)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	out, err := script()
	require.NoError(t, err, out)
	require.Equal(t, "dist/portainer-executor-"+git(clone, "rev-parse", "--short=12", "HEAD")+".linux-"+runtime.GOARCH+".tar.gz", out)
	archive := filepath.Join(clone, out)
	info, err := os.Stat(archive)
	require.NoError(t, err)
	require.LessOrEqual(t, info.Size(), maxExecutor, "agents fetch it for every build")

	require.NoError(t, os.WriteFile(filepath.Join(clone, "README.md"), []byte("changed\n"), 0o644))
	out, err = script()
	require.Error(t, err)
	require.Contains(t, out, "uncommitted changes")
	out, err = script("FORCE=1")
	require.NoError(t, err, out)
	require.Contains(t, out, "-dirty.")

	for _, uri := range []string{"file://" + archive, archive} {
		before := look(t)
		staging := t.TempDir()
		p := cli(t, 0, "build", "--to", registry, "--from", registry, "--tag", "archive", "--staging-uri", staging, "--staging-ttl", "0", "--executor-uri", uri, "examples/hello")
		pushed(t, refOf(t, p, "examples/hello"))
		before.nothingLeft(t, p)
		require.Empty(t, filesOf(t, staging), "the program itself need not be staged")
	}
}

// TestExecutorIsStaged: with a staging directory of their own, agents fetch the
// program from there.
func TestExecutorIsStaged(t *testing.T) {
	c := startCluster(t)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	staging := t.TempDir()
	for range 2 {
		p := cli(t, 0, "build", "--mesos-master", c.master, "--to", c.registry, "--from", c.registry, "--staging-uri", staging, "--staging-ttl", "0", "examples/tree/a")
		pushed(t, refOf(t, p, "examples/tree-a"))
		require.Empty(t, staged(t, staging))
		files := filesOf(t, staging)
		require.Len(t, files, 1, "the executor stays, and is sent once")
		require.Contains(t, files[0], "/portainer/executors/")
	}
	c.stop()
}

// TestExamplesThatEmbed runs the programs in examples.
func TestExamplesThatEmbed(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, goTool(t.Context(), buildArgs(dir+"/", "./examples/embed", "./examples/matcher", "./executor")...))
	c := startCluster(t, "--agents", "2")
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	flags := []string{
		"-master", c.master, "-registry", c.registry, "-from", c.registry,
		"-staging", "file://" + t.TempDir() + "?no_tmp_dir=true&metadata=skip", "-executor-uri", filepath.Join(dir, "executor"),
	}
	p := startProgram(t, filepath.Join(dir, "embed"), append(flags, "examples/tree")...)
	require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
	require.Len(t, p.refs(), 2)
	for _, ref := range p.refs() {
		pushed(t, ref)
	}

	p = startProgram(t, filepath.Join(dir, "matcher"), append(flags, "examples/tree/a", "examples/tree/b")...)
	require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
	require.Contains(t, p.stdout.String(), c.registry+"/examples/tree-a built on ")
	require.Contains(t, p.stdout.String(), c.registry+"/examples/tree-b built on ")
	c.stop()
}
