package registryauth

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
)

var (
	robot  = seal.RegistryAuth{Username: "robot", Password: "hunter2"}
	nobody = seal.RegistryAuth{Username: "robot", Password: "hunter3"}
)

// dialingTo makes c reach addr whatever host it wants.
func dialingTo(c *checker, addr string) *checker {
	c.transport.Proxy = nil
	c.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return c
}

// serve starts a server and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestCheckPushAnswers(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   error // nil if allowed
		says   string
		tries  int32
	}{
		{"accepted", 202, "", nil, "", 1},
		{"created", 201, "", nil, "", 1},
		{"forbidden", 403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, ErrAuth,
			"403 Forbidden, DENIED: requested access to the resource is denied", 1},
		{"no such repository", 404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, ErrRegistry, "knows no such repository: 404 Not Found, NAME_UNKNOWN", 1},
		{"no pushes", 405, "", ErrRegistry, "405 Method Not Allowed", 1},
		{"no registry", 501, "", ErrRegistry, "501 Not Implemented", 1},
		{"busy", 503, "", ErrRegistry, "503 Service Unavailable", tries},
		{"too many", 429, "", ErrRegistry, "429 Too Many Requests", tries},
		{"hostile text", 400, `{"errors":[{"code":"X\n\u001b[2J","message":"` + strings.Repeat("y", 1000) + `"}]}`, ErrRegistry, "400 Bad Request, X[2J: yyy", 1},
		{"endless text", 400, strings.Repeat("z", 10*maxBody), ErrRegistry, "400 Bad Request", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var posts atomic.Int32
			addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost && r.URL.Path == "/v2/team/app/blobs/uploads/" {
					posts.Add(1)
				}
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			err := CheckPush(t.Context(), Target{Registry: addr, Repository: "team/app", Auth: robot})
			require.Equal(t, tt.tries, posts.Load())
			if tt.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, tt.says)
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, len(err.Error()), 500)
		})
	}
}

func TestCheckPushTriesAgain(t *testing.T) {
	var asked atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			panic(http.ErrAbortHandler) // breaks the connection
		case 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	})
	c := newChecker(Target{Registry: addr, Repository: "team/app"})
	c.lax = true
	require.NoError(t, c.check(t.Context()))
	require.GreaterOrEqual(t, asked.Load(), int32(3))
}

func TestCheckPushEndsWithTheContext(t *testing.T) {
	arrived := make(chan struct{}, 10)
	addr := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	err := CheckPush(ctx, Target{Registry: addr, Repository: "team/app"})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrRegistry)

	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = CheckPush(ctx, Target{Registry: addr, Repository: "team/app"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestCheckPushKeepsSecrets has registries that try to get at them.
func TestCheckPushKeepsSecrets(t *testing.T) {
	var stolen atomic.Int32
	thief := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _, some := r.BasicAuth()
		if some || r.Header.Get("Authorization") != "" || r.FormValue("refresh_token") != "" {
			stolen.Add(1)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	basic := `Basic realm="x"`
	tests := []struct {
		name  string
		auth  seal.RegistryAuth
		serve http.HandlerFunc
	}{
		{"redirect after the challenge", robot, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", basic)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, "http://"+thief+"/", http.StatusTemporaryRedirect)
		}},
		{"location elsewhere", robot, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", basic)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.Header().Set("Location", "http://"+thief+"/upload")
			w.WriteHeader(http.StatusAccepted)
		}},
		{"token server that redirects", seal.RegistryAuth{IdentityToken: "refresh-me"}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, "http://"+thief+"/", http.StatusTemporaryRedirect)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckPush(t.Context(), Target{Registry: serve(t, tt.serve), Repository: "team/app", Auth: tt.auth})
			if err != nil {
				require.NotContains(t, err.Error(), "hunter2")
				require.NotContains(t, err.Error(), "refresh-me")
			}
			require.Zero(t, stolen.Load())
		})
	}
}

// TestCheckPushChallenges has registries over TLS that name a token server.
func TestCheckPushChallenges(t *testing.T) {
	tests := []struct {
		name, challenge, says string
	}{
		{"in the clear", `Bearer realm="http://token.test/",service="s"`, "a token server without TLS, token.test"},
		{"without a host", `Bearer realm="/token",service="s"`, "names a bad token server"},
		{"without a realm", `Bearer service="s"`, "names no token server"},
		{"of another kind", `Negotiate`, "an authentication other than Basic and Bearer"},
		{"none", ``, "an authentication other than Basic and Bearer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tt.challenge != "" {
					w.Header().Set("WWW-Authenticate", tt.challenge)
				}
				w.WriteHeader(http.StatusUnauthorized)
			}))
			defer s.Close()
			c := newChecker(Target{Registry: "example.com", Repository: "team/app", Auth: robot,
				TLS: s.Client().Transport.(*http.Transport).TLSClientConfig})
			err := dialingTo(c, s.Listener.Addr().String()).check(t.Context())
			require.ErrorIs(t, err, ErrRegistry)
			require.ErrorContains(t, err, tt.says)
		})
	}
}

func TestCheckPushToHub(t *testing.T) {
	var host atomic.Value
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer s.Close()
	c := newChecker(Target{Registry: "docker.io", Repository: "team/app", Insecure: true})
	require.NoError(t, dialingTo(c, s.Listener.Addr().String()).check(t.Context()))
	require.Equal(t, "registry-1.docker.io", host.Load())
}

func TestIsLoopback(t *testing.T) {
	for registry, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.1.2.3": true, "[::1]:5000": true,
		"10.0.0.1:5000": false, "registry.example": false, "localhost.example:5000": false,
	} {
		require.Equal(t, want, isLoopback(registry), registry)
	}
}
