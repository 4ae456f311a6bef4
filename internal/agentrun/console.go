package agentrun

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/org/portainer"
)

const (
	consoleSize = 1 << 20         // of text that waits to be written
	consoleEnd  = 2 * time.Second // for the last of it
)

// A console writes the build's log as text. A writer that is slow, or stands still,
// never holds up the build: text that it does not take is dropped and counted.
// Nothing is lost by that, since build.log has every line.
type console struct {
	w    io.Writer
	wake chan struct{} // holds a token while there may be text
	done chan struct{} // closed when the last was written

	mu      sync.Mutex
	buf     []byte
	dropped int
	closed  bool
}

// newConsole returns a console on w. The caller closes it.
func newConsole(w io.Writer) *console {
	c := &console{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go c.write()
	return c
}

// event adds the text of an event.
func (c *console) event(ev portainer.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if len(c.buf)+len(ev.Text) > consoleSize {
		c.dropped++
		return
	}
	if c.dropped > 0 {
		c.buf = fmt.Appendf(c.buf, "[%d lines not shown here; they are in build.log]\n", c.dropped)
		c.dropped = 0
	}
	c.buf = appendText(c.buf, ev)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// appendText appends an event as the docker command shows it.
func appendText(b []byte, ev portainer.Event) []byte {
	s := ev.Step
	switch ev.Kind {
	case portainer.EventStep:
		return fmt.Appendf(b, "#%d %s\n", s.ID, s.Name)
	case portainer.EventStepDone:
		switch {
		case s.Error != "":
			return fmt.Appendf(b, "#%d failed: %s\n", s.ID, s.Error)
		case s.Cached:
			return fmt.Appendf(b, "#%d cached\n", s.ID)
		}
		return fmt.Appendf(b, "#%d done in %.1fs\n", s.ID, s.Duration.Seconds())
	case portainer.EventGap:
		return fmt.Appendf(b, "[%s]\n", ev.Text)
	}
	if s.ID > 0 {
		b = append(b, '#')
		b = strconv.AppendInt(b, int64(s.ID), 10)
		b = append(b, ' ')
	}
	b = append(b, ev.Text...)
	return append(b, '\n')
}

// write writes what there is until close.
func (c *console) write() {
	defer close(c.done)
	var spare []byte
	for range c.wake {
		for {
			c.mu.Lock()
			text, closed := c.buf, c.closed
			if len(text) > 0 {
				c.buf = spare[:0]
			}
			c.mu.Unlock()
			if len(text) == 0 {
				if closed {
					return
				}
				break
			}
			_, _ = c.w.Write(text) // nobody is there to be told
			spare = text
		}
	}
}

// close writes the last of the text. A writer that stands still is left alone after a
// while: it ends with the process.
func (c *console) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	select {
	case <-c.done:
	case <-time.After(consoleEnd):
	}
}
