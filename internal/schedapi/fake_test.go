package schedapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/schedapi"
)

const frameworkID = "f0c4f2a6-0000"

// A fakeMaster answers as a master does, and refuses what a master refuses. What
// it sends on its streams is up to each test.
type fakeMaster struct {
	// script plays the n-th subscription, from 1. The stream ends when it returns.
	script func(n int, subscribe *scheduler.Call_Subscribe, s *stream)
	// answer, if set, answers calls other than SUBSCRIBE. 0 means 202.
	answer func(call *scheduler.Call) (status int, body string)
	// proxied says that the ID of the n-th stream is lost on the way.
	proxied func(n int) bool
	// principal and secret, if set, are required.
	principal, secret string

	mu            sync.Mutex
	subscriptions int
	requests      int
	current       string // ID of the stream
	calls         []*scheduler.Call
}

// A stream is one subscription as the fake sees it.
type stream struct {
	ctx context.Context
	w   http.ResponseWriter
	id  string
}

func (s *stream) raw(data string) {
	if _, err := io.WriteString(s.w, data); err == nil {
		s.w.(http.Flusher).Flush()
	}
}

func (s *stream) send(event *scheduler.Event) {
	data, err := event.Marshal()
	if err != nil {
		panic(err)
	}
	if recordio.NewWriter(s.w).WriteFrame(data) == nil {
		s.w.(http.Flusher).Flush()
	}
}

func (s *stream) subscribed(heartbeat time.Duration) {
	seconds := heartbeat.Seconds()
	s.send(&scheduler.Event{Type: scheduler.Event_SUBSCRIBED, Subscribed: &scheduler.Event_Subscribed{
		FrameworkID: &mesos.FrameworkID{Value: frameworkID}, HeartbeatIntervalSeconds: &seconds,
	}})
	s.heartbeat()
}

func (s *stream) heartbeat() { s.send(&scheduler.Event{Type: scheduler.Event_HEARTBEAT}) }

func (s *stream) fail(message string) {
	s.send(&scheduler.Event{Type: scheduler.Event_ERROR, Error: &scheduler.Event_Error{Message: message}})
}

// rescind is an event to be told by its number.
func (s *stream) rescind(n int) {
	s.send(&scheduler.Event{Type: scheduler.Event_RESCIND, Rescind: &scheduler.Event_Rescind{OfferID: mesos.OfferID{Value: strconv.Itoa(n)}}})
}

// stall keeps the stream open and says nothing.
func (s *stream) stall() { <-s.ctx.Done() }

func (m *fakeMaster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, body string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	m.mu.Lock()
	m.requests++
	m.mu.Unlock()
	if user, password, _ := r.BasicAuth(); user != m.principal || password != m.secret {
		w.Header().Set("WWW-Authenticate", `Basic realm="mesos-master-scheduler"`)
		fail(http.StatusUnauthorized, "401 Unauthorized.")
		return
	}
	body, err := io.ReadAll(r.Body)
	var call scheduler.Call
	switch {
	case r.URL.Path != "/api/v1/scheduler":
		fail(http.StatusNotFound, "")
		return
	case r.Method != http.MethodPost:
		fail(http.StatusMethodNotAllowed, "")
		return
	case r.Header.Get("Content-Type") != "application/x-protobuf":
		fail(http.StatusUnsupportedMediaType, "Expecting 'Content-Type' of application/json or application/x-protobuf")
		return
	case err != nil || call.Unmarshal(body) != nil:
		fail(http.StatusBadRequest, "Failed to parse body into Call protobuf")
		return
	}
	if call.Type == scheduler.Call_SUBSCRIBE {
		m.subscribe(w, r, &call, fail)
		return
	}
	m.mu.Lock()
	current := m.current
	m.mu.Unlock()
	switch {
	case call.FrameworkID.GetValue() != frameworkID:
		fail(http.StatusBadRequest, "Framework cannot be found")
		return
	case current == "":
		fail(http.StatusForbidden, "Framework is not subscribed")
		return
	case r.Header.Get("Mesos-Stream-Id") == "":
		fail(http.StatusBadRequest, "All non-subscribe calls should include the 'Mesos-Stream-Id' header")
		return
	case r.Header.Get("Mesos-Stream-Id") != current:
		fail(http.StatusBadRequest, "The stream ID '…' included in this request didn't match the stream ID currently associated with framework ID …")
		return
	}
	status, text := 0, ""
	if m.answer != nil {
		status, text = m.answer(&call)
	}
	if status == 0 {
		m.mu.Lock()
		m.calls = append(m.calls, &call)
		m.mu.Unlock()
		status = http.StatusAccepted
	}
	if status == http.StatusAccepted {
		w.WriteHeader(status)
		return
	}
	fail(status, text)
}

func (m *fakeMaster) subscribe(w http.ResponseWriter, r *http.Request, call *scheduler.Call, fail func(int, string)) {
	switch {
	case call.Subscribe == nil:
		fail(http.StatusBadRequest, "Failed to validate scheduler::Call: Expecting 'subscribe' to be present")
		return
	case call.FrameworkID.GetValue() != call.Subscribe.FrameworkInfo.ID.GetValue():
		fail(http.StatusBadRequest, "Failed to validate scheduler::Call: 'framework_id' differs from 'subscribe.framework_info.id'")
		return
	case r.Header.Get("Accept") != "application/x-protobuf":
		fail(http.StatusNotAcceptable, "Expecting 'Accept' to allow 'application/x-protobuf' or 'application/json'")
		return
	case r.Header.Get("Mesos-Stream-Id") != "":
		fail(http.StatusBadRequest, "Subscribe calls should not include the 'Mesos-Stream-Id' header")
		return
	case call.Subscribe.FrameworkInfo.GetPrincipal() != m.principal:
		fail(http.StatusBadRequest, "Authenticated principal differs")
		return
	}
	m.mu.Lock()
	m.subscriptions++
	n := m.subscriptions
	s := &stream{ctx: r.Context(), w: w, id: fmt.Sprintf("stream-%d", n)}
	m.current = s.id
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
	if m.proxied == nil || !m.proxied(n) {
		w.Header().Set("Mesos-Stream-Id", s.id)
	}
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	m.script(n, call.Subscribe, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == s.id {
		m.current = ""
	}
}

func (m *fakeMaster) received() []*scheduler.Call {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *fakeMaster) requestCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests
}

// network is an http.RoundTripper that reaches handlers in memory by host, so that
// a test can run in a synctest bubble. Other hosts refuse the connection.
type network struct {
	mu       sync.Mutex
	hosts    map[string]http.Handler
	handlers sync.WaitGroup
}

func (n *network) set(host string, h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[host] = h
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	h := n.hosts[r.URL.Host]
	n.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("dial tcp %s: connect: connection refused", r.URL.Host)
	}
	reader, writer := io.Pipe()
	w := &pipeWriter{header: make(http.Header), body: writer, began: make(chan struct{})}
	stop := context.AfterFunc(r.Context(), func() { writer.CloseWithError(r.Context().Err()) })
	n.handlers.Go(func() {
		defer stop()
		h.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		writer.Close()
	})
	select {
	case <-w.began:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return &http.Response{
		StatusCode: w.status, Header: w.header.Clone(), Body: reader,
		ContentLength: -1, Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}, nil
}

type pipeWriter struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	status int
	began  chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) Flush()              {}
func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status = status
		close(w.began)
	})
}
func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// A recorder keeps what handle was given.
type recorder struct {
	mu     sync.Mutex
	events []schedapi.Event
	hook   func(schedapi.Event) // called after, if set
}

func (r *recorder) handle(event schedapi.Event) {
	r.mu.Lock()
	r.events = append(r.events, event)
	r.mu.Unlock()
	if r.hook != nil {
		r.hook(event)
	}
}

// log returns the events as short words.
func (r *recorder) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var words []string
	for _, event := range r.events {
		switch {
		case event.Disconnected != nil:
			words = append(words, "disconnected: "+event.Disconnected.Error())
		case event.Type == scheduler.Event_RESCIND:
			words = append(words, "rescind "+event.Rescind.OfferID.Value)
		default:
			words = append(words, event.Type.String())
		}
	}
	return words
}

func framework() *mesos.FrameworkInfo {
	timeout := 3600.0
	return &mesos.FrameworkInfo{User: "root", Name: "test", Roles: []string{"a", "b"}, FailoverTimeout: &timeout}
}

func parse(t *testing.T, spec string) master.Resolver {
	t.Helper()
	r, err := master.Parse(spec)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// run runs a client until stop is called, which returns what Run returned.
func run(t *testing.T, c *schedapi.Client, handle func(schedapi.Event)) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, handle) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			err = <-done
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newClient(t *testing.T, cfg schedapi.Config) *schedapi.Client {
	t.Helper()
	if cfg.Framework == nil {
		cfg.Framework = framework()
	}
	c, err := schedapi.New(cfg)
	require.NoError(t, err)
	return c
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }
