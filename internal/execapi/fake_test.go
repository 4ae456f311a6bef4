package execapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/mesos/mesos-go/api/v1/lib/recordio"

	"github.com/org/portainer/internal/execapi"
)

// A fakeAgent answers as an agent does, and refuses what an agent refuses. What it
// sends on its streams is up to each test.
type fakeAgent struct {
	// script plays the n-th subscription, from 1. The stream ends when it returns.
	script func(n int, subscribe *executor.Call_Subscribe, s *stream)
	// answer, if set, answers calls other than SUBSCRIBE. 0 means 202.
	answer func(call *executor.Call) (status int, body string)
	// acknowledge makes the agent acknowledge updates as they come.
	acknowledge bool
	token       string

	mu       sync.Mutex
	n        int
	status   int     // if set, the answer to SUBSCRIBE
	current  *stream // nil while not subscribed
	attempts []time.Time
	updates  []string
	messages []string
}

type stream struct {
	ctx context.Context
	mu  sync.Mutex
	w   http.ResponseWriter
}

func (s *stream) send(event *executor.Event) {
	data, err := event.Marshal()
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if recordio.NewWriter(s.w).WriteFrame(data) == nil {
		s.w.(http.Flusher).Flush()
	}
}

func (s *stream) raw(data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := io.WriteString(s.w, data); err == nil {
		s.w.(http.Flusher).Flush()
	}
}

func (s *stream) subscribed() {
	s.send(&executor.Event{Type: executor.Event_SUBSCRIBED, Subscribed: &executor.Event_Subscribed{
		ExecutorInfo: mesos.ExecutorInfo{ExecutorID: mesos.ExecutorID{Value: "e"}}, FrameworkInfo: mesos.FrameworkInfo{
			User: "u", Name: "n", Capabilities: []mesos.FrameworkInfo_Capability{{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE}},
		},
		AgentInfo: mesos.AgentInfo{Hostname: "h"},
	}})
}

func task(id string) mesos.TaskInfo {
	return mesos.TaskInfo{TaskID: mesos.TaskID{Value: id}, Name: id, AgentID: mesos.AgentID{Value: "a"}}
}

func (s *stream) launch(id string) {
	s.send(&executor.Event{Type: executor.Event_LAUNCH, Launch: &executor.Event_Launch{Task: task(id)}})
}

func (s *stream) acknowledge(status mesos.TaskStatus) {
	s.send(&executor.Event{Type: executor.Event_ACKNOWLEDGED, Acknowledged: &executor.Event_Acknowledged{TaskID: status.TaskID, UUID: status.UUID}})
}

func (s *stream) shutdown() { s.send(&executor.Event{Type: executor.Event_SHUTDOWN}) }

func (s *stream) stall() { <-s.ctx.Done() }

func (a *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, body string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	if a.token != "" && r.Header.Get("Authorization") != "Bearer "+a.token {
		fail(http.StatusUnauthorized, "Invalid JWT: signature does not match")
		return
	}
	body, err := io.ReadAll(r.Body)
	var call executor.Call
	switch {
	case r.URL.Path != "/api/v1/executor" || r.Method != http.MethodPost:
		fail(http.StatusNotFound, "")
	case r.Header.Get("Content-Type") != "application/x-protobuf":
		fail(http.StatusUnsupportedMediaType, "Expecting 'Content-Type' of application/json or application/x-protobuf")
	case err != nil || call.Unmarshal(body) != nil:
		fail(http.StatusBadRequest, "Failed to parse body into Call protobuf")
	case call.FrameworkID.Value != "f":
		fail(http.StatusBadRequest, "Framework cannot be found")
	case call.ExecutorID.Value != "e":
		fail(http.StatusBadRequest, "Executor cannot be found")
	case call.Type == executor.Call_SUBSCRIBE:
		a.subscribe(w, r, &call, fail)
	default:
		a.other(w, &call, fail)
	}
}

func (a *fakeAgent) subscribe(w http.ResponseWriter, r *http.Request, call *executor.Call, fail func(int, string)) {
	if r.Header.Get("Accept") != "application/x-protobuf" || call.Subscribe == nil {
		fail(http.StatusNotAcceptable, "")
		return
	}
	a.mu.Lock()
	a.attempts = append(a.attempts, time.Now())
	if status := a.status; status != 0 {
		a.mu.Unlock()
		fail(status, "Agent has not finished recovery")
		return
	}
	a.n++
	n := a.n
	s := &stream{ctx: r.Context(), w: w}
	a.current = s
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	a.script(n, call.Subscribe, s)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == s {
		a.current = nil
	}
}

func (a *fakeAgent) other(w http.ResponseWriter, call *executor.Call, fail func(int, string)) {
	a.mu.Lock()
	current := a.current
	a.mu.Unlock()
	if current == nil {
		fail(http.StatusForbidden, "Executor is not subscribed")
		return
	}
	if call.Type == executor.Call_UPDATE {
		status := call.Update.Status
		switch {
		case len(status.UUID) != 16 || status.UUID[6]>>4 != 4 || status.UUID[8]>>6 != 2:
			fail(http.StatusBadRequest, "Failed to validate Executor::Call: Not a valid UUID")
			return
		case status.GetSource() != mesos.SOURCE_EXECUTOR:
			fail(http.StatusBadRequest, "Failed to validate Executor::Call: Received update with invalid source, expecting 'SOURCE_EXECUTOR'")
			return
		case status.ExecutorID.GetValue() != call.ExecutorID.Value:
			fail(http.StatusBadRequest, "Failed to validate Executor::Call: ExecutorID in Call does not match ExecutorID in TaskStatus")
			return
		case status.GetTimestamp() == 0:
			fail(http.StatusBadRequest, "no timestamp")
			return
		}
	}
	status, text := 0, ""
	if a.answer != nil {
		status, text = a.answer(call)
	}
	if status != 0 && status != http.StatusAccepted {
		fail(status, text)
		return
	}
	a.mu.Lock()
	switch call.Type {
	case executor.Call_UPDATE:
		a.updates = append(a.updates, word(call.Update.Status))
	case executor.Call_MESSAGE:
		a.messages = append(a.messages, string(call.Message.Data))
	}
	a.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
	if call.Type == executor.Call_UPDATE && a.acknowledge {
		current.acknowledge(call.Update.Status)
	}
}

// word is a status update in short.
func word(status mesos.TaskStatus) string {
	return fmt.Sprintf("%s %s", status.TaskID.Value, status.GetState())
}

func words(updates []executor.Call_Update) []string {
	var w []string
	for _, u := range updates {
		w = append(w, word(u.Status))
	}
	return w
}

func (a *fakeAgent) received() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.updates)
}

func (a *fakeAgent) setStatus(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

// memory is an http.RoundTripper that reaches a handler in memory, so that a test
// can run in a synctest bubble.
type memory struct {
	handlers sync.WaitGroup
	handler  http.Handler
	mu       sync.Mutex
	down     bool
}

func (m *memory) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *memory) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	down := m.down
	m.mu.Unlock()
	if down {
		return nil, fmt.Errorf("dial tcp %s: connect: connection refused", r.URL.Host)
	}
	reader, writer := io.Pipe()
	w := &pipeWriter{header: make(http.Header), body: writer, began: make(chan struct{})}
	stop := context.AfterFunc(r.Context(), func() { writer.CloseWithError(r.Context().Err()) })
	m.handlers.Go(func() {
		defer stop()
		m.handler.ServeHTTP(w, r)
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

// A recorder is a Handler that keeps what it was told.
type recorder struct {
	mu   sync.Mutex
	told []string
	hook func(what string) // called after, if set
}

func (r *recorder) add(what string) {
	r.mu.Lock()
	r.told = append(r.told, what)
	r.mu.Unlock()
	if r.hook != nil {
		r.hook(what)
	}
}

func (r *recorder) Launch(task execapi.Task) { r.add("launch " + task.ID) }
func (r *recorder) Kill(id string, grace time.Duration) {
	r.add(fmt.Sprintf("kill %s within %v", id, grace))
}
func (r *recorder) Message(data []byte) { r.add("message " + string(data)) }
func (r *recorder) Shutdown()           { r.add("shutdown") }

func (r *recorder) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

// run runs a client until stop is called, which returns what Run returned.
func run(t *testing.T, c *execapi.Client, h execapi.Handler) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, h) }()
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

func status(id string, state execapi.State) execapi.Status {
	return execapi.Status{Task: id, State: state}
}

func config(checkpoint bool) execapi.Config {
	return execapi.Config{
		Endpoint: "agent:1", FrameworkID: "f", ExecutorID: "e", AgentID: "a", Sandbox: "/s",
		Checkpoint: checkpoint, RecoveryTimeout: 15 * time.Minute, BackoffMax: 2 * time.Second, ShutdownGrace: 5 * time.Second,
	}
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }
