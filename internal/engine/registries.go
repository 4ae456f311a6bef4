package engine

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/registry"
	dockerclient "github.com/docker/docker/client"

	"github.com/org/portainer"
)

// certsOf is where the certificates of a registry are below dir.
func certsOf(dir, host string) string { return filepath.Join(dir, host) }

// setting returns what there is to know of a registry; nil if there is nothing.
func (c *Config) setting(host string) *portainer.Registry {
	i := slices.IndexFunc(c.Registries, func(r portainer.Registry) bool { return r.Host == host })
	if i < 0 {
		return nil
	}
	return &c.Registries[i]
}

// validateRegistries checks what becomes file names and lines of configurations.
func (c *Config) validateRegistries() error {
	for _, r := range c.Registries {
		if r.Host == "" || strings.Trim(r.Host, ".") == "" || strings.ContainsAny(r.Host, "/\\\"\n") {
			return fmt.Errorf("registry %q: it must be host or host:port", r.Host)
		}
	}
	return nil
}

// clientCertificates are what a registry wants to see.
func (c *Config) clientCertificates(host string) []tls.Certificate {
	r := c.setting(host)
	if r == nil || len(r.ClientKey) == 0 {
		return nil
	}
	pair, err := tls.X509KeyPair(r.ClientCert, r.ClientKey)
	if err != nil {
		return nil // the engine says it
	}
	return []tls.Certificate{pair}
}

// hubMirrors are the mirrors of Docker Hub, the one registry that Docker has mirrors
// for, as a dockerd is told them.
func (c *Config) hubMirrors() []string {
	r := c.setting(dockerHub)
	if r == nil {
		return nil
	}
	var urls []string
	for _, m := range r.Mirrors {
		host, _, _ := strings.Cut(m, "/")
		urls = append(urls, "https://"+m)
		if slices.Contains(c.Insecure, host) {
			urls = append(urls, "http://"+m) // it takes them literally
		}
	}
	return urls
}

// tlsWords is how daemons say that TLS with a registry has failed.
var tlsWords = regexp.MustCompile(`(?i)x509: |tls: |server gave http response to https client|certificate`)

// checkRegistries finds out before a build whether a given daemon is configured as
// the build expects, as we cannot do it.
func (d *docker) checkRegistries(ctx context.Context, j *job) error {
	if !d.given || len(d.cfg.Registries) == 0 {
		return nil
	}
	if err := d.checkMirrors(ctx); err != nil {
		return err
	}
	for _, r := range d.cfg.Registries {
		ref := j.refAt(r.Host)
		if len(r.CA)+len(r.ClientKey) == 0 || ref == "" {
			continue
		}
		creds, err := d.cfg.dockerAuth(ctx, r.Host)
		if err != nil {
			return failure(portainer.PhaseBuild, portainer.ClassAuth, err)
		}
		auth, err := registry.EncodeAuthConfig(creds)
		if err != nil {
			return err
		}
		// It need not know the image: what counts is whether they understand each
		// other.
		_, err = d.cli.DistributionInspect(ctx, ref, auth)
		if err != nil && !dockerclient.IsErrConnectionFailed(err) && tlsWords.MatchString(err.Error()) {
			return invalid(fmt.Errorf("the docker daemon at %s cannot speak to registry %s: %w: it knows certificates only from its own machine: "+
				"put them into /etc/docker/certs.d/%s there (ca.crt, client.cert, client.key), or use engine dockerd or buildkitd", d.host, r.Host, tidy(err), r.Host))
		}
	}
	return nil
}

// checkMirrors finds mirrors that a given daemon does not have.
func (d *docker) checkMirrors(ctx context.Context) error {
	hub := d.cfg.setting(dockerHub)
	if hub == nil || len(hub.Mirrors) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := d.cli.Info(ctx)
	if err != nil {
		return failure(portainer.PhaseBuild, portainer.ClassLost, fmt.Errorf("ask the docker daemon at %s for its mirrors: %w", d.host, err))
	}
	bare := func(url string) string {
		_, rest, ok := strings.Cut(url, "://")
		if !ok {
			rest = url
		}
		return strings.TrimRight(rest, "/")
	}
	for _, m := range hub.Mirrors {
		if info.RegistryConfig == nil || !slices.ContainsFunc(info.RegistryConfig.Mirrors, func(has string) bool { return bare(has) == bare(m) }) {
			return invalid(fmt.Errorf("the docker daemon at %s does not use the mirror %s, and only its own configuration can tell it to: "+
				`add "registry-mirrors": ["https://%s"] to its daemon.json, or use engine dockerd or buildkitd`, d.host, m, m))
		}
	}
	return nil
}

// refAt returns a reference of j at a registry; "" if it has none.
func (j *job) refAt(host string) string {
	if host == j.req.Registry {
		return j.refs[0]
	}
	for _, s := range j.script.Stages {
		if s.Based && registryOf(s.Base) == host && !strings.Contains(s.Base, "$") {
			return s.Base
		}
	}
	return ""
}

// checkRegistries refuses what only the configuration of a given daemon could do.
func (b *buildKit) checkRegistries() error {
	if b.stop != nil {
		return nil
	}
	for _, r := range b.cfg.Registries {
		if len(r.Mirrors) > 0 {
			return invalid(fmt.Errorf("the buildkit daemon at %s has mirrors only from its own configuration: "+
				"add [registry.%q] with mirrors = [%q] to its buildkitd.toml, or use engine buildkitd without an address", b.addr, r.Host, strings.Join(r.Mirrors, `", "`)))
		}
	}
	return nil
}

// explain adds to an error of a given daemon what can be done about certificates
// that it does not know.
func (b *buildKit) explain(err error) error {
	if b.stop != nil || err == nil || !tlsWords.MatchString(err.Error()) {
		return err
	}
	for _, r := range b.cfg.Registries {
		if len(r.CA)+len(r.ClientKey) > 0 && strings.Contains(err.Error(), r.Host) {
			var be *portainer.BuildError
			if !errors.As(err, &be) {
				return err
			}
			out := *be
			out.Err = fmt.Errorf("%w: the buildkit daemon at %s knows certificates only from its own configuration: add [registry.%q] with ca and keypair to its "+
				"buildkitd.toml, or use engine buildkitd without an address", be.Err, b.addr, r.Host)
			return &out
		}
	}
	return err
}

// buildkitdRegistries is the part of buildkitd's configuration about registries.
// certs is the directory with their certificates.
func (c *Config) buildkitdRegistries(certs string) string {
	hosts := slices.Clone(c.Insecure)
	for _, r := range c.Registries {
		hosts = append(hosts, r.Host)
	}
	slices.Sort(hosts)
	var b strings.Builder
	for _, host := range slices.Compact(hosts) {
		fmt.Fprintf(&b, "[registry.%q]\n", host)
		r := *cmp.Or(c.setting(host), &portainer.Registry{})
		secure := len(r.CA)+len(r.ClientKey) > 0
		switch {
		case slices.Contains(c.Insecure, host):
			b.WriteString("  http = true\n  insecure = true\n")
		case secure:
			b.WriteString("  http = false\n") // which is what it speaks on this machine
		}
		if secure {
			fmt.Fprintf(&b, "  tlsconfigdir = [%q]\n", certsOf(certs, host))
		}
		if len(r.Mirrors) > 0 {
			fmt.Fprintf(&b, "  mirrors = [\"%s\"]\n", strings.Join(r.Mirrors, `", "`))
		}
	}
	return b.String()
}
