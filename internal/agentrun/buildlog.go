package agentrun

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/wire"
)

const (
	flushSize  = 64 << 10              // of frames that are written at once
	flushEvery = 20 * time.Millisecond // at the latest
	hintEvery  = 50 * time.Millisecond // at most
)

// A buildLog is a portainer.LogSink that appends frames to a file, which the
// framework follows, and text to a console, for people. Many goroutines may call it.
//
// Frames are whole or not there. What cannot be written, because the disk is full, is
// dropped and counted, and the count is written as a gap once there is room.
type buildLog struct {
	console *console
	hint    func(size int64) // is told when the file has grown

	mu      sync.Mutex
	file    *os.File
	buf     []byte // frames to be written
	lines   int    // how many
	size    int64  // of the file, whole frames only
	lost    int    // frames dropped since the last gap
	why     error  // and the reason
	flushed time.Time
	broken  bool // the file ends in half a frame that cannot be cut off

	dirty chan struct{} // holds a token while there are frames to be written
	stop  chan struct{}
	done  chan struct{} // closed when flush has returned
}

// openLog makes the log in directory dir.
func openLog(dir string, text io.Writer, hint func(size int64)) (*buildLog, error) {
	name := filepath.Join(dir, wire.LogFile)
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make the build's log: %w", err)
	}
	l := &buildLog{
		console: newConsole(text), hint: hint, file: file, buf: make([]byte, 0, 2*flushSize),
		dirty: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go l.flush()
	return l, nil
}

// HandleEvent implements portainer.LogSink.
func (l *buildLog) HandleEvent(_ context.Context, ev portainer.Event) {
	frame := wire.Frame{Time: ev.Time, Step: ev.Step.ID, Data: []byte(ev.Text)}
	if frame.Time.IsZero() {
		frame.Time = time.Now()
	}
	switch ev.Kind {
	case portainer.EventLog:
		frame.Kind = wire.FrameOut
		if ev.Stderr {
			frame.Kind = wire.FrameErr
		}
	case portainer.EventInfo:
		frame.Kind = wire.FrameInfo
	case portainer.EventGap:
		frame.Kind = wire.FrameGap
	case portainer.EventStep, portainer.EventStepDone:
		frame.Kind = wire.FrameStep
		if ev.Kind == portainer.EventStepDone {
			frame.Kind = wire.FrameStepDone
		}
		s := ev.Step
		frame.Data = wire.Step{Name: cut(s.Name), Line: s.Line, Cached: s.Cached, Took: s.Duration, Error: cut(s.Error)}.Encode()
	default:
		return
	}
	l.console.event(ev)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	for rest := frame.Data; ; {
		frame.Data, rest = rest[:min(len(rest), wire.MaxFrameData)], rest[min(len(rest), wire.MaxFrameData):]
		l.buf = wire.AppendFrame(l.buf, frame)
		l.lines++
		if len(rest) == 0 {
			break
		}
	}
	if len(l.buf) >= flushSize {
		l.write()
	}
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// cut bounds a text that goes into a frame together with others: unlike a line it
// cannot be split.
func cut(s string) string {
	const limit = wire.MaxFrameData / 16 // a byte may become \u0000, and there are two
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}

// write appends the buffered frames to the file. The caller holds mu.
func (l *buildLog) write() {
	l.flushed = time.Now()
	data, lines := l.buf, l.lines
	l.buf, l.lines = l.buf[:0], 0
	if l.lost > 0 && len(data) > 0 {
		gap := wire.Frame{Kind: wire.FrameGap, Time: l.flushed, Data: fmt.Appendf(nil, "%d lines lost: %v", l.lost, l.why)}
		data = append(wire.AppendFrame(nil, gap), data...)
	}
	if len(data) == 0 {
		return
	}
	if l.broken {
		l.lost += lines
		return
	}
	n, err := l.file.Write(data)
	if err == nil {
		l.size += int64(n)
		l.lost, l.why = 0, nil
		return
	}
	l.lost += lines
	l.why = err
	if n > 0 {
		l.broken = l.file.Truncate(l.size) != nil
	}
}

// flush writes frames soon after they came, and tells of it.
func (l *buildLog) flush() {
	defer close(l.done)
	var told int64
	var toldAt time.Time
	var tell <-chan time.Time
	for {
		select {
		case <-l.stop:
			return
		case <-tell:
			tell = nil
			l.mu.Lock()
			size := l.size
			l.mu.Unlock()
			if size > told {
				told, toldAt = size, time.Now()
				l.hint(size)
			}
			continue
		case <-l.dirty:
		}
		l.mu.Lock()
		wait := time.Until(l.flushed.Add(flushEvery))
		l.mu.Unlock()
		if wait > 0 {
			select {
			case <-l.stop:
				return
			case <-time.After(wait):
			}
		}
		l.mu.Lock()
		l.write()
		l.mu.Unlock()
		if tell == nil {
			tell = time.After(time.Until(toldAt.Add(hintEvery)))
		}
	}
}

// Size is how much of the log can be read, whole frames only.
func (l *buildLog) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// close writes what is left and returns the size of the log. Later events are
// dropped.
func (l *buildLog) close() int64 {
	close(l.stop)
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write()
	if l.lost > 0 {
		gap := wire.Frame{Kind: wire.FrameGap, Time: time.Now(), Data: fmt.Appendf(nil, "%d lines lost: %v", l.lost, l.why)}
		l.lost = 0
		l.buf = wire.AppendFrame(l.buf, gap)
		l.lines++
		l.write()
	}
	_ = l.file.Close() // everything was written, or noted as lost
	l.file = nil
	l.console.close()
	return l.size
}
