package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/spf13/pflag"
)

// tlsFlags say how masters and agents are spoken to over TLS.
type tlsFlags struct {
	caFile, certFile, keyFile string
}

func (f *tlsFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.caFile, "mesos-ca", "", "speak TLS to masters and agents, and trust what the certificates in this PEM `FILE` vouch for")
	flags.StringVar(&f.certFile, "mesos-cert", "", "speak TLS to them, and show them the certificate in this PEM `FILE`")
	flags.StringVar(&f.keyFile, "mesos-key", "", "the PEM `FILE` that holds its private key")
}

// given reports whether TLS is asked for.
func (f *tlsFlags) given() bool { return *f != tlsFlags{} }

// config reads the files. It is nil if TLS is not asked for. Without --mesos-ca
// those certificates are trusted that the system trusts.
func (f *tlsFlags) config() (*tls.Config, error) {
	if !f.given() {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.caFile != "" {
		text, err := os.ReadFile(f.caFile)
		if err != nil {
			return nil, usagef("--mesos-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, usagef("--mesos-ca: %s holds no certificate in PEM form", f.caFile)
		}
	}
	switch {
	case f.certFile == "" && f.keyFile == "":
		return config, nil
	case f.certFile == "":
		return nil, usagef("--mesos-key needs --mesos-cert, the certificate that it belongs to")
	case f.keyFile == "":
		return nil, usagef("--mesos-cert needs --mesos-key, the private key of the certificate")
	}
	cert, err := os.ReadFile(f.certFile)
	if err != nil {
		return nil, usagef("--mesos-cert: %w", err)
	}
	key, err := os.ReadFile(f.keyFile)
	if err != nil {
		return nil, usagef("--mesos-key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, usagef("--mesos-cert %s, --mesos-key %s: %w", f.certFile, f.keyFile, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}
