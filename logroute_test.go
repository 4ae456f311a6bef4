package portainer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/schedapi"
)

// Size and ReadAt let an executor read the log that it has in the sandbox.
func (s *sandbox) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.data))
}

func (s *sandbox) ReadAt(p []byte, offset int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.NewReader(s.data).ReadAt(p, offset)
}

func (s *sandbox) breakFiles(fault func(read int) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// A relayedReader is a reader whose executor can be asked for the log.
type relayedReader struct {
	*reader
	route *logRoute
	desk  *logrelay.Desk

	mu   sync.Mutex
	asks []logrelay.Ask
	lose func() bool // a message; nil for none
}

// newRelayedReader has an executor that answers, in a synctest bubble.
func newRelayedReader(t *testing.T, reach *reach) *relayedReader {
	r := &relayedReader{reader: newReader(t)}
	executor := newExecutorLog(func(_ *logSource, ask logrelay.Ask) {
		r.mu.Lock()
		r.asks = append(r.asks, ask)
		r.mu.Unlock()
		if !r.lost() {
			r.desk.Handle(ask.Encode())
		}
	})
	r.desk = logrelay.NewDesk(r.sandbox, true, func(data []byte) {
		chunk, err := logrelay.DecodeChunk(data)
		if err != nil {
			panic(err)
		}
		if !r.lost() {
			executor.handle("b1-1", chunk)
		}
	}, slog.New(slog.DiscardHandler))
	r.route = &logRoute{files: r.follower.log, executor: executor, reach: reach, say: r.follower.say}
	r.follower.log, r.follower.arrived = r.route, executor.reader.Arrived()
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { r.desk.Serve(ctx) })
	t.Cleanup(func() {
		r.route.close()
		stop()
		work.Wait()
	})
	return r
}

func (r *relayedReader) lost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lose != nil && r.lose()
}

// loseMessages says which messages are lost from now on.
func (r *relayedReader) loseMessages(lose func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose = lose
}

// end is the end of the executor, which waits for its log to be read, and of the
// build.
func (r *relayedReader) end(t *testing.T) error {
	err := r.desk.AwaitEnd(t.Context(), func() {
		r.route.executor.awaits("b1-1")
		r.box.poke()
	})
	r.finish(r.Size())
	<-r.ended
	require.NoError(t, r.err)
	return err
}

// asked counts the questions for pieces of the log, and those that say that there
// will be none.
func (r *relayedReader) asked() (pieces, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ask := range r.asks {
		if ask.Elsewhere {
			left++
		} else {
			pieces++
		}
	}
	return pieces, left
}

func silentReach() *reach { return newReach(slog.New(slog.DiscardHandler)) }

func all() bool { return true }

func refused(int) error { return errors.New("connect: connection refused") }

// lines writes lines, every now and then, and returns what is to be seen of them.
func (r *relayedReader) lines(from, to int, pause time.Duration) []string {
	var want []string
	for i := from; i < to; i++ {
		text := fmt.Sprintf("line %d %s", i, bytes.Repeat([]byte{'x'}, i%997))
		r.write(line(text))
		want = append(want, "log "+text)
		if pause > 0 {
			pass(pause)
		}
	}
	return want
}

const outOfReachText = "info agent host-a1 cannot be reached at http://host-a1:5051: agent unreachable: connect: connection refused; its log comes over the master"

func TestRouteAgentNeverReached(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines int
		pause time.Duration
		lose  bool
	}{
		{name: "short", lines: 3},
		{name: "long", lines: 20_000},
		{name: "slow", lines: 50, pause: 3 * time.Second},
		{name: "quick", lines: 500, pause: 10 * time.Millisecond},
		{name: "messages are lost", lines: 2000, pause: 10 * time.Millisecond, lose: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRelayedReader(t, silentReach())
				if tt.lose {
					dice := rand.New(rand.NewPCG(5, 6))
					r.loseMessages(func() bool { return dice.IntN(3) == 0 })
				}
				r.fault = refused
				r.attempt(1)
				r.start(t.Context())
				want := append([]string{"launched", outOfReachText}, r.lines(0, tt.lines, tt.pause)...)
				require.NoError(t, r.end(t))
				require.Equal(t, append(want, "succeeded"), r.seen())
				require.Less(t, r.readCount(), 12, "it is hardly tried any more")
			})
		})
	}
}

// An agent that is lost in the middle and comes back is read from again.
func TestRouteThereAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelayedReader(t, silentReach())
		r.attempt(1)
		r.start(t.Context())
		want := r.lines(0, 100, 50*time.Millisecond)
		pass(pollMax)
		pieces, left := r.asked()
		require.Zero(t, pieces)
		require.Equal(t, 1, left)

		r.breakFiles(refused)
		want = append(want, r.lines(100, 1200, 10*time.Millisecond)...)
		pieces, left = r.asked()
		require.Greater(t, pieces, 10)
		require.Equal(t, 1, left)

		r.breakFiles(nil)
		pass(probeMax)
		pieces, left = r.asked()
		require.Equal(t, 2, left)
		want = append(want, r.lines(1200, 1300, 50*time.Millisecond)...)
		after, _ := r.asked()
		require.Equal(t, pieces, after)
		require.NoError(t, r.end(t))

		var got []string
		for _, text := range r.seen() {
			if text != outOfReachText {
				got = append(got, text)
			}
		}
		require.Equal(t, append(append([]string{"launched"}, want...), "succeeded"), got)
		require.Equal(t, 1, r.count(EventInfo), "it is said once")
	})
}

// What takes long to fail is not tried many times, and other builds on the same agent
// do not try it at all.
func TestRouteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reach := silentReach()
		slow := func(int) error { pass(5 * time.Second); return errors.New("i/o timeout") }
		r := newRelayedReader(t, reach)
		r.fault = slow
		r.attempt(1)
		r.start(t.Context())
		began := time.Now()
		r.lines(0, 3, 0)
		r.box.poke()
		require.NoError(t, r.end(t))
		require.Equal(t, 3, r.count(EventLog))
		require.Less(t, time.Since(began), 6*time.Second)
		require.Equal(t, 1, r.readCount())

		r = newRelayedReader(t, reach)
		r.fault = slow
		r.attempt(1)
		r.start(t.Context())
		began = time.Now()
		r.lines(0, 3, 0)
		r.box.poke()
		require.NoError(t, r.end(t))
		require.Equal(t, 3, r.count(EventLog))
		require.Equal(t, 1, r.count(EventInfo), "each build is told")
		require.Less(t, time.Since(began), time.Second)
	})
}

// filesOver reads from agents over a transport.
func filesOver(t *testing.T, transport http.RoundTripper) logReader {
	files := schedapi.NewFiles(schedapi.FilesConfig{Transport: transport})
	t.Cleanup(files.Close)
	return agentFiles{files}
}

// answer makes an agent answer with a status.
func answer(status int) http.RoundTripper {
	return roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: http.NoBody, Header: http.Header{}}, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// What an agent forbids is not had by another way, and the executor does not wait.
func TestRouteForbidden(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusUnauthorized} {
		synctest.Test(t, func(t *testing.T) {
			r := newRelayedReader(t, silentReach())
			r.route.files = filesOver(t, answer(status))
			r.attempt(1)
			r.start(t.Context())
			r.lines(0, 3, 0)
			pass(10 * time.Second)
			began := time.Now()
			require.NoError(t, r.desk.AwaitEnd(t.Context(), func() {}))
			require.Less(t, time.Since(began), time.Second)
			pieces, left := r.asked()
			require.Zero(t, pieces)
			require.Equal(t, 1, left)
			require.NoError(t, r.end(t))
			require.Equal(t, 1, r.count(EventGap))
			require.Zero(t, r.count(EventLog))
			require.Contains(t, r.seen()[1], "the agent forbids reading the file")
		})
	}
}

// Somebody else at the agent's address is not the agent: the executor has a log, and
// waits with its end.
func TestRouteWrongHost(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusFound, http.StatusBadGateway} {
		synctest.Test(t, func(t *testing.T) {
			r := newRelayedReader(t, silentReach())
			r.route.files = filesOver(t, answer(status))
			r.attempt(1)
			r.start(t.Context())
			want := r.lines(0, 30, time.Second)
			require.NoError(t, r.end(t))
			seen := r.seen()
			require.Equal(t, append(want, "succeeded"), seen[len(seen)-31:])
			require.Zero(t, r.count(EventGap))
			require.Equal(t, 1, r.count(EventInfo))
		})
	}
}

// An executor that answers nothing, or is killed, leaves a gap, and that soon.
func TestRouteExecutorIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelayedReader(t, silentReach())
		r.loseMessages(all)
		r.fault = refused
		r.attempt(1)
		r.start(t.Context())
		r.lines(0, 3, 0)
		pass(time.Minute)
		pieces, _ := r.asked()
		require.Less(t, pieces, 20)
		began := time.Now()
		require.ErrorIs(t, r.end(t), logrelay.ErrUnread)
		require.Less(t, time.Since(began), 15*time.Second+lostLimit+2*pollMax)
		require.Equal(t, 1, r.count(EventGap))
		require.Contains(t, r.seen()[2], "connection refused")
	})
}

// What an executor that is killed has not sent may be had from the agent, but is not
// waited for as long as if that had been within reach.
func TestRouteFilesAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelayedReader(t, silentReach())
		r.fault = refused
		r.attempt(1)
		r.start(t.Context())
		r.lines(0, 3, time.Second)
		r.loseMessages(all) // it is killed
		r.lines(3, 6, time.Second)
		r.finish(r.Size())
		pass(lostLimit / 2)
		r.breakFiles(nil)
		<-r.ended
		require.Equal(t, 6, r.count(EventLog))
		require.Zero(t, r.count(EventGap))
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRelayedReader(t, silentReach())
		r.fault = refused
		r.attempt(1)
		r.start(t.Context())
		r.lines(0, 3, time.Second)
		r.loseMessages(all)
		r.lines(3, 6, time.Second)
		began := time.Now()
		r.finish(r.Size())
		<-r.ended
		require.Equal(t, 3, r.count(EventLog))
		require.Equal(t, 1, r.count(EventGap))
		require.Less(t, time.Since(began), lostLimit+2*pollMax)
		require.Contains(t, r.seen()[5], "the executor has ended, and the agent is out of reach: ")
	})
}

func TestRouteCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := newRelayedReader(t, silentReach())
		r.loseMessages(all)
		r.fault = refused
		r.attempt(1)
		r.start(ctx)
		pass(time.Minute)
		began := time.Now()
		cancel()
		<-r.ended
		require.Less(t, time.Since(began), time.Millisecond)
		require.ErrorIs(t, r.err, context.Canceled)
	})
}

// A later life goes on where the earlier one has left off.
func TestRouteMark(t *testing.T) {
	db, err := openState(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.close()) }()
	synctest.Test(t, func(t *testing.T) {
		live := func(from, to int) []string {
			r := newRelayedReader(t, silentReach())
			mark, err := db.openMark("b1")
			require.NoError(t, err)
			defer func() { require.NoError(t, mark.close()) }()
			r.follower.mark = mark
			r.fault = refused
			r.lines(0, from, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.attempt(1)
			r.start(ctx)
			r.lines(from, to, time.Second)
			cancel()
			<-r.ended
			return r.seen()
		}
		first := live(0, 10)
		second := live(10, 20)
		require.Equal(t, "log line 9 "+"xxxxxxxxx", first[len(first)-2])
		require.Equal(t, "log line 10 "+"xxxxxxxxxx", second[2])
		require.Len(t, first, 13)
		require.Len(t, second, 13)
	})
}

func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		r := newReach(slog.New(slog.NewTextHandler(&said, nil)))
		why := errors.New("refused")
		for range awayFailures - 1 {
			r.failed("a", time.Now(), why)
		}
		require.NoError(t, r.away("a"))
		r.read("a") // not in a row
		for range awayFailures {
			require.NoError(t, r.away("a"))
			r.failed("a", time.Now(), why)
		}
		require.ErrorIs(t, r.away("a"), why)
		require.NoError(t, r.away("b"))
		require.False(t, r.probe("a"))
		require.False(t, r.probe("b"))
		var probes []time.Duration
		began := time.Now()
		for time.Since(began) < 10*time.Minute {
			if r.probe("a") {
				probes = append(probes, time.Since(began)/time.Second)
			}
			pass(time.Second)
		}
		require.Equal(t, []time.Duration{5, 15, 35, 75, 155, 275, 395, 515}, probes)
		r.read("a")
		require.NoError(t, r.away("a"))
		require.Empty(t, r.agents)
		require.Equal(t, 1, bytes.Count(said.Bytes(), []byte("level=WARN")))
		require.Equal(t, 1, bytes.Count(said.Bytes(), []byte("can be reached again")))
		for range awayFailures {
			pass(failureAge + time.Second)
			r.failed("a", time.Now(), why)
		}
		require.NoError(t, r.away("a"), "not in a row either")
		r.failed("a", time.Now().Add(-awayAfter), why)
		require.ErrorIs(t, r.away("a"), why)
	})
}
