package portainer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
)

// A moment is a point in the life of a build.
type moment string

const (
	queued   moment = "queued"   // it waits for an offer
	launched moment = "launched" // the ACCEPT was sent
	running  moment = "running"  // the executor works
	ending   moment = "ending"   // the executor is done
)

// A fault is something that goes wrong, and what is to become of a build that was
// under way.
type fault struct {
	name    string
	moments []moment
	// arm prepares a fault of a message; nil for one that strike causes.
	arm    func(*testmesos.Cluster) *testmesos.Interference
	strike func(*testing.T, *trial)
	// retried are the moments at which the fault costs an attempt, and class is
	// that of the attempt.
	retried []moment
	class   portainer.Class
}

// message is a fault that happens to the first message of a kind.
func message(d testmesos.Direction, kind string, action testmesos.Action) func(*testmesos.Cluster) *testmesos.Interference {
	return func(c *testmesos.Cluster) *testmesos.Interference {
		return c.Interfere(testmesos.Rule{Direction: d, Type: kind, Action: action, Times: 1, Delay: 100 * time.Millisecond})
	}
}

var faultMatrix = []fault{
	{name: "scheduler stream severed", moments: []moment{queued, launched, running, ending},
		strike: func(_ *testing.T, tr *trial) { tr.cluster.SeverScheduler("") }},
	{name: "scheduler stream half open", moments: []moment{queued, running, ending},
		strike: func(_ *testing.T, tr *trial) { tr.cluster.FreezeScheduler("") }},
	{name: "master fails over", moments: []moment{queued, launched, running, ending},
		strike: func(t *testing.T, tr *trial) { require.NoError(t, tr.cluster.FailOver()) }},
	{name: "subscribe unanswered", moments: []moment{queued},
		arm: message(testmesos.SchedulerToMaster, "SUBSCRIBE", testmesos.LoseAnswer)},
	{name: "revive lost", moments: []moment{queued},
		arm: message(testmesos.SchedulerToMaster, "REVIVE", testmesos.Drop)},
	{name: "offers cut", moments: []moment{queued},
		arm: message(testmesos.MasterToScheduler, "OFFERS", testmesos.Cut)},
	{name: "offers rescinded", moments: []moment{queued},
		arm: func(c *testmesos.Cluster) *testmesos.Interference {
			return c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "ACCEPT", Times: 1, Action: testmesos.Delay, Delay: 50 * time.Millisecond,
				Match: func(testmesos.Message) bool { go c.RescindOffers(); return true }})
		}},
	{name: "accept lost", moments: []moment{queued},
		arm: message(testmesos.SchedulerToMaster, "ACCEPT", testmesos.Drop)},
	{name: "accept unanswered", moments: []moment{queued},
		arm: message(testmesos.SchedulerToMaster, "ACCEPT", testmesos.LoseAnswer)},
	{name: "update lost", moments: []moment{queued, running},
		arm: message(testmesos.MasterToScheduler, "UPDATE", testmesos.Drop)},
	{name: "update twice", moments: []moment{queued, running},
		arm: message(testmesos.MasterToScheduler, "UPDATE", testmesos.Duplicate)},
	{name: "update cut", moments: []moment{queued, running},
		arm: message(testmesos.MasterToScheduler, "UPDATE", testmesos.Cut)},
	{name: "update late", moments: []moment{queued, running},
		arm: message(testmesos.MasterToScheduler, "UPDATE", testmesos.Delay)},
	{name: "acknowledgement lost", moments: []moment{queued, running},
		arm: message(testmesos.SchedulerToMaster, "ACKNOWLEDGE", testmesos.Drop)},
	{name: "acknowledgement unanswered", moments: []moment{queued, running},
		arm: message(testmesos.SchedulerToMaster, "ACKNOWLEDGE", testmesos.LoseAnswer)},
	{name: "executor killed", moments: []moment{running}, retried: []moment{running}, class: portainer.ClassLost,
		strike: func(t *testing.T, tr *trial) {
			agent, executor := tr.agent(t)
			require.NoError(t, agent.KillExecutor(executor))
		}},
	{name: "agent restarted", moments: []moment{running, ending},
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			require.NoError(t, agent.Restart())
		}},
	{name: "agent unreachable for good", moments: []moment{running}, retried: []moment{running}, class: portainer.ClassLost,
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			agent.Lose()
			tr.after = agent.Return // with the old attempt still on it
		}},
	{name: "agent back in time", moments: []moment{running, ending},
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			agent.Lose()
			agent.Return()
		}},
	{name: "agent gone", moments: []moment{running}, retried: []moment{running}, class: portainer.ClassLost,
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			agent.MarkGone()
		}},
	{name: "agent drained", moments: []moment{running}, retried: []moment{running}, class: portainer.ClassPreempted,
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			agent.Drain(-1, false)
			tr.after = agent.Reactivate
		}},
	{name: "files out of reach from the start", moments: []moment{queued, launched},
		strike: func(_ *testing.T, tr *trial) { tr.hideFiles() }},
	{name: "files out of reach for good", moments: []moment{running},
		strike: func(t *testing.T, tr *trial) {
			tr.hideFiles()
			// What an executor says that ends before this is lost.
			eventually(t, "the log takes another way", func() bool { return tr.log.says("its log comes over the master") })
		}},
	{name: "files refused for a while", moments: []moment{running},
		strike: func(t *testing.T, tr *trial) {
			agent, _ := tr.agent(t)
			agent.RefuseFiles(500)
			tr.after = func() { agent.RefuseFiles(0) }
		}},
}

// A trial is one cell of the matrix.
type trial struct {
	*rig
	gate  string // the executor waits for this file
	after func() // ends the fault, when the build went on
}

// agent is the one that runs the build, and the executor on it.
func (tr *trial) agent(t *testing.T) (*testmesos.Agent, string) {
	t.Helper()
	for _, a := range tr.cluster.Agents() {
		for _, e := range a.Executors() {
			return a, e.ID
		}
	}
	t.Fatal("no executor runs")
	return nil, ""
}

// hideFiles lets nobody read the agents' files any more.
func (tr *trial) hideFiles() {
	for _, a := range tr.cluster.Agents() {
		a.RefuseFiles(-1)
	}
}

// TestFaultMatrix lets every fault happen at every moment that it can happen at,
// with and without a state directory, and checks what becomes of the build: it is
// built and pushed once, with the attempts that the fault must cost and no more,
// and nothing is left behind.
func TestFaultMatrix(t *testing.T) {
	for _, f := range faultMatrix {
		for _, m := range f.moments {
			for _, state := range []string{"", "with state"} {
				name := strings.TrimSpace(fmt.Sprintf("%s while %s %s", f.name, m, state))
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					f.try(t, m, state != "")
				})
			}
		}
	}
}

func (f *fault) try(t *testing.T, m moment, withState bool) {
	c, err := testmesos.Start(testmesos.Config{
		Masters: 2, Agents: make([]testmesos.AgentConfig, 2), WorkDir: t.TempDir(), ExecutorEnvironment: actorEnvironment,
		AllocationInterval: 50 * time.Millisecond, HeartbeatInterval: 200 * time.Millisecond,
		StatusUpdateRetryMin: 300 * time.Millisecond, ReregistrationTimeout: 10 * time.Second,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	var interference *testmesos.Interference
	if f.arm != nil && m == queued {
		interference = f.arm(c)
	}
	masters := c.Masters()
	r := start(t, c, func(cfg *portainer.Config) {
		cfg.Master = masters[0].URL() + "," + masters[1].URL()
		cfg.UnreachableTimeout = 200 * time.Millisecond
		cfg.PushLease = 2 * time.Second
		if withState {
			cfg.StateDir = t.TempDir()
		}
	})
	tr := &trial{rig: r, gate: filepath.Join(t.TempDir(), "gate")}
	done := make(chan error, 1)
	var result *portainer.Result
	strike := func(now moment) {
		if m != now {
			return
		}
		switch {
		case f.strike != nil:
			f.strike(t, tr)
		case interference == nil:
			interference = f.arm(c)
		}
	}
	strike(queued)
	go func() {
		var err error
		result, err = r.build(r.ctx(), "wait:"+tr.gate, func(req *portainer.Request) { req.ID = "b" })
		done <- err
	}()
	eventually(t, "the build is launched", func() bool { return r.log.count(portainer.EventLaunched) > 0 })
	strike(launched)
	eventually(t, "the executor runs", func() bool { return r.log.count(portainer.EventRunning) > 0 })
	strike(running)
	attempts := 1
	for _, at := range f.retried {
		if at == m {
			attempts = 2
			eventually(t, "another attempt runs", func() bool { return r.log.count(portainer.EventRunning) > 1 })
		}
	}
	open := func() { require.NoError(t, os.WriteFile(tr.gate, nil, 0o644)) }
	if m == ending {
		// The end is on its way when the fault strikes.
		seen := c.Interfere(testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Action: testmesos.Delay, Delay: 20 * time.Millisecond})
		open()
		eventually(t, "the executor reports its end", func() bool { return seen.Hits() > 0 })
		strike(ending)
	} else {
		open()
	}
	if tr.after != nil {
		tr.after()
	}
	require.NoError(t, <-done)
	if interference != nil {
		eventually(t, "the fault happens", func() bool { return interference.Hits() > 0 })
	}
	// A launch that may not have got through is made again, in time.
	certain := m != launched && f.name != "offers rescinded" && f.name != "accept lost"
	f.check(t, tr, result, attempts, certain)
}

// check looks at what became of the build.
func (f *fault) check(t *testing.T, tr *trial, result *portainer.Result, attempts int, certain bool) {
	if certain {
		require.Equal(t, attempts, result.Attempts)
		require.Equal(t, attempts-1, tr.log.count(portainer.EventRetrying))
	}
	require.Equal(t, []string{fmt.Sprintf("b-%d", result.Attempts)}, tr.pushed(), "pushed by the attempt that counts, once")
	tr.log.mu.Lock()
	for _, ev := range tr.log.events {
		if ev.Kind == portainer.EventRetrying && attempts > 1 {
			var failure *portainer.BuildError
			require.ErrorAs(t, ev.Err, &failure)
			require.Equal(t, f.class, failure.Class)
		}
		require.NotEqual(t, portainer.EventGap, ev.Kind, "output was lost: %s", ev.Text)
	}
	tr.log.mu.Unlock()
	eventually(t, "no executor is left", func() bool {
		for _, a := range tr.cluster.Agents() {
			if len(a.Executors()) > 0 {
				return false
			}
		}
		return true
	})
}
