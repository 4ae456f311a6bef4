// Package registryauth knows, on the machine that submits builds, what registries
// want to see: it reads docker's configuration, runs credential helpers, and
// asks a registry whether a push would be allowed.
package registryauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	clistore "github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/org/portainer/internal/seal"
)

// hubKey is what docker login stores the account of Docker Hub under.
const hubKey = "https://index.docker.io/v1/"

// tokenUser is the user name with which a credential helper says that the secret
// is an identity token.
const tokenUser = "<token>"

// A Config is docker's configuration of one user: what docker login has stored,
// or the helpers that have it. Its methods are safe for concurrent use.
type Config struct {
	path string
	file *configfile.ConfigFile
	env  *configfile.ConfigFile // DOCKER_AUTH_CONFIG; nil without

	mu      sync.Mutex
	answers map[string]*answer // of helpers, by helper and registry

	// Stderr is where credential helpers write what is not an answer, such as
	// a request to unlock a keyring. nil drops it. Set it before use.
	Stderr io.Writer
}

// Open reads what docker would: config.json in DOCKER_CONFIG, or in ~/.docker,
// and DOCKER_AUTH_CONFIG, which goes first. None of them is no error: all
// registries are anonymous then.
func Open(getenv func(string) string) (*Config, error) {
	c := &Config{file: configfile.New("")}
	dir := getenv("DOCKER_CONFIG")
	for _, home := range []string{"HOME", "USERPROFILE"} {
		if dir == "" && getenv(home) != "" {
			dir = filepath.Join(getenv(home), ".docker")
		}
	}
	if dir != "" {
		c.path = filepath.Join(dir, config.ConfigFileName)
		file, err := config.Load(dir)
		if err != nil {
			return nil, fmt.Errorf("docker's configuration: %w", err)
		}
		c.file = file
	}
	if text := getenv(configfile.DockerEnvConfigKey); text != "" {
		file, err := config.LoadFromReader(strings.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", configfile.DockerEnvConfigKey, err)
		}
		c.env = file
	}
	return c, nil
}

// Credentials returns what is known for these registries ("host" or
// "host:port"), by their names as given. A registry for which nothing is known
// is left out: it is anonymous.
func (c *Config) Credentials(ctx context.Context, registries ...string) (map[string]seal.RegistryAuth, error) {
	found := make(map[string]seal.RegistryAuth)
	for _, registry := range registries {
		if _, done := found[registry]; done {
			continue
		}
		auth, err := c.lookUp(ctx, registry)
		if err != nil {
			return nil, fmt.Errorf("credentials of %s: %w", registry, err)
		}
		if auth != (seal.RegistryAuth{}) {
			found[registry] = auth
		}
	}
	return found, nil
}

func (c *Config) lookUp(ctx context.Context, registry string) (seal.RegistryAuth, error) {
	key := keyOf(registry)
	if c.env != nil {
		auth, err := stored(c.env, key)
		if err != nil || auth != (seal.RegistryAuth{}) {
			return auth, err
		}
	}
	helper, only := c.file.CredentialHelpers[key]
	if !only && key == hubKey {
		helper, only = c.file.CredentialHelpers["docker.io"]
	}
	if !only {
		helper = c.file.CredentialsStore
	}
	if helper == "" {
		return stored(c.file, key)
	}
	a := c.answer(helper + " " + key)
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return seal.RegistryAuth{}, ended(ctx)
	}
	if !a.at.IsZero() && time.Since(a.at) < answerAge {
		return a.auth, nil
	}
	auth, err := c.ask(ctx, helper, key)
	if err == nil {
		a.auth, a.at = auth, time.Now()
	}
	return auth, err
}

// answerAge is how long what a credential helper says is used again: the executors
// of many builds ask at the same time, and each answer costs processes, and perhaps
// somebody's touch. What helpers give out lasts far longer.
const answerAge = 30 * time.Second

// An answer is what a credential helper has said last.
type answer struct {
	turn chan struct{} // holds one token while somebody reads or asks
	auth seal.RegistryAuth
	at   time.Time // zero before the first
}

// answer returns the answer with that key.
func (c *Config) answer(key string) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.answers[key]
	if a == nil {
		a = &answer{turn: make(chan struct{}, 1)}
		if c.answers == nil {
			c.answers = make(map[string]*answer)
		}
		c.answers[key] = a
	}
	return a
}

// keyOf is the name under which docker keeps what belongs to a registry.
func keyOf(registry string) string {
	switch registry {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return hubKey
	}
	return registry
}

// stored looks an account up in a configuration file itself.
func stored(file *configfile.ConfigFile, key string) (seal.RegistryAuth, error) {
	auth, err := clistore.NewFileStore(file).Get(key)
	if err != nil {
		return seal.RegistryAuth{}, err
	}
	if auth == (types.AuthConfig{}) && key == hubKey {
		auth, err = clistore.NewFileStore(file).Get("docker.io")
	}
	return seal.RegistryAuth{
		Username:      auth.Username,
		Password:      auth.Password,
		IdentityToken: auth.IdentityToken,
		RegistryToken: auth.RegistryToken,
	}, err
}

// ask runs a credential helper.
func (c *Config) ask(ctx context.Context, name, key string) (seal.RegistryAuth, error) {
	if name != filepath.Base(name) {
		return seal.RegistryAuth{}, fmt.Errorf("%s: %q is not the name of a credential helper", c.path, name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, fmt.Errorf("no answer within %v", helperTimeout))
	defer cancel()
	program := func(args ...string) client.Program {
		return newHelper(ctx, "docker-credential-"+name, args, c.Stderr)
	}
	got, err := client.Get(program, key)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		// docker login without a helper may have come first.
		return stored(c.file, key)
	case ctx.Err() != nil:
		return seal.RegistryAuth{}, fmt.Errorf("credential helper %q of %s: %w", name, c.path, ended(ctx))
	case err != nil:
		return seal.RegistryAuth{}, fmt.Errorf("credential helper %q of %s: %w", name, c.path, err)
	case got.Username == tokenUser:
		return seal.RegistryAuth{IdentityToken: got.Secret}, nil
	}
	return seal.RegistryAuth{Username: got.Username, Password: got.Secret}, nil
}

// ended is the error of a context that is done, with its cause.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return errors.Join(ctx.Err(), cause)
	}
	return context.Cause(ctx)
}
