package portainer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/staging"
)

// TestPrepareNamedContexts checks that directories are staged under their names, share
// what is equal, and that all of it goes away again.
func TestPrepareNamedContexts(t *testing.T) {
	f, dir, events := stagingFramework(t, nil)
	lib, same, when := t.TempDir(), t.TempDir(), time.Unix(1e9, 0)
	for _, d := range []string{lib, same} {
		require.NoError(t, os.WriteFile(filepath.Join(d, "x"), []byte("x"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(d, ".dockerignore"), []byte("secret\n"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(d, "secret"), []byte(d), 0o644))
		// It is no Dockerfile's ignore file: there is no Dockerfile in a further context.
		require.NoError(t, os.WriteFile(filepath.Join(d, "Dockerfile.dockerignore"), []byte("*\n"), 0o644))
		for _, name := range []string{"x", ".dockerignore", "Dockerfile.dockerignore", ""} {
			require.NoError(t, os.Chtimes(filepath.Join(d, name), when, when))
		}
	}
	given := map[string]string{
		"lib:latest": lib, "docker.io/library/same": same, "img": "docker-image://reg:1/i", "src": "https://git.example/x.git",
	}
	spec, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir, Options: Options{BuildContexts: given}})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"img": "docker-image://reg:1/i", "src": "https://git.example/x.git"}, spec.task.Options.BuildContexts)
	require.Len(t, given, 4, "the request's own is left alone")
	require.Len(t, spec.task.Contexts, 2)
	require.Equal(t, spec.task.Contexts["lib"], spec.task.Contexts["same"])
	require.NotNil(t, spec.task.Context)
	require.Contains(t, spec.registries, "reg:1")
	var texts []string
	for _, ev := range *events {
		if ev.Kind == EventStaged {
			texts = append(texts, ev.Text)
		}
	}
	require.Len(t, texts, 3)
	require.True(t, strings.HasPrefix(texts[1], "build-context lib of "), texts[1])
	require.Contains(t, texts[2], "is staged already")

	c := spec.task.Contexts["lib"]
	r, err := f.stager.store.Open(t.Context(), staging.Ref{Key: c.Key, Size: c.Size, Digest: c.Digest})
	require.NoError(t, err)
	var names []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
	require.NoError(t, r.Close())
	require.Equal(t, []string{"./", ".dockerignore", "Dockerfile.dockerignore", "x"}, names)

	f.unstage(&spec.task)
	f.sweepStaging(t.Context(), spec.id)
	for _, c := range spec.task.Staged() {
		there, err := f.cfg.Staging.Exists(t.Context(), c.Key)
		require.NoError(t, err)
		require.False(t, there)
	}
}

// TestPrepareNamedContextFails checks that nothing stays of a build whose last context
// cannot be staged.
func TestPrepareNamedContextFails(t *testing.T) {
	f, dir, _ := stagingFramework(t, nil)
	bad := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bad, ".dockerignore"), []byte("[\n"), 0o644))
	_, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir, Options: Options{BuildContexts: map[string]string{"bad": bad}}})
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "build-context bad: ")
	require.ErrorContains(t, err, ".dockerignore:1")
	list := f.cfg.Staging.List(nil)
	for {
		obj, err := list.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotContains(t, obj.Key, "/contexts/")
	}
}

func TestPrepareRemote(t *testing.T) {
	f := newTestFramework(t, nil) // without staging
	spec, err := f.prepare(t.Context(), Request{Repository: "app", Remote: "https://host/app.git#main:dir", Target: "t"})
	require.NoError(t, err)
	require.Equal(t, "https://host/app.git#main:dir", spec.task.Remote)
	require.Equal(t, "Dockerfile", spec.task.Name)
	require.Equal(t, "https://host/app.git#main:dir", spec.file)
	require.Empty(t, spec.task.Dockerfile)
	require.Empty(t, spec.task.Staged())
	require.Contains(t, spec.registries, "docker.io")

	spec, err = f.prepare(t.Context(), Request{Remote: "git@host:app.git", Source: []byte("REPOSITORY own\nFROM a\nCOPY x /\n"), Dockerfile: "-", From: "mirror.example"})
	require.NoError(t, err)
	require.Equal(t, "\nFROM mirror.example/a\nCOPY x /\n", string(spec.task.Dockerfile))
	require.True(t, strings.HasSuffix(spec.image, "/own"), spec.image)
	require.Empty(t, spec.task.Staged())

	for says, req := range map[string]Request{
		"no repository":                {Remote: "https://host/app.git"},
		"neither Dir":                  {Remote: "https://host/app.git", Repository: "app", Dir: "."},
		"it must be the URL":           {Remote: "ftp://host/app", Repository: "app"},
		"password":                     {Remote: "https://me:pw@host/app.git", Repository: "app"},
		"cannot be had from m.example": {Remote: "https://host/app.git", Repository: "app", From: "m.example"},
		"another one called":           {Repository: "app", Source: source(), Options: Options{BuildContexts: map[string]string{"a": ".", "a:latest": "."}}},
		"no ssh://":                    {Repository: "app", Source: source(), Options: Options{BuildContexts: map[string]string{"a": "ssh://git@h/x"}}},
		"it must be docker-":           {Repository: "app", Source: source(), Options: Options{BuildContexts: map[string]string{"a": "target:x://"}}},
	} {
		_, err := f.prepare(t.Context(), req)
		require.ErrorIs(t, err, ErrInvalid, says)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "me:pw")
	}
}

func TestTarBundler(t *testing.T) {
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for name, text := range map[string]string{"dockerfile": "FROM scratch\nCOPY f /\n", "f": "x"} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text))}))
		_, err := io.WriteString(tw, text)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	b, err := ReadTar(t.Context(), &archive, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	text, err := b.Dockerfile("")
	require.NoError(t, err)
	_, err = b.Dockerfile("other")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, err, ErrInvalid)

	f, _, _ := stagingFramework(t, nil)
	for _, bundler := range []*TarBundler{b, {}} {
		spec, err := f.prepare(t.Context(), Request{Repository: "app", Source: text, Bundler: bundler})
		require.NoError(t, err)
		require.NotNil(t, spec.task.Context)
		again, err := f.prepare(t.Context(), Request{Repository: "app2", Source: text, Bundler: bundler})
		require.NoError(t, err)
		require.Equal(t, spec.task.Context, again.task.Context)
	}
}
