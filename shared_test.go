package portainer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"

	"github.com/org/portainer/internal/staging"
)

// TestSharedContext submits 40 Dockerfiles of one directory at once: they have one
// context, which is sent once.
func TestSharedContext(t *testing.T) {
	const builds = 40
	f, dir, _ := stagingFramework(t, nil)
	var mu sync.Mutex
	var told []string
	f.cfg.Logs = LogSinkFunc(func(_ context.Context, ev Event) {
		mu.Lock()
		defer mu.Unlock()
		if ev.Kind == EventStaged {
			told = append(told, ev.Text)
		}
	})
	for i := range builds {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.Dockerfile", i)), fmt.Appendf(nil, "FROM scratch\nCOPY file /%d\n", i), 0o644))
	}
	var specs [builds]*buildSpec
	var errs [builds]error
	var all sync.WaitGroup
	for i := range builds {
		all.Go(func() {
			specs[i], errs[i] = f.prepare(t.Context(), Request{Repository: fmt.Sprintf("app%d", i), Dockerfile: filepath.Join(dir, fmt.Sprintf("%d.Dockerfile", i))})
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs[:]...))
	for _, spec := range specs {
		require.Equal(t, specs[0].task.Context, spec.task.Context)
	}
	require.Len(t, told, builds)
	sent := 0
	for _, text := range told {
		if strings.Contains(text, "sent") {
			sent++
		}
	}
	require.Equal(t, 1, sent)
	for _, prefix := range []string{staging.ContextPrefix, staging.PackPrefix} {
		list := f.cfg.Staging.List(&blob.ListOptions{Prefix: prefix})
		_, err := list.Next(t.Context())
		require.NoError(t, err)
		_, err = list.Next(t.Context())
		require.Error(t, err, "one object below %s", prefix)
	}
}

func TestStagingDesk(t *testing.T) { synctest.Test(t, testStagingDesk) }

func testStagingDesk(t *testing.T) {
	var d stagingDesk
	runs, release := 0, make(chan error)
	stage := func(ctx context.Context) (staging.Ref, staging.PutStats, error) {
		runs++
		run := runs
		select {
		case err := <-release:
			return staging.Ref{Size: int64(run)}, staging.PutStats{Uploaded: true, Sent: 1}, err
		case <-ctx.Done():
			return staging.Ref{}, staging.PutStats{}, context.Cause(ctx)
		}
	}
	type answer struct {
		ref   staging.Ref
		stats staging.PutStats
		err   error
	}
	ask := func(ctx context.Context, key string) chan answer {
		got := make(chan answer, 1)
		go func() {
			ref, stats, err := d.do(ctx, key, stage)
			got <- answer{ref, stats, err}
		}()
		synctest.Wait()
		return got
	}
	why := errors.New("enough")
	mine := answer{staging.Ref{Size: 1}, staging.PutStats{Uploaded: true, Sent: 1}, nil}

	// What comes while the first is at work waits for the second, all together.
	first := ask(t.Context(), "a")
	second := ask(t.Context(), "a")
	third := ask(t.Context(), "a")
	require.Equal(t, 1, runs)
	release <- nil
	require.Equal(t, mine, <-first)
	synctest.Wait()
	require.Equal(t, 2, runs)
	release <- nil
	require.Equal(t, answer{staging.Ref{Size: 2}, staging.PutStats{Uploaded: true, Sent: 1}, nil}, <-second)
	require.Equal(t, answer{staging.Ref{Size: 2}, staging.PutStats{}, nil}, <-third)
	require.Empty(t, d.runs)

	// Another context waits for nobody. Errors are for all.
	runs = 0
	first, other := ask(t.Context(), "a"), ask(t.Context(), "b")
	require.Equal(t, 2, runs)
	release <- why
	release <- why
	require.ErrorIs(t, (<-first).err, why)
	require.ErrorIs(t, (<-other).err, why)

	// Who gives up leaves the others be; when all have, it ends.
	runs = 0
	ctx, cancel := context.WithCancelCause(t.Context())
	first, second = ask(ctx, "a"), ask(ctx, "a")
	third = ask(t.Context(), "a")
	cancel(why)
	synctest.Wait()
	require.ErrorIs(t, (<-first).err, why)
	require.ErrorIs(t, (<-second).err, why)
	synctest.Wait()
	require.Equal(t, 2, runs, "the first ended, and the third goes on with the second's")
	release <- nil
	require.NoError(t, (<-third).err)

	// One that was given up before it began is not begun, and who comes then is not
	// given up with it.
	runs = 0
	ctx, cancel = context.WithCancelCause(t.Context())
	first = ask(t.Context(), "a")
	second = ask(ctx, "a")
	cancel(why)
	synctest.Wait()
	third = ask(t.Context(), "a")
	require.ErrorIs(t, (<-second).err, why)
	release <- nil
	require.NoError(t, (<-first).err)
	release <- nil
	require.NoError(t, (<-third).err)
	require.Equal(t, 2, runs)
	ctx, cancel = context.WithCancelCause(t.Context())
	first, second = ask(t.Context(), "a"), ask(ctx, "a")
	cancel(why)
	synctest.Wait()
	release <- nil
	require.NoError(t, (<-first).err)
	require.ErrorIs(t, (<-second).err, why)
	require.Equal(t, 3, runs)
	synctest.Wait()
	require.Empty(t, d.runs)
}
