package engine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/docker/docker/api/types/registry"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"google.golang.org/grpc"

	"github.com/org/portainer/internal/script"
)

// A RegistryAuth is what a registry, or the token server it names, wants to see.
// The zero value is anonymous.
type RegistryAuth struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself. BuildKit cannot
	// be given one.
	RegistryToken string
}

// An AuthFunc tells the credentials for a registry, which is its host:port, or
// "docker.io" for Docker Hub. It is asked anew for every pull and push, from many
// goroutines, so that it can renew what expires. Its errors must hold no secret.
type AuthFunc func(ctx context.Context, registry string) (RegistryAuth, error)

// A SecretFunc tells the value of a build secret (RUN --mount=type=secret,id=…).
// It returns nil for one that it does not know.
type SecretFunc func(ctx context.Context, id string) ([]byte, error)

const (
	dockerHub    = "docker.io"
	dockerHubKey = "https://index.docker.io/v1/" // what Docker calls it where credentials are named
)

// credentials asks for the credentials for a registry. The error never tells them.
func (c Config) credentials(ctx context.Context, host string) (RegistryAuth, error) {
	if c.Auth == nil {
		return RegistryAuth{}, nil
	}
	switch host {
	case "registry-1.docker.io", "index.docker.io", dockerHubKey:
		host = dockerHub
	}
	a, err := c.Auth(ctx, host)
	if err != nil {
		return RegistryAuth{}, fmt.Errorf("credentials for registry %s: %w", host, err)
	}
	return a, nil
}

// dockerAuth returns the credentials for a registry as a Docker daemon wants them.
func (c Config) dockerAuth(ctx context.Context, host string) (registry.AuthConfig, error) {
	a, err := c.credentials(ctx, host)
	if err != nil {
		return registry.AuthConfig{}, err
	}
	return registry.AuthConfig{
		ServerAddress: host,
		Username:      a.Username,
		Password:      a.Password,
		IdentityToken: a.IdentityToken,
		RegistryToken: a.RegistryToken,
	}, nil
}

// dockerAuths returns the credentials for all registries that j may pull from.
func (j *job) dockerAuths(ctx context.Context) (map[string]registry.AuthConfig, error) {
	auths := map[string]registry.AuthConfig{}
	if j.cfg.Auth == nil {
		return auths, nil
	}
	for _, host := range baseRegistries(j.script, j.req.Args) {
		a, err := j.cfg.dockerAuth(ctx, host)
		if err != nil {
			return nil, err
		}
		if a == (registry.AuthConfig{ServerAddress: host}) {
			continue
		}
		if host == dockerHub {
			host, a.ServerAddress = dockerHubKey, dockerHubKey
		}
		auths[host] = a
	}
	return auths, nil
}

// baseRegistries returns the registries of the images that a Dockerfile starts from
// or copies from, each once.
func baseRegistries(s *script.Script, args map[string]string) []string {
	vars := map[string]string{}
	var hosts []string
	seen := map[string]bool{}
	add := func(ref string) {
		ref = os.Expand(ref, func(name string) string {
			name, def, _ := strings.Cut(name, ":-")
			return cmp.Or(vars[name], def)
		})
		if host := registryOf(ref); ref != "" && !seen[host] {
			seen[host] = true
			hosts = append(hosts, host)
		}
	}
	for _, st := range s.Stages {
		if !st.Based {
			continue
		}
		// Only an ARG before the first FROM counts in a FROM.
		for _, in := range s.Instructions[:s.Stages[0].First] {
			name, value, _ := strings.Cut(strings.TrimSpace(in.Text[len(in.Word):]), "=")
			if v, ok := args[name]; ok {
				value = v
			}
			vars[name] = strings.Trim(value, `"'`)
		}
		add(st.Base)
	}
	for _, in := range s.Instructions {
		if in.Word != "COPY" {
			continue
		}
		for _, word := range strings.Fields(in.Text)[1:] {
			if from, ok := strings.CutPrefix(word, "--from="); ok && s.Stage(from) < 0 && script.Number(from) < 0 {
				add(from)
			}
		}
	}
	return hosts
}

// registryOf returns the registry of an image's reference.
func registryOf(ref string) string {
	first, _, path := strings.Cut(ref, "/")
	if path && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return first
	}
	return dockerHub
}

// A keyring answers the BuildKit that asks for credentials in the middle of a
// build. BuildKit gets the tokens itself: the other way, of the docker command,
// keeps keys in a file in somebody's home directory
// (buildkit session/auth/authprovider).
type keyring struct {
	auth.UnimplementedAuthServer
	cfg Config
}

var _ session.Attachable = keyring{}

// Register implements session.Attachable.
func (k keyring) Register(s *grpc.Server) { auth.RegisterAuthServer(s, k) }

// Credentials implements auth.AuthServer.
func (k keyring) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	a, err := k.cfg.credentials(ctx, req.Host)
	switch {
	case err != nil:
		return nil, err
	case a.IdentityToken != "":
		return &auth.CredentialsResponse{Secret: a.IdentityToken}, nil
	case a.RegistryToken != "" && a.Password == "":
		return nil, fmt.Errorf("credentials for registry %s: BuildKit cannot use a bearer token: it needs a name and password, or an identity token", req.Host)
	}
	return &auth.CredentialsResponse{Username: a.Username, Secret: a.Password}, nil
}

// GetSecret implements secrets.SecretStore of BuildKit.
func (f SecretFunc) GetSecret(ctx context.Context, id string) ([]byte, error) {
	value, err := f(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("build secret %s: %w", id, err)
	}
	if value == nil {
		return nil, fmt.Errorf("build secret %s: %w", id, secrets.ErrNotFound)
	}
	return value, nil
}
