package engine_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/engine"
)

// A request is one that a registry has answered.
type request struct {
	method, path, query string
	status              int
	began               time.Time
}

// A frontDesk stands before a registry, takes note of what it answers, and turns
// away whom it is told to.
type frontDesk struct {
	addr string

	mu     sync.Mutex
	seen   []request
	refuse func(r *http.Request) (status int, retryAfter string) // 0 to let it in
}

func startFrontDesk(t *testing.T, registry string) *frontDesk {
	t.Helper()
	d := &frontDesk{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	// The registry answers with places at the name that it was called by.
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		d.mu.Lock()
		refuse := d.refuse
		d.mu.Unlock()
		status, after := 0, ""
		if refuse != nil {
			status, after = refuse(r)
		}
		if status != 0 {
			rec.Header().Set("Retry-After", after)
			rec.WriteHeader(status)
		} else {
			proxy.ServeHTTP(rec, r)
		}
		d.mu.Lock()
		d.seen = append(d.seen, request{r.Method, r.URL.Path, r.URL.RawQuery, rec.status, began})
		d.mu.Unlock()
	}))
	t.Cleanup(s.Close)
	d.addr = strings.TrimPrefix(s.URL, "http://")
	return d
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap lets the proxy flush.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// taken returns what was answered since the last call.
func (d *frontDesk) taken() []request {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := d.seen
	d.seen = nil
	return seen
}

// count counts requests.
func count(all []request, is func(r request) bool) (n int) {
	for _, r := range all {
		if is(r) {
			n++
		}
	}
	return n
}

// TestPushWritesTagsLast looks at what a push says to the registry: tags are written
// when everything that they name is there, and a dockerd of our own mounts the layers
// that another repository has. A given one does so for layers that it has pulled from
// this registry itself, which is not certain here: tests share it.
func TestPushWritesTagsLast(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			desk := startFrontDesk(t, r.registry.Addr)
			cfg := r.config(t, w.kind, nil)
			cfg.Insecure = append(cfg.Insecure, desk.addr)
			cfg.Bundler = files{"a": w.name + " a", "b": w.name + " b"}
			e := open(t, cfg)
			req := r.request(t, "FROM "+desk.addr+"/busybox:latest\nCOPY a /a\nCOPY b /b\nRUN "+w.mount+"true\n")
			req.Registry, req.Tags = desk.addr, []string{"v1", "v2"}
			_, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			seen := desk.taken()
			uploads := "/v2/" + req.Repository + "/blobs/uploads/"
			mounted := func(q request) bool {
				return q.method == http.MethodPost && q.path == uploads && strings.Contains(q.query, "from=busybox") && q.status == http.StatusCreated
			}
			sent := func(q request) bool {
				return q.method == http.MethodPut && strings.HasPrefix(q.path, uploads) && q.status == http.StatusCreated
			}
			tagged := func(q request) bool {
				return q.method == http.MethodPut && strings.HasPrefix(q.path, "/v2/"+req.Repository+"/manifests/v") && q.status == http.StatusCreated
			}
			if w.kind == engine.KindDockerd {
				require.Equal(t, 1, count(seen, mounted), "the layer of the base")
			}
			require.GreaterOrEqual(t, count(seen, sent), 3, "two layers and the configuration")
			require.Equal(t, 2, count(seen, tagged))
			first := 0
			for !tagged(seen[first]) {
				first++
			}
			require.Zero(t, count(seen[first:], sent), "nothing comes after the first tag")
		})
	}
}

// TestPushOfBuildkitdMounts looks at which layers a buildkitd mounts from the repository of
// the base: those that it never had to unpack. It notes where a layer comes from only as
// long as that is somewhere else (buildkit cache/remote.go, getRemote), and for what it
// has pushed (util/push/push.go, updateDistributionSourceHandler). Others are sent.
func TestPushOfBuildkitdMounts(t *testing.T) {
	r := theRig(t)
	for _, tt := range []struct {
		name, step string
		mounts     int
	}{
		{"only named", "LABEL a=b", 1},
		{"unpacked", "RUN true", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			desk := startFrontDesk(t, r.registry.Addr)
			cfg := r.config(t, engine.KindBuildkitd, nil)
			cfg.Insecure = append(cfg.Insecure, desk.addr)
			e := open(t, cfg)
			req := r.request(t, "FROM "+desk.addr+"/busybox:latest\n"+tt.step+"\n")
			req.Registry = desk.addr
			req.Repository += "-" + strings.ToLower(rand.Text()) // which has no layers yet
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			require.Contains(t, fileSystem(t, pull(t, res.Refs[0])), "etc/passwd", "of the base")
			require.Equal(t, tt.mounts, count(desk.taken(), func(q request) bool {
				return q.method == http.MethodPost && strings.Contains(q.query, "from=busybox") && q.status == http.StatusCreated
			}))
		})
	}
}

// TestPushOutlastsRefusals has a registry that wants to be left alone for a while, in
// the middle of a push: the image waits and is not built again.
func TestPushOutlastsRefusals(t *testing.T) {
	r := theRig(t)
	for i, w := range ways {
		status := []int{http.StatusTooManyRequests, http.StatusServiceUnavailable}[i%2]
		t.Run(fmt.Sprint(w.name, " ", status), func(t *testing.T) {
			t.Parallel()
			const leave = 3 * time.Second
			desk := startFrontDesk(t, r.registry.Addr)
			var mu sync.Mutex
			var until time.Time // it lets nobody in; zero before the push
			desk.refuse = func(q *http.Request) (int, string) {
				mu.Lock()
				defer mu.Unlock()
				now := time.Now()
				if until.IsZero() && q.Method == http.MethodPut && strings.Contains(q.URL.Path, "/manifests/") {
					until = now.Add(leave)
				}
				if now.Before(until) {
					return status, fmt.Sprint(int(leave.Seconds()))
				}
				return 0, ""
			}
			log := &recorder{}
			cfg := r.config(t, w.kind, log)
			cfg.Insecure = append(cfg.Insecure, desk.addr)
			e := open(t, cfg)
			req := r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"cat /proc/sys/kernel/random/uuid | tee /id\n")
			req.Registry, req.NoCache = desk.addr, true
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			id := fileSystem(t, pull(t, res.Refs[0]))["id"]
			require.Equal(t, []string{strings.TrimSpace(id)}, log.lines("RUN"), "it was built once")
			tries := 0
			for _, q := range desk.taken() {
				if q.method == http.MethodPut && strings.Contains(q.path, "/manifests/") {
					tries++
				}
			}
			require.GreaterOrEqual(t, tries, 2)
		})
	}
}
