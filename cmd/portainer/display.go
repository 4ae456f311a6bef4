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

// newPlain returns a sink that shows everything: each line of output after the
// number of its step, unless it shall be raw, and after its image if there are
// several.
func newPlain(w io.Writer, raw, several bool) portainer.LogSink {
	lines := portainer.NewWriterSink(w).WithPrefix(func(ev portainer.Event) string {
		prefix := ""
		if several && ev.Image != "" {
			prefix = ev.Image + ": "
		}
		if ev.Kind == portainer.EventLog && ev.Step.ID > 0 && !raw {
			prefix += fmt.Sprintf("#%d ", ev.Step.ID)
		}
		return prefix
	})
	if several {
		return lines
	}
	return portainer.LogSinkFunc(func(ctx context.Context, ev portainer.Event) {
		// The end of the only build is the program's own last word.
		if ev.Kind != portainer.EventFailed {
			lines.HandleEvent(ctx, ev)
		}
	})
}

// A quietSink shows only that attempts are lost, and the last output of a build
// that has failed when it is asked to.
type quietSink struct {
	plain portainer.LogSink

	mu    sync.Mutex
	tails map[portainer.BuildID]*tail
}

func newQuiet(plain portainer.LogSink) *quietSink {
	return &quietSink{plain: plain, tails: map[portainer.BuildID]*tail{}}
}

// HandleEvent implements portainer.LogSink.
func (q *quietSink) HandleEvent(ctx context.Context, ev portainer.Event) {
	switch ev.Kind {
	case portainer.EventRetrying:
		q.plain.HandleEvent(ctx, ev)
	case portainer.EventStep, portainer.EventLog, portainer.EventGap:
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.tails[ev.Build] == nil {
			q.tails[ev.Build] = &tail{}
		}
		q.tails[ev.Build].add(ev)
	case portainer.EventSucceeded:
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.tails, ev.Build)
	}
}

// showTail shows the last output of the build that err is about.
func (q *quietSink) showTail(ctx context.Context, err error) {
	var build *portainer.BuildError
	if !errors.As(err, &build) {
		return
	}
	q.mu.Lock()
	t := q.tails[build.ID]
	delete(q.tails, build.ID)
	q.mu.Unlock()
	if t == nil {
		return
	}
	for i := range t.events {
		q.plain.HandleEvent(ctx, t.events[(t.oldest+i)%len(t.events)])
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
