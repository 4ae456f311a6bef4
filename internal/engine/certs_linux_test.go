package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// A strictRegistry speaks TLS only, with a certificate that only its own CA vouches
// for, and only to who shows one too. It is not on the loopback interface, where
// Docker trusts everybody.
type strictRegistry struct {
	*dockertest.Registry
	base            string // reference of a busybox in it
	remote          remote.Option
	setting         portainer.Registry
	clientKeySecret string // a line of the client's key
}

func startStrictRegistry(t *testing.T) *strictRegistry {
	t.Helper()
	host, err := dockertest.MachineAddress()
	require.NoError(t, err)
	dir := t.TempDir()
	reg, err := dockertest.StartRegistryWith(testContext(t), dir, dockertest.RegistryOptions{Host: host, TLS: true, ClientCerts: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Stop()) })
	transport, err := reg.Client()
	require.NoError(t, err)
	s := &strictRegistry{Registry: reg, remote: remote.WithTransport(transport)}
	s.base, err = dockertest.PushBusybox(testContext(t), reg.Addr, s.remote)
	require.NoError(t, err)
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return data
	}
	s.setting = portainer.Registry{Host: reg.Addr, CA: read("ca.pem"), ClientCert: read("cert.pem"), ClientKey: read("key.pem")}
	s.clientKeySecret = strings.Split(string(s.setting.ClientKey), "\n")[1]
	return s
}

// TestRegistryCertificates builds from and pushes to a registry that wants both
// sides to show certificates.
func TestRegistryCertificates(t *testing.T) {
	r := theRig(t)
	strict := startStrictRegistry(t)
	otherCA, err := dockertest.WriteCerts(t.TempDir(), "127.0.0.1")
	require.NoError(t, err)
	for _, w := range ways {
		if w.kind == engine.KindDocker {
			continue // has its own configuration
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.own(t, w.kind, log)
			cfg.Temp = shortTemp(t)
			cfg.Registries = []portainer.Registry{strict.setting}
			e := open(t, cfg)
			req := r.request(t, "FROM "+strict.base+"\nRUN "+w.mount+"echo x >/x\n")
			req.Registry = strict.Addr
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			ref, err := name.ParseReference(res.Refs[0])
			require.NoError(t, err)
			image, err := remote.Image(ref, strict.remote)
			require.NoError(t, err)
			require.Equal(t, "x\n", fileSystem(t, image)["x"])

			// The key is in memory alone, and not in it any more at the end.
			require.NotContains(t, onDisk(t, cfg.Sandbox, cfg.Temp), strict.clientKeySecret)
			require.NotContains(t, everything(t, cfg.Sandbox, "", log), strict.clientKeySecret)
			require.NoError(t, e.Close(testContext(t)))
			require.NotContains(t, everything(t, cfg.Sandbox, cfg.Temp, log), strict.clientKeySecret)
			require.NoDirExists(t, "/etc/docker/certs.d/"+strict.Addr, "nobody else sees it")

			// Another's certificate vouches for nobody here, and one is wanted.
			for _, wrong := range []portainer.Registry{
				{Host: strict.Addr, CA: otherCA, ClientCert: strict.setting.ClientCert, ClientKey: strict.setting.ClientKey},
				{Host: strict.Addr, CA: strict.setting.CA},
			} {
				cfg := r.own(t, w.kind, nil)
				cfg.Registries = []portainer.Registry{wrong}
				req := r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"true\n")
				req.Registry = strict.Addr
				_, err = open(t, cfg).Build(testContext(t), req)
				var be *portainer.BuildError
				require.ErrorAs(t, err, &be)
				require.Equal(t, portainer.ClassRegistry, be.Class, err)
				require.Equal(t, portainer.PhasePush, be.Phase)
			}
		})
	}
	// A given daemon does not know the certificates, and says so before it builds.
	t.Run("given docker", func(t *testing.T) {
		t.Parallel()
		log := &recorder{}
		cfg := r.given(log)
		cfg.Registries = []portainer.Registry{strict.setting}
		req := r.request(t, "FROM BUSYBOX\nRUN true\n")
		req.Registry = strict.Addr
		_, err := open(t, cfg).Build(testContext(t), req)
		var be *portainer.BuildError
		require.ErrorAs(t, err, &be)
		require.Equal(t, portainer.ClassInvalid, be.Class)
		require.ErrorContains(t, err, "x509")
		require.ErrorContains(t, err, "put them into /etc/docker/certs.d/"+strict.Addr+" there")
		require.NotContains(t, err.Error(), strict.clientKeySecret)
		require.Empty(t, log.all())
	})
}

// onDisk is everything below dirs that is not in memory only.
func onDisk(t *testing.T, dirs ...string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var inMemory []string
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.Contains(line, " - ramfs ") {
			inMemory = append(inMemory, fields[4]+"/")
		}
	}
	require.NotEmpty(t, inMemory)
	var all strings.Builder
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
			for _, prefix := range inMemory {
				if strings.HasPrefix(path, prefix) {
					return nil
				}
			}
			if d != nil && d.Type().IsRegular() && !strings.Contains(path, "/bin/") {
				if data, err := os.ReadFile(path); err == nil { // they come and go
					all.Write(data)
				}
			}
			return nil
		}))
	}
	return all.String()
}

// TestMirrors builds from images that only a mirror of their registry has.
func TestMirrors(t *testing.T) {
	r := theRig(t)
	mirror := r.registry.Addr
	image := pull(t, r.busybox)
	for _, repository := range []string{"library/only-at-the-mirror", "team/base"} {
		tag, err := name.NewTag(mirror+"/"+repository+":1", name.Insecure)
		require.NoError(t, err)
		require.NoError(t, remote.Write(tag, image))
	}
	hub := portainer.Registry{Host: "docker.io", Mirrors: []string{mirror}}
	other := portainer.Registry{Host: "registry.invalid", Mirrors: []string{mirror}}
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			cfg.Registries = []portainer.Registry{hub}
			e := open(t, cfg)
			_, err := e.Build(testContext(t), r.request(t, "FROM only-at-the-mirror:1\nRUN "+w.mount+"true\n"))
			if w.kind == engine.KindDocker {
				require.ErrorIs(t, err, portainer.ErrInvalid)
				require.ErrorContains(t, err, `add "registry-mirrors": ["https://`+mirror+`"] to its daemon.json`)
			} else {
				require.NoError(t, err)
			}
			cfg = r.config(t, w.kind, nil)
			cfg.Registries = []portainer.Registry{other}
			_, err = open(t, cfg).Build(testContext(t), r.request(t, "FROM registry.invalid/team/base:1\nRUN "+w.mount+"true\n"))
			if w.kind == engine.KindBuildkitd {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, portainer.ErrInvalid)
				require.ErrorContains(t, err, "cannot do this: mirrors of registries other than docker.io; these can: buildkitd")
			}
		})
	}
}
