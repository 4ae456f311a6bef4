package registryauth

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Certs are the certificates for one registry, as PEM. The zero value has none.
type Certs struct {
	CA                    []byte // trusted besides those of the system
	ClientCert, ClientKey []byte
}

// HostCerts reads the certificates for a registry as docker lays them out:
// "<dir>/<host:port>/*.crt" are CAs, and "*.cert" with its "*.key" is a client
// certificate; of several the first by name counts. docker looks in
// /etc/docker/certs.d, and in ~/.config/docker/certs.d without root.
func HostCerts(dirs []string, registry string) (Certs, error) {
	var certs Certs
	for _, dir := range dirs {
		if registry != filepath.Base(registry) {
			return Certs{}, fmt.Errorf("certificates of %q: not the name of a registry", registry)
		}
		entries, err := os.ReadDir(filepath.Join(dir, registry))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Certs{}, fmt.Errorf("certificates of %s: %w", registry, err)
		}
		for _, e := range entries {
			if err := certs.add(filepath.Join(dir, registry, e.Name())); err != nil {
				return Certs{}, fmt.Errorf("certificates of %s: %w", registry, err)
			}
		}
	}
	return certs, nil
}

// add adds one file, if it is for that.
func (c *Certs) add(file string) error {
	switch filepath.Ext(file) {
	case ".crt":
		pem, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", file)
		}
		c.CA = append(append(c.CA, bytes.TrimSpace(pem)...), '\n')
	case ".cert":
		if len(c.ClientCert) > 0 {
			return nil
		}
		cert, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		key, err := os.ReadFile(strings.TrimSuffix(file, ".cert") + ".key")
		if err != nil {
			return fmt.Errorf("the key of %s: %w", file, err)
		}
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		c.ClientCert, c.ClientKey = cert, key
	}
	return nil
}

// CertHosts lists the registries for which there may be certificates.
func CertHosts(dirs []string) ([]string, error) {
	var hosts []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("certificates of registries: %w", err)
		}
		for _, e := range entries {
			hosts = append(hosts, e.Name())
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), nil
}

// TLS is how a client uses the certificates; nil if there are none.
func (c Certs) TLS() (*tls.Config, error) {
	if len(c.CA)+len(c.ClientCert) == 0 {
		return nil, nil
	}
	cfg := new(tls.Config)
	if len(c.CA) > 0 {
		var err error
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
		if !cfg.RootCAs.AppendCertsFromPEM(c.CA) {
			return nil, errors.New("no certificate in PEM form")
		}
	}
	if len(c.ClientCert) > 0 {
		pair, err := tls.X509KeyPair(c.ClientCert, c.ClientKey)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
