package portainer_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

// BenchmarkScale runs 10 000 builds, queued at once, on 1 000 agents whose
// executors are simulated: what is measured is the framework, over Mesos's real
// HTTP API, and the master's share of the work.
//
//	launches/s   builds launched a second, from the first to the last
//	match-ms     longest time in the matcher for one batch of offers
//	B/build      growth of the heap for a queued build
//	offers-held  that are with the framework when it has nothing to build
func BenchmarkScale(b *testing.B) {
	for b.Loop() {
		scale(b, 1000, 10000)
	}
}

func scale(b *testing.B, agents, builds int) {
	digest := "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	cfg := testmesos.Config{}
	for i := range agents {
		cfg.Agents = append(cfg.Agents, testmesos.AgentConfig{
			Hostname:  fmt.Sprintf("agent%d.test", i),
			Resources: "cpus:8;mem:16384",
			Simulate: func(ctx context.Context, task *mesos.TaskInfo) testmesos.Outcome {
				select {
				case <-ctx.Done():
					return testmesos.Outcome{State: mesos.TASK_KILLED}
				case <-time.After(200 * time.Millisecond):
				}
				outcome := wire.Outcome{Digest: digest, Started: time.Now(), Ended: time.Now()}
				data, _ := outcome.Encode()
				return testmesos.Outcome{State: mesos.TASK_FINISHED, Data: data}
			},
		})
	}
	c, err := testmesos.Start(cfg)
	require.NoError(b, err)
	defer c.Close()

	var launched atomic.Int64
	var first, last atomic.Int64
	var slowest atomic.Int64
	matcher := portainer.MatcherFunc(func(offers []portainer.Offer, pending []portainer.Pending) []portainer.Placement {
		began := time.Now()
		placements := portainer.Spread{}.MatchOffers(offers, pending)
		if took := int64(time.Since(began)); took > slowest.Load() {
			slowest.Store(took)
		}
		return placements
	})
	f, err := portainer.New(portainer.Config{
		Master: c.Master(), Registry: "registry.test", Matcher: matcher,
		Logs: portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
			if ev.Kind == portainer.EventLaunched {
				now := time.Now().UnixNano()
				first.CompareAndSwap(0, now)
				last.Store(now)
				launched.Add(1)
			}
		}),
	})
	require.NoError(b, err)

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	errs := make(chan error, builds)
	var queued sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	for range builds {
		queued.Go(func() {
			_, err := f.Build(ctx, portainer.Request{
				Repository: "team/app", Source: []byte("FROM scratch\n"), Dockerfile: "Dockerfile",
				Resources: portainer.Resources{CPUs: 0.5, MemMB: 256},
			})
			errs <- err
		})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	queued.Wait()
	for range builds {
		require.NoError(b, <-errs)
	}
	held := c.RescindOffers()
	stop()
	<-ended
	b.ReportMetric(float64(held), "offers-held")
	b.ReportMetric(float64(launched.Load()-1)/time.Duration(last.Load()-first.Load()).Seconds(), "launches/s")
	b.ReportMetric(float64(slowest.Load())/1e6, "match-ms")
	b.ReportMetric(max(0, float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(builds), "B/build")
}
