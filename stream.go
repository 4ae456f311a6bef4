package portainer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// EventKind says what an Event reports.
type EventKind string

// The kinds of events. More may come: ignore kinds you do not know.
const (
	EventStaging   EventKind = "staging"   // the context is being read and sent; Progress tells how far
	EventStaged    EventKind = "staged"    // the context is in the staging bucket; Text tells its size
	EventQueued    EventKind = "queued"    // the build waits for an offer
	EventWaiting   EventKind = "waiting"   // it still waits; Text says why
	EventLaunched  EventKind = "launched"  // an attempt was sent to an agent
	EventRunning   EventKind = "running"   // the executor has begun
	EventInfo      EventKind = "info"      // the executor or engine says something, in Text
	EventStep      EventKind = "step"      // a step has begun: Step
	EventStepDone  EventKind = "step-done" // a step has ended: Step
	EventLog       EventKind = "log"       // one line of a step's output, in Text
	EventGap       EventKind = "gap"       // output was lost here; Text says how much and why
	EventRetrying  EventKind = "retrying"  // the attempt was lost, Err says why; another follows
	EventSucceeded EventKind = "succeeded" // last event
	EventFailed    EventKind = "failed"    // last event, Err says why
)

// An Event is one step, or one line of output, of a build.
type Event struct {
	Build    BuildID
	Image    string // "<registry>/<repository>"
	Attempt  int    // 0 before the first launch
	Agent    AgentID
	Hostname string // that agent's
	Kind     EventKind
	Time     time.Time // by the clock of the machine where it happened
	Step     Step      // for EventStep, EventStepDone; Step.ID also for EventLog
	Progress Progress  // for EventStaging
	Stderr   bool      // for EventLog: the step wrote it to its standard error
	// Text is one line without its newline. It is exactly what the step wrote:
	// it may hold terminal escapes and need not be UTF-8.
	Text string
	Err  error
}

// A Step is one step of a build as the engine tells it.
type Step struct {
	ID     int    // from 1, unique in an attempt; 0 for output outside any step
	Name   string // such as "[build 2/3] RUN make"
	Line   int    // the Dockerfile's line; 0 if the engine does not tell
	Cached bool
	// Duration is set when the step is done.
	Duration time.Duration
	// Error is why the step failed; "" if it did not.
	Error string
}

// A LogSink receives the events of builds.
//
// HandleEvent is called in order and by one goroutine at a time for each build, and
// concurrently for different builds. A slow sink delays the events of its
// build, never the build: output waits in the executor's sandbox meanwhile.
// ctx is the one that Build or Attach was given, which waits for HandleEvent to
// return; it may be done.
type LogSink interface {
	HandleEvent(ctx context.Context, ev Event)
}

// A LogSinkFunc is a function that is a LogSink.
type LogSinkFunc func(ctx context.Context, ev Event)

// HandleEvent calls f.
func (f LogSinkFunc) HandleEvent(ctx context.Context, ev Event) { f(ctx, ev) }

func discardEvent(context.Context, Event) {}

// A WriterSink writes events as lines to an io.Writer, one Write for each event,
// so that lines of different builds never mix.
type WriterSink struct {
	prefix func(Event) string

	mu  sync.Mutex
	w   io.Writer
	buf bytes.Buffer
	err error
}

// NewWriterSink returns a WriterSink on w. It serialises its writes, so w need not
// be safe for concurrent use.
func NewWriterSink(w io.Writer) *WriterSink { return &WriterSink{w: w} }

// WithPrefix makes s begin every line with what prefix returns for its event, and
// returns s. It must be called before s is used.
func (s *WriterSink) WithPrefix(prefix func(Event) string) *WriterSink {
	s.prefix = prefix
	return s
}

// HandleEvent implements LogSink.
func (s *WriterSink) HandleEvent(_ context.Context, ev Event) {
	text, ok := ev.line()
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.buf.Reset()
	if s.prefix != nil {
		s.buf.WriteString(s.prefix(ev))
	}
	s.buf.WriteString(text)
	s.buf.WriteByte('\n')
	_, s.err = s.w.Write(s.buf.Bytes())
}

// Err returns the first error of the writer. Nothing is written after it.
func (s *WriterSink) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// line is ev for people; ok is false for events that a build log does not show.
func (ev *Event) line() (text string, ok bool) {
	switch ev.Kind {
	case EventLog:
		return ev.Text, true
	case EventStaged, EventInfo, EventWaiting:
		return ev.Text, true
	case EventGap:
		return "[" + ev.Text + "]", true
	case EventLaunched:
		return fmt.Sprintf("attempt %d launched on %s", ev.Attempt, ev.Hostname), true
	case EventStep:
		return fmt.Sprintf("#%d %s", ev.Step.ID, ev.Step.Name), true
	case EventStepDone:
		return fmt.Sprintf("#%d %s", ev.Step.ID, ev.Step.ending()), true
	case EventRetrying:
		return fmt.Sprintf("attempt %d lost, trying again: %v", ev.Attempt, ev.Err), true
	case EventSucceeded:
		return "done", true
	case EventFailed:
		return fmt.Sprintf("failed: %v", ev.Err), true
	}
	return "", false
}

// ending says how a step went.
func (s *Step) ending() string {
	switch {
	case s.Error != "":
		return "ERROR: " + s.Error
	case s.Cached:
		return "CACHED"
	}
	return fmt.Sprintf("DONE %.1fs", s.Duration.Seconds())
}
