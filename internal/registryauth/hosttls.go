package registryauth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// HostTLS reads the certificates for a registry as docker lays them out:
// "<dir>/<host:port>/*.crt" are CAs that are trusted besides those of the system,
// and each "*.cert" with its "*.key" is a client certificate. docker looks in
// /etc/docker/certs.d, and in ~/.config/docker/certs.d without root. It returns
// nil if no dir has anything for the registry.
func HostTLS(dirs []string, registry string) (*tls.Config, error) {
	var cfg *tls.Config
	for _, dir := range dirs {
		if registry != filepath.Base(registry) {
			return nil, fmt.Errorf("certificates of %q: not the name of a registry", registry)
		}
		entries, err := os.ReadDir(filepath.Join(dir, registry))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("certificates of %s: %w", registry, err)
		}
		for _, e := range entries {
			if cfg == nil {
				cfg = new(tls.Config)
			}
			if err := addCertificate(cfg, filepath.Join(dir, registry, e.Name())); err != nil {
				return nil, fmt.Errorf("certificates of %s: %w", registry, err)
			}
		}
	}
	return cfg, nil
}

// addCertificate adds one file to cfg, if it is for that.
func addCertificate(cfg *tls.Config, file string) error {
	switch filepath.Ext(file) {
	case ".crt":
		pem, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if cfg.RootCAs == nil {
			if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
				return err
			}
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", file)
		}
	case ".cert":
		pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".cert")+".key")
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		cfg.Certificates = append(cfg.Certificates, pair)
	}
	return nil
}
