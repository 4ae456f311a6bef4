package portainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/agent"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/wire"
)

// A sandbox is an agent that serves one file, as mesos src/files/files.cpp does:
// at most 64 KiB at a time, 404 with an empty body before the file is there, and
// the file's present size with every answer.
type sandbox struct {
	path string

	mu    sync.Mutex
	data  []byte
	there bool
	reads int
	fault func(read int) error // instead of an answer; may be nil
}

func (s *sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var call agent.Call
	switch err := call.Unmarshal(body); {
	case r.URL.Path != "/api/v1":
		http.NotFound(w, r)
	case err != nil || call.Type != agent.Call_READ_FILE || call.ReadFile == nil:
		http.Error(w, "not READ_FILE", http.StatusBadRequest)
	case !s.there || call.ReadFile.Path != s.path:
		w.WriteHeader(http.StatusNotFound)
	default:
		offset := min(call.ReadFile.Offset, uint64(len(s.data)))
		end := min(offset+min(call.ReadFile.GetLength(), 16*4096), uint64(len(s.data)))
		answer := agent.Response{
			Type:     agent.Response_READ_FILE,
			ReadFile: &agent.Response_ReadFile{Size_: uint64(len(s.data)), Data: s.data[offset:end]},
		}
		reply, err := answer.Marshal()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(reply)
	}
}

// RoundTrip lets the sandbox be read without a network.
func (s *sandbox) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.reads++
	var err error
	if s.fault != nil {
		err = s.fault(s.reads)
	}
	s.mu.Unlock()
	if err == nil {
		err = context.Cause(r.Context())
	}
	if err != nil {
		return nil, err
	}
	answer := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	s.ServeHTTP(answer, r)
	return answer.Result(), nil
}

func (s *sandbox) write(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.there = true
	s.data = append(s.data, data...)
}

func (s *sandbox) readCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// A reader is a follower at work, and what its sink has got.
type reader struct {
	*sandbox
	follower  *follower
	box       *mailbox
	cancelled int

	mu     sync.Mutex
	events []Event
	times  []time.Time

	result *Result
	err    error
	ended  chan struct{}
}

// newReader follows the log of the first attempt of a build, in a synctest bubble.
func newReader(t *testing.T) *reader {
	r := &reader{sandbox: &sandbox{}, box: newMailbox(), ended: make(chan struct{})}
	files := schedapi.NewFiles(schedapi.FilesConfig{Transport: r.sandbox})
	t.Cleanup(files.Close)
	r.follower = &follower{log: agentFiles{files}, sink: LogSinkFunc(r.handle), build: "b1", image: "registry.example/app"}
	return r
}

func (r *reader) handle(_ context.Context, ev Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, ev)
	r.times = append(r.times, time.Now())
}

// attempt tells the follower of a launch.
func (r *reader) attempt(n int) {
	source := &logSource{
		framework: "F", attempt: n, task: fmt.Sprintf("b1-%d", n), agent: "a1", hostname: "host-a1", agentURL: "http://host-a1:5051",
	}
	r.sandbox.path = source.path()
	r.box.post(notice{event: Event{Kind: EventLaunched, Attempt: n}, follow: source})
}

// start runs the follower in a goroutine, which end waits for.
func (r *reader) start(ctx context.Context) {
	go func() {
		defer close(r.ended)
		r.result, r.err = r.follower.run(ctx, r.box, nil, func() {
			r.cancelled++
			r.box.post(notice{event: Event{Kind: EventFailed}, err: context.Canceled})
		})
	}()
}

// finish says that the log is complete at size and the build done.
func (r *reader) finish(size int64) {
	r.box.post(notice{logEnd: &logEnd{size}, event: Event{Kind: EventSucceeded}, result: &Result{Digest: "sha256:1"}})
}

// seen renders what the sink has got, without the times.
func (r *reader) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seen []string
	for _, ev := range r.events {
		text := string(ev.Kind)
		if ev.Text != "" {
			text += " " + ev.Text
		}
		seen = append(seen, text)
	}
	return seen
}

func (r *reader) count(kind EventKind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, ev := range r.events {
		if ev.Kind == kind {
			n++
		}
	}
	return n
}

// pass lets the clock of a synctest bubble go on.
func pass(d time.Duration) { <-time.After(d) }

func line(text string) []byte {
	return wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Time: time.UnixMilli(1e12), Data: []byte(text)})
}

// TestFollowWhole checks that whatever the pace of the writer and the faults of the
// agent, the sink gets each line once and in order, before the end.
func TestFollowWhole(t *testing.T) {
	flaky := func(read int) error {
		if read%3 != 0 {
			return errors.New("connection refused")
		}
		return nil
	}
	for _, tt := range []struct {
		name  string
		lines int
		size  int // of a line
		cut   int // writes are of so many bytes
		pause time.Duration
		late  time.Duration // when the file appears
		fault func(read int) error
		blind bool // the size is not told at the end
	}{
		{name: "at once", lines: 1000, size: 20, cut: 1 << 20},
		{name: "cut anywhere", lines: 50, size: 37, cut: 11, pause: 30 * time.Millisecond},
		{name: "slowly", lines: 20, size: 10, cut: 40, pause: 7 * time.Second},
		{name: "file is late", lines: 20, size: 10, cut: 100, late: 40 * time.Second},
		{name: "many pages", lines: 5000, size: 100, cut: 1 << 20},
		{name: "lines longer than a page", lines: 5, size: 300 << 10, cut: 100 << 10, pause: time.Second},
		{name: "longest line", lines: 1, size: wire.MaxFrameData, cut: 2 << 20},
		{name: "empty lines", lines: 100, size: 0, cut: 7, pause: time.Millisecond},
		{name: "agent fails now and then", lines: 100, size: 50, cut: 100, pause: 200 * time.Millisecond, fault: flaky},
		{name: "size unknown", lines: 100, size: 50, cut: 100, pause: 20 * time.Millisecond, blind: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReader(t)
				r.fault = tt.fault
				r.attempt(1)
				r.start(t.Context())
				var log []byte
				want := []string{"launched"}
				for i := range tt.lines {
					text := strings.Repeat(string(rune('a'+i%26)), tt.size)
					log = append(log, line(text)...)
					want = append(want, strings.TrimSpace("log "+text))
				}
				pass(tt.late)
				size := int64(len(log))
				for len(log) > 0 {
					n := min(tt.cut, len(log))
					r.write(log[:n])
					log = log[n:]
					pass(tt.pause)
				}
				if tt.blind {
					size = -1
				}
				r.finish(size)
				<-r.ended
				require.NoError(t, r.err)
				require.Equal(t, "sha256:1", r.result.Digest)
				require.Equal(t, append(want, "succeeded"), r.seen())
			})
		})
	}
}

func TestFollowEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader(t)
		at := time.UnixMilli(1_700_000_000_123)
		step := wire.Step{Name: "[2/3] RUN make", Line: 7}
		done := step
		done.Took, done.Error = 3*time.Second, "exit code: 2"
		for _, f := range []wire.Frame{
			{Kind: wire.FrameInfo, Data: []byte("starting dockerd")},
			{Kind: wire.FrameStep, Step: 2, Data: step.Encode()},
			{Kind: wire.FrameErr, Step: 2, Data: []byte("\x1b[31mmake: \xff")},
			{Kind: 'z', Data: []byte("a kind of a later release")},
			{Kind: wire.FrameStep, Step: 3, Data: []byte("no JSON")},
			{Kind: wire.FrameOut, Step: 9, Data: []byte("of a step never told")},
			{Kind: wire.FrameGap, Data: []byte("12 bytes lost")},
			{Kind: wire.FrameStepDone, Step: 2, Data: done.Encode()},
		} {
			f.Time = at
			r.write(wire.AppendFrame(nil, f))
		}
		r.attempt(4)
		r.start(t.Context())
		r.finish(int64(len(r.data)))
		<-r.ended
		ev := func(kind EventKind, text string) Event {
			return Event{
				Build: "b1", Image: "registry.example/app", Attempt: 4, Agent: "a1", Hostname: "host-a1", Kind: kind, Time: at, Text: text,
			}
		}
		began, failed := ev(EventStep, ""), ev(EventStepDone, "")
		began.Step = Step{ID: 2, Name: step.Name, Line: 7}
		failed.Step = Step{ID: 2, Name: step.Name, Line: 7, Duration: 3 * time.Second, Error: "exit code: 2"}
		stderr, stray := ev(EventLog, "\x1b[31mmake: \xff"), ev(EventLog, "of a step never told")
		stderr.Stderr, stderr.Step = true, began.Step
		stray.Step.ID = 9
		require.Equal(t, []Event{
			ev(EventInfo, "starting dockerd"), began, stderr, stray, ev(EventGap, "12 bytes lost"), failed,
		}, r.events[1:len(r.events)-1])
	})
}

// TestFollowHint checks that a hint brings new lines at once, that they come soon
// without one, and that a log that does not grow is hardly read.
func TestFollowHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader(t)
		r.attempt(1)
		r.write(line("first"))
		r.start(t.Context())
		pass(time.Minute)
		require.LessOrEqual(t, r.readCount(), 40)

		r.write(line("hinted"))
		r.box.poke()
		synctest.Wait()
		require.Equal(t, 2, r.count(EventLog))

		pass(time.Minute)
		written := time.Now()
		r.write(line("without a hint"))
		pass(pollMax)
		synctest.Wait()
		require.Equal(t, 3, r.count(EventLog))
		require.LessOrEqual(t, r.times[len(r.times)-1].Sub(written), pollMax)

		// While it grows, it is read often, hinted or not.
		r.write(line("quick"))
		r.box.poke()
		for range 9 {
			pass(pollMin + time.Millisecond)
			r.write(line("quick"))
		}
		pass(2 * pollMin)
		synctest.Wait()
		require.Equal(t, 13, r.count(EventLog))
		r.finish(int64(len(r.data)))
		<-r.ended
	})
}

// TestFollowLoss checks that what cannot be had is told as a gap, after a wait
// that is not too long, and that the build's own end is told all the same.
func TestFollowLoss(t *testing.T) {
	refuse := func(int) error { return errors.New("connection refused") }
	whole := len(line("one"))
	for _, tt := range []struct {
		name  string
		data  string
		fault func(int) error
		size  int64
		gap   string // "" for none
		after time.Duration
	}{
		{name: "no file, none expected", size: -1},
		{name: "no file, empty log", size: 0},
		{name: "all there", data: string(line("one")), size: int64(whole)},
		{name: "shorter than said", data: string(line("one")), size: int64(whole) + 10, gap: "10 bytes of the log, from byte 24 on, could not be read: it is shorter than the executor said", after: drainLimit},
		{name: "ends within a line", data: string(line("one")) + "o 1000", size: -1, gap: "the rest of the log, from byte 24 on, could not be read: it ends within a line"},
		{name: "agent gone, size known", fault: refuse, size: 100, gap: "100 bytes of the log, from byte 0 on, could not be read: ", after: drainLimit},
		{name: "agent gone, size unknown", fault: refuse, size: -1, gap: "the rest of the log, from byte 0 on, could not be read: ", after: lostLimit},
		{name: "not a frame", data: string(line("one")) + "what is this?\n" + string(line("two")), size: 100, gap: "the rest of the log, from byte 24 on, could not be read: log of b1-1 at offset 24: malformed log frame"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReader(t)
				r.fault = tt.fault
				r.attempt(1)
				if tt.data != "" {
					r.write([]byte(tt.data))
				}
				r.start(t.Context())
				synctest.Wait()
				began := time.Now()
				r.finish(tt.size)
				<-r.ended
				require.NotNil(t, r.result)
				require.GreaterOrEqual(t, time.Since(began), tt.after)
				require.Less(t, time.Since(began), tt.after+2*pollMax)
				seen := r.seen()
				require.Equal(t, "succeeded", seen[len(seen)-1])
				require.Equal(t, min(strings.Count(tt.data, " 3\none\n"), 1), r.count(EventLog))
				if tt.gap == "" {
					require.Zero(t, r.count(EventGap))
					return
				}
				require.Equal(t, 1, r.count(EventGap))
				require.Contains(t, seen[len(seen)-2], "gap "+tt.gap)
			})
		})
	}
}

// TestFollowLateRest checks that the rest of a log may come long after the end of
// its attempt was told, as long as it comes.
func TestFollowLateRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader(t)
		r.attempt(1)
		r.start(t.Context())
		size := int64(20 * len(line("0")))
		r.finish(size)
		for i := range 20 {
			pass(20 * time.Second)
			r.write(line(fmt.Sprint(i % 10)))
		}
		<-r.ended
		require.Equal(t, 20, r.count(EventLog))
		require.Zero(t, r.count(EventGap))
	})
}

// TestFollowAttempts checks that each attempt's log is read from its beginning, to
// its end, and between the notices that it belongs between.
func TestFollowAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReader(t)
		r.attempt(1)
		r.write(append(line("first"), "torn"...))
		r.start(t.Context())
		pass(2 * pollMax)
		r.box.post(notice{logEnd: &logEnd{-1}, event: Event{Kind: EventRetrying}})
		synctest.Wait()

		r.mu.Lock()
		r.data = line("second")
		r.mu.Unlock()
		r.attempt(2)
		pass(2 * pollMax)
		r.finish(int64(len(r.data)))
		<-r.ended
		require.Equal(t, []string{
			"launched", "log first", "gap the rest of the log, from byte 26 on, could not be read: it ends within a line",
			"retrying", "launched", "log second", "succeeded",
		}, r.seen())
		require.Equal(t, 2, r.events[len(r.events)-2].Attempt)
	})
}

func TestFollowCancellation(t *testing.T) {
	for _, tt := range []struct {
		name string
		to   func(r *reader) // brings the follower where it is cancelled
	}{
		{"while the build waits", func(*reader) {}},
		{"while it follows", func(r *reader) { r.attempt(1); r.write(line("one")) }},
		{"while the agent does not answer", func(r *reader) {
			r.fault = func(int) error { return errors.New("connection refused") }
			r.attempt(1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := newReader(t)
				tt.to(r)
				r.start(ctx)
				pass(time.Second)
				began := time.Now()
				cancel()
				<-r.ended
				require.Less(t, time.Since(began), time.Millisecond)
				require.ErrorIs(t, r.err, context.Canceled)
				require.Nil(t, r.result)
				require.Equal(t, 1, r.cancelled)
			})
		})
	}
}

// TestFollowCancelledDrain checks that a caller who gives up does not wait for a
// log that does not come.
func TestFollowCancelledDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := newReader(t)
		r.attempt(1)
		r.start(ctx)
		r.finish(1000)
		pass(time.Second)
		began := time.Now()
		cancel()
		<-r.ended
		require.Less(t, time.Since(began), time.Millisecond)
		require.Equal(t, "sha256:1", r.result.Digest, "the build was done before")
		require.Equal(t, 1, r.count(EventGap))
	})
}

// TestFollowMark checks that a later life goes on behind the last line that was
// handed on, and knows the steps from before.
func TestFollowMark(t *testing.T) {
	db, err := openState(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.close()) }()
	synctest.Test(t, func(t *testing.T) {
		var log []byte
		log = wire.AppendFrame(log, wire.Frame{Kind: wire.FrameStep, Step: 1, Data: wire.Step{Name: "RUN make"}.Encode()})
		log = append(log, line("one")...)
		rest := wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Step: 1, Data: []byte("two")})

		live := func(do func(*reader)) *reader {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := newReader(t)
			mark, err := db.openMark("b1")
			require.NoError(t, err)
			defer func() { require.NoError(t, mark.close()) }()
			r.follower.mark = mark
			r.attempt(1)
			r.start(ctx)
			do(r)
			cancel()
			<-r.ended
			return r
		}
		first := live(func(r *reader) { r.write(log); r.write(rest[:5]); pass(2 * pollMax) })
		require.Equal(t, []string{"launched", "step", "log one", "failed"}, first.seen())

		second := live(func(r *reader) { r.write(log); r.write(rest); pass(2 * pollMax) })
		require.Equal(t, []string{"launched", "log two", "failed"}, second.seen())
		require.Equal(t, "RUN make", second.events[1].Step.Name)

		// Another attempt has another log.
		third := live(func(r *reader) { r.attempt(2); r.write(line("anew")); pass(2 * pollMax) })
		require.Equal(t, []string{"launched", "launched", "log anew", "failed"}, third.seen())
	})
}

// TestFollowOverLoopback does once over a real connection what the other tests do
// in memory.
func TestFollowOverLoopback(t *testing.T) {
	box := &sandbox{path: (&logSource{framework: "F", task: "b1-1"}).path()}
	server := httptest.NewServer(box)
	defer server.Close()
	var want []string
	for i := range 5000 {
		text := fmt.Sprintf("line %d %s", i, bytes.Repeat([]byte{'x'}, i%200))
		box.write(line(text))
		want = append(want, text)
	}
	var got []string
	files := schedapi.NewFiles(schedapi.FilesConfig{})
	defer files.Close()
	w := &follower{
		log: agentFiles{files}, build: "b1",
		sink: LogSinkFunc(func(_ context.Context, ev Event) {
			if ev.Kind == EventLog {
				got = append(got, ev.Text)
			}
		}),
	}
	mail := newMailbox()
	mail.post(notice{follow: &logSource{framework: "F", attempt: 1, task: "b1-1", agentURL: server.URL}})
	mail.post(notice{logEnd: &logEnd{int64(len(box.data))}, result: &Result{}})
	_, err := w.run(t.Context(), mail, nil, func() {})
	require.NoError(t, err)
	require.Equal(t, want, got)
}
