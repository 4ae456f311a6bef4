package engine

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/org/portainer"
)

// maxLine bounds what is kept of a line whose end has not come. A longer one is
// reported in parts.
const maxLine = 1 << 20

// A reporter turns what one build says into events, in order. Its methods may be
// called from many goroutines.
type reporter struct {
	ctx  context.Context // for the sink: it lives as long as the call of Build
	sink portainer.LogSink

	mu     sync.Mutex
	steps  int
	recent [recentLines]string // what steps wrote last, as a ring
	lines  int                 // how many they have written
}

// recentLines is how much output is kept to tell why a step has failed.
const recentLines = 20

// lastWords returns what steps wrote last.
func (r *reporter) lastWords() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.recent[:], "\n")
}

func newReporter(ctx context.Context, sink portainer.LogSink) *reporter {
	return &reporter{ctx: context.WithoutCancel(ctx), sink: sink}
}

// send hands ev to the sink. r.mu is held.
func (r *reporter) send(ev portainer.Event) {
	if r.sink == nil {
		return
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	r.sink.HandleEvent(r.ctx, ev)
}

// info reports a line of the engine's own.
func (r *reporter) info(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send(portainer.Event{Kind: portainer.EventInfo, Text: fmt.Sprintf(format, args...)})
}

// A step is a step that has begun.
type step struct {
	r     *reporter
	step  portainer.Step
	began time.Time
	over  bool
	tail  [2][]byte // of standard output and standard error: the line that has not ended

	// mayClip says that the engine may drop output, and says so in a line of it.
	mayClip bool
}

// clipped is how BuildKit says that it drops output from here on (buildkit
// util/progress/logs).
var clipped = regexp.MustCompile(`^\[output clipped, log limit \S+ reached\]$`)

// begin reports that a step begins. at may be zero, which means now.
func (r *reporter) begin(name string, line int, at time.Time) *step {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.IsZero() {
		at = time.Now()
	}
	r.steps++
	s := &step{r: r, step: portainer.Step{ID: r.steps, Name: name, Line: line}, began: at}
	r.send(portainer.Event{Kind: portainer.EventStep, Time: at, Step: s.step})
	return s
}

// write reports output of the step, line by line.
func (s *step) write(data []byte, stderr bool, at time.Time) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	tail := &s.tail[0]
	if stderr {
		tail = &s.tail[1]
	}
	for {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		if !whole {
			break
		}
		s.line(append(*tail, line...), stderr, at)
		*tail, data = nil, rest
	}
	*tail = append(*tail, data...)
	if len(*tail) >= maxLine {
		s.line(*tail, stderr, at)
		*tail = nil
	}
}

// line reports one line. s.r.mu is held.
func (s *step) line(text []byte, stderr bool, at time.Time) {
	if s.mayClip && clipped.Match(text) {
		s.r.send(portainer.Event{
			Kind: portainer.EventGap, Time: at, Text: "output lost: " + string(bytes.Trim(text, "[]")), Step: portainer.Step{ID: s.step.ID},
		})
		return
	}
	s.r.recent[s.r.lines%recentLines] = string(text[:min(len(text), 4<<10)])
	s.r.lines++
	s.r.send(portainer.Event{
		Kind: portainer.EventLog, Time: at, Text: string(text), Stderr: stderr, Step: portainer.Step{ID: s.step.ID},
	})
}

// withinLine reports whether the output so far ends without a newline.
func (s *step) withinLine() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return len(s.tail[0])+len(s.tail[1]) > 0
}

// flush reports lines that never ended. s.r.mu is held.
func (s *step) flush(at time.Time) {
	for i, tail := range s.tail {
		if len(tail) > 0 {
			s.line(tail, i == 1, at)
			s.tail[i] = nil
		}
	}
}

// cached notes that the step needs no work.
func (s *step) cached() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.step.Cached = true
}

// done reports that the step has ended; failed is why, or "". Calls after the
// first do nothing.
func (s *step) done(failed string, at time.Time) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	if at.IsZero() {
		at = time.Now()
	}
	s.flush(at)
	s.step.Duration = max(at.Sub(s.began), 0)
	s.step.Error = failed
	s.r.send(portainer.Event{Kind: portainer.EventStepDone, Time: at, Step: s.step})
}
