package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/registryauth"
)

// A credentials is what docker login has stored on this machine.
type credentials struct{ docker *registryauth.Config }

// credentials reads docker's configuration.
func (g *globals) credentials() (*credentials, error) {
	config, err := registryauth.Open(func(name string) string {
		value, _ := g.env(name)
		return value
	})
	if err != nil {
		return nil, &usageError{err}
	}
	config.Stderr = g.stderr
	return &credentials{config}, nil
}

// find is the portainer.CredentialsFunc.
func (c *credentials) find(ctx context.Context, registries ...string) (map[string]portainer.RegistryAuth, error) {
	found, err := c.docker.Credentials(ctx, registries...)
	if err != nil {
		return nil, err
	}
	out := make(map[string]portainer.RegistryAuth, len(found))
	for registry, auth := range found {
		out[registry] = portainer.RegistryAuth(auth)
	}
	return out, nil
}

// checkPush asks the registry of req whether the image may be pushed there, before
// anything is done for it. A registry that cannot be reached from here may still
// be from the agents.
func (c *frameworkCommand) checkPush(ctx context.Context, req portainer.Request) error {
	image := req.Registry + "/" + req.Repository
	found, err := c.settings.logins.docker.Credentials(ctx, req.Registry)
	switch {
	case ctx.Err() != nil:
		return nil // the build itself says why it ends
	case err != nil:
		return &portainer.BuildError{Image: image, Phase: portainer.PhaseRead, Class: portainer.ClassAuth, Err: err}
	}
	target := registryauth.Target{Registry: req.Registry, Repository: req.Repository, Auth: found[req.Registry], Insecure: req.Insecure}
	for _, r := range c.settings.registries {
		if r.Host != req.Registry {
			continue
		}
		target.Insecure = target.Insecure || r.Insecure
		if target.TLS, err = (registryauth.Certs{CA: r.CA, ClientCert: r.ClientCert, ClientKey: r.ClientKey}).TLS(); err != nil {
			return &portainer.BuildError{Image: image, Phase: portainer.PhaseRead, Class: portainer.ClassInvalid,
				Err: fmt.Errorf("certificates of %s: %w", r.Host, err)}
		}
	}
	err = registryauth.CheckPush(ctx, target)
	failure := &portainer.BuildError{Image: image, Phase: portainer.PhasePush, Err: err}
	switch {
	case err == nil || ctx.Err() != nil:
		return nil
	case errors.Is(err, registryauth.ErrUnreachable):
		c.logger.Warn("registry cannot be asked from here whether the push is allowed", "registry", req.Registry, "err", err)
		return nil
	case errors.Is(err, registryauth.ErrAuth):
		failure.Class = portainer.ClassAuth
	default:
		failure.Class = portainer.ClassRegistry
	}
	return failure
}

// buildSecrets reads the build secrets of --secret, each "id=NAME[,src=FILE|,env=VARIABLE]".
// As with docker, a secret without either is the environment variable of that
// name, or the file.
func (g *globals) buildSecrets(flags []string) (map[string][]byte, error) {
	secrets := make(map[string][]byte)
	for _, flag := range flags {
		id, value, err := g.buildSecret(flag)
		if err != nil {
			return nil, err
		}
		if _, twice := secrets[id]; twice {
			return nil, usagef("--secret: id %q is given twice", id)
		}
		secrets[id] = value
	}
	return secrets, nil
}

func (g *globals) buildSecret(flag string) (id string, value []byte, err error) {
	var file, variable string
	for part := range strings.SplitSeq(flag, ",") {
		key, text, ok := strings.Cut(part, "=")
		switch {
		case !ok:
			return "", nil, usagef("--secret takes id=NAME[,src=FILE|,env=VARIABLE], not %q", flag)
		case key == "id":
			id = text
		case key == "src" || key == "source":
			file = text
		case key == "env":
			variable = text
		case key == "type" && (text == "file" || text == "env"):
			// What else is given says it too.
		default:
			return "", nil, usagef("--secret %q: unknown %s", flag, part)
		}
	}
	switch {
	case id == "":
		return "", nil, usagef("--secret %q: it needs an id, by which RUN --mount=type=secret,id=… names it", flag)
	case file != "" && variable != "":
		return "", nil, usagef("--secret %q: give src or env, not both", flag)
	case file == "" && variable == "":
		if text, ok := g.env(id); ok {
			return id, []byte(text), nil
		}
		if value, err = os.ReadFile(id); err != nil {
			return "", nil, usagef("--secret %s: there is no environment variable of that name, and as a file: %w: give src=FILE or env=VARIABLE", id, err)
		}
		return id, value, nil
	case variable != "":
		text, ok := g.env(variable)
		if !ok {
			return "", nil, usagef("--secret %s: environment variable %s is not set", id, variable)
		}
		return id, []byte(text), nil
	}
	value, err = os.ReadFile(file)
	if err != nil {
		return "", nil, usagef("--secret %s: %w", id, err)
	}
	return id, value, nil
}

var _ portainer.CredentialsFunc = (*credentials)(nil).find
