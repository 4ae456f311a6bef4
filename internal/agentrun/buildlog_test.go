package agentrun

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/wire"
)

// readLog returns the frames of a log, which must be whole to its end.
func readLog(t testing.TB, dir string) []wire.Frame {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, wire.LogFile))
	require.NoError(t, err)
	var frames []wire.Frame
	for len(data) > 0 {
		f, n, err := wire.DecodeFrame(data)
		require.NoError(t, err)
		require.NotZero(t, n, "the log ends in half a frame")
		frames = append(frames, f)
		data = data[n:]
	}
	return frames
}

func line(step int, text string) portainer.Event {
	return portainer.Event{Kind: portainer.EventLog, Time: time.UnixMilli(1000), Step: portainer.Step{ID: step}, Text: text}
}

func noHint(int64) {}

func TestBuildLogKeepsEveryKind(t *testing.T) {
	dir := t.TempDir()
	var text bytes.Buffer
	l, err := openLog(dir, &text, noHint)
	require.NoError(t, err)
	step := portainer.Step{ID: 3, Name: "[2/3] RUN make", Line: 4}
	done := step
	done.Duration = 1234 * time.Millisecond
	cached := portainer.Step{ID: 4, Name: "[3/3] COPY a b", Cached: true}
	bad := portainer.Step{ID: 5, Name: "RUN false", Error: "exit code 1"}
	stderr := line(3, "oh\x1b[0m \xff")
	stderr.Stderr = true
	at := time.UnixMilli(1000)
	for _, ev := range []portainer.Event{
		{Kind: portainer.EventInfo, Text: "engine ready", Time: at},
		{Kind: portainer.EventStep, Step: step, Time: at},
		line(3, "hello"), stderr,
		{Kind: portainer.EventStepDone, Step: done, Time: at},
		{Kind: portainer.EventStepDone, Step: cached, Time: at},
		{Kind: portainer.EventStepDone, Step: bad, Time: at},
		{Kind: portainer.EventGap, Text: "output lost", Time: at},
		{Kind: portainer.EventQueued, Text: "not for a log", Time: at},
	} {
		l.HandleEvent(t.Context(), ev)
	}
	size := l.close()
	l.HandleEvent(t.Context(), line(1, "too late"))
	info, err := os.Stat(filepath.Join(dir, wire.LogFile))
	require.NoError(t, err)
	require.Equal(t, info.Size(), size)
	frame := func(kind wire.FrameKind, step int, data string) wire.Frame {
		return wire.Frame{Kind: kind, Time: at, Step: step, Data: []byte(data)}
	}
	require.Equal(t, []wire.Frame{
		frame(wire.FrameInfo, 0, "engine ready"),
		frame(wire.FrameStep, 3, string(wire.Step{Name: "[2/3] RUN make", Line: 4}.Encode())),
		frame(wire.FrameOut, 3, "hello"),
		frame(wire.FrameErr, 3, "oh\x1b[0m \xff"),
		frame(wire.FrameStepDone, 3, string(wire.Step{Name: "[2/3] RUN make", Line: 4, Took: done.Duration}.Encode())),
		frame(wire.FrameStepDone, 4, string(wire.Step{Name: "[3/3] COPY a b", Cached: true}.Encode())),
		frame(wire.FrameStepDone, 5, string(wire.Step{Name: "RUN false", Error: "exit code 1"}.Encode())),
		frame(wire.FrameGap, 0, "output lost"),
	}, readLog(t, dir))
	require.Equal(t, "engine ready\n#3 [2/3] RUN make\n#3 hello\n#3 oh\x1b[0m \xff\n#3 done in 1.2s\n#4 cached\n#5 failed: exit code 1\n[output lost]\n", text.String())
}

func TestBuildLogSplitsWhatIsTooLongForAFrame(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, io.Discard, noHint)
	require.NoError(t, err)
	long := strings.Repeat("x", wire.MaxFrameData*2+5)
	l.HandleEvent(t.Context(), line(1, long))
	l.HandleEvent(t.Context(), portainer.Event{Kind: portainer.EventStepDone, Step: portainer.Step{ID: 1, Name: strings.Repeat("\x00", 1<<21), Error: long}})
	l.HandleEvent(t.Context(), line(1, ""))
	l.close()
	frames := readLog(t, dir)
	require.Len(t, frames, 5)
	require.Equal(t, long, string(frames[0].Data)+string(frames[1].Data)+string(frames[2].Data))
	require.Equal(t, wire.FrameStepDone, frames[3].Kind)
	require.Empty(t, frames[4].Data)
}

func TestBuildLogIsReadableSoonAndTellsOfIt(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var hints []int64
	l, err := openLog(dir, io.Discard, func(size int64) {
		mu.Lock()
		defer mu.Unlock()
		hints = append(hints, size)
	})
	require.NoError(t, err)
	began := time.Now()
	n := 0
	for time.Since(began) < 300*time.Millisecond {
		l.HandleEvent(t.Context(), line(1, fmt.Sprint(n)))
		n++
	}
	took := time.Since(began)
	want := int64(0)
	for i := range n {
		want += int64(len(wire.AppendFrame(nil, wire.Frame{Kind: wire.FrameOut, Time: time.UnixMilli(1000), Step: 1, Data: fmt.Append(nil, i)})))
	}
	require.Eventually(t, func() bool {
		info, err := os.Stat(filepath.Join(dir, wire.LogFile))
		mu.Lock()
		defer mu.Unlock()
		return err == nil && info.Size() == want && len(hints) > 0 && hints[len(hints)-1] == want
	}, 10*time.Second, time.Millisecond, "not flushed without being closed")
	require.Equal(t, want, l.close())
	mu.Lock()
	defer mu.Unlock()
	require.IsIncreasing(t, hints)
	require.LessOrEqual(t, len(hints), int(took/hintEvery)+3)
}

func TestBuildLogFromManyGoroutines(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, io.Discard, noHint)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				l.HandleEvent(t.Context(), line(g+1, fmt.Sprint(i)))
			}
		})
	}
	wg.Wait()
	l.close()
	next := map[int]int{}
	for _, f := range readLog(t, dir) {
		require.Equal(t, fmt.Sprint(next[f.Step]), string(f.Data))
		next[f.Step]++
	}
	require.Len(t, next, 8)
}

// A stuckWriter does not return from Write until it is released.
type stuckWriter struct {
	release chan struct{}
	mu      sync.Mutex
	text    bytes.Buffer
}

func (s *stuckWriter) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func TestStuckConsoleHoldsNothingUp(t *testing.T) {
	dir := t.TempDir()
	w := &stuckWriter{release: make(chan struct{})}
	l, err := openLog(dir, w, noHint)
	require.NoError(t, err)
	text := strings.Repeat("y", 1000)
	const n = 5000
	for range n {
		l.HandleEvent(t.Context(), line(1, text))
	}
	close(w.release)
	require.Eventually(t, func() bool {
		l.console.mu.Lock()
		defer l.console.mu.Unlock()
		return len(l.console.buf) == 0
	}, 10*time.Second, time.Millisecond)
	l.HandleEvent(t.Context(), line(1, "last"))
	l.close()
	require.Len(t, readLog(t, dir), n+1)
	shown := w.text.String()
	var dropped int
	_, after, found := strings.Cut(shown, "\n[")
	require.True(t, found)
	_, err = fmt.Sscanf(after, "%d lines not shown here; they are in build.log]", &dropped)
	require.NoError(t, err)
	require.Equal(t, n, dropped+strings.Count(shown, text))
	require.True(t, strings.HasSuffix(shown, "]\n#1 last\n"))
}

func TestConsoleThatNeverTakesItsTextIsLeftAlone(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	defer close(w.release)
	c := newConsole(w)
	c.event(line(1, "x"))
	began := time.Now()
	c.close()
	require.Less(t, time.Since(began), 2*consoleEnd)
}

func TestBuildLogWithoutRoom(t *testing.T) {
	// /dev/full refuses every write, as a full disk does.
	dir := t.TempDir()
	l, err := openLog(dir, io.Discard, noHint)
	require.NoError(t, err)
	l.HandleEvent(t.Context(), line(1, "before"))
	l.mu.Lock()
	l.write()
	real := l.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	l.file = full
	l.mu.Unlock()
	for i := range 3 {
		l.HandleEvent(t.Context(), line(1, fmt.Sprint(i)))
	}
	l.mu.Lock()
	l.write()
	require.Equal(t, 3, l.lost)
	l.file = real
	l.mu.Unlock()
	require.NoError(t, full.Close())
	l.HandleEvent(t.Context(), line(1, "after"))
	size := l.close()
	frames := readLog(t, dir)
	require.Len(t, frames, 3)
	require.Equal(t, "before", string(frames[0].Data))
	require.Equal(t, wire.FrameGap, frames[1].Kind)
	require.Equal(t, "3 lines lost: write /dev/full: no space left on device", string(frames[1].Data))
	require.Equal(t, "after", string(frames[2].Data))
	info, err := os.Stat(filepath.Join(dir, wire.LogFile))
	require.NoError(t, err)
	require.Equal(t, info.Size(), size)
}

func TestOpenLogFails(t *testing.T) {
	_, err := openLog(filepath.Join(t.TempDir(), "none"), io.Discard, noHint)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSummary(t *testing.T) {
	require.Equal(t, "r/a:1@d r/a:2@d", summary(&wire.Outcome{Refs: []string{"r/a:1@d", "r/a:2@d"}}))
	require.Equal(t, "user: RUN x: exit code 1", summary(&wire.Outcome{Failure: &wire.Failure{Class: "user", Step: "RUN x", Message: "exit code 1"}}))
	long := summary(failed(portainer.PhaseBuild, portainer.ClassUser, errors.New(strings.Repeat("é\n", 1000))))
	require.LessOrEqual(t, len(long), maxSummary+3)
	require.NotContains(t, long, "\n")
}

// BenchmarkBuildLog tells how fast lines are taken.
func BenchmarkBuildLog(b *testing.B) {
	for _, size := range []int{20, 80, 1000} {
		b.Run(fmt.Sprintf("line=%d", size), func(b *testing.B) {
			dir := b.TempDir()
			out, err := os.Create(filepath.Join(dir, "stdout"))
			require.NoError(b, err)
			defer out.Close()
			l, err := openLog(dir, out, noHint)
			require.NoError(b, err)
			ev := line(1, strings.Repeat("x", size))
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				l.HandleEvent(b.Context(), ev)
			}
			l.close()
		})
	}
}
