package registryauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/seal"
)

// A registry is Debian's docker-registry.
type registry struct {
	addr string
	data string
}

var listens = regexp.MustCompile(`listening on ([^\s",\\]+:\d+)`)

// startRegistry starts docker-registry with more lines of configuration.
func startRegistry(t *testing.T, listenTLS, more string) *registry {
	t.Helper()
	dir := t.TempDir()
	r := &registry{data: filepath.Join(dir, "data")}
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:0\n%s%s", r.data, listenTLS, more)
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(log.Name())
		if m := listens.FindSubmatch(text); err == nil && m != nil {
			r.addr = string(m[1])
		}
		return r.addr != ""
	}, 30*time.Second, 5*time.Millisecond)
	return r
}

// uploads counts what was begun and not taken back.
func (r *registry) uploads(t *testing.T) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(r.data, func(path string, _ fs.DirEntry, err error) error {
		// docker-registry writes the hash of an upload after it has removed it.
		if err == nil && filepath.Base(path) == "startedat" {
			n++
		}
		return nil
	})
	require.NoError(t, err)
	return n
}

// htpasswd is the configuration of a registry that knows robot.
func htpasswd(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("hunter2"), bcrypt.MinCost)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "htpasswd")
	require.NoError(t, os.WriteFile(file, []byte("robot:"+string(hash)+"\n"), 0o600))
	return fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s\n", file)
}

func TestCheckPushToOpenRegistry(t *testing.T) {
	r := startRegistry(t, "", "")
	for _, auth := range []seal.RegistryAuth{{}, robot} {
		require.NoError(t, CheckPush(t.Context(), Target{Registry: r.addr, Repository: "team/app", Auth: auth}))
	}
	require.DirExists(t, filepath.Join(r.data, "docker/registry/v2/repositories/team/app/_uploads"))
	require.Zero(t, r.uploads(t))

	err := CheckPush(t.Context(), Target{Registry: r.addr, Repository: "Team//App?x=y"})
	require.ErrorIs(t, err, ErrRegistry)
}

func TestCheckPushWithPassword(t *testing.T) {
	r := startRegistry(t, "", htpasswd(t))
	target := Target{Registry: r.addr, Repository: "team/app", Auth: robot}
	require.NoError(t, CheckPush(t.Context(), target))
	require.Zero(t, r.uploads(t))

	target.Auth = nobody
	err := CheckPush(t.Context(), target)
	require.ErrorIs(t, err, ErrAuth)
	require.NotErrorIs(t, err, ErrRegistry)
	require.ErrorContains(t, err, "push to "+r.addr+"/team/app: access denied")
	require.ErrorContains(t, err, `user "robot" [redacted]`)
	require.ErrorContains(t, err, "UNAUTHORIZED: authentication required")
	require.NotContains(t, err.Error(), "hunter")

	target.Auth = seal.RegistryAuth{}
	err = CheckPush(t.Context(), target)
	require.ErrorIs(t, err, ErrAuth)
	require.ErrorContains(t, err, "run docker login "+r.addr)
}

func TestCheckPushOverTLS(t *testing.T) {
	ca := newCA(t)
	certs := filepath.Join(t.TempDir(), "certs.d")
	dir := filepath.Join(certs, "registry.test:5000")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	server, serverKey := ca.issue(t, "registry.test")
	clientCert, clientKey := ca.issue(t, "portainer")
	files := map[string][]byte{"ca.crt": ca.pem, "client.cert": clientCert, "client.key": clientKey}
	for name, data := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	own := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(own, "server.crt"), server, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(own, "server.key"), serverKey, 0o600))

	listen := fmt.Sprintf("  tls:\n    certificate: %[1]s/server.crt\n    key: %[1]s/server.key\n", own)
	r := startRegistry(t, listen, htpasswd(t))
	strict := startRegistry(t, listen+fmt.Sprintf("    clientcas:\n      - %s/ca.crt\n", dir), htpasswd(t))

	found, err := HostCerts([]string{filepath.Join(certs, "missing"), certs}, "registry.test:5000")
	require.NoError(t, err)
	withCA, err := found.TLS()
	require.NoError(t, err)
	require.NotNil(t, withCA)
	target := Target{Registry: "registry.test:5000", Repository: "team/app", Auth: robot}

	err = dialingTo(newChecker(target), r.addr).check(t.Context())
	require.ErrorIs(t, err, ErrRegistry)
	require.NotErrorIs(t, err, ErrUnreachable)
	require.ErrorContains(t, err, "certificate of registry.test:5000")

	target.TLS = withCA
	require.NoError(t, dialingTo(newChecker(target), r.addr).check(t.Context()))
	require.NoError(t, dialingTo(newChecker(target), strict.addr).check(t.Context()))
	require.Zero(t, r.uploads(t))

	target.TLS, target.Insecure = nil, true
	require.NoError(t, dialingTo(newChecker(target), r.addr).check(t.Context()))
	require.Error(t, dialingTo(newChecker(target), strict.addr).check(t.Context()))
}

func TestHostCerts(t *testing.T) {
	certs := t.TempDir()
	none, err := HostCerts([]string{certs}, "a.example")
	require.NoError(t, err)
	require.Zero(t, none)
	without, err := none.TLS()
	require.NoError(t, err)
	require.Nil(t, without)
	_, err = HostCerts([]string{certs}, "../a.example")
	require.Error(t, err)
	hosts, err := CertHosts([]string{filepath.Join(certs, "missing")})
	require.NoError(t, err)
	require.Empty(t, hosts)

	dir := filepath.Join(certs, "a.example")
	require.NoError(t, os.Mkdir(dir, 0o700))
	for _, bad := range []string{"ca.crt", "client.cert"} {
		file := filepath.Join(dir, bad)
		require.NoError(t, os.WriteFile(file, []byte("no PEM"), 0o600))
		_, err = HostCerts([]string{certs}, "a.example")
		require.ErrorContains(t, err, "certificates of a.example")
		require.ErrorContains(t, err, bad)
		require.NoError(t, os.Remove(file))
	}
	hosts, err = CertHosts([]string{certs, certs})
	require.NoError(t, err)
	require.Equal(t, []string{"a.example"}, hosts)
}

func TestCheckPushRefusesPlainHTTP(t *testing.T) {
	r := startRegistry(t, "", "")
	target := Target{Registry: "registry.test:5000", Repository: "team/app", Auth: robot}
	err := dialingTo(newChecker(target), r.addr).check(t.Context())
	require.ErrorIs(t, err, ErrRegistry)
	require.ErrorContains(t, err, "registry.test:5000 does not speak TLS")
	target.Insecure = true
	require.NoError(t, dialingTo(newChecker(target), r.addr).check(t.Context()))
}

func TestCheckPushUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	err = CheckPush(t.Context(), Target{Registry: addr, Repository: "team/app", Auth: robot})
	require.ErrorIs(t, err, ErrUnreachable)
	require.ErrorIs(t, err, ErrRegistry)
	require.NotErrorIs(t, err, ErrAuth)
	require.ErrorContains(t, err, addr)
	require.ErrorContains(t, err, "connection refused")
}

func TestCheckPushWithTokens(t *testing.T) {
	server, err := dockertest.StartTokenServer(t.TempDir(), dockertest.TokenOptions{
		Passwords:      map[string]string{"robot": "hunter2"},
		IdentityTokens: map[string]string{"refresh-me": "robot"},
		Rights: func(user, repository string) []string {
			if user == "robot" && strings.HasPrefix(repository, "team/") {
				return []string{"pull", "push", "delete"}
			}
			return []string{"pull"}
		},
	})
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	r := startRegistry(t, "", server.RegistryAuth())
	refresh := seal.RegistryAuth{IdentityToken: "refresh-me"}
	bearer, err := server.Token("team/app", "pull", "push", "delete")
	require.NoError(t, err)
	expired := strings.TrimSuffix(bearer, bearer[len(bearer)-8:]) + "AAAAAAAA"

	tests := []struct {
		name       string
		repository string
		auth       seal.RegistryAuth
		says       string // "" if allowed
	}{
		{"password", "team/app", robot, ""},
		{"identity token", "team/app", refresh, ""},
		{"registry token", "team/app", seal.RegistryAuth{RegistryToken: bearer}, ""},
		{"wrong password", "team/app", nobody, `refuses user "robot" [redacted] (401 Unauthorized)`},
		{"wrong identity token", "team/app", seal.RegistryAuth{IdentityToken: "hunter2"}, "refuses identity token [redacted] (400 Bad Request)"},
		{"wrong registry token", "team/app", seal.RegistryAuth{RegistryToken: expired}, "does not let bearer token [redacted] push"},
		{"anonymous", "team/app", seal.RegistryAuth{}, "wants credentials and none are known"},
		{"somebody else's repository", "other/app", robot, `does not let user "robot" [redacted] push`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckPush(t.Context(), Target{Registry: r.addr, Repository: tt.repository, Auth: tt.auth})
			require.Zero(t, r.uploads(t))
			if tt.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrAuth)
			require.ErrorContains(t, err, tt.says)
			for _, secret := range []string{"hunter", "refresh-me", bearer, expired} {
				require.NotContains(t, err.Error(), secret)
			}
		})
	}

	require.Empty(t, server.Wrong())
	server.Fail(tries - 1)
	require.NoError(t, CheckPush(t.Context(), Target{Registry: r.addr, Repository: "team/app", Auth: robot}))
	server.Fail(1000)
	err = CheckPush(t.Context(), Target{Registry: r.addr, Repository: "team/app", Auth: robot})
	require.ErrorIs(t, err, ErrRegistry)
	require.ErrorContains(t, err, "answered 503")
	server.Stop()
	err = CheckPush(t.Context(), Target{Registry: r.addr, Repository: "team/app", Auth: robot})
	require.ErrorIs(t, err, ErrUnreachable)
	require.ErrorContains(t, err, strings.TrimPrefix(server.URL, "http://"))
}

// A ca issues certificates.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &ca{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (c *ca) issue(t *testing.T, host string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{host}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, private.Public(), c.key)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	_, err = tls.X509KeyPair(cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))
	require.NoError(t, err)
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}
