package test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// startDaemon starts a Docker daemon for one test.
func startDaemon(t *testing.T) *dockertest.Daemon {
	t.Helper()
	dir := t.TempDir()
	d, err := dockertest.StartDaemon(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Stop()) })
	return d
}

// pushed pulls the image of a reference "host/repository:tag@digest" by its tag
// and checks that it has that digest.
func pushed(t *testing.T, ref string) v1.Image {
	t.Helper()
	tagged, digest, ok := strings.Cut(ref, "@")
	require.True(t, ok, ref)
	tag, err := name.NewTag(tagged, name.StrictValidation)
	require.NoError(t, err)
	image, err := remote.Image(tag, remote.WithContext(t.Context()))
	require.NoError(t, err)
	got, err := image.Digest()
	require.NoError(t, err)
	require.Equal(t, digest, got.String(), "what the registry has under %s", tagged)
	return image
}

// filesIn returns the regular files of an image.
func filesIn(t *testing.T, image v1.Image) map[string]string {
	t.Helper()
	r := mutate.Extract(image)
	defer r.Close()
	files := map[string]string{}
	for tr := tar.NewReader(r); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		if hdr.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(tr)
			require.NoError(t, err)
			files[hdr.Name] = string(data)
		}
	}
}

// notPushed checks that the registry has no such tag.
func notPushed(t *testing.T, tagged string) {
	t.Helper()
	tag, err := name.NewTag(tagged, name.StrictValidation)
	require.NoError(t, err)
	_, err = remote.Head(tag, remote.WithContext(t.Context()))
	require.ErrorContains(t, err, "404")
}

// metadata is what the tests read of a metadata file.
type metadata struct {
	Digest string `json:"containerimage.digest"`
	Builds []struct {
		Dockerfile, Image, Agent, Engine, Class, Phase, Step string
		Line, Attempts                                       int
		Refs                                                 []string
		Started, Finished                                    string
	}
}

func readMetadata(t *testing.T, file string) metadata {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var m metadata
	require.NoError(t, json.Unmarshal(data, &m))
	return m
}

var reference = regexp.MustCompile(`^[^/@]+:\d+/[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}$`)

// TestTwoImagesOnTwoAgents builds on a cluster that another process runs: both
// images at once, each with two tags, and what was built works.
func TestTwoImagesOnTwoAgents(t *testing.T) {
	c := startCluster(t, "--agents", "2", "--resources", "cpus:1;mem:1024;disk:20000;ports:[31000-32000]")
	require.Len(t, c.agents, 2)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	before := look(t)
	meta := filepath.Join(t.TempDir(), "meta.json")
	p := cli(t, 0, "build", "--mesos-master", strings.TrimPrefix(c.master, "http://"), "--to", c.registry, "--from", c.registry,
		"--tag", "latest", "--tag", "v1", "--build-cpu", "0.5", "--build-mem", "256", "--stream", "--metadata-file", meta,
		"examples/hello/Dockerfile", "examples/multistage/Dockerfile")

	refs := p.refs()
	require.Len(t, refs, 4)
	for _, ref := range refs {
		require.Regexp(t, reference, ref)
		pushed(t, ref)
	}
	hello := c.registry + "/examples/hello"
	require.Subset(t, []string{refs[0][:strings.Index(refs[0], "@")], refs[2][:strings.Index(refs[2], "@")]},
		[]string{hello + ":latest", c.registry + "/examples/multistage:latest"}, "tags in the order of the flags")
	for line := range strings.Lines(p.stderr.String()) {
		require.True(t, strings.HasPrefix(line, c.registry+"/examples/"), "a line without its image: %s", line)
	}

	m := readMetadata(t, meta)
	require.Len(t, m.Builds, 2)
	require.NotEqual(t, m.Builds[0].Agent, m.Builds[1].Agent, "there are two agents")
	require.Less(t, m.Builds[0].Started, m.Builds[1].Finished, "both at once")
	require.Less(t, m.Builds[1].Started, m.Builds[0].Finished, "both at once")

	before.nothingLeft(t, p)
	daemon := startDaemon(t)
	require.Equal(t, "Hello, Mesos!\n", docker(t, daemon.Host, "run", "--rm", "--network", "none", hello+":v1", "Mesos"))
	require.Equal(t, "6\nagent\nexecutor\nmaster\noffer\nrole\ntask\n",
		docker(t, daemon.Host, "run", "--rm", "--network", "none", c.registry+"/examples/multistage:v1"))
	c.stop()
}

// TestEngines builds the same images with a given daemon and with daemons of
// their own, and looks for what is left.
func TestEngines(t *testing.T) {
	daemon := startDaemon(t)
	tests := []struct {
		name  string
		flags []string
	}{
		{"given daemon", []string{"--docker-host", daemon.Host}},
		{"dockerd of the build's own", []string{"--engine", "dockerd"}},
		{"whatever is there", nil},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			staging := t.TempDir()
			tag := "engine" + string(rune('a'+i))
			meta := filepath.Join(t.TempDir(), "meta.json")
			args := append([]string{"build", "--mesos-master", "local:2", "--to", registry, "--from", registry, "--staging-uri", staging, "--staging-ttl", "0",
				"--tag", tag, "--metadata-file", meta}, tt.flags...)
			p := cli(t, 0, append(args, "examples/hello", "examples/tree/a/Dockerfile", "examples/tree/b/Dockerfile", "examples/multistage")...)
			require.Len(t, p.refs(), 4)
			for _, ref := range p.refs() {
				pushed(t, ref)
			}
			for _, b := range readMetadata(t, meta).Builds {
				require.NotEmpty(t, b.Engine)
				require.Equal(t, 1, b.Attempts)
			}
			before.nothingLeft(t, p)
			require.Empty(t, staged(t, staging), "staged contexts")
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"), "containers")
			config, err := pushed(t, refOf(t, p, "examples/hello")).ConfigFile()
			require.NoError(t, err)
			require.Contains(t, config.Config.Env, "GREETING=Hello")
			require.Equal(t, []string{"/usr/local/bin/greet"}, config.Config.Entrypoint)
		})
	}
}

// refOf is the printed reference of a repository.
func refOf(t *testing.T, p *process, repository string) string {
	t.Helper()
	for _, ref := range p.refs() {
		if strings.Contains(ref, "/"+repository+":") {
			return ref
		}
	}
	require.Fail(t, "no reference", "of %s in %v", repository, p.refs())
	return ""
}

func TestNothingIsStagedForADockerfileWithoutSources(t *testing.T) {
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN true\n", "big": strings.Repeat("x", 1<<20)})
	p := cli(t, 0, "build", "--to", registry, "--from", registry, "--repository", "test/nosource", dir)
	require.NotContains(t, p.stderr.String(), "staged")
	dir = write(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY big /\n", "big": strings.Repeat("x", 1<<20)})
	p = cli(t, 0, "build", "--to", registry, "--from", registry, "--repository", "test/source", dir)
	require.Contains(t, p.stderr.String(), "staged")
}

func TestBuildOptions(t *testing.T) {
	dir := write(t, map[string]string{
		"ctx/in/file": "from the context\n",
		"d/Dockerfile": "FROM busybox AS base\nARG WORD=none\nARG FROM_ENV\nCOPY in/file /file\n" +
			"RUN grep -q 10.1.2.3 /etc/hosts && echo $WORD $FROM_ENV > /words\n" +
			"FROM base AS debug\nENV B=1\n" +
			"FROM base AS release\nENV A=1\n" +
			"FROM busybox\nRUN false\n",
	})
	t.Setenv("FROM_ENV", "outside")
	t.Setenv("PORTAINER_TAG", "from-env")
	p := cli(t, 0, "build", "--to", registry, "--from", registry, "--repository", "test/options",
		"--context", filepath.Join(dir, "ctx"), "--target", "release", "--build-arg", "WORD=given", "--build-arg", "FROM_ENV", "--build-arg", "NOT_SET",
		"--label", "team=a b", "--add-host", "there:10.1.2.3", "--network", "host", "--no-cache", "--pull",
		filepath.Join(dir, "d", "Dockerfile"))
	ref := refOf(t, p, "test/options")
	require.Contains(t, ref, ":from-env@")
	config, err := pushed(t, ref).ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "a b", config.Config.Labels["team"])
	require.Contains(t, config.Config.Env, "A=1")
	daemon := startDaemon(t)
	require.Equal(t, "given outside\n", docker(t, daemon.Host, "run", "--rm", "--network", "none", ref, "cat", "/words"))
}

// TestArgumentFile has the original's way to keep a long command line.
func TestArgumentFile(t *testing.T) {
	args := filepath.Join(write(t, map[string]string{"args": "--to\n" + registry + "\n--from\n" + registry + "\n--tag\nargs\nexamples/tree/b/Dockerfile\n"}), "args")
	p := cli(t, 0, "build", "@"+args)
	require.Len(t, p.refs(), 1)
	require.Contains(t, p.refs()[0], registry+"/examples/tree-b:args@sha256:")
}
