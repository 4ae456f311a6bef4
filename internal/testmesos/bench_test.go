package testmesos_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// simulatedCluster has agents without processes, whose tasks end at once.
func simulatedCluster(agents int) testmesos.Config {
	cfg := fast(agents)
	for i := range cfg.Agents {
		cfg.Agents[i].Simulate = func(context.Context, *mesos.TaskInfo) testmesos.Outcome { return testmesos.Outcome{} }
	}
	return cfg
}

// runTasks runs n tasks to their end on whatever is offered.
func runTasks(tb testing.TB, f *framework, n int, prefix string) {
	tb.Helper()
	launched, ended := 0, 0
	deadline := time.After(time.Minute)
	handle := func(e *scheduler.Event) {
		switch e.Type {
		case scheduler.Event_OFFERS:
			for _, o := range e.Offers.Offers {
				var tasks []mesos.TaskInfo
				for len(tasks) < room(o) && launched < n {
					ti := taskFor(o, fmt.Sprintf("%s-%d", prefix, launched), "finish")
					tasks = append(tasks, ti)
					launched++
				}
				call := acceptCall(o, tasks...)
				if launched == n {
					call.Accept.Filters = &mesos.Filters{RefuseSeconds: new(3600.0)}
				}
				f.call(call)
			}
		case scheduler.Event_UPDATE:
			s := e.Update.Status
			if s.UUID != nil {
				f.acknowledge(&s)
			}
			if s.GetState() == mesos.TASK_FINISHED && !f.done["ended "+s.TaskID.Value] {
				f.done["ended "+s.TaskID.Value] = true
				ended++
			}
		}
	}
	f.call(&scheduler.Call{Type: scheduler.Call_REVIVE})
	for ended < n {
		select {
		case e := <-f.events:
			handle(e)
		case <-deadline:
			require.Failf(tb, "too slow", "%d of %d tasks have ended", ended, n)
		}
	}
}

// room returns how many tasks, with their executors, an offer has room for.
func room(o mesos.Offer) int {
	for _, r := range o.Resources {
		if r.Name == "cpus" {
			return int(r.Scalar.Value*1000) / 200
		}
	}
	return 0
}

func TestManyAgentsAndTasks(t *testing.T) {
	cfg := simulatedCluster(200)
	cfg.StatusUpdateRetryMin = 10 * time.Second
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	runTasks(t, f, 2000, "t")
}

// BenchmarkTasks runs tasks on agents without processes; the time of an
// operation is that of one task, from ACCEPT to the acknowledgement of its end,
// with all calls of the scheduler one after the other.
func BenchmarkTasks(b *testing.B) {
	for _, agents := range []int{10, 1000} {
		b.Run(fmt.Sprintf("agents=%d/tasks=10000", agents), func(b *testing.B) {
			cfg := simulatedCluster(agents)
			cfg.StatusUpdateRetryMin = 10 * time.Second
			c := start(b, cfg)
			f := subscribed(b, c, nil)
			rounds := 0
			for b.Loop() {
				runTasks(b, f, 10000, fmt.Sprint(rounds))
				rounds++
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(10000*rounds), "µs/task")
		})
	}
}

// BenchmarkStart starts and stops clusters.
func BenchmarkStart(b *testing.B) {
	for _, agents := range []int{1, 1000} {
		b.Run(fmt.Sprintf("agents=%d", agents), func(b *testing.B) {
			for b.Loop() {
				c, err := testmesos.Start(testmesos.Config{Agents: make([]testmesos.AgentConfig, agents)})
				require.NoError(b, err)
				require.NoError(b, c.Close())
			}
		})
	}
}

// BenchmarkLaunch runs real processes: from ACCEPT to the TASK_RUNNING that the
// command executor reports after it has started a shell.
func BenchmarkLaunch(b *testing.B) {
	cfg := fast(1)
	cfg.AllocationInterval = time.Millisecond
	c := start(b, cfg)
	f := subscribed(b, c, nil)
	n := 0
	for b.Loop() {
		b.StopTimer()
		o := f.offer()
		id := fmt.Sprintf("t%d", n)
		n++
		b.StartTimer()
		f.accept(o, commandFor(o, id, "exit 0"))
		f.acked(id, mesos.TASK_STARTING)
		f.acked(id, mesos.TASK_RUNNING)
		b.StopTimer()
		f.acked(id, mesos.TASK_FINISHED)
		b.StartTimer()
	}
}

// BenchmarkReregister fails a cluster over.
func BenchmarkReregister(b *testing.B) {
	c := start(b, simulatedCluster(1000))
	for b.Loop() {
		require.NoError(b, c.FailOver())
		for _, a := range c.Agents() {
			a.Return()
		}
	}
}
