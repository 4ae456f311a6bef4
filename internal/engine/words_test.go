package engine

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/script"
)

func TestRegistries(t *testing.T) {
	s := script.Read([]byte("ARG R=reg.example:5000\nARG Q\nFROM $R/a AS one\nFROM ${Q:-quay.io}/b\nFROM one\nFROM scratch\n" +
		"COPY --from=localhost/c x /\nCOPY --from=one x /\nCOPY --from=0 x /\nFROM busybox\nFROM team/app\n"))
	require.Equal(t, []string{"reg.example:5000", "quay.io", "docker.io", "localhost"}, baseRegistries(s, nil))
	require.Equal(t, []string{"other:1", "quay.io", "docker.io", "localhost"}, baseRegistries(s, map[string]string{"R": "other:1"}))
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"Sun, 22 Nov 2026 08:01:30 GMT": 90 * time.Second,
		"Sun, 22 Nov 2026 07:00:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(s, now), s)
	}
}

// TestLeaveOfTheImageAlone has a registry that limits what is done to images, and nothing
// else.
func TestLeaveOfTheImageAlone(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusNotFound} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/team/app/manifests/v1" {
				w.Header().Set("Retry-After", "17")
				w.WriteHeader(status)
			}
		}))
		defer server.Close()
		host := strings.TrimPrefix(server.URL, "http://")
		j := &job{req: portainer.Request{Registry: host, Repository: "team/app"}, image: host + "/team/app", refs: []string{host + "/team/app:v1"}, script: script.Read(nil)}
		p := newProbe(t.Context(), j)
		p.end()
		want := 17 * time.Second
		if status == http.StatusNotFound {
			want = 0
		}
		require.Equal(t, want, p.leave(t.Context()))
		require.Equal(t, maxOutage, p.patience())
	}
}

func TestClassOf(t *testing.T) {
	for msg, want := range map[string]portainer.Class{
		"received unexpected HTTP status: 503 Service Unavailable":                            portainer.ClassRegistry,
		"unexpected status from HEAD request to http://h/v2/: 500 Internal Server Error":      portainer.ClassRegistry,
		"toomanyrequests: 429 Too Many Requests":                                              portainer.ClassRegistry,
		`Get "https://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`:    portainer.ClassRegistry,
		`Get "https://h/v2/": http: server gave HTTP response to HTTPS client`:                portainer.ClassRegistry,
		"unauthorized: authentication required":                                               portainer.ClassAuth,
		"denied: requested access to the resource is denied":                                  portainer.ClassAuth,
		"unexpected status from POST request to https://h/v2/x/blobs/uploads/: 403 Forbidden": portainer.ClassAuth,
		"write /var/lib/x: no space left on device":                                           portainer.ClassDisk,
		"h:5000/app:503: not found":                                                           portainer.ClassUser,
		"h:403/app:401: manifest unknown":                                                     portainer.ClassUser,
	} {
		require.Equal(t, want, classOf(msg, portainer.ClassUser), msg)
	}
}

func TestTidy(t *testing.T) {
	err := errors.New("failed to solve: failed to solve with frontend dockerfile.v0: rpc error: code = Unknown desc = nothing here")
	require.EqualError(t, tidy(err), "nothing here")
	require.ErrorIs(t, tidy(err), err)
	plain := errors.New("failed to solve: ")
	require.Equal(t, plain, tidy(plain))
}
