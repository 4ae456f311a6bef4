package engine_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

func TestCredentials(t *testing.T) {
	r := theRig(t)
	const user, secret = "builder", "s3cret-Zx9"
	dir := t.TempDir()
	private, err := dockertest.StartPrivateRegistry(testContext(t), dir, user, secret)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, private.Stop()) })
	basic := remote.WithAuth(&authn.Basic{Username: user, Password: secret})
	base, err := dockertest.PushBusybox(testContext(t), private.Addr, basic)
	require.NoError(t, err)

	auth := func(_ context.Context, registry string) (engine.RegistryAuth, error) {
		if registry == private.Addr {
			return engine.RegistryAuth{Username: user, Password: secret}, nil
		}
		return engine.RegistryAuth{}, nil
	}
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.config(t, w.kind, log)
			cfg.Insecure = append(cfg.Insecure, private.Addr)
			cfg.Auth = auth
			if w.kind != engine.KindDocker {
				cfg.Temp = shortTemp(t)
			}
			e := open(t, cfg)
			// A base and a push that need the credentials, and a base that does not.
			req := r.request(t, "ARG REG=nowhere\nFROM BUSYBOX AS open\nRUN "+w.mount+"echo y >/y\nFROM ${REG}/busybox:latest\nCOPY --from=open /y /y\n")
			req.Args = map[string]string{"REG": private.Addr}
			req.Registry = private.Addr
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			tag, err := name.ParseReference(res.Refs[0], name.Insecure)
			require.NoError(t, err)
			image, err := remote.Image(tag, basic)
			require.NoError(t, err)
			require.Equal(t, "y\n", fileSystem(t, image)["y"])

			// The secret is in nothing that we wrote or that others can see.
			require.NotContains(t, everything(t, cfg.Sandbox, cfg.Temp, log), secret)
			for _, wrong := range []engine.RegistryAuth{{Username: user, Password: "wrong"}, {}} {
				cfg := cfg
				cfg.Auth = func(context.Context, string) (engine.RegistryAuth, error) { return wrong, nil }
				e := open(t, cfg)
				for _, source := range []string{"FROM " + base + "\nRUN " + w.mount + "echo n\n", "FROM BUSYBOX\nRUN " + w.mount + "true\n"} {
					req := r.request(t, source)
					req.Registry, req.NoCache, req.Pull = private.Addr, true, true
					_, err := e.Build(testContext(t), req)
					var be *portainer.BuildError
					require.ErrorAs(t, err, &be)
					require.Equal(t, portainer.ClassAuth, be.Class, err)
				}
			}
		})
	}
}

// everything returns what an engine has put into files, environments and events.
func everything(t *testing.T, sandbox, temp string, log *recorder) string {
	t.Helper()
	var all bytes.Buffer
	for _, root := range []string{sandbox, temp} {
		if root == "" {
			continue
		}
		require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.Contains(path, "/bin/") {
				data, err := os.ReadFile(path)
				if err == nil {
					all.Write(data)
				}
			}
			return nil // files come and go
		}))
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, p := range processes {
		for _, name := range []string{"cmdline", "environ"} {
			if data, err := os.ReadFile(filepath.Join(p, name)); err == nil {
				all.Write(data)
			}
		}
	}
	for _, ev := range log.all() {
		all.WriteString(ev.Text + ev.Step.Name + ev.Step.Error)
	}
	return all.String()
}

func TestAuthFails(t *testing.T) {
	r := theRig(t)
	broken := errors.New("helper is gone")
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			cfg.Auth = func(context.Context, string) (engine.RegistryAuth, error) { return engine.RegistryAuth{}, broken }
			if w.kind == engine.KindBuildkitd {
				return // asks only when a registry does
			}
			e := open(t, cfg)
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"true\n"))
			require.ErrorIs(t, err, broken)
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassAuth, be.Class)
		})
	}
}

// A gate is a way to a registry that can be shut.
type gate struct {
	addr, to string

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	g := &gate{addr: "127.0.0.1:0", to: to, conns: map[net.Conn]bool{}}
	require.NoError(t, g.open())
	t.Cleanup(g.shut)
	return g
}

func (g *gate) open() error {
	l, err := net.Listen("tcp", g.addr)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.l, g.addr = l, l.Addr().String()
	g.mu.Unlock()
	g.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", g.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			g.mu.Lock()
			g.conns[in], g.conns[out] = true, true
			g.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				g.wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
				})
			}
		}
	})
	return nil
}

// shut breaks all connections and lets no new one in.
func (g *gate) shut() {
	g.mu.Lock()
	_ = g.l.Close()
	for c := range g.conns {
		_ = c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

var (
	outage = flag.Duration("outage", 2*time.Second, "how long the registry is away in the middle of a push, with most engines")
	// longOutage is that with one engine, as all of them wait in the same place.
	longOutage = 61 * time.Second
)

func TestPushOutlastsAnOutage(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			away := *outage
			if w.kind == engine.KindBuildkitd {
				away = max(away, longOutage)
			}
			g := newGate(t, r.registry.Addr)
			var once sync.Once
			reopened := make(chan error, 1)
			log := &recorder{}
			log.hook = func(ev portainer.Event) {
				if ev.Kind != portainer.EventStep || !(strings.HasPrefix(ev.Step.Name, "pushing ") || strings.HasPrefix(ev.Step.Name, "exporting ")) {
					return
				}
				once.Do(func() {
					g.shut()
					time.AfterFunc(away, func() { reopened <- g.open() })
				})
			}
			cfg := r.config(t, w.kind, log)
			cfg.Insecure = append(cfg.Insecure, g.addr)
			cfg.Bundler = files{"a": "a"}
			e := open(t, cfg)
			req := r.request(t, "FROM BUSYBOX\nCOPY a /a\nRUN "+w.mount+"cat /proc/sys/kernel/random/uuid | tee /id\n")
			req.Registry, req.NoCache = g.addr, true
			began := time.Now()
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			require.NoError(t, <-reopened)
			require.GreaterOrEqual(t, time.Since(began), away)
			// It was built once.
			id := fileSystem(t, pull(t, res.Refs[0]))["id"]
			require.Equal(t, []string{strings.TrimSpace(id)}, log.lines("RUN"))
			var said []string
			for _, ev := range log.all() {
				if ev.Kind == portainer.EventInfo {
					said = append(said, ev.Text)
				}
			}
			require.Contains(t, strings.Join(said, "\n"), "next attempt in")
		})
	}
}

func TestSecrets(t *testing.T) {
	r := theRig(t)
	const secret = "build-s3cret-Qq7"
	for _, w := range ways {
		if w.by == "(classic)" {
			continue // a secret makes it BuildKit's
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.config(t, w.kind, log)
			cfg.Secrets = func(_ context.Context, id string) ([]byte, error) {
				if id == "known" {
					return []byte(secret), nil
				}
				return nil, nil
			}
			e := open(t, cfg)
			res, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN --mount=type=secret,id=known,required=true wc -c </run/secrets/known >/n\n"+
				"RUN --mount=type=secret,id=unknown test ! -e /run/secrets/unknown\n"))
			require.NoError(t, err)
			require.Equal(t, "16\n", fileSystem(t, pull(t, res.Refs[0]))["n"])
			config, err := pull(t, res.Refs[0]).RawConfigFile()
			require.NoError(t, err)
			require.NotContains(t, string(config)+everything(t, cfg.Sandbox, cfg.Temp, log), secret)

			_, err = e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN --mount=type=secret,id=unknown,required=true true\n"))
			require.ErrorContains(t, err, "unknown")
			require.ErrorIs(t, err, portainer.ErrFailed)
		})
	}
}
