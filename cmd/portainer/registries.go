package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/registryauth"
)

// certificateDirs is where docker looks for the certificates of registries.
func (g *globals) certificateDirs() []string {
	dirs := []string{"/etc/docker/certs.d"}
	config, _ := g.env("XDG_CONFIG_HOME")
	if home, _ := g.env("HOME"); config == "" && home != "" {
		config = filepath.Join(home, ".config")
	}
	if config != "" {
		dirs = append(dirs, filepath.Join(config, "docker", "certs.d"))
	}
	return dirs
}

// registryFlags say how registries are spoken to.
type registryFlags struct {
	cas, certs, mirrors, insecure []string
}

func (f *registryFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.cas, "registry-ca", nil, "trust what the certificates in a PEM file vouch for to be that registry, `HOST=FILE`; may be repeated")
	flags.StringArrayVar(&f.certs, "registry-cert", nil, "show a registry a client certificate, `HOST=CERTFILE,KEYFILE`; may be repeated")
	flags.StringArrayVar(&f.mirrors, "registry-mirror", nil, "ask a mirror for the images of a registry first, `HOST=MIRROR[/PATH]`; may be repeated")
	flags.StringArrayVar(&f.insecure, "registry-insecure", nil, "speak to the registry `HOST` over HTTP or with an unverified certificate; may be repeated")
}

// registries are what the flags say, and, of registries that they say nothing of
// certificates of, what docker's own directories have.
func (f *registryFlags) registries(g *globals) ([]portainer.Registry, error) {
	var all registryList
	for _, flag := range f.cas {
		host, file, ok := strings.Cut(flag, "=")
		if !ok || host == "" || file == "" {
			return nil, usagef("--registry-ca takes HOST=FILE, not %q", flag)
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, usagef("--registry-ca: %w", err)
		}
		r := all.entry(host)
		r.CA = append(r.CA, pem...)
	}
	for _, flag := range f.certs {
		host, files, _ := strings.Cut(flag, "=")
		certFile, keyFile, ok := strings.Cut(files, ",")
		if !ok || host == "" || certFile == "" || keyFile == "" {
			return nil, usagef("--registry-cert takes HOST=CERTFILE,KEYFILE, not %q", flag)
		}
		r := all.entry(host)
		if len(r.ClientCert) > 0 {
			return nil, usagef("--registry-cert: there are two for %s", host)
		}
		var err error
		if r.ClientCert, err = os.ReadFile(certFile); err != nil {
			return nil, usagef("--registry-cert: %w", err)
		}
		if r.ClientKey, err = os.ReadFile(keyFile); err != nil {
			return nil, usagef("--registry-cert: %w", err)
		}
	}
	for _, flag := range f.mirrors {
		host, mirror, ok := strings.Cut(flag, "=")
		if !ok || host == "" || mirror == "" {
			return nil, usagef("--registry-mirror takes HOST=MIRROR[/PATH], not %q", flag)
		}
		r := all.entry(host)
		r.Mirrors = append(r.Mirrors, mirror)
	}
	for _, host := range f.insecure {
		all.entry(host).Insecure = true
	}
	all.addDockers(g)
	return all, nil
}

// A registryList has one entry for each host.
type registryList []portainer.Registry

// entry returns that of host, valid until another is made.
func (l *registryList) entry(host string) *portainer.Registry {
	i := slices.IndexFunc(*l, func(r portainer.Registry) bool { return r.Host == host })
	if i < 0 {
		*l = append(*l, portainer.Registry{Host: host})
		i = len(*l) - 1
	}
	return &(*l)[i]
}

// addDockers adds what docker's directories have of registries without certificates. One
// that cannot be read is passed over: most likely the build has nothing to do with it,
// and else its registry says so.
func (l *registryList) addDockers(g *globals) {
	dirs := g.certificateDirs()
	hosts, err := registryauth.CertHosts(dirs)
	if err != nil {
		g.logger.Warn("docker's certificates of registries not used", "err", err)
	}
	for _, host := range hosts {
		certs, err := registryauth.HostCerts(dirs, host)
		if err != nil {
			g.logger.Warn("docker's certificates of a registry not used", "registry", host, "err", err)
			continue
		}
		if len(certs.CA)+len(certs.ClientCert) == 0 {
			continue
		}
		r := l.entry(host)
		if len(r.CA)+len(r.ClientCert) == 0 {
			r.CA, r.ClientCert, r.ClientKey = certs.CA, certs.ClientCert, certs.ClientKey
		}
	}
}
