package execapi_test

import (
	"context"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/execapi"
)

// inMemory runs test in a bubble with a client of agent a.
func inMemory(t *testing.T, a *fakeAgent, cfg execapi.Config, test func(t *testing.T, c *execapi.Client, m *memory, r *recorder)) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{handler: a}
		cfg.Transport = m
		test(t, execapi.New(cfg), m, &recorder{})
		m.handlers.Wait()
	})
}

func TestTasksAndUpdates(t *testing.T) {
	a := &fakeAgent{acknowledge: true}
	a.script = func(_ int, _ *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		s.launch("t1")
		s.send(&executor.Event{Type: executor.Event_LAUNCH_GROUP, LaunchGroup: &executor.Event_LaunchGroup{
			TaskGroup: mesos.TaskGroupInfo{Tasks: []mesos.TaskInfo{task("t2"), task("t3")}},
		}})
		grace := int64(3 * time.Second)
		s.send(&executor.Event{Type: executor.Event_KILL, Kill: &executor.Event_Kill{TaskID: mesos.TaskID{Value: "t2"}}})
		s.send(&executor.Event{Type: executor.Event_KILL, Kill: &executor.Event_Kill{
			TaskID: mesos.TaskID{Value: "t3"}, KillPolicy: &mesos.KillPolicy{GracePeriod: &mesos.DurationInfo{Nanoseconds: grace}},
		}})
		s.send(&executor.Event{Type: executor.Event_MESSAGE, Message: &executor.Event_Message{Data: []byte("hello")}})
		s.raw("2\n\x08\x63")      // an event type of the future
		s.raw("4\n\x08\x01\xff0") // no protobuf
		s.send(&executor.Event{Type: executor.Event_HEARTBEAT})
		s.shutdown()
		s.shutdown()
		s.stall()
	}
	inMemory(t, a, config(true), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		synctest.Wait()
		require.Equal(t, []string{"launch t1", "launch t2", "launch t3", "kill t2 within 0s", "kill t3 within 3s", "message hello", "shutdown"}, r.log())
		require.True(t, c.KillingState())
		var want []string
		for i := range 100 {
			id := "t" + strconv.Itoa(i%3+1)
			c.Update(status(id, execapi.Running))
			want = append(want, id+" TASK_RUNNING")
		}
		require.NoError(t, c.Flush(t.Context()))
		require.Equal(t, want, a.received())
		c.Message([]byte("log grew"))
		synctest.Wait()
		require.Equal(t, []string{"log grew"}, a.messages)
		require.ErrorIs(t, stop(), context.Canceled)
		require.Equal(t, 1, a.n)
	})
}

func TestAgentRestart(t *testing.T) {
	// The agent goes away with updates unacknowledged, recovers, and comes back.
	broken := make(chan struct{})
	var tasks, updates [][]string
	a := &fakeAgent{}
	a.script = func(n int, subscribe *executor.Call_Subscribe, s *stream) {
		var ids []string
		for _, task := range subscribe.UnacknowledgedTasks {
			ids = append(ids, task.TaskID.Value)
		}
		tasks = append(tasks, ids)
		updates = append(updates, words(subscribe.UnacknowledgedUpdates))
		s.subscribed()
		if n == 1 {
			s.launch("t1")
			s.launch("t2")
			<-broken
			return
		}
		for _, u := range subscribe.UnacknowledgedUpdates {
			s.acknowledge(u.Status)
		}
		s.stall()
	}
	synctest.Test(t, func(t *testing.T) {
		broken = make(chan struct{})
		m := &memory{handler: a}
		cfg := config(true)
		cfg.Transport = m
		c := execapi.New(cfg)
		r := &recorder{}
		stop := run(t, c, r)
		synctest.Wait()
		c.Update(status("t1", execapi.Starting))
		c.Update(status("t2", execapi.Starting))
		c.Update(status("t1", execapi.Running))
		synctest.Wait()
		require.Equal(t, []string{"t1 TASK_STARTING", "t2 TASK_STARTING", "t1 TASK_RUNNING"}, a.received())
		m.setDown(true)
		close(broken)
		pass(5 * time.Second)
		c.Update(status("t1", execapi.Finished))
		a.setStatus(http.StatusServiceUnavailable)
		m.setDown(false)
		pass(5 * time.Second)
		a.setStatus(0)
		require.NoError(t, c.Flush(t.Context()))
		require.Equal(t, [][]string{nil, {"t1", "t2"}}, tasks)
		require.Equal(t, [][]string{nil, {"t1 TASK_STARTING", "t2 TASK_STARTING", "t1 TASK_RUNNING", "t1 TASK_FINISHED"}}, updates)
		require.Len(t, a.received(), 3, "updates in SUBSCRIBE were sent once more")
		require.Equal(t, []string{"launch t1", "launch t2"}, r.log())
		// Agents wait for no longer than the maximal backoff.
		for i := 1; i < len(a.attempts); i++ {
			if gap := a.attempts[i].Sub(a.attempts[i-1]); a.attempts[i-1].Sub(a.attempts[0]) > 5*time.Second {
				require.LessOrEqual(t, gap, cfg.BackoffMax/4)
			}
		}
		require.Greater(t, len(a.attempts), 8)
		require.ErrorIs(t, stop(), context.Canceled)
		m.handlers.Wait()
	})
}

func TestAcknowledgedTaskIsNotNamedAgain(t *testing.T) {
	var tasks []int
	broken := make(chan struct{})
	a := &fakeAgent{acknowledge: true}
	a.script = func(n int, subscribe *executor.Call_Subscribe, s *stream) {
		tasks = append(tasks, len(subscribe.UnacknowledgedTasks), len(subscribe.UnacknowledgedUpdates))
		s.subscribed()
		if n == 1 {
			s.launch("t1")
			<-broken
			return
		}
		s.stall()
	}
	synctest.Test(t, func(t *testing.T) {
		broken = make(chan struct{})
		m := &memory{handler: a}
		cfg := config(true)
		cfg.Transport = m
		c := execapi.New(cfg)
		stop := run(t, c, &recorder{})
		synctest.Wait()
		c.Update(status("t1", execapi.Starting))
		require.NoError(t, c.Flush(t.Context()))
		close(broken)
		pass(time.Second)
		synctest.Wait()
		require.Equal(t, []int{0, 0, 0, 0}, tasks)
		require.ErrorIs(t, stop(), context.Canceled)
		m.handlers.Wait()
	})
}

func TestAgentGone(t *testing.T) {
	tests := []struct {
		name       string
		checkpoint bool
		script     func(s *stream)
		status     int
		after      time.Duration
		is         error
		want       string
	}{
		{
			name: "no checkpoint", script: func(s *stream) { s.subscribed() }, is: execapi.ErrGone,
			want: "the agent is gone: stream of the agent: EOF (it does not checkpoint)",
		},
		{
			name: "recovery timeout", checkpoint: true, script: func(s *stream) { s.subscribed(); pass(time.Second) }, after: 15 * time.Minute, is: execapi.ErrGone,
			want: "the agent is gone: not back within 15m0s: agent agent:1: dial tcp agent:1: connect: connection refused",
		},
		{
			name: "shut down without being subscribed", checkpoint: true, script: func(s *stream) { s.shutdown(); s.stall() }, is: execapi.ErrGone,
			want: "the agent is gone: told to shut down instead of subscribed",
		},
		{name: "unknown executor", checkpoint: true, status: http.StatusBadRequest, is: execapi.ErrRefused, want: "the agent refuses the executor: 400 Agent has not finished recovery"},
		{name: "wrong token", checkpoint: true, status: http.StatusUnauthorized, is: execapi.ErrRefused, want: "the agent refuses the executor: 401 Agent has not finished recovery"},
		{name: "recovering for ever", checkpoint: true, status: http.StatusServiceUnavailable, after: 15 * time.Minute, is: execapi.ErrGone, want: "the agent is gone: not back within 15m0s: 503 Agent has not finished recovery"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := &fakeAgent{status: tt.status, script: func(_ int, _ *executor.Call_Subscribe, s *stream) { tt.script(s) }}
			inMemory(t, a, config(tt.checkpoint), func(t *testing.T, c *execapi.Client, m *memory, r *recorder) {
				began := time.Now()
				if tt.status == 0 {
					time.AfterFunc(time.Second/2, func() { m.setDown(true) })
				}
				c.Update(status("t", execapi.Running))
				flushed := make(chan error, 1)
				go func() { flushed <- c.Flush(t.Context()) }()
				err := c.Run(t.Context(), r)
				require.EqualError(t, err, tt.want)
				require.ErrorIs(t, err, tt.is)
				require.Equal(t, tt.after, time.Since(began).Truncate(10*time.Second))
				require.Equal(t, []string{"shutdown"}, r.log())
				err = <-flushed
				require.ErrorIs(t, err, tt.is)
				require.EqualError(t, err, "1 status updates not delivered: "+tt.want)
			})
		})
	}
}

func TestLostAcknowledgementAndFailedCalls(t *testing.T) {
	var calls atomic.Int32
	a := &fakeAgent{}
	a.script = func(_ int, _ *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		s.stall()
	}
	a.answer = func(call *executor.Call) (int, string) {
		if call.Type != executor.Call_UPDATE {
			return http.StatusInternalServerError, ""
		}
		switch calls.Add(1) {
		case 1:
			return http.StatusInternalServerError, "broken" // sent again after a pause
		case 2:
			return 0, "" // no acknowledgement: sent again
		case 3:
			pass(time.Minute) // no answer: sent again
			return http.StatusInternalServerError, ""
		}
		a.mu.Lock()
		current := a.current
		a.mu.Unlock()
		current.acknowledge(call.Update.Status)
		return 0, ""
	}
	inMemory(t, a, config(false), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		synctest.Wait()
		c.Message([]byte("lost"))
		c.Update(status("t", execapi.Running))
		began := time.Now()
		require.NoError(t, c.Flush(t.Context()))
		// A pause of 1 s, 5 s without acknowledgement, 10 s without answer, 1 s.
		require.Equal(t, 17*time.Second, time.Since(began))
		require.Empty(t, r.log())
		require.Empty(t, a.messages)
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestUpdateThatIsNeverAcknowledged(t *testing.T) {
	// As from an agent whose framework has done with the task.
	a := &fakeAgent{script: func(_ int, _ *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		s.stall()
	}}
	inMemory(t, a, config(true), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		synctest.Wait()
		c.Update(status("t", execapi.Finished))
		began := time.Now()
		require.NoError(t, c.Flush(t.Context()))
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Equal(t, []string{"t TASK_FINISHED", "t TASK_FINISHED"}, a.received())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestLaterAcknowledgementCoversEarlierUpdates(t *testing.T) {
	a := &fakeAgent{script: func(_ int, _ *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		s.stall()
	}}
	a.answer = func(call *executor.Call) (int, string) {
		if call.Update.Status.GetState() == mesos.TASK_FINISHED {
			a.current.acknowledge(call.Update.Status)
		}
		return 0, ""
	}
	inMemory(t, a, config(true), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		synctest.Wait()
		c.Update(status("t", execapi.Starting))
		c.Update(status("u", execapi.Running))
		c.Update(status("t", execapi.Finished))
		synctest.Wait()
		require.ErrorContains(t, c.Flush(done(t)), "1 status updates not delivered")
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

// done is a context that is done.
func done(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestNotSubscribedAnyMore(t *testing.T) {
	var refused atomic.Bool
	a := &fakeAgent{acknowledge: true}
	a.script = func(_ int, subscribe *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		for _, u := range subscribe.UnacknowledgedUpdates {
			s.acknowledge(u.Status)
		}
		s.stall()
	}
	a.answer = func(*executor.Call) (int, string) {
		if refused.Swap(true) {
			return 0, ""
		}
		return http.StatusForbidden, "Executor is not subscribed"
	}
	inMemory(t, a, config(true), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		synctest.Wait()
		c.Update(status("t", execapi.Running))
		require.NoError(t, c.Flush(t.Context()))
		require.Equal(t, 2, a.n)
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

func TestSubscribeWithoutAnswer(t *testing.T) {
	var requests atomic.Int32
	a := &fakeAgent{}
	synctest.Test(t, func(t *testing.T) {
		m := &memory{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1) == 1 {
				<-r.Context().Done()
				return
			}
			a.ServeHTTP(w, r)
		})}
		a.script = func(_ int, _ *executor.Call_Subscribe, s *stream) {
			s.subscribed()
			s.launch("t")
			s.stall()
		}
		cfg := config(true)
		cfg.Transport = m
		r := &recorder{}
		stop := run(t, execapi.New(cfg), r)
		pass(11 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"launch t"}, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
		m.handlers.Wait()
	})
}

func TestFlushEndsWithItsContext(t *testing.T) {
	c := execapi.New(config(true))
	require.NoError(t, c.Flush(t.Context()))
	c.Update(status("t", execapi.Running))
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	require.ErrorIs(t, c.Flush(ctx), cause)
}

func TestMessagesDoNotPileUp(t *testing.T) {
	hold := make(chan struct{})
	a := &fakeAgent{}
	a.script = func(_ int, _ *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		s.stall()
	}
	a.answer = func(*executor.Call) (int, string) {
		<-hold
		return 0, ""
	}
	synctest.Test(t, func(t *testing.T) {
		hold = make(chan struct{})
		m := &memory{handler: a}
		cfg := config(true)
		cfg.Transport = m
		c := execapi.New(cfg)
		stop := run(t, c, &recorder{})
		synctest.Wait()
		for i := range 1000 {
			c.Message([]byte(strconv.Itoa(i)))
		}
		close(hold)
		synctest.Wait()
		require.LessOrEqual(t, len(a.messages), 9)
		require.Equal(t, "0", a.messages[0])
		require.ErrorIs(t, stop(), context.Canceled)
		m.handlers.Wait()
	})
}

func TestAgentThatCutsEveryStreamIsNotStormed(t *testing.T) {
	a := &fakeAgent{script: func(_ int, _ *executor.Call_Subscribe, s *stream) { s.subscribed() }}
	inMemory(t, a, config(true), func(t *testing.T, c *execapi.Client, _ *memory, r *recorder) {
		stop := run(t, c, r)
		pass(time.Minute)
		synctest.Wait()
		require.Less(t, a.n, 400)
		require.Greater(t, a.n, 100)
		require.Empty(t, r.log())
		require.ErrorIs(t, stop(), context.Canceled)
	})
}

// overLoopback runs a client against a on a real socket until one update is
// acknowledged.
func overLoopback(t *testing.T, a *fakeAgent, env map[string]string) error {
	t.Helper()
	a.acknowledge = true
	a.script = func(_ int, subscribe *executor.Call_Subscribe, s *stream) {
		s.subscribed()
		for _, u := range subscribe.UnacknowledgedUpdates {
			s.acknowledge(u.Status)
		}
		s.stall()
	}
	env["MESOS_FRAMEWORK_ID"], env["MESOS_EXECUTOR_ID"], env["MESOS_SANDBOX"], env["MESOS_CHECKPOINT"] = "f", "e", "/s", "0"
	cfg, err := execapi.FromEnv(getenv(env))
	require.NoError(t, err)
	c := execapi.New(cfg)
	stop := run(t, c, &recorder{})
	c.Update(status("t", execapi.Running))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = c.Flush(ctx)
	_ = stop()
	return err
}

func TestTokenOverTLS(t *testing.T) {
	a := &fakeAgent{token: "secret"}
	server := httptest.NewTLSServer(a)
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	env := func(more ...string) map[string]string {
		env := map[string]string{"MESOS_AGENT_ENDPOINT": server.Listener.Addr().String(), "MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "secret"}
		for i := 0; i < len(more); i += 2 {
			env[more[i]] = more[i+1]
		}
		return env
	}
	require.NoError(t, overLoopback(t, a, env("LIBPROCESS_SSL_ENABLED", "true")))
	require.NoError(t, overLoopback(t, a, env("LIBPROCESS_SSL_ENABLED", "1", "LIBPROCESS_SSL_CA_FILE", ca)))
	require.ErrorContains(t, overLoopback(t, a, env("LIBPROCESS_SSL_ENABLED", "1", "LIBPROCESS_SSL_VERIFY_CERT", "1")), "certificate")
	require.Error(t, overLoopback(t, a, env()), "plain HTTP to a TLS socket")
	wrong := env("LIBPROCESS_SSL_ENABLED", "1", "MESOS_EXECUTOR_AUTHENTICATION_TOKEN", "wrong")
	err := overLoopback(t, a, wrong)
	require.ErrorIs(t, err, execapi.ErrRefused)
	require.ErrorContains(t, err, "401 Invalid JWT")
}

func TestDomainSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "exec") //nolint:usetesting // the path of a socket must be short
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	a := &fakeAgent{}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: a}}
	server.Start()
	defer server.Close()
	require.NoError(t, overLoopback(t, a, map[string]string{"MESOS_AGENT_ENDPOINT": "192.0.2.1:1", "MESOS_DOMAIN_SOCKET": socket}))
}
