package test

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// The secrets of TestPrivateRegistries, all of which must be nowhere.
const (
	basePassword = "p4ssword-of-the-base"
	pushPassword = "p4ssword-of-the-push"
	buildSecret  = "s3cret-of-the-build"
	cacheSecret  = "s3cret-of-the-cache"
)

// shortLife is a short life of tokens. Docker relies on the minute that they must
// last (distribution docs/spec/auth/token.md); BuildKit does not.
const shortLife = 2 * time.Second

// A privateSite is two registries with certificates that nobody else vouches for: one
// that wants a client certificate and a password, and one with a token server, whose
// tokens soon expire.
type privateSite struct {
	base, push *dockertest.Registry
	tokens     *dockertest.TokenServer
	flags      []string
	config     string // directory of docker's configuration
	secrets    []string
	keyLine    string
	transport  http.RoundTripper // for push
}

func startPrivateSite(t *testing.T, tokenLife time.Duration) *privateSite {
	t.Helper()
	ctx := t.Context()
	// On the loopback interface Docker trusts everybody.
	host, err := dockertest.MachineAddress()
	require.NoError(t, err)
	s := &privateSite{}
	baseDir, pushDir, tokenDir := t.TempDir(), t.TempDir(), t.TempDir()
	s.base, err = dockertest.StartRegistryWith(ctx, baseDir,
		dockertest.RegistryOptions{Host: host, TLS: true, ClientCerts: true, User: "reader", Password: basePassword})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.base.Stop()) })
	s.tokens, err = dockertest.StartTokenServer(tokenDir, dockertest.TokenOptions{
		Host: host, TLS: true, Life: tokenLife,
		Passwords: map[string]string{"robot": pushPassword, "admin": "admin"},
		Rights: func(user, repository string) []string {
			switch {
			case user == "admin" || user == "robot" && strings.HasPrefix(repository, "team/"):
				return []string{"pull", "push"}
			case user == "robot" && strings.HasPrefix(repository, "tools/"):
				return []string{"pull"}
			}
			return nil
		},
	})
	require.NoError(t, err)
	t.Cleanup(s.tokens.Stop)
	s.push, err = dockertest.StartRegistryWith(ctx, pushDir, dockertest.RegistryOptions{Host: host, TLS: true, Auth: s.tokens.RegistryAuth()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.push.Stop()) })

	baseTransport, err := s.base.Client()
	require.NoError(t, err)
	_, err = dockertest.PushBusybox(ctx, s.base.Addr, remote.WithTransport(baseTransport),
		remote.WithAuth(&authn.Basic{Username: "reader", Password: basePassword}))
	require.NoError(t, err)
	s.transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true} // it has two certificates
	tag, err := name.NewTag(s.push.Addr + "/tools/late:latest")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, oneFile(t, "late", "comes late"), remote.WithContext(ctx), remote.WithTransport(s.transport),
		remote.WithAuth(&authn.Basic{Username: "admin", Password: "admin"})))

	key, err := os.ReadFile(filepath.Join(baseDir, "key.pem"))
	require.NoError(t, err)
	s.keyLine = strings.Split(string(key), "\n")[1]
	s.secrets = []string{basePassword, pushPassword, buildSecret, cacheSecret, s.keyLine}
	for _, password := range []string{"reader:" + basePassword, "robot:" + pushPassword} {
		s.secrets = append(s.secrets, base64.StdEncoding.EncodeToString([]byte(password)))
	}
	s.config = s.login(t, pushPassword)
	s.flags = []string{
		"--registry-ca", s.base.Addr + "=" + filepath.Join(baseDir, "ca.pem"),
		"--registry-cert", s.base.Addr + "=" + filepath.Join(baseDir, "cert.pem") + "," + filepath.Join(baseDir, "key.pem"),
		"--registry-ca", s.push.Addr + "=" + filepath.Join(pushDir, "ca.pem"),
		"--registry-ca", s.push.Addr + "=" + filepath.Join(tokenDir, "ca.pem"),
	}
	return s
}

// oneFile returns an image with one file.
func oneFile(t *testing.T, path, text string) v1.Image {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: int64(len(text))}))
	_, err := io.WriteString(w, text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
	require.NoError(t, err)
	image, err := mutate.AppendLayers(empty.Image, layer)
	require.NoError(t, err)
	return image
}

// login makes docker's configuration of somebody with that password to push with.
func (s *privateSite) login(t *testing.T, password string) (dir string) {
	t.Helper()
	auth := func(user, password string) map[string]string {
		return map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	}
	text, err := json.Marshal(map[string]any{"auths": map[string]any{
		s.base.Addr: auth("reader", basePassword), s.push.Addr: auth("robot", password),
	}})
	require.NoError(t, err)
	return write(t, map[string]string{"config.json": string(text)})
}

// pushed returns the image with that reference "host/repository:tag@digest".
func (s *privateSite) pushed(t *testing.T, ref string) v1.Image {
	t.Helper()
	digest, err := name.NewDigest(ref)
	require.NoError(t, err)
	image, err := remote.Image(digest, remote.WithContext(t.Context()), remote.WithTransport(s.transport),
		remote.WithAuth(&authn.Basic{Username: "admin", Password: "admin"}))
	require.NoError(t, err)
	return image
}

// hunt looks for secrets in data.
func (s *privateSite) hunt(t *testing.T, where string, data []byte) {
	t.Helper()
	for _, secret := range s.secrets {
		require.False(t, bytes.Contains(data, []byte(secret)), "%s holds %q", where, secret)
	}
}

// huntFiles looks for secrets in all files below dirs that are not in memory alone,
// where BuildKit has those of a step, and client keys are.
func (s *privateSite) huntFiles(t *testing.T, dirs ...string) {
	t.Helper()
	var inMemory []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - ramfs ") || strings.Contains(line, " - tmpfs ") {
			inMemory = append(inMemory, strings.Fields(line)[4])
		}
	}
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if slices.Contains(inMemory, path) {
				return fs.SkipDir
			}
			if err != nil || !d.Type().IsRegular() {
				return nil // they come and go
			}
			if data, err := os.ReadFile(path); err == nil {
				s.hunt(t, path, data)
			}
			return nil
		}))
	}
}

// huntProcesses looks for secrets in what everybody can see of processes.
func (s *privateSite) huntProcesses(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		for _, name := range []string{"environ", "cmdline"} {
			if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				s.hunt(t, filepath.Join(dir, name), data)
			}
		}
	}
}

// A pauseServer holds the step that asks it.
type pauseServer struct {
	*httptest.Server
	asked chan struct{}
	goOn  chan struct{}
}

func startPauseServer(t *testing.T) *pauseServer {
	t.Helper()
	p := &pauseServer{asked: make(chan struct{}), goOn: make(chan struct{})}
	var once sync.Once
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(p.asked) })
		select {
		case <-p.goOn:
		case <-r.Context().Done():
		}
		fmt.Fprintln(w, "go on")
	}))
	t.Cleanup(p.Close)
	return p
}

// TestPrivateRegistries builds from one private registry and another repository of
// the one that it pushes to, with other credentials for each, and looks for secrets
// everywhere while the build runs and after it.
func TestPrivateRegistries(t *testing.T) {
	tools, err := dockertest.Tools(t.Context())
	require.NoError(t, err)
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	for engine, life := range map[string]time.Duration{"buildkitd": shortLife, "dockerd": time.Hour} {
		t.Run(engine, func(t *testing.T) {
			s := startPrivateSite(t, life)
			t.Setenv("DOCKER_CONFIG", s.config)
			work, staging := t.TempDir(), t.TempDir()
			c := startCluster(t, "--work-dir", work)
			pause := startPauseServer(t)
			dir := write(t, map[string]string{
				"Dockerfile": "FROM " + s.base.Addr + "/busybox:latest\n" +
					"COPY data /data\n" +
					"RUN --mount=type=secret,id=token,required=true echo the secret is $(cat /run/secrets/token) && wget -q -O /went " + pause.URL + "\n" +
					"COPY --from=" + s.push.Addr + "/tools/late:latest /late /copied\n",
				"data": "some data",
			})
			secret := filepath.Join(write(t, map[string]string{"secret": buildSecret}), "secret")
			// Command lines are for everybody to see; files are not.
			args := append([]string{
				"build", "--mesos-master", c.master, "--staging-uri", staging, "--engine", engine, "--network", "host",
				"--to", s.push.Addr, "--repository", "team/" + engine, "--secret", "id=token,src=" + secret,
			}, s.flags...)
			if engine == "buildkitd" {
				args = append(args, "--cache-from", "type=s3,bucket=b,region=r,endpoint_url=http://127.0.0.1:1,access_key_id=a,secret_access_key="+cacheSecret)
			}
			args = append(args, filepath.Join(dir, "Dockerfile"))
			file := filepath.Join(write(t, map[string]string{"arguments": strings.Join(args, "\n")}), "arguments")
			grants := len(s.tokens.Grants())
			p := start(t, "@"+file)
			select {
			case <-pause.asked:
			case <-p.exited:
				require.FailNow(t, "the program ended", tailOf(p.stderr.String()))
			case <-time.After(maxRun):
				require.FailNow(t, "the step did not begin")
			}
			for _, url := range append([]string{c.master + "/state"}, c.agents...) {
				if !strings.HasSuffix(url, "/state") {
					url += "/state"
				}
				s.hunt(t, url, fetch(t, url))
			}
			s.huntProcesses(t)
			// What else is called so is of tests, with this file in a clone of it.
			homes, err := filepath.Glob("/tmp/portainer-*/engine.json")
			require.NoError(t, err)
			require.NotEmpty(t, homes)
			for _, home := range homes {
				s.huntFiles(t, filepath.Dir(home))
			}
			s.huntFiles(t, cache, work, staging, p.temp)
			if life == shortLife {
				// What was given before is no longer good for what comes.
				given := time.Now()
				eventually(t, time.Minute, func() bool { return time.Since(given) > life+time.Second }, "time passes")
			}
			close(pause.goOn)

			require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
			image := s.pushed(t, refOf(t, p, "team/"+engine))
			config, err := image.RawConfigFile()
			require.NoError(t, err)
			s.hunt(t, "image", config)
			s.hunt(t, "output", []byte(p.stdout.String()+p.stderr.String()))
			require.Contains(t, p.stderr.String(), "the secret is ***\n")
			s.huntFiles(t, work, staging, p.temp)
			var pushes, reads int
			for _, g := range s.tokens.Grants()[grants:] {
				if g.User != "robot" {
					continue
				}
				require.NotContains(t, strings.Join(g.Granted, " "), "tools/late:pull,push")
				for _, granted := range g.Granted {
					switch granted {
					case "team/" + engine + ":pull,push":
						pushes++
					case "tools/late:pull":
						reads++
					}
				}
			}
			require.GreaterOrEqual(t, pushes, 2, "one for the question before the build, one for the push")
			if life == shortLife {
				require.GreaterOrEqual(t, reads, 2, "one before the first expired, one after")
			}
			require.Positive(t, reads)
			require.Empty(t, s.tokens.Wrong())
			c.stop()
		})
	}
}

// TestPushIsRefusedBeforeAnythingIsStaged has a wrong password.
func TestPushIsRefusedBeforeAnythingIsStaged(t *testing.T) {
	s := startPrivateSite(t, time.Hour)
	t.Setenv("DOCKER_CONFIG", s.login(t, "a guess"))
	staging, meta := t.TempDir(), filepath.Join(t.TempDir(), "meta.json")
	dir := write(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	p := cli(t, 1, append([]string{"build", "--staging-uri", staging, "--to", s.push.Addr, "--repository", "team/app", "--metadata-file", meta, dir}, s.flags...)...)
	require.Empty(t, p.stdout.String())
	require.Empty(t, staged(t, staging))
	m := readMetadata(t, meta)
	require.Len(t, m.Builds, 1)
	require.Equal(t, "auth", m.Builds[0].Class)
	require.Equal(t, "push", m.Builds[0].Phase)
	messages := ownMessages(p)
	require.Len(t, messages, 1)
	require.Contains(t, messages[0], `refuses user "robot" [redacted]`)
	require.NotContains(t, p.stderr.String(), "a guess")

	// A repository that this user may only read.
	t.Setenv("DOCKER_CONFIG", s.config)
	p = cli(t, 1, append([]string{"build", "--staging-uri", staging, "--to", s.push.Addr, "--repository", "tools/app", dir}, s.flags...)...)
	require.Contains(t, p.stderr.String(), `does not let user "robot" [redacted] push`)
	require.Empty(t, staged(t, staging))
}

// fetch returns what is at a URL.
func fetch(t *testing.T, url string) []byte {
	t.Helper()
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", url, data)
	require.NotEmpty(t, data)
	return data
}
