package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/mesos/mesos-go/api/v1/lib/recordio"
	"github.com/stretchr/testify/require"
)

// mainVariable makes this test binary the executor.
const mainVariable = "EXECUTOR_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestArguments(t *testing.T) {
	tests := []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"version", []string{"-version"}, 0, "portainer ", ""},
		{"unknown flag", []string{"-x"}, 2, "", "flag provided but not defined: -x"},
		{"argument", []string{"x"}, 2, "", `executor: unexpected argument "x"`},
		{"no agent", nil, 1, "", "executor: not started as an executor by a Mesos agent: MESOS_AGENT_ENDPOINT is not set"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, tt.code, run(tt.args, &stdout, &stderr))
			require.Contains(t, stdout.String(), tt.stdout)
			require.Contains(t, stderr.String(), tt.stderr)
			if tt.stdout == "" {
				require.Empty(t, stdout.String())
			}
		})
	}
}

// A silentAgent launches a task and acknowledges nothing.
type silentAgent struct {
	updated sync.Once
	update  chan struct{} // closed at the first update
}

func (a *silentAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var call executor.Call
	if err != nil || call.Unmarshal(body) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if call.Type != executor.Call_SUBSCRIBE {
		w.WriteHeader(http.StatusAccepted)
		a.updated.Do(func() { close(a.update) })
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	for _, event := range []executor.Event{
		{Type: executor.Event_SUBSCRIBED, Subscribed: &executor.Event_Subscribed{
			ExecutorInfo: mesos.ExecutorInfo{ExecutorID: mesos.ExecutorID{Value: "e"}}, FrameworkInfo: mesos.FrameworkInfo{User: "u", Name: "n"},
			AgentInfo: mesos.AgentInfo{Hostname: "h"},
		}},
		{Type: executor.Event_LAUNCH, Launch: &executor.Event_Launch{Task: mesos.TaskInfo{
			Name: "t", TaskID: mesos.TaskID{Value: "t"}, AgentID: mesos.AgentID{Value: "a"}, Data: []byte(`{"version":-1}`),
		}}},
	} {
		data, err := event.Marshal()
		if err != nil || recordio.NewWriter(w).WriteFrame(data) != nil {
			return
		}
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func TestSecondSignalEndsTheExecutorAtOnce(t *testing.T) {
	agent := &silentAgent{update: make(chan struct{})}
	server := httptest.NewServer(agent)
	defer server.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mainVariable+"=1", "MESOS_AGENT_ENDPOINT="+strings.TrimPrefix(server.URL, "http://"),
		"MESOS_FRAMEWORK_ID=f", "MESOS_EXECUTOR_ID=e", "MESOS_SANDBOX="+t.TempDir(), "MESOS_CHECKPOINT=1", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD=10mins")
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-agent.update:
	case <-time.After(60 * time.Second):
		require.Fail(t, "no update")
	}
	// It waits for its update to be acknowledged. The first signal leaves it time
	// for that; how many reach it before it listens does not matter.
	deadline := time.After(8 * time.Second) // it would wait for longer
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case err := <-done:
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			require.Equal(t, syscall.SIGTERM, exit.Sys().(syscall.WaitStatus).Signal())
			return
		case <-deadline:
			require.NoError(t, cmd.Process.Kill())
			<-done
			require.Fail(t, "the executor is still there")
		case <-again.C:
		}
	}
}
