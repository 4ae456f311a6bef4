package portainer

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// certificates returns a certificate and its key, which vouches for itself.
func certificates(t *testing.T) (cert, key []byte) {
	t.Helper()
	dir := t.TempDir()
	cert, err := dockertest.WriteCerts(dir, "registry.example")
	require.NoError(t, err)
	key, err = os.ReadFile(filepath.Join(dir, "key.pem"))
	require.NoError(t, err)
	return cert, key
}

func TestRegistriesAreChecked(t *testing.T) {
	cert, key := certificates(t)
	_, otherKey := certificates(t)
	tests := []struct {
		name       string
		registries []Registry
		says       string // "" if it is right
	}{
		{"all of it", []Registry{{Host: "r.example:5000", CA: cert, ClientCert: cert, ClientKey: key, Insecure: true, Mirrors: []string{"m.example:1/hub"}}}, ""},
		{"Docker Hub", []Registry{{Host: "docker.io", Mirrors: []string{"m.example"}}}, ""},
		{"no host", []Registry{{CA: cert}}, `"" is no registry`},
		{"a URL", []Registry{{Host: "https://r.example"}}, `"https://r.example" is no registry`},
		{"a path", []Registry{{Host: "r.example/team"}}, `"r.example/team" is no registry`},
		{"twice", []Registry{{Host: "r.example"}, {Host: "r.example"}}, "r.example: it is there twice"},
		{"no PEM", []Registry{{Host: "r.example", CA: []byte("no PEM")}}, "CA: it holds no certificate"},
		{"a whole system's CAs", []Registry{{Host: "r.example", CA: make([]byte, maxCA+1)}}, "at most 65536 can be sent"},
		{"no key", []Registry{{Host: "r.example", ClientCert: cert}}, "ClientCert, ClientKey: "},
		{"another's key", []Registry{{Host: "r.example", ClientCert: cert, ClientKey: otherKey}}, "ClientCert, ClientKey: "},
		{"a mirror's URL", []Registry{{Host: "docker.io", Mirrors: []string{"https://m.example"}}}, "without a scheme"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(Config{Master: "127.0.0.1:5050", ExecutorURI: "http://e/x", Registries: tt.registries})
			if tt.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, "Registries: ")
			require.ErrorContains(t, err, tt.says)
		})
	}
}

// TestExecutorsAreToldOfTheirRegistries has a build that speaks to some of the
// registries that the config knows. What is secret is nowhere but sealed.
func TestExecutorsAreToldOfTheirRegistries(t *testing.T) {
	cert, key := certificates(t)
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Engine = Engine{Kind: "buildkitd", Host: "tcp://10.0.0.1:1234", TLS: &EngineTLS{CA: cert, Cert: cert, Key: key}}
		cfg.Registries = []Registry{
			{Host: "base.example", CA: cert, Mirrors: []string{"mirror.example/path"}},
			{Host: "mirror.example", ClientCert: cert, ClientKey: key},
			{Host: "cache.example", Insecure: true},
			{Host: "unused.example", CA: cert, Insecure: true},
		}
		cfg.Credentials = func(_ context.Context, registries ...string) (map[string]RegistryAuth, error) {
			found := map[string]RegistryAuth{}
			for _, r := range registries {
				found[r] = RegistryAuth{Username: "robot", Password: "password of " + r}
			}
			return found, nil
		}
	})
	const cacheSecret = "the-secret-of-the-cache"
	spec, err := f.prepare(t.Context(), Request{
		Registry: "push.example", Repository: "app", Dockerfile: "Dockerfile",
		Source: []byte("# syntax=syntax.example/docker/dockerfile:1\nFROM base.example/x\nCOPY --from=copied.example/y /y /y\n"),
		Options: Options{
			CacheFrom:     []string{"type=registry,ref=cache.example/c"},
			CacheTo:       []string{"type=s3,bucket=b,secret_access_key=" + cacheSecret, "inline"},
			BuildContexts: map[string]string{"more": "docker-image://context.example/z"},
			SBOM:          "sbom.example/scanner",
		},
		SSH: map[string]SSHAgent{"default": nil},
	})
	require.NoError(t, err)
	all := []string{
		"base.example", "cache.example", "context.example", "copied.example", "mirror.example", "push.example", "sbom.example", "syntax.example",
	}
	require.Equal(t, all, spec.registries)
	task := spec.task
	require.Equal(t, []string{"cache.example"}, task.Insecure)
	require.Equal(t, []wire.Registry{
		{Host: "base.example", CA: cert, Mirrors: []string{"mirror.example/path"}}, {Host: "mirror.example", ClientCert: true},
	}, task.Registries)
	require.Equal(t, wire.Engine{Kind: "buildkitd", Host: "tcp://10.0.0.1:1234", TLS: true, CA: cert, ClientCert: true}, task.Engine)
	require.Equal(t, []string{"type=s3,bucket=b,secret_access_key=[redacted]", "inline"}, task.Options.CacheTo)
	require.Equal(t, []string{"default"}, task.SSH)
	require.True(t, task.Secrets)

	// The task and the state directory's record, and whatever prints the config.
	data, err := task.Encode()
	require.NoError(t, err)
	record, err := json.Marshal((&build{buildSpec: *spec}).record())
	require.NoError(t, err)
	printed := fmt.Sprintf("%v %+v %#v", f.cfg.Registries, f.cfg.Registries, *f.cfg.Engine.TLS)
	for _, text := range []string{string(data), string(record), printed} {
		require.Equal(t, text, string(seal.NewMasker(seal.Credentials{
			ClientCerts: map[string]seal.ClientCert{"": {Key: key}}, CacheTo: []string{"secret_access_key=" + cacheSecret},
		}).Mask([]byte(text))))
		require.NotContains(t, text, cacheSecret)
	}

	own, err := seal.NewKey()
	require.NoError(t, err)
	ask := seal.Ask{Binding: seal.Binding{Task: "b-1", Attempt: 1}, Key: own.Public(), Serial: 1}
	answer, err := f.secretsFor(t.Context(), ask, spec, false)
	require.NoError(t, err)
	plain, err := own.Open(ask.Binding, answer.Sealed)
	require.NoError(t, err)
	got, err := seal.DecodeCredentials(plain)
	require.NoError(t, err)
	require.Len(t, got.Registries, len(all))
	require.Equal(t, map[string]seal.ClientCert{"mirror.example": {Cert: cert, Key: key}}, got.ClientCerts)
	require.Equal(t, &seal.ClientCert{Cert: cert, Key: key}, got.Daemon)
	require.Nil(t, got.CacheFrom)
	require.Equal(t, []string{"type=s3,bucket=b,secret_access_key=" + cacheSecret, "inline"}, got.CacheTo)

	// A later framework knows no build's own secrets, and may not have the keys.
	spec.ownSecrets = false
	answer, err = f.secretsFor(t.Context(), ask, spec, true)
	require.NoError(t, err)
	require.Empty(t, answer.Refusal)
	f.cfg.Registries = nil
	answer, err = f.secretsFor(t.Context(), ask, spec, true)
	require.NoError(t, err)
	require.Contains(t, answer.Refusal, "no longer has the client certificate for registry mirror.example")
}
