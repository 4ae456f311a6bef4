package portainer

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// within is more than any of these tests needs.
const within = 30 * time.Second

// run runs f, and returns what ends it and then waits for its end.
func run(t *testing.T, f *Framework) (ended <-chan error, stop context.CancelFunc) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-f.stopped
	})
	return end, stop
}

// silent is the address of a master that accepts connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// TestRunEndsBuildsWhenTheStateFails checks that nobody waits for ever when the
// state directory cannot be written any more.
func TestRunEndsBuildsWhenTheStateFails(t *testing.T) {
	f := newTestFramework(t, func(cfg *Config) { cfg.Master, cfg.StateDir = silent(t), t.TempDir() })
	ended, _ := run(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	require.NoError(t, f.state.db.Close())
	_, err := f.Build(ctx, Request{ID: "one", Repository: "app", Source: source()})
	require.NoError(t, ctx.Err(), "Build was not told of the end")
	require.ErrorIs(t, err, ErrLost)
	require.ErrorContains(t, err, "state: ")
	require.ErrorContains(t, <-ended, "state: ")
}

func TestRunTellsOfASilentMaster(t *testing.T) {
	f := newTestFramework(t, func(cfg *Config) { cfg.Master, cfg.ConnectTimeout = silent(t), 50*time.Millisecond })
	ended, _ := run(t, f)
	err := <-ended
	require.ErrorIs(t, err, ErrUnreachable)
	require.NotContains(t, err.Error(), "%!")
}

// TestBuildIDOfAnotherResult checks that a build does not take the place of one
// whose result was not taken yet.
func TestBuildIDOfAnotherResult(t *testing.T) {
	dir := t.TempDir()
	s, err := openState(dir)
	require.NoError(t, err)
	old := record{ID: "one", Image: "registry.example/old", Done: true, Result: &Result{ID: "one", Digest: "sha256:old"}}
	require.NoError(t, s.put([]record{old}))
	require.NoError(t, s.close())

	f := newTestFramework(t, func(cfg *Config) { cfg.Master, cfg.StateDir = silent(t), dir })
	run(t, f)
	result, err := f.Attach(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, "sha256:old", result.Digest)
	_, err = f.Build(t.Context(), Request{ID: "one", Repository: "app", Source: source()})
	require.ErrorIs(t, err, ErrInvalid)
	_, past, err := f.state.load()
	require.NoError(t, err)
	require.Equal(t, []record{old}, past)

	require.NoError(t, f.Forget(t.Context(), "one"))
	ctx, cancel := context.WithCancel(t.Context())
	f.cfg.Logs = LogSinkFunc(func(context.Context, Event) { cancel() })
	_, err = f.Build(ctx, Request{ID: "one", Repository: "app", Source: source()})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrInvalid)
}

// TestBuildWhoseLogCannotBeMarked checks that this machine's trouble is neither
// the build's failure nor its caller's wish.
func TestBuildWhoseLogCannotBeMarked(t *testing.T) {
	var events []Event
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Master, cfg.StateDir = silent(t), t.TempDir()
		cfg.Logs = LogSinkFunc(func(_ context.Context, ev Event) { events = append(events, ev) })
	})
	require.NoError(t, os.Mkdir(f.state.logPath("one"), 0o700))
	run(t, f)
	_, err := f.Build(t.Context(), Request{ID: "one", Repository: "app", Source: source()})
	require.ErrorIs(t, err, ErrLost)
	require.NotErrorIs(t, err, context.Canceled)
	require.Len(t, events, 1)
	require.Equal(t, EventFailed, events[0].Kind)
	require.Equal(t, err, events[0].Err)
}

func TestAttachBeforeRun(t *testing.T) {
	f := newTestFramework(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Attach(ctx, "one")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrInvalid)
}

func TestForgetBeforeRun(t *testing.T) {
	f := newTestFramework(t, func(cfg *Config) { cfg.StateDir = t.TempDir() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.Forget(ctx, "one"), context.Canceled)
}
