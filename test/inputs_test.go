package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// fed runs the program with something on its standard input and checks its exit code.
func fed(t *testing.T, code int, stdin []byte, args ...string) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stdin")
	require.NoError(t, os.WriteFile(file, stdin, 0o600))
	p := startProgram(t, "/bin/sh", append([]string{"-c", `in=$1; shift; exec "$0" "$@" <"$in"`, program, file}, args...)...)
	require.Equal(t, code, p.wait(), "exit code of portainer %s", strings.Join(args, " "))
	return p
}

// content is what regular files of a pushed image hold, without those of busybox.
func content(t *testing.T, ref string) map[string]string {
	t.Helper()
	r := mutate.Extract(pushed(t, ref))
	defer r.Close()
	got := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		require.NoError(t, err)
		if h.Typeflag == tar.TypeReg && !strings.HasPrefix(h.Name, "bin/") && !strings.HasPrefix(h.Name, "etc/") {
			data, err := io.ReadAll(tr)
			require.NoError(t, err)
			got[h.Name] = string(data)
		}
	}
}

// withBuildkitd lets the executor find a buildkitd.
func withBuildkitd(t *testing.T) {
	t.Helper()
	tools, err := dockertest.Tools(t.Context())
	require.NoError(t, err)
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
}

// TestInputs builds from all that an argument can stand for besides a file.
func TestInputs(t *testing.T) {
	withBuildkitd(t)
	git, err := dockertest.StartGit(t.Context(), t.TempDir(), "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Stop()) })
	require.NoError(t, git.AddRepository(t.Context(), "app.git", map[string]string{"sub/Dockerfile": "FROM scratch\nCOPY f /\n", "sub/f": "of git"}))

	var archive bytes.Buffer
	z := gzip.NewWriter(&archive)
	tw := tar.NewWriter(z)
	for _, f := range [][2]string{{".dockerignore", "f\n"}, {"f", "of the archive"}, {"other.df", "REPOSITORY test/archive\nFROM scratch\nCOPY f .dockerignore /\n"}} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}))
		_, err := io.WriteString(tw, f[1])
		require.NoError(t, err)
	}
	require.NoError(t, errors.Join(tw.Close(), z.Close()))

	dir := write(t, map[string]string{
		"main/f": "of the directory", "main/Dockerfile": "# portainer: repository=test/named\nFROM base\nCOPY --from=lib . /lib/\nCOPY f /\nRUN --mount=from=lib,target=/m cp /m/a /b\n",
		"lib/a": "of lib", "lib/secret": "not to be sent", "lib/.dockerignore": "secret\n",
		"ways/src/a.txt": "a", "ways/src/b.log": "b", "ways/src/deep/c.txt": "c", "ways/by-arg": "arg", "ways/by-env": "env",
		"ways/Dockerfile": "# portainer: repository=test/ways\nARG WHAT=by-arg\nFROM busybox AS base\nONBUILD COPY by-env /triggered\nENV FILE=by-env\nFROM base\nARG WHAT\n" +
			"COPY --exclude=*.log src /excluded/\nCOPY --parents src/./deep/*.txt src/**/a.txt /parents/\nCOPY $WHAT ${FILE} /vars/\n" +
			"COPY <<one <<two /here/\nin $WHAT\none\nsecond\ntwo\nRUN --mount=type=bind,source=src/deep,target=/m <<EOF\ncat /m/c.txt >/mounted\nEOF\n",
	})
	tests := []struct {
		name  string
		stdin []byte
		args  []string
		want  map[string]string
	}{
		{"Dockerfile on standard input", []byte("# portainer: repository=test/stdin\nFROM scratch\nCOPY f /\n"), []string{"--context", filepath.Join(dir, "main"), "-"},
			map[string]string{"f": "of the directory"}},
		{"as docker has it", []byte("FROM scratch\nCOPY f /g\n"), []string{"--repository", "test/docker", "-f", "-", filepath.Join(dir, "main")},
			map[string]string{"g": "of the directory"}},
		{"no context", []byte("FROM scratch\nCOPY <<E /here\nout of nothing\nE\n"), []string{"--repository", "test/nothing", "-"},
			map[string]string{"here": "out of nothing\n"}},
		{"archive", archive.Bytes(), []string{"--file", "other.df", "-"}, map[string]string{"f": "of the archive", ".dockerignore": "f\n"}},
		{"ways to copy", nil, []string{"--from", registry, filepath.Join(dir, "ways")}, map[string]string{
			"triggered": "env", "excluded/a.txt": "a", "excluded/deep/c.txt": "c", "parents/deep/c.txt": "c", "parents/src/a.txt": "a",
			"vars/by-arg": "arg", "vars/by-env": "env", "here/one": "in by-arg\n", "here/two": "second\n", "mounted": "c",
		}},
		{"git", nil, []string{"--repository", "test/git", git.URL + "/app.git#v1:sub"}, map[string]string{"f": "of git"}},
		{"git with a Dockerfile from here", []byte("REPOSITORY test/here\nFROM scratch\nCOPY f /mine\n"), []string{"--context", git.URL + "/app.git#v1:sub", "-"},
			map[string]string{"mine": "of git"}},
		{"further contexts", nil, []string{"--build-context", "lib=" + filepath.Join(dir, "lib"), "--build-context", "base=docker-image://" + registry + "/busybox", filepath.Join(dir, "main")},
			map[string]string{"f": "of the directory", "lib/a": "of lib", "lib/.dockerignore": "secret\n", "b": "of lib"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			staging := t.TempDir()
			args := append([]string{"build", "--to", registry, "--engine", "buildkitd", "--staging-uri", staging, "--staging-ttl", "0"}, tt.args...)
			p := fed(t, 0, tt.stdin, args...)
			require.Len(t, p.refs(), 1)
			require.Equal(t, tt.want, content(t, p.refs()[0]))
			require.Empty(t, staged(t, staging), "staged contexts")
		})
	}
}

// pushTriggers pushes base:triggers, a busybox whose ONBUILD instruction copies f from
// the context.
func pushTriggers(t *testing.T, registry string) {
	t.Helper()
	tag, err := name.NewTag(registry+"/base:triggers", name.Insecure)
	require.NoError(t, err)
	busybox, err := name.NewTag(registry+"/busybox", name.Insecure)
	require.NoError(t, err)
	image, err := remote.Image(busybox, remote.WithContext(t.Context()))
	require.NoError(t, err)
	config, err := image.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.Config.OnBuild = []string{"COPY f /"}
	image, err = mutate.ConfigFile(image, config)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, image, remote.WithContext(t.Context())))
}

// TestOnBuild builds on an image whose ONBUILD instruction copies the context, which a
// Dockerfile that copies nothing does not show: it is staged when the engine asks.
func TestOnBuild(t *testing.T) {
	withBuildkitd(t)
	pushTriggers(t, registry)
	dir := write(t, map[string]string{"Dockerfile": "# portainer: repository=test/triggered\nFROM base:triggers\n", "f": "copied by the base"})
	for _, flags := range [][]string{{"--engine", "buildkitd"}, {"--docker-host", startDaemon(t).Host}} {
		staging := t.TempDir()
		p := cli(t, 0, append([]string{"build", "--to", registry, "--from", registry, "--staging-uri", staging, "--staging-ttl", "0", "--retries", "0", dir}, flags...)...)
		require.Equal(t, map[string]string{"f": "copied by the base"}, content(t, p.refs()[0]))
		require.Contains(t, p.stderr.String(), "# portainer: context=always")
		require.Empty(t, staged(t, staging), "staged contexts")
	}
	require.NoError(t, os.Remove(filepath.Join(dir, "f")))
	p := cli(t, 1, "build", "--to", registry, "--from", registry, "--engine", "buildkitd", dir)
	require.Contains(t, p.stderr.String(), `"/f": not found`)
}

// TestInputsRefused checks that what cannot be meant ends before anything is started.
func TestInputsRefused(t *testing.T) {
	t.Setenv("PORTAINER_REPOSITORY", "x")
	dir := write(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "../evil"}))
	require.NoError(t, tw.Close())
	tests := []struct {
		stdin string
		args  []string
		says  string
	}{
		{"", []string{"-"}, "standard input is empty"},
		{"FROM scratch\n", []string{"-", "-"}, "can be read once"},
		{"FROM scratch\n", []string{"-f", "x", "-"}, "so is --file x"},
		{"FROM scratch\n", []string{"-f", "-", "-"}, "not both"},
		{archive.String(), []string{"-"}, `entry "../evil": the path leaves the context`},
		{"", []string{"-f", "x", filepath.Join(dir, "Dockerfile")}, "neither a directory, a URL nor -"},
		{"", []string{"-f", "x", dir, dir}, "one context"},
		{"", []string{"--context", dir, "https://host.example/a.git"}, "leave out --context"},
		{"", []string{"https://me:secret@host.example/a.git"}, "GIT_AUTH_TOKEN"},
		{"", []string{"--from", "mirror:5000", "https://host.example/a.git"}, "cannot be had from mirror:5000"},
		{"", []string{"--build-context", "Lib=.", dir}, "cannot name a build context"},
		{"", []string{"--build-context", "lib=" + filepath.Join(dir, "none"), dir}, "build-context lib"},
		{"", []string{"--build-context", "lib=oci-layout://" + dir, dir}, "push the image to a registry"},
	}
	for _, tt := range tests {
		p := fed(t, 2, []byte(tt.stdin), append([]string{"build", "--to", registry, "--mesos-master", "nowhere.invalid:1"}, tt.args...)...)
		require.Contains(t, p.stderr.String(), tt.says)
		require.NotContains(t, p.stderr.String(), "secret@")
	}
}
