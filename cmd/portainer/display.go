package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/org/portainer"
)

// tailLines is how much output of a failed build is shown where output is
// hidden.
const tailLines = 50

// A display is the LogSink that shows builds to a person: each line of output
// after the number of its step, unless it shall be raw, and after its image if
// there are several.
type display struct {
	several bool // set before the first event
	quiet   bool // show only what goes wrong
	lines   *portainer.WriterSink
	staging *stagingBar

	mu    sync.Mutex
	tails map[portainer.BuildID]*tail // of builds whose output is hidden
}

// newDisplay returns a display on w. If status is not nil, it shows a line that is
// redrawn, for what goes on right now.
func newDisplay(w io.Writer, raw, quiet bool, status func(string)) *display {
	d := &display{quiet: quiet, tails: map[portainer.BuildID]*tail{}}
	d.lines = portainer.NewWriterSink(w).WithPrefix(func(ev portainer.Event) string {
		prefix := ""
		if d.several && ev.Image != "" {
			prefix = ev.Image + ": "
		}
		if ev.Kind == portainer.EventLog && ev.Step.ID > 0 && !raw {
			prefix += fmt.Sprintf("#%d ", ev.Step.ID)
		}
		return prefix
	})
	d.staging = newStagingBar(d.lines, status)
	return d
}

// HandleEvent implements portainer.LogSink.
func (d *display) HandleEvent(ctx context.Context, ev portainer.Event) {
	if !d.quiet {
		d.staging.HandleEvent(ctx, ev)
	}
	switch {
	case ev.Kind == portainer.EventStaging:
	case ev.Kind == portainer.EventFailed: // the program says so itself
	case ev.Kind == portainer.EventSucceeded && !d.quiet: // so does its standard output
	case !d.quiet || ev.Kind == portainer.EventRetrying:
		d.lines.HandleEvent(ctx, ev)
	case ev.Kind == portainer.EventSucceeded:
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.tails, ev.Build)
	case ev.Kind == portainer.EventStep, ev.Kind == portainer.EventLog, ev.Kind == portainer.EventGap:
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.tails[ev.Build] == nil {
			d.tails[ev.Build] = &tail{}
		}
		d.tails[ev.Build].add(ev)
	}
}

// tail shows the last output of the build that err is about, if it was hidden.
func (d *display) tail(ctx context.Context, err error) {
	var build *portainer.BuildError
	if !errors.As(err, &build) {
		return
	}
	d.mu.Lock()
	t := d.tails[build.ID]
	delete(d.tails, build.ID)
	d.mu.Unlock()
	if t == nil {
		return
	}
	for i := range t.events {
		d.lines.HandleEvent(ctx, t.events[(t.oldest+i)%len(t.events)])
	}
}

// A tail is the last events of one build: a ring, once it is full.
type tail struct {
	events []portainer.Event
	oldest int
}

func (t *tail) add(ev portainer.Event) {
	if len(t.events) < tailLines {
		t.events = append(t.events, ev)
		return
	}
	t.events[t.oldest] = ev
	t.oldest = (t.oldest + 1) % tailLines
}
