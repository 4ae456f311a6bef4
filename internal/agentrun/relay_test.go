package agentrun_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

// A listener is a portainer.LogSink that remembers.
type listener struct {
	mu      sync.Mutex
	lines   []string // of output
	told    []string // by the framework or the executor
	gaps    []string
	changed chan struct{}
}

func newListener() *listener { return &listener{changed: make(chan struct{})} }

func (l *listener) HandleEvent(_ context.Context, ev portainer.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch ev.Kind {
	case portainer.EventLog:
		l.lines = append(l.lines, ev.Text)
	case portainer.EventInfo:
		l.told = append(l.told, ev.Text)
	case portainer.EventGap:
		l.gaps = append(l.gaps, ev.Text)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait waits until ok, which is called with the listener locked.
func (l *listener) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		l.mu.Lock()
		done, changed := ok(), l.changed
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-limit:
			require.Fail(t, "waited in vain for "+what)
		}
	}
}

// requireWhole checks that each of the numbered lines came once and in order.
func (l *listener) requireWhole(t testing.TB, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(t, l.gaps)
	require.Len(t, l.lines, n)
	for i, line := range l.lines {
		if want := fmt.Sprintf("line %d", i); line != want {
			require.Equal(t, want, line)
		}
	}
}

// detours counts how often it was said that the log comes over the master.
func (l *listener) detours() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, text := range l.told {
		if strings.Contains(text, "its log comes over the master") {
			n++
		}
	}
	return n
}

// A site is a cluster of one agent, for real frameworks and real executors.
type site struct {
	cluster *testmesos.Cluster
	agent   *testmesos.Agent
}

func newSite(t testing.TB) *site {
	t.Helper()
	cluster, err := testmesos.Start(testmesos.Config{
		Agents: []testmesos.AgentConfig{{}}, AllocationInterval: 20 * time.Millisecond, StatusUpdateRetryMin: time.Second, WorkDir: t.TempDir(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	return &site{cluster, cluster.Agents()[0]}
}

// run runs a framework until the test ends or stop is called, which says why.
func (s *site) run(t testing.TB, log portainer.LogSink, stateDir string) (f *portainer.Framework, stop func(why error)) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	f, err = portainer.New(portainer.Config{
		Master: s.cluster.Master(), Registry: "registry:5000",
		// The race detector would wait a second at the end of each executor.
		ExecutorCommand: "env GORACE=atexit_sleep_ms=0 " + executorVariable + "=1 " + self,
		Logs:            log, StateDir: stateDir, Resources: portainer.Resources{CPUs: 0.5, MemMB: 128},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = f.Run(ctx) // why it ended is what stop was told
	}()
	stop = func(why error) {
		cancel(why)
		<-ended
	}
	t.Cleanup(func() { stop(nil) })
	return f, stop
}

// A pending is a build under way.
type pending struct {
	result *portainer.Result
	err    error
	done   chan struct{}
}

// begin builds what script says, in a goroutine.
func begin(ctx context.Context, f *portainer.Framework, script string) *pending {
	p := &pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.result, p.err = f.Build(ctx, portainer.Request{
			ID: "b", Repository: "team/app", Tags: []string{"v1"}, Source: []byte("FROM scratch\nRUN <<END\n" + script + "\nEND\n"),
		})
	}()
	return p
}

// succeeds waits for the build's image.
func (p *pending) succeeds(t testing.TB) {
	t.Helper()
	<-p.done
	require.NoError(t, p.err)
	require.Equal(t, "sha256:0", p.result.Digest)
	require.Equal(t, 1, p.result.Attempts)
}

// proceed lets the script of the one executor go on behind "wait <word>".
func (s *site) proceed(t testing.TB, word string) {
	t.Helper()
	for _, e := range s.agent.Executors() {
		require.NoError(t, os.WriteFile(filepath.Join(e.Sandbox, word), nil, 0o600))
	}
}

// empty waits until no executor is left.
func (s *site) empty(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool { return len(s.agent.Executors()) == 0 }, 30*time.Second, 5*time.Millisecond)
}

// TestLogOverTheMaster: a framework that cannot reach agents gets the log all the
// same, be it long or that of a build which is over before that is known.
func TestLogOverTheMaster(t *testing.T) {
	for _, lines := range []int{1, 200_000} {
		t.Run(fmt.Sprintf("%d lines", lines), func(t *testing.T) {
			s := newSite(t)
			s.agent.RefuseFiles(-1)
			log := newListener()
			f, _ := s.run(t, log, "")
			begin(t.Context(), f, fmt.Sprintf("say %d", lines)).succeeds(t)
			log.requireWhole(t, lines)
			require.Equal(t, 1, log.detours())
			s.empty(t)
		})
	}
}

// TestAgentOutOfReachInTheMiddle loses sight of the agent while the log grows.
func TestAgentOutOfReachInTheMiddle(t *testing.T) {
	s := newSite(t)
	log := newListener()
	f, _ := s.run(t, log, "")
	build := begin(t.Context(), f, "say 30000\nwait go\nsay 30000\nwait more\nsay 1000")
	log.wait(t, "the beginning", func() bool { return len(log.lines) == 30000 })
	require.Zero(t, log.detours())
	s.agent.RefuseFiles(-1)
	s.proceed(t, "go")
	log.wait(t, "the middle", func() bool { return len(log.lines) == 60000 })
	require.Equal(t, 1, log.detours())
	s.proceed(t, "more")
	build.succeeds(t)
	log.requireWhole(t, 61000)
	require.Equal(t, 1, log.detours())
}

// TestLogOverLostMessages drops some of the messages either way.
func TestLogOverLostMessages(t *testing.T) {
	s := newSite(t)
	s.agent.RefuseFiles(-1)
	for _, direction := range []testmesos.Direction{testmesos.AgentToMaster, testmesos.MasterToAgent} {
		var mu sync.Mutex
		random := rand.New(rand.NewPCG(1, 2))
		s.cluster.Interfere(testmesos.Rule{Direction: direction, Type: "MESSAGE", Action: testmesos.Drop, Match: func(testmesos.Message) bool {
			mu.Lock()
			defer mu.Unlock()
			return random.IntN(6) == 0
		}})
	}
	log := newListener()
	f, _ := s.run(t, log, "")
	begin(t.Context(), f, "say 50000").succeeds(t)
	log.requireWhole(t, 50000)
}

// TestAttachOverTheMaster has another framework go on with the log, which it cannot
// read from the agent either.
func TestAttachOverTheMaster(t *testing.T) {
	s := newSite(t)
	s.agent.RefuseFiles(-1)
	dir := filepath.Join(t.TempDir(), "state")
	log := newListener()
	f, stop := s.run(t, log, dir)
	build := begin(t.Context(), f, "say 1000\nwait go\nsay 1000")
	log.wait(t, "the beginning", func() bool { return len(log.lines) == 1000 })
	stop(portainer.ErrDetached)
	<-build.done
	require.ErrorIs(t, build.err, portainer.ErrDetached)

	f, _ = s.run(t, log, dir)
	s.proceed(t, "go")
	result, err := f.Attach(t.Context(), "b")
	require.NoError(t, err)
	require.Equal(t, 1, result.Attempts)
	log.requireWhole(t, 2000)
}

// TestKillOverTheMaster: a build that is cancelled does not wait for its log.
func TestKillOverTheMaster(t *testing.T) {
	s := newSite(t)
	s.agent.RefuseFiles(-1)
	log := newListener()
	f, _ := s.run(t, log, "")
	ctx, cancel := context.WithCancelCause(t.Context())
	build := begin(ctx, f, "say 1000\nwait go")
	log.wait(t, "the beginning", func() bool { return len(log.lines) == 1000 })
	enough := errors.New("enough")
	cancel(enough)
	<-build.done
	require.ErrorIs(t, build.err, enough)
	s.empty(t)
}

// BenchmarkLog tells how fast a log that is there comes from the agent's files, and over
// the master.
func BenchmarkLog(b *testing.B) {
	const lines = 500_000
	for _, over := range []string{"files", "master"} {
		b.Run("over="+over, func(b *testing.B) {
			s := newSite(b)
			if over == "master" {
				s.agent.RefuseFiles(-1)
			}
			size := int64(0)
			for b.Loop() {
				b.StopTimer()
				log, written := newListener(), make(chan struct{})
				f, stop := s.run(b, portainer.LogSinkFunc(func(ctx context.Context, ev portainer.Event) {
					if ev.Kind == portainer.EventInfo {
						<-written
					}
					log.HandleEvent(ctx, ev)
				}), "")
				build := begin(b.Context(), f, fmt.Sprintf("say %d", lines))
				size = s.awaitLog(b, lines)
				b.StartTimer()
				close(written)
				build.succeeds(b)
				b.StopTimer()
				log.requireWhole(b, lines)
				stop(nil)
				s.empty(b)
				b.StartTimer()
			}
			b.SetBytes(size)
		})
	}
}

// BenchmarkLineToSink tells how long a line of a quiet build takes from the engine to the
// framework's sink, by either way.
func BenchmarkLineToSink(b *testing.B) {
	for _, over := range []string{"files", "master"} {
		b.Run("over="+over, func(b *testing.B) {
			s := newSite(b)
			if over == "master" {
				s.agent.RefuseFiles(-1)
			}
			var took []time.Duration // only the follower's goroutine writes it
			f, _ := s.run(b, portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
				if stamp, err := strconv.ParseInt(ev.Text, 10, 64); err == nil && ev.Kind == portainer.EventLog {
					took = append(took, time.Since(time.Unix(0, stamp)))
				}
			}), "")
			begin(b.Context(), f, fmt.Sprintf("linger 1s\nstamp %d", b.N)).succeeds(b)
			require.Len(b, took, b.N)
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
		})
	}
}

// awaitLog waits until the one executor has written so many lines, and returns how
// long its log is.
func (s *site) awaitLog(b *testing.B, lines int) int64 {
	b.Helper()
	last := []byte(fmt.Sprintf("\nline %d\n", lines-1))
	var size int64
	require.Eventually(b, func() bool {
		for _, e := range s.agent.Executors() {
			data, err := os.ReadFile(filepath.Join(e.Sandbox, wire.LogFile))
			size = int64(len(data))
			return err == nil && bytes.Contains(data, last)
		}
		return false
	}, time.Minute, 50*time.Millisecond)
	return size
}
