package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

// aBuild is what one build says.
func aBuild(id portainer.BuildID, image string) []portainer.Event {
	events := []portainer.Event{
		{Kind: portainer.EventLaunched, Attempt: 1, Hostname: "agent-1"},
		{Kind: portainer.EventStep, Step: portainer.Step{ID: 2, Name: "RUN make"}},
		{Kind: portainer.EventLog, Step: portainer.Step{ID: 2}, Text: "cc -o x x.c"},
		{Kind: portainer.EventFailed, Err: errors.New("exit status 2")},
	}
	for i := range events {
		events[i].Build, events[i].Image = id, image
	}
	return events
}

func TestPlainDisplay(t *testing.T) {
	show := func(raw, several bool) []string {
		var out strings.Builder
		sink := newDisplay(&out, raw, false, nil)
		sink.several = several
		for _, ev := range aBuild("1", "r/a") {
			sink.HandleEvent(t.Context(), ev)
		}
		return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	}
	require.Contains(t, show(false, false), "#2 cc -o x x.c")
	require.Contains(t, show(false, true), "r/a: #2 cc -o x x.c")
	require.Contains(t, show(true, false), "cc -o x x.c")
	require.Contains(t, show(true, true), "r/a: cc -o x x.c")
	require.NotContains(t, strings.Join(show(false, true), "\n"), "exit status 2", "the program says so itself")
}

func TestQuietDisplayShowsTheEndOfWhatFailed(t *testing.T) {
	var out strings.Builder
	quiet := newDisplay(&out, false, true, nil)
	quiet.several = true
	for i := range tailLines + 3 {
		quiet.HandleEvent(t.Context(), portainer.Event{
			Build: "1", Image: "r/a", Kind: portainer.EventLog, Text: strings.Repeat("x", i),
		})
	}
	for _, ev := range aBuild("2", "r/b") {
		quiet.HandleEvent(t.Context(), ev)
	}
	require.Empty(t, out.String())

	quiet.tail(t.Context(), &portainer.BuildError{ID: "1"})
	var want strings.Builder
	for i := 3; i < tailLines+3; i++ {
		want.WriteString("r/a: " + strings.Repeat("x", i) + "\n")
	}
	require.Equal(t, want.String(), out.String())

	out.Reset()
	quiet.tail(t.Context(), &portainer.BuildError{ID: "1"})
	quiet.tail(t.Context(), errors.New("of no build"))
	require.Empty(t, out.String(), "shown once")
}
