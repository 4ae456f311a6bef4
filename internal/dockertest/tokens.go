package dockertest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// tokenService and tokenIssuer name the registry and the server in tokens.
const (
	tokenService = "test-registry"
	tokenIssuer  = "test-issuer"
)

// leeway is how much longer than it says docker-registry takes a token
// (distribution registry/auth/token/token.go).
const leeway = 60 * time.Second

// TokenOptions say whom a token server knows, and what they may do.
type TokenOptions struct {
	// Host is where it listens, an address of this machine. "" means 127.0.0.1.
	Host string
	// TLS has it speak TLS, with a certificate in its directory, ca.pem, that nobody
	// else vouches for.
	TLS bool
	// Passwords are those of users, IdentityTokens the users of refresh tokens.
	Passwords, IdentityTokens map[string]string
	// Rights are what a user, "" for anonymous, may do with a repository: of "pull",
	// "push" and "delete".
	Rights func(user, repository string) []string
	// Life is how long a registry takes a token. Zero means an hour.
	Life time.Duration
}

// A TokenGrant is a token that was given.
type TokenGrant struct {
	User    string
	Scopes  []string // as asked for
	Granted []string // as given
}

// A TokenServer gives tokens for registries, as strictly as the protocol is written
// (distribution docs/spec/auth/token.md, oauth.md and scope.md).
type TokenServer struct {
	URL string

	dir     string
	options TokenOptions
	server  *httptest.Server
	key     *rsa.PrivateKey
	chain   [][]byte

	mu       sync.Mutex
	failures int
	grants   []TokenGrant
	wrong    []string
}

// StartTokenServer starts a token server that keeps its certificates in dir. The
// caller stops it.
func StartTokenServer(dir string, o TokenOptions) (*TokenServer, error) {
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Life == 0 {
		o.Life = time.Hour
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bundle.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	s := &TokenServer{dir: dir, options: o, key: key, chain: [][]byte{der}}
	l, err := net.Listen("tcp", net.JoinHostPort(o.Host, "0"))
	if err != nil {
		return nil, err
	}
	s.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: time.Minute}}
	if !o.TLS {
		s.server.Start()
		s.URL = s.server.URL
		return s, nil
	}
	_, err = WriteCerts(dir, o.Host)
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.server.StartTLS()
	s.URL = s.server.URL
	return s, nil
}

// Stop stops the server.
func (s *TokenServer) Stop() { s.server.Close() }

// RegistryAuth is the section of a registry's configuration by which it takes the
// server's tokens.
func (s *TokenServer) RegistryAuth() string {
	return fmt.Sprintf("auth:\n  token:\n    realm: %s/token\n    service: %s\n    issuer: %s\n    rootcertbundle: %s\n",
		s.URL, tokenService, tokenIssuer, filepath.Join(s.dir, "bundle.pem"))
}

// Fail has the next n requests answered with 503.
func (s *TokenServer) Fail(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = n
}

// Grants returns the tokens that were given.
func (s *TokenServer) Grants() []TokenGrant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.grants)
}

// Wrong returns what was wrong with requests, other than who made them.
func (s *TokenServer) Wrong() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wrong)
}

func (s *TokenServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.failures--
	busy := s.failures >= 0
	s.mu.Unlock()
	if busy {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	if err := r.ParseForm(); err != nil {
		s.refuse(w, "form: %v", err)
		return
	}
	if service := r.Form.Get("service"); service != tokenService {
		s.refuse(w, "service %q", service)
		return
	}
	field := "token"
	var user string
	var ok bool
	switch r.Method {
	case http.MethodGet:
		user, ok = s.basic(r)
	case http.MethodPost:
		field = "access_token"
		user, ok = s.oauth(r)
	default:
		s.refuse(w, "method %s", r.Method)
		return
	}
	if !ok {
		status := http.StatusUnauthorized
		if r.Method == http.MethodPost {
			status = http.StatusBadRequest // RFC 6749, 5.2
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		return
	}
	var scopes []string
	for _, scope := range r.Form["scope"] {
		scopes = append(scopes, strings.Fields(scope)...)
	}
	grant := TokenGrant{User: user, Scopes: scopes}
	var access []map[string]any
	for _, scope := range scopes {
		repository, actions, ok := parseScope(scope)
		if !ok {
			s.refuse(w, "scope %q", scope)
			return
		}
		rights := s.options.Rights(user, repository)
		actions = slices.DeleteFunc(actions, func(a string) bool { return !slices.Contains(rights, a) })
		access = append(access, map[string]any{"type": "repository", "name": repository, "actions": actions})
		grant.Granted = append(grant.Granted, repository+":"+strings.Join(actions, ","))
	}
	token, err := s.sign(access)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.mu.Lock()
	s.grants = append(s.grants, grant)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		field: token, "expires_in": int(max(s.options.Life, time.Second).Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// refuse answers a request that no client should make.
func (s *TokenServer) refuse(w http.ResponseWriter, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	s.wrong = append(s.wrong, text)
	s.mu.Unlock()
	http.Error(w, text, http.StatusBadRequest)
}

// basic tells who makes a request with a name and a password, or without.
func (s *TokenServer) basic(r *http.Request) (user string, ok bool) {
	user, password, some := r.BasicAuth()
	if !some {
		return "", true
	}
	want, known := s.options.Passwords[user]
	return user, known && password == want
}

// oauth tells who makes a request of OAuth2.
func (s *TokenServer) oauth(r *http.Request) (user string, ok bool) {
	if r.PostFormValue("client_id") == "" {
		return "", false
	}
	switch r.PostFormValue("grant_type") {
	case "refresh_token":
		user, ok = s.options.IdentityTokens[r.PostFormValue("refresh_token")]
	case "password":
		user = r.PostFormValue("username")
		want, known := s.options.Passwords[user]
		ok = known && r.PostFormValue("password") == want
	}
	return user, ok
}

// repositoryScope is the scope of a repository (distribution docs/spec/auth/scope.md).
var repositoryScope = regexp.MustCompile(`^repository:([a-z0-9]+(?:[._/-][a-z0-9]+)*):([a-z]+(?:,[a-z]+)*)$`)

func parseScope(scope string) (repository string, actions []string, ok bool) {
	m := repositoryScope.FindStringSubmatch(scope)
	if m == nil {
		return "", nil, false
	}
	actions = strings.Split(m[2], ",")
	for _, a := range actions {
		ok = a == "pull" || a == "push" || a == "delete"
		if !ok {
			return "", nil, false
		}
	}
	return m[1], actions, true
}

// Token returns a token for one repository, whoever may have it.
func (s *TokenServer) Token(repository string, actions ...string) (string, error) {
	return s.sign([]map[string]any{{"type": "repository", "name": repository, "actions": actions}})
}

func (s *TokenServer) sign(access []map[string]any) (string, error) {
	head, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": s.chain})
	if err != nil {
		return "", err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": tokenIssuer, "aud": tokenService, "sub": "test", "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-2 * leeway).Unix(), "exp": now.Add(s.options.Life - leeway).Unix(), "access": access,
	})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), err
}
