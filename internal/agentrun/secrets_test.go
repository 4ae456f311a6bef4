package agentrun_test

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

var buildSecrets = seal.Credentials{
	Registries: map[string]seal.RegistryAuth{"registry:5000": {Username: "robot", Password: "hunter2-the-first"}},
	Secrets:    map[string][]byte{"npmrc": []byte("npm-token")},
}

// answerWith has a rig answer executors that ask for secrets.
func (r *rig) answerWith(answer func(ask seal.Ask) seal.Answer) {
	r.asked = func(ask seal.Ask, agent mesos.AgentID, executor mesos.ExecutorID) {
		r.client.Send(&scheduler.Call{Type: scheduler.Call_MESSAGE, Message: &scheduler.Call_Message{
			AgentID: agent, ExecutorID: executor, Data: answer(ask).Encode(),
		}})
	}
}

func sealed(t *testing.T) func(ask seal.Ask) seal.Answer {
	return func(ask seal.Ask) seal.Answer {
		a, err := ask.Answer(buildSecrets)
		if err != nil {
			t.Error(err)
		}
		return a
	}
}

func secretBuild(script string) *wire.Task {
	task := build(script)
	task.Secrets = true
	return task
}

func TestSecretsReachTheEngineAndNothingElse(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.answerWith(sealed(t))
	r.launchBuild("b-1", secretBuild("show registry:5000\nwait go"))
	r.waitFor("b-1", mesos.TASK_RUNNING)
	dir := r.sandbox("b-1")
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "stdout"))
		return err == nil && bytes.Contains(data, []byte("user robot, password ***, secret ***"))
	}, 30*time.Second, 5*time.Millisecond)
	// While it runs: what Mesos shows, and what others on the machine can see.
	requireNoSecret(t, "agent state", httpGet(t, r.cluster.Agents()[0].URL()+"/state"))
	for _, e := range r.cluster.Agents()[0].Executors() {
		for _, name := range []string{"environ", "cmdline"} {
			data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(e.PID), name))
			require.NoError(t, err)
			requireNoSecret(t, name, data)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Equal(t, []string{"user robot, password ***, secret ***"}, said(r.log("b-1", o.LogSize)))
	r.gone("b-1")
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		requireNoSecret(t, path, data)
		return err
	}))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.updates {
		requireNoSecret(t, "update", append(u.Data, u.GetMessage()...))
	}
}

func httpGet(t *testing.T, url string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", data)
	require.NotEmpty(t, data)
	return data
}

func requireNoSecret(t *testing.T, where string, data []byte) {
	t.Helper()
	for _, secret := range []string{"hunter2-the-first", "npm-token"} {
		require.NotContains(t, string(data), secret, where)
	}
	require.True(t, bytes.Equal(data, seal.NewMasker(buildSecrets).Mask(data)), "%s has a secret in another form", where)
}

func TestSecretsAreMaskedInFailures(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.answerWith(sealed(t))
	r.launchBuild("b-1", secretBuild("betray"))
	status := r.waitFor("b-1", mesos.TASK_FAILED)
	require.Equal(t, "user: RUN echo ***: said ***", status.GetMessage())
	o := r.outcome("b-1", mesos.TASK_FAILED)
	require.Equal(t, &wire.Failure{Class: "user", Phase: "build", Step: "RUN echo ***", Message: "said ***"}, o.Failure)
	for _, f := range r.log("b-1", o.LogSize) {
		requireNoSecret(t, "log", f.Data)
	}
	r.gone("b-1")
}

// TestSecretsOverLostMessages loses messages in each place where Mesos may.
func TestSecretsOverLostMessages(t *testing.T) {
	for _, d := range []testmesos.Direction{
		testmesos.SchedulerToMaster, testmesos.MasterToAgent, testmesos.AgentToExecutor,
	} {
		t.Run(string(d), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testmesos.Config{}, true)
			r.answerWith(sealed(t))
			lost := r.cluster.Interfere(testmesos.Rule{Direction: d, Type: "MESSAGE", Times: 2, Action: testmesos.Drop})
			r.launchBuild("b-1", secretBuild("show registry:5000"))
			r.outcome("b-1", mesos.TASK_FINISHED)
			require.Equal(t, 2, lost.Hits())
			r.gone("b-1")
		})
	}
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, testmesos.Config{}, true)
		r.answerWith(sealed(t))
		r.cluster.Interfere(testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "MESSAGE", Action: testmesos.Duplicate})
		r.launchBuild("b-1", secretBuild("show registry:5000"))
		r.outcome("b-1", mesos.TASK_FINISHED)
		r.gone("b-1")
	})
}

func TestSecretsAreRefused(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.answerWith(func(ask seal.Ask) seal.Answer { return ask.Refuse("restarted without them") })
	r.launchBuild("b-1", secretBuild("show registry:5000"))
	o := r.outcome("b-1", mesos.TASK_FAILED)
	require.Equal(t, &wire.Failure{
		Class: "auth", Phase: "launch", Message: "the framework refuses the secrets of the task: restarted without them",
	}, o.Failure)
	r.gone("b-1")
}

func TestSecretsThatDoNotComeEndWithTheTask(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	var asked atomic.Int32
	r.asked = func(seal.Ask, mesos.AgentID, mesos.ExecutorID) { asked.Add(1) }
	r.launchBuild("b-1", secretBuild("show registry:5000"))
	r.wait("another question", func() bool { return asked.Load() >= 2 })
	r.kill("b-1")
	o := r.outcome("b-1", mesos.TASK_KILLED)
	require.Equal(t, "the task was killed", o.Failure.Message)
	r.gone("b-1")
}
