package agentrun_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer/internal/agentrun"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

func TestBuildSucceeds(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	began := time.Now()
	r.launchBuild("b-1", build("say 20000\nwait go"))
	// Hints come now and then: a build that has ended gives none any more.
	r.wait("a hint", func() bool { return len(r.hints) > 0 })
	require.NoError(t, os.WriteFile(filepath.Join(r.sandbox("b-1"), "go"), nil, 0o600))
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Nil(t, o.Failure)
	require.Equal(t, "sha256:0", o.Digest)
	require.Equal(t, []string{"registry:5000/team/app:v1@sha256:0"}, o.Refs)
	require.Equal(t, "scripted 1", o.Engine)
	require.WithinRange(t, o.Started, began.Add(-time.Second), o.Ended)
	r.gone("b-1")
	r.mu.Lock()
	require.Equal(t, []string{"STARTING", "RUNNING", "FINISHED"}, r.states("b-1"))
	require.NotEmpty(t, r.hints)
	require.LessOrEqual(t, r.hints[len(r.hints)-1].LogSize, o.LogSize)
	r.mu.Unlock()
	frames := r.log("b-1", o.LogSize)
	lines := said(frames)
	require.Len(t, lines, 20000)
	for i, line := range lines {
		require.Equal(t, fmt.Sprintf("line %d", i), line)
	}
	require.Contains(t, string(frames[0].Data), "attempt 1 on ")
	require.NotContains(t, string(frames[len(frames)-1].Data), "pushed", "the framework has it from the outcome")
}

func TestSandboxOfASuccess(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.launchBuild("b-1", build("say 3\nwait go"))
	r.waitFor("b-1", mesos.TASK_RUNNING)
	dir := r.sandbox("b-1")
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "stdout"))
		return err == nil && strings.HasSuffix(string(data), "#1 script\n#1 line 0\n#1 line 1\n#1 line 2\n")
	}, 30*time.Second, 5*time.Millisecond)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	r.waitFor("b-1", mesos.TASK_FINISHED)
	r.gone("b-1")
	require.FileExists(t, filepath.Join(dir, "closed"), "the engine was not closed")
	text, err := os.ReadFile(filepath.Join(dir, "stdout"))
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(text), "\npushed registry:5000/team/app:v1@sha256:0\n"), string(text))
}

func TestBuildFails(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.launchBuild("b-1", build("say 1\nfail 4"))
	status := r.waitFor("b-1", mesos.TASK_FAILED)
	require.Equal(t, "user: script: exit code 4", status.GetMessage())
	o := r.outcome("b-1", mesos.TASK_FAILED)
	require.Equal(t, &wire.Failure{Class: "user", Phase: "build", Step: "script", Line: 7, Message: "exit code 4"}, o.Failure)
	require.Empty(t, o.Digest)
	require.Equal(t, []string{"line 0"}, said(r.log("b-1", o.LogSize)))
	stdout, _, err := r.files.ReadFile(t.Context(), r.cluster.Agents()[0].URL(), "/frameworks/"+r.framework+"/executors/b-1/runs/latest/stdout", 0, schedapi.MaxRead)
	require.NoError(t, err)
	require.Contains(t, string(stdout), "#1 line 0\nfailed: user: script: exit code 4\n")
	r.gone("b-1")
}

func TestNoEngine(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	task := build("")
	task.Engine.Kind = "none"
	r.launchBuild("b-1", task)
	o := r.outcome("b-1", mesos.TASK_FAILED)
	require.Equal(t, &wire.Failure{Class: "launch", Phase: "launch", Message: "no engine here"}, o.Failure)
	r.gone("b-1")
}

func TestOtherWireVersion(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.launch("b-1", "b-1", []byte(`{"version":99}`))
	o := r.outcome("b-1", mesos.TASK_FAILED)
	require.Equal(t, "invalid", o.Failure.Class)
	require.Equal(t, "task has version 99, but this executor understands version 1: framework and executor must be of the same release", o.Failure.Message)
	r.gone("b-1")
}

func TestSecondTaskIsRefused(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	data, err := build("wait go").Encode()
	require.NoError(t, err)
	r.launch("b-1", "x", data)
	r.waitFor("b-1", mesos.TASK_RUNNING)
	dir := r.sandbox("x")
	r.launch("b-2", "x", data)
	o := r.outcome("b-2", mesos.TASK_FAILED)
	require.Equal(t, "this executor builds one image, and its task is b-1", o.Failure.Message)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	r.waitFor("b-1", mesos.TASK_FINISHED)
	r.gone("x")
}

func TestEndsOfARunningBuild(t *testing.T) {
	tests := []struct {
		name string
		end  func(r *rig)
		want string
	}{
		{"killed", func(r *rig) { r.kill("b-1") }, "the task was killed"},
		{"shut down", func(r *rig) { r.shutdown("b-1") }, "the executor was told to shut down"},
		{"SIGTERM", func(r *rig) {
			for _, e := range r.cluster.Agents()[0].Executors() {
				require.NoError(r.t, syscall.Kill(e.PID, syscall.SIGTERM))
			}
		}, "the executor was told to shut down"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, testmesos.Config{}, true)
			r.launchBuild("b-1", build("say 3\nwait for ever"))
			r.waitFor("b-1", mesos.TASK_RUNNING)
			dir := r.sandbox("b-1")
			began := time.Now()
			tt.end(r)
			o := r.outcome("b-1", mesos.TASK_KILLED)
			require.FileExists(t, filepath.Join(dir, "closed"), "killed means that nothing of it runs any more")
			require.Equal(t, "cancelled", o.Failure.Class)
			require.Equal(t, tt.want, o.Failure.Message)
			r.gone("b-1")
			require.Less(t, time.Since(began), 4*time.Second)
			r.mu.Lock()
			require.Equal(t, []string{"STARTING", "RUNNING", "KILLING", "KILLED"}, r.states("b-1"))
			r.mu.Unlock()
			require.NotEmpty(t, r.log("b-1", o.LogSize))
		})
	}
}

func TestExecutorCrash(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.launchBuild("b-1", build("crash"))
	status := r.waitFor("b-1", mesos.TASK_FAILED)
	require.Equal(t, mesos.REASON_EXECUTOR_TERMINATED, status.GetReason())
}

func TestBuildOutlivesTheAgentsRestart(t *testing.T) {
	r := newRig(t, testmesos.Config{}, true)
	r.launchBuild("b-1", build("say 10\nwait go\nsay 10"))
	r.waitFor("b-1", mesos.TASK_RUNNING)
	dir := r.sandbox("b-1")
	agent := r.cluster.Agents()[0]
	agent.Kill()
	// It ends while there is no agent.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "closed"))
		return err == nil
	}, 30*time.Second, 5*time.Millisecond)
	require.NoError(t, agent.Restart())
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Len(t, said(r.log("b-1", o.LogSize)), 20)
	r.mu.Lock()
	require.Equal(t, []string{"STARTING", "RUNNING", "FINISHED"}, r.states("b-1"))
	r.mu.Unlock()
}

func TestBuildWithoutCheckpointEndsWithTheAgent(t *testing.T) {
	r := newRig(t, testmesos.Config{}, false)
	r.launchBuild("b-1", build("wait for ever"))
	r.waitFor("b-1", mesos.TASK_RUNNING)
	agent := r.cluster.Agents()[0]
	executor := agent.Executors()[0]
	agent.Kill()
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(executor.Sandbox, "closed"))
		return err == nil
	}, 30*time.Second, 5*time.Millisecond)
}

func TestFaultsOnTheWayToTheAgent(t *testing.T) {
	tests := []struct {
		name string
		rule testmesos.Rule
	}{
		{"first updates lost", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Times: 2, Action: testmesos.Drop}},
		{"answers to updates lost", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Times: 3, Action: testmesos.LoseAnswer}},
		{"updates refused for a while", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Times: 2, Action: testmesos.Answer}},
		{"updates twice", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "UPDATE", Action: testmesos.Duplicate}},
		{"acknowledgements cut", testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "ACKNOWLEDGED", Times: 2, Action: testmesos.Cut}},
		{"acknowledgements twice", testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "ACKNOWLEDGED", Action: testmesos.Duplicate}},
		{"SUBSCRIBED lost", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE", Times: 1, Action: testmesos.Answer, Status: 500}},
		{"SUBSCRIBE lost", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE", Times: 2, Action: testmesos.Drop}},
		{"agent recovering", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "SUBSCRIBE", Times: 2, Action: testmesos.Answer}},
		{"messages lost", testmesos.Rule{Direction: testmesos.ExecutorToAgent, Type: "MESSAGE", Action: testmesos.Drop}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, testmesos.Config{}, true)
			interference := r.cluster.Interfere(tt.rule)
			r.launchBuild("b-1", build("say 2000\nlinger 200ms"))
			o := r.outcome("b-1", mesos.TASK_FINISHED)
			require.Len(t, said(r.log("b-1", o.LogSize)), 2000)
			r.gone("b-1")
			require.NotZero(t, interference.Hits())
			r.mu.Lock()
			defer r.mu.Unlock()
			require.Equal(t, []string{"STARTING", "RUNNING", "FINISHED"}, r.states("b-1"))
		})
	}
}

func TestLaunchThatIsLost(t *testing.T) {
	// An agent that has sent LAUNCH does not send it again: the executor comes
	// back without the task, so the task is dropped and the executor ends.
	r := newRig(t, testmesos.Config{}, true)
	r.cluster.Interfere(testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "LAUNCH", Times: 1, Action: testmesos.Cut})
	r.launchBuild("b-1", build("say 1"))
	status := r.waitFor("b-1", mesos.TASK_DROPPED)
	require.Equal(t, mesos.REASON_AGENT_RESTARTED, status.GetReason())
	r.gone("b-1")
}

// stage stages a context of about n bytes in dir and returns where it is.
func stage(t *testing.T, dir string, n int) *wire.Context {
	t.Helper()
	url := "file://" + dir
	bucket, err := blob.OpenBucket(t.Context(), url)
	require.NoError(t, err)
	defer bucket.Close()
	content := make([]byte, n)
	_, err = rand.Read(content)
	require.NoError(t, err)
	ref, _, err := staging.New(bucket).PutContext(t.Context(), func(_ context.Context, w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := tw.WriteHeader(&tar.Header{Name: "data", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n)}); err != nil {
			return err
		}
		if _, err := tw.Write(content); err != nil {
			return err
		}
		return tw.Close()
	})
	require.NoError(t, err)
	return &wire.Context{BucketURL: url, Key: ref.Key, Size: ref.Size, Digest: ref.Digest}
}

// TestOutputSavedAgain has an engine save an output twice, as when it must make an image
// again: the last one counts.
func TestOutputSavedAgain(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, testmesos.Config{}, true)
	task := build("save first\nsave the second")
	task.Outputs = []wire.Output{{Type: "docker"}}
	task.Delivery = &wire.Delivery{BucketURL: "file://" + dir + "?no_tmp_dir=true&metadata=skip", Prefix: "b/"}
	r.launchBuild("b-1", task)
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Nil(t, o.Failure)
	require.Len(t, o.Outputs, 1)
	require.Equal(t, int64(len("the second")), o.Outputs[0].Size)
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(o.Outputs[0].Key)))
	require.NoError(t, err)
	require.Equal(t, "the second", string(data))
	r.gone("b-1")
}

func TestStagedContext(t *testing.T) {
	dir := t.TempDir()
	good := stage(t, dir, 100_000)
	gone := *good
	gone.Key += "x"
	foreign := *good
	foreign.Digest = "sha256:" + strings.Repeat("0", 64)
	elsewhere := *good
	elsewhere.BucketURL = "nowhere://x"
	tests := []struct {
		name    string
		context *wire.Context
		want    *wire.Failure
		says    string
	}{
		{"good", good, nil, "context 101888"},
		{"gone", &gone, &wire.Failure{Class: "staging", Phase: "fetch"}, "gone"},
		{"not the right one", &foreign, &wire.Failure{Class: "staging", Phase: "fetch"}, "damaged"},
		{"no such bucket", &elsewhere, &wire.Failure{Class: "staging", Phase: "fetch"}, `open the staging bucket: open blob.Bucket: no driver registered for "nowhere"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, testmesos.Config{}, true)
			task := build("context")
			task.Context = tt.context
			r.launchBuild("b-1", task)
			if tt.want == nil {
				o := r.outcome("b-1", mesos.TASK_FINISHED)
				require.Equal(t, []string{tt.says}, said(r.log("b-1", o.LogSize)))
				return
			}
			o := r.outcome("b-1", mesos.TASK_FAILED)
			require.Equal(t, tt.want.Class, o.Failure.Class)
			require.Equal(t, tt.want.Phase, o.Failure.Phase)
			require.Contains(t, o.Failure.Message, tt.says)
		})
	}
}

// TestTamperedContext changes packs of staged contexts in the bucket, and their lengths
// stay: nothing of what was changed reaches the engine, which never sees a whole context.
func TestTamperedContext(t *testing.T) {
	flip := func(at func(size int) int) func([]byte) {
		return func(pack []byte) { pack[at(len(pack))] ^= 1 }
	}
	for _, tt := range []struct {
		name   string
		tamper func(pack []byte)
	}{
		{"first byte", flip(func(int) int { return 0 })},
		{"in the middle", flip(func(size int) int { return size / 2 })},
		{"last byte", flip(func(size int) int { return size - 1 })},
		{"all of it", func(pack []byte) { clear(pack) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const size = 3 << 20
			dir := t.TempDir()
			staged := stage(t, dir, size)
			packs, err := filepath.Glob(filepath.Join(dir, staging.PackPrefix, "*"))
			require.NoError(t, err)
			packs = slices.DeleteFunc(packs, func(name string) bool { return strings.HasSuffix(name, ".attrs") })
			require.Len(t, packs, 1)
			pack, err := os.ReadFile(packs[0])
			require.NoError(t, err)
			tt.tamper(pack)
			require.NoError(t, os.WriteFile(packs[0], pack, 0o600))

			r := newRig(t, testmesos.Config{}, true)
			task := build("context\nsay 1")
			task.Context = staged
			r.launchBuild("b-1", task)
			o := r.outcome("b-1", mesos.TASK_FAILED)
			require.Equal(t, "staging", o.Failure.Class)
			require.Equal(t, "fetch", o.Failure.Phase)
			require.Contains(t, o.Failure.Message, staging.ErrCorrupt.Error())
			require.Contains(t, o.Failure.Message, staging.PackPrefix+filepath.Base(packs[0]))
			require.Empty(t, o.Digest)
			require.Empty(t, o.Refs)
			lines := said(r.log("b-1", o.LogSize))
			require.Len(t, lines, 1, "the engine went on")
			var got int
			_, err = fmt.Sscanf(lines[0], "context broken off after %d", &got)
			require.NoError(t, err, lines[0])
			require.Less(t, got, size)
			r.gone("b-1")
		})
	}
}

func TestTokenIsUsedAndNotInherited(t *testing.T) {
	r := newRig(t, testmesos.Config{ExecutorSecret: []byte("key of the agent")}, true)
	r.launchBuild("b-1", build("token"))
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Equal(t, []string{`token ""`}, said(r.log("b-1", o.LogSize)))
}

func TestExecutorOverTLS(t *testing.T) {
	source := httptest.NewTLSServer(nil)
	source.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: source.Certificate().Raw}), 0o600))
	pool := x509.NewCertPool()
	pool.AddCert(source.Certificate())
	cfg := testmesos.Config{
		TLS:                 &tls.Config{Certificates: source.TLS.Certificates},
		ExecutorSecret:      []byte("key of the agent"),
		ExecutorEnvironment: map[string]string{"LIBPROCESS_SSL_ENABLED": "1", "LIBPROCESS_SSL_CA_FILE": ca, "LIBPROCESS_SSL_VERIFY_SERVER_CERT": "1"},
	}
	r := newRigOver(t, cfg, true, &tls.Config{RootCAs: pool})
	r.launchBuild("b-1", build("say 100\ntoken"))
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	lines := said(r.log("b-1", o.LogSize))
	require.Len(t, lines, 101)
	require.Equal(t, `token ""`, lines[100])
	r.gone("b-1")
}

func TestWrongTokenEndsTheExecutor(t *testing.T) {
	r := newRig(t, testmesos.Config{ExecutorSecret: []byte("key of the agent")}, true)
	r.env["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"] = "forged"
	r.launchBuild("b-1", build("say 1"))
	status := r.waitFor("b-1", mesos.TASK_FAILED)
	require.Equal(t, mesos.SOURCE_AGENT, status.GetSource())
	r.gone("b-1")
}

func TestNotAnExecutor(t *testing.T) {
	err := agentrun.Serve(t.Context(), agentrun.Config{Getenv: func(string) string { return "" }, Stdout: io.Discard})
	require.ErrorContains(t, err, "not started as an executor by a Mesos agent: MESOS_AGENT_ENDPOINT is not set")
}

func TestNoAgent(t *testing.T) {
	env := map[string]string{
		"MESOS_AGENT_ENDPOINT": "127.0.0.1:1", "MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_SANDBOX": t.TempDir(), "MESOS_CHECKPOINT": "0",
	}
	err := agentrun.Serve(t.Context(), agentrun.Config{
		Getenv: func(name string) string { return env[name] }, Unsetenv: func(string) error { return nil }, Stdout: io.Discard, Logger: silent(),
	})
	require.ErrorContains(t, err, "the agent is gone: agent 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused")
}
