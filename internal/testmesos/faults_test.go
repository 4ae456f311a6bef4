package testmesos_test

import (
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// fast has timings for tests that wait for them.
func fast(agents int) testmesos.Config {
	return testmesos.Config{
		Agents:                make([]testmesos.AgentConfig, agents),
		AllocationInterval:    20 * time.Millisecond,
		HeartbeatInterval:     50 * time.Millisecond,
		StatusUpdateRetryMin:  50 * time.Millisecond,
		ReregistrationTimeout: 500 * time.Millisecond,
		ShutdownGrace:         time.Second,
		// A binary built with -race sleeps for a second when it exits.
		ExecutorEnvironment: map[string]string{"GORACE": "atexit_sleep_ms=0"},
	}
}

func TestMastersRedirectToTheLeader(t *testing.T) {
	cfg := fast(1)
	cfg.Masters = 3
	c := start(t, cfg)
	masters := c.Masters()
	require.Len(t, masters, 3)
	require.Equal(t, masters[0].URL(), c.Master())

	f := newFramework(t, c, nil)
	ask := func(h *testmesos.Master) (int, string, string) {
		f.master = h.URL()
		resp, err := f.post(t.Context(), &scheduler.Call{Type: scheduler.Call_SUBSCRIBE, Subscribe: &scheduler.Call_Subscribe{FrameworkInfo: f.info}})
		require.NoError(t, err)
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return resp.StatusCode, "", ""
		}
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, resp.Header.Get("Location"), string(b)
	}
	leader := strings.TrimPrefix(masters[0].URL(), "http:")
	code, location, _ := ask(masters[1])
	require.Equal(t, http.StatusTemporaryRedirect, code)
	require.Equal(t, leader+"/master/api/v1/scheduler", location)

	// Nobody has noticed yet that the leader is dead.
	masters[0].Kill()
	_, location, _ = ask(masters[2])
	require.Equal(t, leader+"/master/api/v1/scheduler", location)

	c.Elect(nil)
	code, _, body := ask(masters[2])
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, "No leader elected", body)

	c.Elect(masters[2])
	code, _, _ = ask(masters[2])
	require.Equal(t, http.StatusOK, code)
	require.NoError(t, masters[0].Restart())
	_, location, _ = ask(masters[0])
	require.Equal(t, strings.TrimPrefix(masters[2].URL(), "http:")+"/master/api/v1/scheduler", location)
	require.Contains(t, string(masters[2].Info()), `"id":"`+masters[2].ID()+`"`)
}

func TestFailOverKeepsTasks(t *testing.T) {
	for _, masters := range []int{1, 2} {
		cfg := fast(2)
		cfg.Masters = masters
		c := start(t, cfg)
		f := subscribed(t, c, partitionAware)
		o := f.launch("t1", "run")
		other := c.Agents()[0]
		if other.ID() == o.AgentID.Value {
			other = c.Agents()[1]
		}
		other.Partition()

		id := c.Masters()[0].ID()
		require.NoError(t, c.FailOver())
		require.NotEqual(t, id, c.Masters()[0].ID())
		require.Error(t, f.end())
		f.master = c.Master()
		f.subscribe()
		require.True(t, strings.HasPrefix(f.info.ID.Value, id), "the framework keeps its id")

		eventually(t, "the task is known", func() bool {
			f.reconcile("t1", o.AgentID.Value)
			s := f.await(100*time.Millisecond, func(e *scheduler.Event) bool { return e.Type == scheduler.Event_UPDATE })
			return s != nil && s.Update.Status.GetState() == mesos.TASK_RUNNING
		})
		// The other agent has not come back: who asks about it, or about a task
		// that may be anywhere, gets no answer.
		f.waiting = nil
		f.reconcile("u1", other.ID())
		f.reconcile("u2", "")
		f.none(scheduler.Event_UPDATE, 300*time.Millisecond)
		other.Return()
		f.reconcile("u1", other.ID())
		require.Equal(t, mesos.TASK_GONE, f.update("u1").GetState())
		f.reconcile("u2", "")
		require.Equal(t, mesos.TASK_UNKNOWN, f.update("u2").GetState())

		f.kill("t1")
		f.acked("t1", mesos.TASK_KILLED)
	}
}

func TestInterfereWithUpdates(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule testmesos.Rule
	}{
		{"update lost on its way to the master", testmesos.Rule{Direction: testmesos.AgentToMaster, Type: "STATUS_UPDATE", Times: 1}},
		{"update lost on its way to the scheduler", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "UPDATE", Times: 1}},
		{"update delayed", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "UPDATE", Times: 1,
			Action: testmesos.Delay, Delay: 100 * time.Millisecond}},
		{"launch delayed", testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "LAUNCH",
			Action: testmesos.Delay, Delay: 100 * time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := start(t, fast(1))
			rule := c.Interfere(tt.rule)
			f := subscribed(t, c, nil)
			f.launch("t1", "run")
			require.Equal(t, 1, rule.Hits())
		})
	}
	t.Run("update twice", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "UPDATE", Times: 1, Action: testmesos.Duplicate})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.accept(o, taskFor(o, "t1", "run"))
		first := f.update("t1").UUID
		require.Equal(t, first, f.update("t1").UUID)
	})
	t.Run("acknowledgement lost", func(t *testing.T) {
		c := start(t, fast(1))
		rule := c.Interfere(testmesos.Rule{Direction: testmesos.MasterToAgent, Type: "ACKNOWLEDGE", Times: 1})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.accept(o, taskFor(o, "t1", "run"))
		first := f.acked("t1", mesos.TASK_RUNNING)
		again := f.update("t1")
		require.Equal(t, first.UUID, again.UUID)
		f.acknowledge(again)
		require.Equal(t, 1, rule.Hits())
	})
	t.Run("update lost between executor and agent", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Times: 1,
			Match: func(m testmesos.Message) bool { return m.State == "TASK_RUNNING" }})
		f := subscribed(t, c, nil)
		f.launch("t1", "run") // the executor subscribes again with it
	})
}

func TestInterfereWithCalls(t *testing.T) {
	t.Run("answer of ACCEPT lost", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "ACCEPT", Times: 1, Action: testmesos.LoseAnswer})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.unanswered(acceptCall(o, taskFor(o, "t1", "run")))
		f.acked("t1", mesos.TASK_RUNNING)
	})
	t.Run("ACCEPT lost", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "ACCEPT", Times: 1})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.unanswered(acceptCall(o, taskFor(o, "t1", "run")))
		f.reconcile("t1", o.AgentID.Value)
		require.Equal(t, mesos.TASK_LOST, f.update("t1").GetState())
	})
	t.Run("ACCEPT twice", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "ACCEPT", Times: 1, Action: testmesos.Duplicate})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.accept(o, taskFor(o, "t1", "run"))
		require.Equal(t, mesos.REASON_INVALID_OFFERS, f.update("t1").GetReason())
		f.acked("t1", mesos.TASK_RUNNING)
	})
	t.Run("refused", func(t *testing.T) {
		c := start(t, fast(1))
		rule := c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Action: testmesos.Answer, Status: http.StatusServiceUnavailable})
		f := newFramework(t, c, nil)
		require.ErrorContains(t, f.open(), "503")
		rule.Stop()
		f.subscribe()
		require.Equal(t, 1, rule.Hits())
	})
	t.Run("SUBSCRIBED lost", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "SUBSCRIBE", Times: 1, Action: testmesos.LoseAnswer})
		f := newFramework(t, c, nil)
		require.Error(t, f.open())
		f.subscribe()
		// The first SUBSCRIBE made a framework that nobody will ever hear of.
		require.Len(t, getJSON(t, c.Master()+"/state")["frameworks"], 2)
	})
}

func TestInterfereWithStreams(t *testing.T) {
	t.Run("cut inside a record", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "OFFERS", Times: 1, Action: testmesos.Cut})
		f := subscribed(t, c, nil)
		require.ErrorIs(t, f.end(), io.ErrUnexpectedEOF)
		f.subscribe()
		f.offer()
	})
	t.Run("half open", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, nil)
		f.offer()
		c.FreezeScheduler(f.info.ID.Value)
		f.await(time.Millisecond, func(*scheduler.Event) bool { return false })
		f.waiting = nil
		f.none(scheduler.Event_HEARTBEAT, 300*time.Millisecond)
		require.Empty(t, f.ended)
		f.kill("unknown") // the master takes calls all the same
		f.subscribe()
		f.offer()
	})
	t.Run("severed", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, nil)
		c.SeverScheduler("")
		err := f.end()
		require.Error(t, err)
		require.NotErrorIs(t, err, io.EOF, "that would be the end of a stream")
	})
	t.Run("executor's stream cut", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "ACKNOWLEDGED", Times: 1, Action: testmesos.Cut})
		f := subscribed(t, c, nil)
		f.launch("t1", "run")
		require.NotNil(t, f.killUntil("t1"), "it subscribes again")
	})
}

func TestAgentLostAndReturned(t *testing.T) {
	for _, aware := range []bool{true, false} {
		c := start(t, fast(1))
		f := subscribed(t, c, func(info *mesos.FrameworkInfo) {
			if aware {
				partitionAware(info)
			}
		})
		o := f.launch("t1", "run")
		f.offer()
		a := c.Agents()[0]
		a.Lose()
		s := f.update("t1")
		if aware {
			require.Equal(t, mesos.TASK_UNREACHABLE, s.GetState())
		} else {
			require.Equal(t, mesos.TASK_LOST, s.GetState())
		}
		require.Equal(t, mesos.REASON_AGENT_REMOVED, s.GetReason())
		require.NotNil(t, s.UnreachableTime)
		require.Nil(t, s.UUID)
		f.expect(scheduler.Event_RESCIND)
		require.Nil(t, f.expect(scheduler.Event_FAILURE).Failure.ExecutorID)
		f.reconcile("t1", o.AgentID.Value)
		s = f.update("t1")
		require.Equal(t, "Reconciliation: Task is unreachable", s.GetMessage())

		a.Return()
		s = f.update("t1")
		require.Equal(t, mesos.TASK_RUNNING, s.GetState())
		require.Equal(t, mesos.REASON_AGENT_REREGISTERED, s.GetReason())
		require.Equal(t, "Unreachable agent re-reregistered", s.GetMessage())
		f.kill("t1")
		f.acked("t1", mesos.TASK_KILLED)
		f.offer()
	}
}

func TestAgentUnreachableAfterPings(t *testing.T) {
	cfg := fast(1)
	cfg.AgentPingTimeout = 100 * time.Millisecond
	c := start(t, cfg)
	f := subscribed(t, c, partitionAware)
	f.launch("t1", "run")
	c.Agents()[0].Disconnect()
	require.Equal(t, mesos.TASK_UNREACHABLE, f.update("t1").GetState())
}

func TestAgentRestart(t *testing.T) {
	t.Run("executor comes back", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, partitionAware)
		f.launch("t1", "run")
		a := c.Agents()[0]
		before := a.Executors()
		require.Len(t, before, 1)
		require.NoError(t, a.Restart())
		eventually(t, "the executor has subscribed again", func() bool { return reflect.DeepEqual(before, a.Executors()) })
		f.waiting = nil
		f.offer()
		f.kill("t1")
		f.acked("t1", mesos.TASK_KILLED)
	})
	t.Run("executor does not come back", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, partitionAware)
		f.launch("t1", "once")
		a := c.Agents()[0]
		pid := a.Executors()[0].PID
		c.Interfere(testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE"})
		require.NoError(t, a.Restart())
		s := f.update("t1")
		require.Equal(t, mesos.TASK_FAILED, s.GetState(), "it exited when its stream broke")
		require.Equal(t, mesos.REASON_EXECUTOR_TERMINATED, s.GetReason())
		requireGone(t, pid)
	})
	t.Run("executor hangs", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, partitionAware)
		f.launch("t1", "run")
		a := c.Agents()[0]
		pid := a.Executors()[0].PID
		c.Interfere(testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE"})
		require.NoError(t, a.Restart())
		s := f.update("t1")
		require.Equal(t, mesos.TASK_GONE, s.GetState())
		require.Equal(t, mesos.REASON_EXECUTOR_REREGISTRATION_TIMEOUT, s.GetReason())
		require.Equal(t, "Executor did not reregister within 500ms", s.GetMessage())
		requireGone(t, pid)
	})
	t.Run("no checkpoint", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, noCheckpoint)
		f.launch("t1", "run")
		a := c.Agents()[0]
		pid := a.Executors()[0].PID
		require.NoError(t, a.Restart())
		s := f.update("t1")
		require.Equal(t, mesos.TASK_LOST, s.GetState())
		require.Equal(t, mesos.REASON_AGENT_DISCONNECTED, s.GetReason())
		requireGone(t, pid)
		f.offer()
	})
	t.Run("task ends while the agent is down", func(t *testing.T) {
		c := start(t, fast(1))
		f := subscribed(t, c, nil)
		f.launch("t1", "run")
		a := c.Agents()[0]
		pid := a.Executors()[0].PID
		a.Kill()
		kill9(t, pid)
		require.NoError(t, a.Restart())
		require.Equal(t, mesos.REASON_EXECUTOR_TERMINATED, f.update("t1").GetReason())
	})
	t.Run("launch lost with the agent", func(t *testing.T) {
		c := start(t, fast(1))
		c.Interfere(testmesos.Rule{Direction: testmesos.MasterToAgent, Type: "RUN_TASK"})
		f := subscribed(t, c, nil)
		o := f.offer()
		f.accept(o, taskFor(o, "t1", "run"))
		require.NoError(t, c.Agents()[0].Restart())
		s := f.acked("t1", mesos.TASK_LOST)
		require.Equal(t, "Reconciliation: task unknown to the agent", s.GetMessage())
		require.Equal(t, mesos.REASON_RECONCILIATION, s.GetReason())
		f.offer()
	})
}

func TestAgentDrain(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, partitionAware)
	o := f.launch("t1", "run")
	rest := f.offer()
	a := c.Agents()[0]
	a.Drain(0, false)
	require.Equal(t, rest.ID, f.expect(scheduler.Event_RESCIND).Rescind.OfferID)
	s := f.acked("t1", mesos.TASK_KILLED)
	require.Equal(t, mesos.REASON_AGENT_DRAINING, s.GetReason())
	f.none(scheduler.Event_OFFERS, 200*time.Millisecond)
	f.accept(rest, taskFor(o, "t2", "run"))
	require.Equal(t, mesos.REASON_INVALID_OFFERS, f.update("t2").GetReason())
	a.Reactivate()
	f.launch("t3", "run")
	a.Drain(-1, true)
	s = f.acked("t3", mesos.TASK_GONE_BY_OPERATOR)
	require.Equal(t, mesos.REASON_AGENT_DRAINING, s.GetReason())
	e := f.await(patience, func(e *scheduler.Event) bool {
		return e.Type == scheduler.Event_FAILURE && e.Failure.ExecutorID == nil
	})
	require.NotNil(t, e, "the agent is gone")
	f.reconcile("t3", o.AgentID.Value)
	require.Equal(t, mesos.TASK_GONE_BY_OPERATOR, f.update("t3").GetState())
}

func TestAgentMarkedGone(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, partitionAware)
	f.launch("t1", "run")
	pid := c.Agents()[0].Executors()[0].PID
	c.Agents()[0].MarkGone()
	s := f.update("t1")
	require.Equal(t, mesos.TASK_GONE_BY_OPERATOR, s.GetState())
	require.Equal(t, mesos.REASON_AGENT_REMOVED_BY_OPERATOR, s.GetReason())
	requireGone(t, pid)
}

func TestRescindOffers(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	o := f.offer()
	require.Equal(t, 1, c.RescindOffers())
	require.Equal(t, o.ID, f.expect(scheduler.Event_RESCIND).Rescind.OfferID)
	f.accept(o, taskFor(o, "t1", "run"))
	require.Equal(t, "Task launched with invalid offers: Offer "+o.ID.Value+" is no longer valid", f.update("t1").GetMessage())
}

func TestOfferTimeout(t *testing.T) {
	cfg := fast(1)
	cfg.OfferTimeout = 100 * time.Millisecond
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	o := f.offer()
	require.Equal(t, o.ID, f.expect(scheduler.Event_RESCIND).Rescind.OfferID)
}

func TestKillExecutor(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	o := f.offer()
	f.accept(o, taskFor(o, "t1", "child"))
	s := f.acked("t1", mesos.TASK_RUNNING)
	require.NoError(t, c.Agents()[0].KillExecutor("x-t1"))
	require.Equal(t, mesos.REASON_EXECUTOR_TERMINATED, f.acked("t1", mesos.TASK_FAILED).GetReason())
	require.Equal(t, int32(9), *f.expect(scheduler.Event_FAILURE).Failure.Status)
	requireGone(t, atoi(t, string(s.Data)))
	require.Error(t, c.Agents()[0].KillExecutor("x-t1"))
}

func TestResourceLimits(t *testing.T) {
	c := start(t, fast(1))
	a := c.Agents()[0]
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	f.launch("t2", "run")
	require.NoError(t, a.ExceedMemory("x-t1"))
	s := f.acked("t1", mesos.TASK_FAILED)
	require.Equal(t, mesos.REASON_CONTAINER_LIMITATION_MEMORY, s.GetReason())
	require.True(t, strings.HasPrefix(s.GetMessage(), "Memory limit exceeded: Requested: 64MB"), s.GetMessage())
	require.Equal(t, 64.0, s.Limitation.Resources[0].Scalar.Value)
	require.Equal(t, int32(9), *f.expect(scheduler.Event_FAILURE).Failure.Status)
	require.NoError(t, a.ExceedDisk("x-t2"))
	require.Equal(t, mesos.REASON_CONTAINER_LIMITATION_DISK, f.acked("t2", mesos.TASK_FAILED).GetReason())
	require.ErrorContains(t, a.ExceedDisk("x-t2"), "x-t2: it does not run on agent "+a.ID())
}

func TestMaintenance(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	o := f.offer()
	require.Nil(t, o.Unavailability)
	begin := time.Now().Add(time.Hour)
	c.Agents()[0].Maintain(begin, time.Minute)
	require.Equal(t, o.ID, f.expect(scheduler.Event_RESCIND).Rescind.OfferID)
	o = f.offer()
	require.Equal(t, begin.UnixNano(), o.Unavailability.Start.Nanoseconds)
	require.Equal(t, time.Minute.Nanoseconds(), o.Unavailability.Duration.Nanoseconds)
	c.Agents()[0].Maintain(time.Time{}, 0)
	f.expect(scheduler.Event_RESCIND)
	require.Nil(t, f.offer().Unavailability)
}

func TestRefuseFiles(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	f.launch("t1", "run")
	a := c.Agents()[0]
	url := a.URL() + "/files/read?offset=0&path=/frameworks/" + f.info.ID.Value + "/executors/x-t1/runs/latest/stdout"
	get := func() (int, error) {
		resp, err := http.Get(url)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	for _, status := range []int{0, http.StatusForbidden} {
		a.RefuseFiles(status)
		code, err := get()
		require.NoError(t, err)
		if status == 0 {
			status = http.StatusOK
		}
		require.Equal(t, status, code)
	}
	a.RefuseFiles(-1)
	_, err := get()
	require.Error(t, err)
}
