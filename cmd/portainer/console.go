package main

import (
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/moby/term"
)

// A console is standard error with room for a status: a last line that stays below
// all that is written, and can be redrawn. It is safe for concurrent use.
type console struct {
	w     io.Writer
	width func() int // of the terminal, in columns; nil if w is none

	mu     sync.Mutex
	status string
	within bool // what was written last did not end its line
}

// defaultWidth is that of a terminal which does not tell.
const defaultWidth = 80

func newConsole(w io.Writer) *console {
	c := &console{w: w}
	if fd, terminal := term.GetFdInfo(w); terminal {
		c.width = func() int {
			size, err := term.GetWinsize(fd)
			if err != nil || size.Width == 0 {
				return defaultWidth
			}
			return int(size.Width)
		}
	}
	return c
}

// terminal reports whether the console is one that a status can be redrawn on.
func (c *console) terminal() bool { return c.width != nil }

// columns is the width of the terminal; 0 if there is none.
func (c *console) columns() int {
	if c == nil || c.width == nil {
		return 0
	}
	return c.width()
}

// Write implements io.Writer.
func (c *console) Write(b []byte) (int, error) { return c.write(c.w, b) }

// write writes b to w, which may show up on the same terminal.
func (c *console) write(w io.Writer, b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.erase(); err != nil {
		return 0, err
	}
	n, err := w.Write(b)
	if n > 0 {
		c.within = b[n-1] != '\n'
	}
	if err != nil {
		return n, err
	}
	return n, c.draw()
}

// show makes text the status; "" takes it away.
func (c *console) show(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text == c.status {
		return
	}
	// A terminal that is gone is found out by whoever writes what matters.
	_ = c.erase()
	c.status = text
	_ = c.draw()
}

// What a terminal understands (ECMA-48): back to the beginning of the line, and
// erase it.
const eraseLine = "\r\x1b[K"

func (c *console) erase() error {
	if c.status == "" || c.within {
		return nil
	}
	_, err := io.WriteString(c.w, eraseLine)
	return err
}

// draw writes the status, unless it would end up in the midst of a line.
func (c *console) draw() error {
	if c.status == "" || c.within {
		return nil
	}
	width := defaultWidth
	if c.width != nil {
		width = c.width()
	}
	_, err := io.WriteString(c.w, cutTo(c.status, width-1))
	return err
}

// cutTo shortens s to n characters.
func cutTo(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if n <= 0 {
		return ""
	}
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n])
}

// beside returns standard output so that it can be written to while there is a
// status.
func (c *console) beside(stdout io.Writer) io.Writer {
	if _, terminal := term.GetFdInfo(stdout); !terminal || c.width == nil {
		return stdout
	}
	return &besides{c, stdout}
}

// A besides is standard output on the terminal of a console.
type besides struct {
	console *console
	w       io.Writer
}

func (b *besides) Write(p []byte) (int, error) { return b.console.write(b.w, p) }
