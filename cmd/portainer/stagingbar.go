package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/org/portainer"
)

// A stagingBar tells how far the staging of contexts is: as one line for all of
// them, which is redrawn, or as lines of the log, of which there are few.
type stagingBar struct {
	status func(text string) // redraws the line; nil for lines of the log
	log    portainer.LogSink

	mu     sync.Mutex
	builds map[portainer.BuildID]*stagingBuild
	pace   pace // of all of them
}

// A stagingBuild is a build whose context is being staged.
type stagingBuild struct {
	image string
	now   portainer.Progress
	told  time.Time // when the log got its last line
	pace  pace
}

// logEvery is the pause between two lines of the log about one build.
const logEvery = 10 * time.Second

func newStagingBar(log portainer.LogSink, status func(text string)) *stagingBar {
	return &stagingBar{log: log, status: status, builds: map[portainer.BuildID]*stagingBuild{}}
}

// HandleEvent implements portainer.LogSink. Any event of a build but EventStaging says
// that its context is staged, or never will be.
func (s *stagingBar) HandleEvent(ctx context.Context, ev portainer.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.builds[ev.Build]
	switch {
	case ev.Kind == portainer.EventStaging && b == nil:
		b = &stagingBuild{image: ev.Image}
		s.builds[ev.Build] = b
	case ev.Kind == portainer.EventStaging:
	case b == nil:
		return
	default:
		delete(s.builds, ev.Build)
		s.redraw(ev.Time)
		return
	}
	b.now = ev.Progress
	b.pace.add(ev.Time, phaseOf(b.now), workOf(b.now))
	if s.status != nil {
		s.redraw(ev.Time)
		return
	}
	if !b.told.IsZero() && ev.Time.Sub(b.told) < logEvery {
		return
	}
	line := ev
	line.Kind, line.Text = portainer.EventInfo, "staging the context"
	switch {
	case !b.told.IsZero():
		line.Text += ": " + tellProgress(b.now, &b.pace)
	case b.now.Size > 0:
		line.Text += " of " + bytesOf(b.now.Size)
	}
	b.told = ev.Time
	s.log.HandleEvent(ctx, line)
}

// redraw shows the sum of all builds.
func (s *stagingBar) redraw(now time.Time) {
	if s.status == nil {
		return
	}
	if len(s.builds) == 0 {
		s.pace = pace{}
		s.status("")
		return
	}
	var sum portainer.Progress
	sized, phase, image := true, sendingPhase, ""
	for _, b := range s.builds {
		image = b.image
		sized = sized && b.now.Size > 0
		phase = min(phase, phaseOf(b.now))
		sum.Size += b.now.Size
		sum.Read += b.now.Read
		sum.Lacking += b.now.Lacking
		sum.Done += b.now.Done
		sum.Sent += b.now.Sent
	}
	if !sized {
		sum.Size = 0
	}
	s.pace.add(now, phase, workOf(sum))
	text := tellProgress(sum, &s.pace)
	if share, ok := shareOf(sum); ok {
		text = fmt.Sprintf("%s %3.0f%% %s", gauge(share), 100*share, text)
	}
	// The name is last: a narrow terminal cuts the line.
	if n := len(s.builds); n > 1 {
		text = fmt.Sprintf("%s: %d contexts", text, n)
	} else {
		text += ": context of " + image
	}
	s.status(text)
}

// The phases of staging.
const (
	readingPhase = iota
	sendingPhase
)

func phaseOf(p portainer.Progress) int {
	if p.Lacking > 0 {
		return sendingPhase
	}
	return readingPhase
}

// workOf is how many bytes went by, in either phase.
func workOf(p portainer.Progress) int64 { return p.Read + p.Done }

// shareOf is how much of the work is done, if that can be told. Until it is known
// what the bucket lacks, that is taken to be everything.
func shareOf(p portainer.Progress) (float64, bool) {
	if p.Size == 0 {
		return 0, false
	}
	return min(1, float64(workOf(p))/float64(p.Size+cmp.Or(p.Lacking, p.Size))), true
}

// tellProgress says what was read and sent, how fast, and how long the present
// phase will take.
func tellProgress(p portainer.Progress, at *pace) string {
	done, total := p.Read, p.Size
	text := "read " + bytesOf(p.Read)
	if p.Size > 0 {
		text += " of " + bytesOf(p.Size)
	}
	if p.Lacking > 0 {
		done, total = p.Done, p.Lacking
		text = fmt.Sprintf("sent %s of %s (%s compressed)", bytesOf(p.Done), bytesOf(p.Lacking), bytesOf(p.Sent))
	}
	rate := at.rate()
	if rate <= 0 {
		return text
	}
	text += fmt.Sprintf(", %s/s", bytesOf(int64(rate)))
	if left := total - done; left > 0 {
		text += fmt.Sprintf(", %v left", time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
	}
	return text
}

func bytesOf(n int64) string { return units.BytesSize(float64(n)) }

// gaugeWidth is how many characters a gauge has between its ends.
const gaugeWidth = 20

func gauge(share float64) string {
	full := int(share * gaugeWidth)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", gaugeWidth-full) + "]"
}

// A pace is how fast something goes that is looked at now and then.
type pace struct {
	phase int
	seen  []sample // of this phase, within paceWindow
}

type sample struct {
	at   time.Time
	work int64
}

// paceWindow is over what time a rate is measured.
const paceWindow = 5 * time.Second

func (p *pace) add(at time.Time, phase int, work int64) {
	if phase != p.phase || len(p.seen) > 0 && work < p.seen[len(p.seen)-1].work {
		p.phase, p.seen = phase, nil
	}
	p.seen = append(p.seen, sample{at, work})
	first := slices.IndexFunc(p.seen, func(s sample) bool { return at.Sub(s.at) <= paceWindow })
	p.seen = p.seen[first:]
}

// rate returns bytes a second; 0 if they cannot be told.
func (p *pace) rate() float64 {
	if len(p.seen) < 2 {
		return 0
	}
	first, last := p.seen[0], p.seen[len(p.seen)-1]
	if took := last.at.Sub(first.at); took > 0 {
		return float64(last.work-first.work) / took.Seconds()
	}
	return 0
}
