package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

const mib = 1 << 20

// stagingAt is an event of a build's staging, some time after the first.
func stagingAt(build portainer.BuildID, after time.Duration, p portainer.Progress) portainer.Event {
	return portainer.Event{
		Build: build, Image: "r/" + string(build), Kind: portainer.EventStaging,
		Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Add(after), Progress: p,
	}
}

func TestStagingBarRedrawsOneLine(t *testing.T) {
	var shown []string
	bar := newStagingBar(nil, func(text string) { shown = append(shown, text) })
	last := func() string { return shown[len(shown)-1] }
	tell := func(build portainer.BuildID, after time.Duration, p portainer.Progress) {
		bar.HandleEvent(t.Context(), stagingAt(build, after, p))
	}
	tell("a", 0, portainer.Progress{Size: 100 * mib})
	require.Equal(t, "[                    ]   0% read 0B of 100MiB: context of r/a", last())
	tell("a", time.Second, portainer.Progress{Size: 100 * mib, Read: 50 * mib})
	require.Equal(t, "[=====               ]  25% read 50MiB of 100MiB, 50MiB/s, 1s left: context of r/a", last())
	tell("a", 2*time.Second, portainer.Progress{Size: 100 * mib, Read: 100 * mib, Lacking: 60 * mib})
	tell("a", 3*time.Second, portainer.Progress{Size: 100 * mib, Read: 100 * mib, Lacking: 60 * mib, Done: 20 * mib, Sent: 5 * mib})
	require.Equal(t, "[===============     ]  75% sent 20MiB of 60MiB (5MiB compressed), 20MiB/s, 2s left: context of r/a", last())

	// Another one comes along, and nobody knows how large it is.
	tell("b", 4*time.Second, portainer.Progress{Read: 30 * mib})
	require.Equal(t, "sent 20MiB of 60MiB (5MiB compressed): 2 contexts", last())
	bar.HandleEvent(t.Context(), portainer.Event{Build: "a", Kind: portainer.EventStaged, Time: stagingAt("", 4*time.Second, portainer.Progress{}).Time})
	require.Equal(t, "read 30MiB: context of r/b", last())
	bar.HandleEvent(t.Context(), portainer.Event{Build: "b", Kind: portainer.EventFailed})
	require.Empty(t, last())
	count := len(shown)
	bar.HandleEvent(t.Context(), portainer.Event{Build: "b", Kind: portainer.EventLog})
	require.Len(t, shown, count)
}

func TestStagingBarIsAFewLinesInALog(t *testing.T) {
	var out strings.Builder
	d := newDisplay(&out, false, false, nil)
	d.several = true
	for i := range 250 {
		d.HandleEvent(t.Context(), stagingAt("a", time.Duration(i)*100*time.Millisecond, portainer.Progress{Size: 100 * mib, Read: int64(i) * mib / 5}))
	}
	require.Equal(t, `r/a: staging the context of 100MiB
r/a: staging the context: read 20MiB of 100MiB, 2MiB/s, 40s left
r/a: staging the context: read 40MiB of 100MiB, 2MiB/s, 30s left
`, out.String())

	out.Reset()
	d = newDisplay(&out, false, true, nil)
	d.HandleEvent(t.Context(), stagingAt("a", 0, portainer.Progress{Size: mib}))
	require.Empty(t, out.String(), "--progress quiet")
}

// A screen is a terminal of one line, and what has scrolled off it.
type screen struct {
	line     string
	scrolled []string
}

func (s *screen) Write(b []byte) (int, error) {
	for i := 0; i < len(b); i++ {
		switch {
		case strings.HasPrefix(string(b[i:]), eraseLine):
			s.line = ""
			i += len(eraseLine) - 1
		case b[i] == '\n':
			s.scrolled, s.line = append(s.scrolled, s.line), ""
		default:
			s.line += string(b[i])
		}
	}
	return len(b), nil
}

func TestConsoleKeepsTheStatusBelow(t *testing.T) {
	var s screen
	c := newConsole(&s)
	require.False(t, c.terminal())
	c.width = func() int { return 20 }
	c.show("10%")
	require.Equal(t, "10%", s.line)
	fmt.Fprintln(c, "one")
	c.show("20%")
	fmt.Fprintln(&besides{c, &s}, "two")
	require.Equal(t, []string{"one", "two"}, s.scrolled)
	require.Equal(t, "20%", s.line)

	// Nothing gets into a line that is not complete.
	fmt.Fprint(c, "thr")
	c.show("30%")
	require.Equal(t, "thr", s.line)
	fmt.Fprintln(c, "ee")
	require.Equal(t, []string{"one", "two", "three"}, s.scrolled)
	require.Equal(t, "30%", s.line)

	c.show("a status of more than\n twenty characters")
	require.Equal(t, "a status of more th", s.line)
	c.show("")
	require.Empty(t, s.line)
	require.Equal(t, []string{"one", "two", "three"}, s.scrolled)
}
