package registryauth_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/org/portainer/internal/registryauth"
	"github.com/org/portainer/internal/seal"
)

func TestMain(m *testing.M) {
	// Nobody's real accounts get into a test.
	for _, name := range []string{"DOCKER_CONFIG", "DOCKER_AUTH_CONFIG"} {
		if err := os.Unsetenv(name); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// open opens a configuration with this text, and sets PATH to a directory with
// these credential helpers: shell scripts, by name.
func open(t *testing.T, text string, helpers map[string]string) *registryauth.Config {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600))
	for name, script := range helpers {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c, err := registryauth.Open(getenv(map[string]string{"DOCKER_CONFIG": dir}))
	require.NoError(t, err)
	return c
}

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func TestCredentialsOfTheFile(t *testing.T) {
	c := open(t, fmt.Sprintf(`{"auths":{
		"registry.example:5000": {"auth": %q},
		"https://legacy.example/v1/": {"auth": %q},
		"https://index.docker.io/v1/": {"auth": %q},
		"azure.example": {"auth": %q, "identitytoken": "refresh-me"},
		"bearer.example": {"registrytoken": "bearer-me"},
		"logged-out.example": {}
	}}`, basic("robot", "pass:word"), basic("old", "p"), basic("hub", "h"), basic("00000000", "x")), nil)
	got, err := c.Credentials(t.Context(), "registry.example:5000", "registry.example", "legacy.example", "docker.io", "index.docker.io",
		"azure.example", "bearer.example", "logged-out.example", "nowhere.example", "docker.io")
	require.NoError(t, err)
	// A struct of secrets prints as redacted, so it is compared field by field.
	require.Len(t, got, 6)
	requireAuth(t, seal.RegistryAuth{Username: "robot", Password: "pass:word"}, got["registry.example:5000"])
	requireAuth(t, seal.RegistryAuth{Username: "old", Password: "p"}, got["legacy.example"])
	requireAuth(t, seal.RegistryAuth{Username: "hub", Password: "h"}, got["docker.io"])
	requireAuth(t, got["docker.io"], got["index.docker.io"])
	require.Equal(t, "refresh-me", got["azure.example"].IdentityToken)
	require.Equal(t, "bearer-me", got["bearer.example"].RegistryToken)
}

func TestOpen(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(home, ".docker"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(home, ".docker", "config.json"),
		fmt.Appendf(nil, `{"auths":{"a.example":{"auth":%q},"b.example":{"auth":%q}}}`, basic("u", "from-home"), basic("u", "from-home")), 0o600))
	fromEnv := fmt.Sprintf(`{"auths":{"a.example":{"auth":%q}}}`, basic("u", "from-env"))

	tests := []struct {
		name string
		env  map[string]string
		want map[string]string // passwords
	}{
		{"nothing", nil, map[string]string{}},
		{"no file", map[string]string{"DOCKER_CONFIG": t.TempDir()}, map[string]string{}},
		{"home", map[string]string{"HOME": home}, map[string]string{"a.example": "from-home", "b.example": "from-home"}},
		{"DOCKER_CONFIG first", map[string]string{"HOME": home, "DOCKER_CONFIG": t.TempDir()}, map[string]string{}},
		{"DOCKER_AUTH_CONFIG", map[string]string{"DOCKER_AUTH_CONFIG": fromEnv}, map[string]string{"a.example": "from-env"}},
		{"DOCKER_AUTH_CONFIG and home", map[string]string{"HOME": home, "DOCKER_AUTH_CONFIG": fromEnv},
			map[string]string{"a.example": "from-env", "b.example": "from-home"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := registryauth.Open(getenv(tt.env))
			require.NoError(t, err)
			got, err := c.Credentials(t.Context(), "a.example", "b.example")
			require.NoError(t, err)
			passwords := map[string]string{}
			for host, auth := range got {
				passwords[host] = auth.Password
			}
			require.Equal(t, tt.want, passwords)
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"auths":`), 0o600))
	_, err := registryauth.Open(getenv(map[string]string{"DOCKER_CONFIG": dir}))
	require.ErrorContains(t, err, file)
	_, err = registryauth.Open(getenv(map[string]string{"DOCKER_AUTH_CONFIG": "{"}))
	require.ErrorContains(t, err, "DOCKER_AUTH_CONFIG")
}

func TestCredentialHelpers(t *testing.T) {
	c := open(t, fmt.Sprintf(`{
		"auths": {"stored.example": {"auth": %q}, "ecr.example": {"auth": %q}},
		"credsStore": "main",
		"credHelpers": {"ecr.example": "ecr", "token.example": "token", "plain.example": ""}
	}`, basic("u", "file"), basic("u", "file")), map[string]string{
		"main": `read host
			case "$1 $host" in
			"get https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"hub-secret"}' ;;
			"get main.example:5000") echo '{"Username":"main","Secret":"main-secret"}' ;;
			*) echo "credentials not found in native keychain"; exit 1 ;;
			esac`,
		"ecr":   `echo '{"Username":"AWS","Secret":"ecr-secret"}'`,
		"token": `echo '{"Username":"<token>","Secret":"refresh-me"}'`,
	})
	got, err := c.Credentials(t.Context(), "docker.io", "main.example:5000", "stored.example", "ecr.example", "token.example", "plain.example", "none.example")
	require.NoError(t, err)
	require.Len(t, got, 5)
	requireAuth(t, seal.RegistryAuth{Username: "hub", Password: "hub-secret"}, got["docker.io"])
	requireAuth(t, seal.RegistryAuth{Username: "main", Password: "main-secret"}, got["main.example:5000"])
	requireAuth(t, seal.RegistryAuth{Username: "u", Password: "file"}, got["stored.example"])
	requireAuth(t, seal.RegistryAuth{Username: "AWS", Password: "ecr-secret"}, got["ecr.example"])
	requireAuth(t, seal.RegistryAuth{IdentityToken: "refresh-me"}, got["token.example"])
}

// TestCredentialHelperRunsOnceForManyBuilds asks at the same time and right after.
func TestCredentialHelperRunsOnceForManyBuilds(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	c := open(t, `{"credsStore": "counting"}`, map[string]string{
		"counting": `read host
			echo "$host" >>` + runs + `
			echo '{"Username":"u","Secret":"of '"$host"'"}'`,
	})
	var builds errgroup.Group
	for range 20 {
		builds.Go(func() error {
			got, err := c.Credentials(t.Context(), "a.example", "b.example")
			if err == nil && (got["a.example"].Password != "of a.example" || got["b.example"].Password != "of b.example") {
				err = errors.New("not what the helper says")
			}
			return err
		})
	}
	require.NoError(t, builds.Wait())
	asked, err := os.ReadFile(runs)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"a.example", "b.example"}, strings.Fields(string(asked)))
}

func TestCredentialHelpersThatFail(t *testing.T) {
	var stderr bytes.Buffer
	c := open(t, `{"credHelpers": {"a.example": "broken", "b.example": "missing", "c.example": "talks", "d.example": "../../bin/sh",
		"e.example": "endless", "f.example": "no-json"}}`,
		map[string]string{
			"broken":  `echo unlock me >&2; echo the keyring is locked; exit 1`,
			"talks":   `echo '{"Username":"u","Secret":"hunter2"}'; exit 1`,
			"endless": `while true; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done`,
			"no-json": `echo hunter2`,
		})
	c.Stderr = &stderr
	tests := []struct{ host, says string }{
		{"a.example", "the keyring is locked"},
		{"b.example", "docker-credential-missing"},
		{"c.example", "exit status 1"},
		{"d.example", "not the name of a credential helper"},
		{"e.example", "its answer is too long"},
		{"f.example", "credential helper"},
	}
	for _, tt := range tests {
		t.Run(tt.host, func(t *testing.T) {
			_, err := c.Credentials(t.Context(), tt.host)
			require.ErrorContains(t, err, "credentials of "+tt.host)
			require.ErrorContains(t, err, tt.says)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
	require.Equal(t, "unlock me\n", stderr.String())
}

// requireAuth compares credentials, which show nothing of themselves when they are
// printed.
func requireAuth(t *testing.T, want, got seal.RegistryAuth) {
	t.Helper()
	require.Equal(t, want.Username, got.Username)
	require.Equal(t, want.Password, got.Password)
	require.Equal(t, want.IdentityToken, got.IdentityToken)
	require.Equal(t, want.RegistryToken, got.RegistryToken)
}
