package portainer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/org/portainer/internal/pause"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/wire"
)

// A notice tells whoever waits for a build what happened. Its parts apply in the
// order of the fields.
type notice struct {
	logEnd *logEnd    // the followed log is complete
	event  Event      // for the sink; none if Kind is ""
	follow *logSource // a log begins
	stage  bool       // the context is needed after all
	result *Result    // the build is over
	err    error      // likewise

	delivery *delivery // goes with result; nil if nothing is to be fetched
}

// A logSource is where the log of an attempt is.
type logSource struct {
	framework string
	attempt   int
	task      string // also the executor's id
	agent     AgentID
	hostname  string
	agentURL  string
	ended     bool // the executor is no more: only the agent has the log
}

// path is the log's path on the agent: the virtual one that Mesos has had since
// 1.5 (MESOS-7899), which needs neither the container's id nor the work directory.
func (s *logSource) path() string {
	return "/frameworks/" + s.framework + "/executors/" + s.task + "/runs/latest/" + wire.LogFile
}

// A logEnd says that a log grows no more.
type logEnd struct {
	size int64 // -1 if it is not known
}

// A mailbox holds the notices for one build until they are read. Posting never
// blocks, so that the loop cannot be held up by a sink.
type mailbox struct {
	mu      sync.Mutex
	notices []notice
	wake    chan struct{} // has a token when there may be something new, in the log too
	log     *executorLog  // takes what executors send of their logs; nil if nobody does
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (m *mailbox) post(n notice) {
	m.mu.Lock()
	m.notices = append(m.notices, n)
	m.mu.Unlock()
	m.poke()
}

// poke wakes the reader although there is no notice: the log has grown.
func (m *mailbox) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// read has what executors send of their logs handed to log.
func (m *mailbox) read(log *executorLog) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = log
}

// reader is who takes that; nil if nobody does.
func (m *mailbox) reader() *executorLog {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log
}

func (m *mailbox) take() []notice {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.notices
	m.notices = nil
	return out
}

// How often a log is read while it does not grow. Executors send a hint when it
// does, so this matters only when a hint is lost.
const (
	pollMin = 50 * time.Millisecond
	pollMax = 2 * time.Second
)

// drainLimit bounds how long the rest of a log is waited for after its attempt
// has ended, if nothing of it arrives.
const drainLimit = 30 * time.Second

// lostLimit takes the place of drainLimit when nobody has said that there is more,
// for an attempt that was lost often leaves an agent that cannot be reached, and when
// the agent was out of reach before.
const lostLimit = 5 * time.Second

// A follower reads the logs of one build's attempts and hands them, and the
// notices about it, to the sink in order. It belongs to one goroutine.
type follower struct {
	log     logReader
	arrived <-chan struct{} // has a token when log may have more; nil if it cannot tell
	sink    LogSink
	build   BuildID
	image   string
	mark    *logMark // nil without a state directory

	// deliver writes what a build has put into the staging bucket.
	deliver func(ctx context.Context, d *delivery, told func(text string)) ([]Written, *BuildError)

	source *logSource // nil when no log is followed
	offset int64      // behind the last whole frame handed on
	known  int64      // what lies before was handed on in an earlier life
	rest   []byte     // read, but not yet a whole frame
	steps  map[int]Step
	wait   time.Duration // until the next reading
	fresh  bool          // nothing was heard of the attempt yet

	progress time.Time // when something was last read
}

// begin follows the log of another attempt. What an earlier life has handed on is
// read again, for the steps in it, but not handed on.
func (w *follower) begin(s *logSource) error {
	w.source, w.offset, w.known, w.rest, w.wait, w.fresh = s, 0, 0, nil, pollMin, true
	w.steps = make(map[int]Step)
	if w.mark == nil {
		return nil
	}
	attempt, offset, err := w.mark.get()
	if err == nil && attempt == s.attempt {
		w.known = offset
	}
	return err
}

// poll reads a page of the log and reports whether there is more already.
func (w *follower) poll(ctx context.Context) (more bool, err error) {
	at := w.offset + int64(len(w.rest))
	data, size, err := w.log.read(ctx, w.source, at)
	if err != nil || len(data) == 0 {
		w.wait = min(pollMax, 2*w.wait)
		return false, err
	}
	w.wait, w.progress = pollMin, time.Now()
	return at+int64(len(data)) < size, w.handle(ctx, data)
}

// handle hands on the frames that data completes.
func (w *follower) handle(ctx context.Context, data []byte) error {
	if len(w.rest) > 0 {
		data = append(w.rest, data...)
	}
	defer func() { w.rest = bytes.Clone(data) }()
	for {
		frame, n, err := wire.DecodeFrame(data)
		if err != nil {
			return fmt.Errorf("log of %s at offset %d: %w", w.source.task, w.offset, err)
		}
		if n == 0 {
			return nil
		}
		data = data[n:]
		w.offset += int64(n)
		ev, ok := w.event(frame)
		if !ok || w.offset <= w.known {
			continue
		}
		w.sink.HandleEvent(ctx, ev)
		if w.mark != nil {
			if err := w.mark.set(w.source.attempt, w.offset); err != nil {
				return fmt.Errorf("state of the log of %s: %w", w.source.task, err)
			}
		}
	}
}

// event turns a frame into an event; ok is false for kinds unknown here.
func (w *follower) event(f wire.Frame) (ev Event, ok bool) {
	ev = w.blank(f.Time)
	switch f.Kind {
	case wire.FrameOut, wire.FrameErr:
		ev.Kind, ev.Stderr, ev.Text = EventLog, f.Kind == wire.FrameErr, string(f.Data)
		ev.Step = w.steps[f.Step]
		ev.Step.ID = f.Step
	case wire.FrameInfo:
		ev.Kind, ev.Text = EventInfo, string(f.Data)
	case wire.FrameGap:
		ev.Kind, ev.Text = EventGap, string(f.Data)
	case wire.FrameStep, wire.FrameStepDone:
		s, err := wire.DecodeStep(f.Data)
		if err != nil {
			return Event{}, false
		}
		ev.Kind = EventStep
		if f.Kind == wire.FrameStepDone {
			ev.Kind = EventStepDone
		}
		ev.Step = Step{ID: f.Step, Name: s.Name, Line: s.Line, Cached: s.Cached, Duration: s.Took, Error: s.Error}
		w.steps[f.Step] = ev.Step
	default:
		return Event{}, false
	}
	return ev, true
}

// blank is an event of the followed attempt.
func (w *follower) blank(at time.Time) Event {
	return Event{
		Build: w.build, Image: w.image, Time: at,
		Attempt: w.source.attempt, Agent: w.source.agent, Hostname: w.source.hostname,
	}
}

// say tells the sink something about the followed attempt.
func (w *follower) say(ctx context.Context, text string) {
	ev := w.blank(time.Now())
	ev.Kind, ev.Text = EventInfo, text
	w.sink.HandleEvent(ctx, ev)
}

// drain reads the followed log to its end and stops following it. What cannot be
// read is reported to the sink as a gap.
func (w *follower) drain(ctx context.Context, end logEnd) {
	if w.source == nil {
		return
	}
	w.source.ended = true
	if err := w.readToEnd(ctx, end.size); err != nil {
		w.lose(ctx, end.size, err)
	}
	w.source = nil
}

// lose reports what follows in the log as a gap and stops following it.
func (w *follower) lose(ctx context.Context, size int64, why error) {
	ev := w.blank(time.Now())
	ev.Kind = EventGap
	ev.Text = fmt.Sprintf("the rest of the log, from byte %d on, could not be read: %v", w.offset, why)
	if size >= 0 {
		ev.Text = fmt.Sprintf("%d bytes of the log, from byte %d on, could not be read: %v", size-w.offset, w.offset, why)
	}
	w.sink.HandleEvent(ctx, ev)
	w.source = nil
}

// readToEnd reads until size, or, if that is not known, until there is no more.
func (w *follower) readToEnd(ctx context.Context, size int64) error {
	w.progress = time.Now()
	for size < 0 || w.offset < size {
		more, err := w.poll(ctx)
		limit := drainLimit
		if size < 0 || errors.Is(err, errOutOfReach) {
			limit = lostLimit
		}
		switch {
		case more && err == nil:
			continue
		case size < 0 && err == nil && len(w.rest) > 0:
			return errors.New("it ends within a line")
		case size < 0 && (err == nil || errors.Is(err, schedapi.ErrFileNotFound)):
			return nil // a task that never ran has no log
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, wire.ErrFrame):
			return err
		case time.Since(w.progress) > limit:
			return cmp.Or(err, errors.New("it is shorter than the executor said"))
		case w.offset == size:
			return nil
		}
		if err := pause.For(ctx, w.wait); err != nil {
			return err
		}
	}
	return nil
}

// bring writes the outputs of a build that has succeeded and returns what then is to
// be told.
func (w *follower) bring(ctx context.Context, n notice) notice {
	told := func(text string) {
		ev := n.event
		ev.Build, ev.Image, ev.Kind, ev.Time, ev.Text = w.build, w.image, EventInfo, time.Now(), text
		w.sink.HandleEvent(ctx, ev)
	}
	written, failure := w.deliver(ctx, n.delivery, told)
	if failure != nil {
		failure.ID, failure.Image = w.build, w.image
		failure.Agent, failure.Hostname, failure.Attempt = n.result.Agent, n.result.Hostname, n.result.Attempts
		n.result, n.err = nil, failure
		if n.event.Kind != "" {
			n.event.Kind, n.event.Time, n.event.Err = EventFailed, time.Now(), failure
		}
		return n
	}
	whole := *n.result // the ledger's own stays as it is
	whole.Outputs = written
	n.result = &whole
	return n
}

// run handles the build's notices and log until it is over. The loop ends every
// build before it stops, so there is always a last notice. When ctx is done, run
// calls cancel once and waits for the notice that follows. stage stages the context when
// it is needed after all.
func (w *follower) run(ctx context.Context, box *mailbox, stage, cancel func()) (*Result, error) {
	done := ctx.Done()
	for {
		for _, n := range box.take() {
			if n.logEnd != nil {
				w.drain(ctx, *n.logEnd)
			}
			if n.result != nil && n.delivery != nil {
				n = w.bring(ctx, n)
			}
			if n.event.Kind != "" {
				w.sink.HandleEvent(ctx, n.event)
			}
			if n.follow != nil {
				if err := w.begin(n.follow); err != nil {
					return nil, fmt.Errorf("state of the log of %s: %w", n.follow.task, err)
				}
			}
			if n.stage {
				stage()
			}
			if n.result != nil || n.err != nil {
				return n.result, n.err
			}
		}
		var next <-chan time.Time
		switch {
		case w.source == nil || ctx.Err() != nil:
		case w.fresh:
			// There is no log before the executor runs: thousands of builds that
			// are launched at once need not ask for it.
			w.fresh = false
			next = time.After(pollMax)
		default:
			more, err := w.poll(ctx)
			if errors.Is(err, wire.ErrFrame) {
				w.lose(ctx, -1, err)
			}
			if more && err == nil {
				continue
			}
			next = time.After(w.wait)
		}
		select {
		case <-box.wake:
		case <-w.arrived:
		case <-next:
		case <-done:
			done = nil
			cancel()
		}
	}
}
