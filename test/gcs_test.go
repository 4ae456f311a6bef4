package test

import (
	"bufio"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/storagetest"
)

// A gcsFront stands before a GCS emulator, which takes whatever signature a URL has, and
// looks at signatures as Google does: it refuses a wrong one, or one that is over. It
// speaks TLS to whoever begins with that, as signed URLs are always https:// and requests
// to an emulator never are.
type gcsFront struct {
	*httptest.Server
	uri    string // of the bucket, for someone who can sign
	ca     string // file
	signed atomic.Int64
}

// accessID is the service account that signs.
const accessID = "builder@test.example"

func startGCSFront(t *testing.T) *gcsFront {
	t.Helper()
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	keyFile := filepath.Join(dir, "account.pem")
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	_, err = dockertest.WriteCerts(dir, "127.0.0.1")
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	require.NoError(t, err)

	f := &gcsFront{ca: filepath.Join(dir, "ca.pem")}
	f.uri = "gs://staging?anonymous=true&access_id=" + url.QueryEscape(accessID) + "&private_key_path=" + url.QueryEscape(keyFile)
	var behind *storagetest.Server
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("Signature") {
			if err := checkGCSSignature(&key.PublicKey, r); err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			f.signed.Add(1)
		}
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: behind.Address})
			p.Out.Host = p.In.Host
		}}).ServeHTTP(w, r)
	}))
	f.Listener = eitherListener{f.Listener, &tls.Config{Certificates: []tls.Certificate{pair}}}
	// Its address is in what the emulator answers.
	behind, err = storagetest.StartGCS(t.Context(), filepath.Join(dir, "data"), f.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(behind.Kill)
	f.Start()
	t.Cleanup(f.Close)
	return f
}

// An eitherListener takes connections with TLS and without.
type eitherListener struct {
	net.Listener
	tls *tls.Config
}

func (l eitherListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &eitherConn{Conn: c, tls: l.tls}, nil
}

// An eitherConn becomes what its client's first byte says.
type eitherConn struct {
	net.Conn
	tls   *tls.Config
	once  sync.Once
	inner net.Conn
}

func (c *eitherConn) begin() net.Conn {
	c.once.Do(func() {
		r := bufio.NewReader(c.Conn)
		first, err := r.Peek(1)
		c.inner = readConn{c.Conn, r}
		const handshake = 22 // RFC 8446, 5.1
		if err == nil && first[0] == handshake {
			c.inner = tls.Server(c.inner, c.tls)
		}
	})
	return c.inner
}

func (c *eitherConn) Read(b []byte) (int, error)  { return c.begin().Read(b) }
func (c *eitherConn) Write(b []byte) (int, error) { return c.begin().Write(b) }

// A readConn is a connection of which something has been read ahead.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// checkGCSSignature checks a signed URL by the rules of Google's "V2 signing process".
func checkGCSSignature(key *rsa.PublicKey, r *http.Request) error {
	q := r.URL.Query()
	if got := q.Get("GoogleAccessId"); got != accessID {
		return fmt.Errorf("signed by %s", got)
	}
	until, err := strconv.ParseInt(q.Get("Expires"), 10, 64)
	if err != nil || time.Now().Unix() > until {
		return fmt.Errorf("it was good until %q", q.Get("Expires"))
	}
	signature, err := base64.StdEncoding.DecodeString(q.Get("Signature"))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n\n\n%d\n%s", r.Method, until, r.URL.EscapedPath()))
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature)
}

// TestAgentsReadGCSAtSignedURLs builds with a context in a bucket of GCS on agents that
// have no key for it: they read at URLs that the program has signed with that of a
// service account.
func TestAgentsReadGCSAtSignedURLs(t *testing.T) {
	f := startGCSFront(t)
	daemon := startDaemon(t)
	withEnv(t, map[string]string{"STORAGE_EMULATOR_HOST": f.Listener.Addr().String(), "SSL_CERT_FILE": f.ca})
	executor := executorWith(t, map[string]string{"SSL_CERT_FILE": f.ca})
	dir := sources(t, "gs-signed")
	p := cli(t, 0, "build", "--to", registry, "--from", registry, "--docker-host", daemon.Host, "--executor-uri", executor,
		"--staging-uri", f.uri, "--staging-sign", "always", dir)
	pushed(t, refOf(t, p, "test/storage-gs-signed"))
	require.GreaterOrEqual(t, f.signed.Load(), int64(2), "a recipe and a pack")
	require.NotContains(t, p.stderr.String(), "Signature=")

	// Without the key nothing can be signed, and an agent has nothing else.
	unsigned, _, _ := strings.Cut(f.uri, "&access_id=")
	p = cli(t, 3, "build", "--to", registry, "--from", registry, "--docker-host", daemon.Host, "--executor-uri", executor,
		"--staging-uri", unsigned, "--staging-sign", "always", "--tag", "never", dir)
	require.Len(t, ownMessages(p), 1)
	require.Contains(t, ownMessages(p)[0], "cannot sign URLs")
}
