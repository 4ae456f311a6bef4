package portainer_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestWriterSink(t *testing.T) {
	step := portainer.Step{ID: 3, Name: "[2/3] RUN make"}
	done, cached, failed := step, step, step
	done.Duration, cached.Cached, failed.Error = 1234*time.Millisecond, true, "exit code: 2"
	for _, tt := range []struct {
		want string // "" for nothing
		ev   portainer.Event
	}{
		{"context of 1 MiB staged\n", portainer.Event{Kind: portainer.EventStaged, Text: "context of 1 MiB staged"}},
		{"", portainer.Event{Kind: portainer.EventQueued}},
		{"waiting for 30s: no offers\n", portainer.Event{Kind: portainer.EventWaiting, Text: "waiting for 30s: no offers"}},
		{"attempt 2 launched on host7\n", portainer.Event{Kind: portainer.EventLaunched, Attempt: 2, Hostname: "host7"}},
		{"", portainer.Event{Kind: portainer.EventRunning}},
		{"starting dockerd\n", portainer.Event{Kind: portainer.EventInfo, Text: "starting dockerd"}},
		{"#3 [2/3] RUN make\n", portainer.Event{Kind: portainer.EventStep, Step: step}},
		{"#3 DONE 1.2s\n", portainer.Event{Kind: portainer.EventStepDone, Step: done}},
		{"#3 CACHED\n", portainer.Event{Kind: portainer.EventStepDone, Step: cached}},
		{"#3 ERROR: exit code: 2\n", portainer.Event{Kind: portainer.EventStepDone, Step: failed}},
		{"\x1b[31mred\xff\n", portainer.Event{Kind: portainer.EventLog, Text: "\x1b[31mred\xff"}},
		{"\n", portainer.Event{Kind: portainer.EventLog}},
		{"[12 bytes lost]\n", portainer.Event{Kind: portainer.EventGap, Text: "12 bytes lost"}},
		{"attempt 1 lost, trying again: agent gone\n", portainer.Event{Kind: portainer.EventRetrying, Attempt: 1, Err: errors.New("agent gone")}},
		{"done\n", portainer.Event{Kind: portainer.EventSucceeded}},
		{"failed: exit code: 2\n", portainer.Event{Kind: portainer.EventFailed, Err: errors.New("exit code: 2")}},
		{"", portainer.Event{Kind: "of a later release", Text: "x"}},
	} {
		var plain, prefixed bytes.Buffer
		portainer.NewWriterSink(&plain).HandleEvent(t.Context(), tt.ev)
		require.Equal(t, tt.want, plain.String(), tt.ev.Kind)
		sink := portainer.NewWriterSink(&prefixed).WithPrefix(func(ev portainer.Event) string { return string(ev.Kind) + "| " })
		sink.HandleEvent(t.Context(), tt.ev)
		require.NoError(t, sink.Err())
		if tt.want != "" {
			require.Equal(t, string(tt.ev.Kind)+"| "+tt.want, prefixed.String())
		} else {
			require.Empty(t, prefixed.String())
		}
	}
}

// A meter counts writes; it is not safe for concurrent use, and fails after some.
type meter struct {
	bytes.Buffer
	writes, limit int
}

var errFull = errors.New("no space left on device")

func (m *meter) Write(b []byte) (int, error) {
	if m.writes++; m.limit > 0 && m.writes > m.limit {
		return 0, errFull
	}
	return m.Buffer.Write(b)
}

// TestWriterSinkConcurrently checks that lines of many builds never mix and that
// each is one write.
func TestWriterSinkConcurrently(t *testing.T) {
	var out meter
	sink := portainer.NewWriterSink(&out)
	var builds sync.WaitGroup
	for build := range 8 {
		builds.Go(func() {
			for i := range 200 {
				sink.HandleEvent(t.Context(), portainer.Event{Kind: portainer.EventLog, Text: fmt.Sprintf("%d:%d", build, i)})
			}
		})
	}
	builds.Wait()
	require.NoError(t, sink.Err())
	require.Equal(t, 8*200, out.writes)
	next := make(map[string]int)
	for line := range strings.Lines(out.String()) {
		build, number, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		require.True(t, ok, line)
		require.Equal(t, fmt.Sprint(next[build]), number, "build %s is out of order", build)
		next[build]++
	}
	require.Len(t, next, 8)
}

func TestWriterSinkKeepsTheFirstError(t *testing.T) {
	out := meter{limit: 2}
	sink := portainer.NewWriterSink(&out)
	for range 5 {
		sink.HandleEvent(t.Context(), portainer.Event{Kind: portainer.EventLog, Text: "x"})
	}
	require.ErrorIs(t, sink.Err(), errFull)
	require.Equal(t, "x\nx\n", out.String())
	require.Equal(t, 3, out.writes, "written to after its error")
}
