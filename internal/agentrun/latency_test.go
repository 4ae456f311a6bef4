package agentrun_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

// BenchmarkLineToReader tells how long a line of a quiet build takes from the engine
// to a framework that reads the log whenever it hears that it has grown.
func BenchmarkLineToReader(b *testing.B) {
	r := newRig(b, testmesos.Config{}, true)
	r.launchBuild("b-1", build(fmt.Sprintf("stamp %d\nwait go", b.N)))
	r.waitFor("b-1", mesos.TASK_RUNNING)
	b.ResetTimer()
	var offset int64
	var took []time.Duration
	for len(took) < b.N {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		for {
			page, size, err := r.files.ReadFile(b.Context(), r.cluster.Agents()[0].URL(),
				"/frameworks/"+r.framework+"/executors/b-1/runs/latest/"+wire.LogFile, offset, schedapi.MaxRead)
			require.NoError(b, err)
			for {
				f, n, err := wire.DecodeFrame(page)
				require.NoError(b, err)
				if n == 0 {
					break
				}
				page = page[n:]
				offset += int64(n)
				if f.Kind == wire.FrameOut {
					said, err := strconv.ParseInt(string(f.Data), 10, 64)
					require.NoError(b, err)
					took = append(took, time.Since(time.Unix(0, said)))
				}
			}
			if offset >= size {
				break
			}
		}
		if len(took) < b.N {
			<-changed
		}
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
	require.NoError(b, os.WriteFile(filepath.Join(r.sandbox("b-1"), "go"), nil, 0o600))
	r.outcome("b-1", mesos.TASK_FINISHED)
}
