package engine_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// counted is a bundler that counts how often it is called.
type counted struct {
	files
	calls *atomic.Int32
}

func (c counted) Bundle(ctx context.Context, req portainer.Request, w io.Writer) error {
	c.calls.Add(1)
	return c.files.Bundle(ctx, req, w)
}

func TestNamedContexts(t *testing.T) {
	r := theRig(t)
	log := &recorder{}
	cfg := r.config(t, engine.KindBuildkitd, log)
	var main, unused, used atomic.Int32
	cfg.Bundler = counted{files{"main": "not read"}, &main}
	cfg.Contexts = map[string]portainer.ContextBundler{
		"lib":    counted{files{"a/x": "x of lib", ".dockerignore": "a"}, &used},
		"tree":   files{"etc/base": "base"},
		"stage":  files{"made": "elsewhere"},
		"alpine": files{"os": "not alpine"},
		"unused": counted{files{"y": "y"}, &unused},
	}
	e := open(t, cfg)
	res, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX AS stage\nRUN false\n"+
		"FROM BUSYBOX AS look\nRUN --mount=from=lib,target=/lib --mount=from=alpine,target=/alpine cat /lib/a/x /alpine/os >/seen\n"+
		"FROM tree\nCOPY --from=lib /a /copied\nCOPY --from=stage /made /made\nCOPY --from=look /seen /seen\nCOPY --from=docker.io/library/alpine:latest /os /os\n"))
	require.NoError(t, err)
	require.Equal(t, files{
		"etc/base": "base", "copied/x": "x of lib", "made": "elsewhere", "seen": "x of libnot alpine", "os": "not alpine",
	}, fileSystem(t, pull(t, res.Refs[0])))
	require.EqualValues(t, 1, used.Load(), "one that is used three times is read once")
	require.Zero(t, unused.Load(), "nothing uses it")
	require.Zero(t, main.Load(), "nothing uses it")
}

func TestNamedContextsNeedBuildKit(t *testing.T) {
	r := theRig(t)
	cfg := r.given(nil)
	cfg.Contexts = map[string]portainer.ContextBundler{"lib": files{"x": "x"}}
	_, err := open(t, cfg).Build(testContext(t), r.request(t, "FROM scratch\nCOPY --from=lib x /\n"))
	require.ErrorIs(t, err, portainer.ErrInvalid)
	require.ErrorContains(t, err, "build-context")
}

// TestOnBuild builds on images whose ONBUILD instructions want the context, which the
// Dockerfile does not show.
func TestOnBuild(t *testing.T) {
	r := theRig(t)
	image := pull(t, r.busybox)
	config, err := image.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	push := func(t *testing.T, name_, trigger string) string {
		config.Config.OnBuild = []string{trigger}
		image, err := mutate.ConfigFile(image, config)
		require.NoError(t, err)
		tag, err := name.NewTag(r.registry.Addr+"/"+name_+":v1", name.Insecure)
		require.NoError(t, err)
		require.NoError(t, remote.Write(tag, image, remote.WithContext(testContext(t))))
		return tag.String()
	}
	copies, runs := push(t, "triggers/copies", "COPY . /app"), push(t, "triggers/runs", "RUN echo triggered >/made")
	for _, w := range ways {
		if w.kind == engine.KindDockerd {
			continue // as with a given one
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			source := "FROM " + copies + "\nRUN " + w.mount + "true\n"
			_, err := open(t, r.config(t, w.kind, nil)).Build(testContext(t), r.request(t, source))
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassContext, be.Class)

			cfg := r.config(t, w.kind, nil)
			cfg.Bundler = files{"x": "of the context"}
			e := open(t, cfg)
			res, err := e.Build(testContext(t), r.request(t, source))
			require.NoError(t, err)
			require.Equal(t, "of the context", fileSystem(t, pull(t, res.Refs[0]))["app/x"])
			if w.mount == "" && w.kind == engine.KindDocker {
				return // the classic builder does not tell what a trigger does
			}
			res, err = open(t, r.config(t, w.kind, nil)).Build(testContext(t), r.request(t, "FROM "+runs+"\nRUN "+w.mount+"true\n"))
			require.NoError(t, err)
			require.Equal(t, "triggered\n", fileSystem(t, pull(t, res.Refs[0]))["made"])
		})
	}
}

// TestIgnoreFileOfClassicBuilder checks that the classic builder drops nothing of a
// context for a .dockerignore that was not in force when the context was made, as with
// one of the Dockerfile's own, and that a copied one does not defeat the cache. It is
// copied as it is, unless it has no rule that could hide the Dockerfile.
func TestIgnoreFileOfClassicBuilder(t *testing.T) {
	r := theRig(t)
	tests := []struct {
		name, rules string
		asItIs      bool
	}{
		{"names itself", "*\n.dockerignore\nx\n", false},
		{"all", "**", false},
		{"empty", "", false},
		{"paths alone", "a/b\n", false},
		{"a name", "y\n", true},
		{"no newline at its end", "# a comment\r\n\r\n/y/", true},
		{"a name that is there", "x\n", false},
		{"that name and another", "x\n**/*.log", true},
		{"all but a few", "*\n!.dockerignore\n!x\n!Dockerfile\n", true},
		{"odd ones", "[a-c]\n!y\nz?\\!\n*.o*\n", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.given(log)
			cfg.Bundler = files{".dockerignore": tt.rules, "Dockerfile": "FROM nothing\n", "x": "kept", "-": "before"}
			e := open(t, cfg)
			for range 2 {
				res, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nCOPY . /w/\nRUN true\n"))
				require.NoError(t, err)
				require.Contains(t, res.Engine, "classic")
				got := fileSystem(t, pull(t, res.Refs[0]))
				require.Equal(t, []string{"FROM nothing\n", "kept"}, []string{got["w/Dockerfile"], got["w/x"]})
				require.True(t, strings.HasPrefix(got["w/.dockerignore"], tt.rules), got["w/.dockerignore"])
				require.Equal(t, tt.asItIs, got["w/.dockerignore"] == tt.rules, got["w/.dockerignore"])
				require.Len(t, got, 6, "two files of the base, four of the context: %v", got)
			}
			steps := 0
			for _, ev := range log.all() {
				if ev.Kind == portainer.EventStepDone && ev.Step.Cached && strings.Contains(ev.Step.Name, "COPY") {
					steps++
				}
			}
			require.Equal(t, 1, steps, "the second build takes the copy from the cache")
		})
	}
}

// TestRemoteContexts builds what the engine fetches by itself.
func TestRemoteContexts(t *testing.T) {
	r := theRig(t)
	git, err := dockertest.StartGit(testContext(t), t.TempDir(), "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Stop()) })
	require.NoError(t, git.AddRepository(testContext(t), "app.git",
		map[string]string{"Dockerfile": "FROM scratch\nCOPY x /\n", "x": "first", "sub/Dockerfile": "FROM scratch\nCOPY y /\n", "sub/y": "of sub"},
		map[string]string{"Dockerfile": "FROM scratch\nCOPY x /\n", "x": "second", "other.df": "FROM scratch\nCOPY x /other\n", ".dockerignore": "x\n"}))
	native, err := git.ServeGit()
	require.NoError(t, err)

	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	require.NoError(t, files{"Dockerfile": "FROM scratch\nCOPY z /\n", "z": "of an archive"}.Bundle(testContext(t), portainer.Request{}, z))
	require.NoError(t, z.Close())
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/app.tar.gz":
			_, _ = w.Write(packed.Bytes())
		case "/text":
			_, _ = io.WriteString(w, "FROM "+r.busybox+"\nLABEL made=there\n")
		default:
			http.NotFound(w, req)
		}
	}))
	t.Cleanup(web.Close)

	tests := []struct {
		name, url, file, source string
		want                    files
	}{
		{name: "default branch", url: git.URL + "/app.git", want: files{"x": "second"}},
		{name: "tag", url: git.URL + "/app.git#v1", want: files{"x": "first"}},
		{name: "tag and directory", url: git.URL + "/app.git#v1:sub", want: files{"y": "of sub"}},
		{name: "git protocol", url: native + "/app.git#master", want: files{"x": "second"}},
		{name: "other file", url: git.URL + "/app.git", file: "other.df", want: files{"other": "second"}},
		{name: "archive", url: web.URL + "/app.tar.gz", want: files{"z": "of an archive"}},
		{name: "text", url: web.URL + "/text", want: files{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", "etc/group": "root:x:0:\nnogroup:x:65534:\n"}},
		{name: "own text", url: git.URL + "/app.git#v1", source: "FROM scratch\nCOPY x /mine\n", want: files{"mine": "first"}},
	}
	for _, w := range ways {
		if w.kind == engine.KindDockerd || w.mount != "" {
			continue // as with a given one, which takes its BuildKit by itself
		}
		e := open(t, r.config(t, w.kind, nil))
		for _, tt := range tests {
			t.Run(w.name+" "+tt.name, func(t *testing.T) {
				req := r.request(t, tt.source)
				req.Remote, req.Dockerfile = tt.url, tt.file
				res, err := e.Build(testContext(t), req)
				require.NoError(t, err)
				require.Equal(t, w.kind == engine.KindDocker && tt.name == "tag and directory", strings.Contains(res.Engine, "classic"), res.Engine)
				require.Equal(t, tt.want, fileSystem(t, pull(t, res.Refs[0])))
			})
		}
		t.Run(w.name+" missing", func(t *testing.T) {
			req := r.request(t, "")
			req.Remote, req.Dockerfile = git.URL+"/none.git", ""
			_, err := e.Build(testContext(t), req)
			require.ErrorIs(t, err, portainer.ErrFailed)
			require.ErrorContains(t, err, "none.git")
		})
	}
}

// TestPrivateGit checks that a git repository that wants a token gets it from the
// build's secrets, and that nothing else does.
func TestPrivateGit(t *testing.T) {
	r := theRig(t)
	const token = "git-t0ken-Qy7"
	git, err := dockertest.StartGit(testContext(t), t.TempDir(), token)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, git.Stop()) })
	require.NoError(t, git.AddRepository(testContext(t), "app.git", map[string]string{"Dockerfile": "FROM scratch\nCOPY x /\n", "x": "private"}))
	for id, secret := range map[string]string{"GIT_AUTH_TOKEN": token, "GIT_AUTH_HEADER": "Bearer " + token, "none": token, "GIT_AUTH_TOKEN.elsewhere": token} {
		t.Run(id, func(t *testing.T) {
			log := &recorder{}
			cfg := r.config(t, engine.KindBuildkitd, log)
			cfg.Secrets = func(_ context.Context, wanted string) ([]byte, error) {
				if wanted == id {
					return []byte(secret), nil
				}
				return nil, nil
			}
			req := r.request(t, "")
			req.Remote, req.Dockerfile = git.URL+"/app.git", ""
			res, err := open(t, cfg).Build(testContext(t), req)
			if id == "none" || id == "GIT_AUTH_TOKEN.elsewhere" {
				require.ErrorIs(t, err, portainer.ErrFailed)
				return
			}
			require.NoError(t, err)
			require.Equal(t, files{"x": "private"}, fileSystem(t, pull(t, res.Refs[0])))
			require.NotContains(t, everything(t, cfg.Sandbox, "", log), token)
		})
	}
}
