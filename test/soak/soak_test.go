//go:build linux

package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestReadSettings(t *testing.T) {
	env := map[string]string{}
	read := func() (settings, error) { return readSettings(func(name string) string { return env[name] }) }
	s, err := read()
	require.NoError(t, err)
	require.Equal(t, 1000, s.builds)
	env = map[string]string{"SOAK_BUILDS": "7", "SOAK_AT_ONCE": "2", "SOAK_KILL_EVERY": "1s", "SOAK_SEED": "18446744073709551615", "SOAK_LOG": "log"}
	s, err = read()
	require.NoError(t, err)
	require.Equal(t, settings{builds: 7, atOnce: 2, every: time.Second, seed: 1<<64 - 1, log: "log"}, s)
	for _, name := range []string{"SOAK_BUILDS", "SOAK_AT_ONCE", "SOAK_KILL_EVERY", "SOAK_SEED"} {
		env = map[string]string{name: "many"}
		_, err = read()
		require.ErrorContains(t, err, "many", name)
	}
	env = map[string]string{"SOAK_AT_ONCE": "0"}
	_, err = read()
	require.ErrorContains(t, err, "0 at once")
}

// TestLogCheck: the soak sees a log that is wrong.
func TestLogCheck(t *testing.T) {
	events := func(attempt, from, to int) (all []portainer.Event) {
		for i := from; i <= to; i++ {
			all = append(all, portainer.Event{Build: "b", Attempt: attempt, Kind: portainer.EventLog, Text: fmt.Sprintf("line %d", i)})
		}
		return all
	}
	join := func(parts ...[]portainer.Event) (all []portainer.Event) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	end := []portainer.Event{{Build: "b", Kind: portainer.EventSucceeded}}
	gap := []portainer.Event{{Build: "b", Attempt: 2, Kind: portainer.EventGap, Text: "7 bytes lost"}}
	tests := []struct {
		name   string
		events []portainer.Event
		want   string // "" if all is well
	}{
		{"whole", join(events(1, 1, 3), events(2, 1, lines), end), ""},
		{"killed before it said anything", join(events(2, 1, lines), end), ""},
		{"no end", events(2, 1, lines), "told 0 times"},
		{"two ends", join(events(2, 1, lines), end, end), "told 2 times"},
		{"nothing", end, "no log of attempt 2"},
		{"short", join(events(2, 1, lines-1), end), "attempt 2"},
		{"a line twice", join(events(2, 1, 1), events(2, 1, lines), end), "attempt 2"},
		{"a line is missing", join(events(1, 2, 3), events(2, 1, lines), end), "attempt 1"},
		{"a gap", join(events(2, 1, lines), gap, end), "7 bytes lost"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLogs()
			for _, ev := range tt.events {
				l.HandleEvent(t.Context(), ev)
			}
			err := l.take("b").check(2)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.want)
			require.Empty(t, l.builds)
		})
	}
}
