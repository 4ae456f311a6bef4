package portainer

import (
	"archive/tar"
	"context"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestStagingIsTold has a bundler that goes on only when the sink was told of what
// it had written.
func TestStagingIsTold(t *testing.T) {
	told := make(chan Progress, 1)
	var once sync.Once
	bundler := BundlerFunc(func(ctx context.Context, _ Request, w io.Writer) error {
		tw := tar.NewWriter(w)
		for _, name := range []string{"file", "other"} {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 600}); err != nil {
				return err
			}
			if _, err := tw.Write(make([]byte, 600)); err != nil {
				return err
			}
			once.Do(func() {
				select {
				case p := <-told:
					told <- p
				case <-ctx.Done():
				}
			})
		}
		return tw.Close()
	})
	f, dir, events := stagingFramework(t, bundler)
	rest := f.cfg.Logs
	f.cfg.Logs = LogSinkFunc(func(ctx context.Context, ev Event) {
		if ev.Kind == EventStaging && len(told) == 0 {
			told <- ev.Progress
		}
		rest.HandleEvent(ctx, ev)
	})
	spec, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir})
	require.NoError(t, err)
	require.Equal(t, Progress{Read: 600}, <-told)
	require.Len(t, *events, 1)
	require.Equal(t, spec.id, (*events)[0].Build)
}
