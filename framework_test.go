package portainer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
)

// patience bounds every wait of these tests; none of them gets near it.
const patience = 30 * time.Second

// actorEnvironment spares executors, which are this binary, the second that the
// race detector waits at the end of a program.
var actorEnvironment = map[string]string{"GORACE": "atexit_sleep_ms=0"}

// A rig is a cluster, a framework that runs on it, and what the framework said.
type rig struct {
	t       *testing.T
	cluster *testmesos.Cluster
	f       *portainer.Framework
	log     *eventLog
	ended   chan error
	stop    context.CancelCauseFunc
	pushes  string // the file that executors note their pushes in
}

// cluster starts n agents.
func cluster(t *testing.T, n int) *testmesos.Cluster {
	t.Helper()
	cfg := testmesos.Config{WorkDir: t.TempDir(), ExecutorEnvironment: actorEnvironment}
	for range n {
		cfg.Agents = append(cfg.Agents, testmesos.AgentConfig{Resources: "cpus:4;mem:8192;disk:20000;ports:[31000-32000]"})
	}
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// start runs a framework on c, with what change makes of its config.
func start(t *testing.T, c *testmesos.Cluster, change func(*portainer.Config)) *rig {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	bucket, err := blob.OpenBucket(t.Context(), "file://"+dir)
	require.NoError(t, err)
	r := &rig{t: t, cluster: c, log: &eventLog{}, ended: make(chan error, 1), pushes: filepath.Join(t.TempDir(), "pushes")}
	cfg := portainer.Config{
		Master: c.Master(), Registry: "registry.test:5000", ExecutorCommand: self,
		Staging: bucket, StagingURL: "file://" + dir, Logs: r.log,
	}
	if change != nil {
		change(&cfg)
	}
	r.f, err = portainer.New(cfg)
	require.NoError(t, err)
	ctx, stop := context.WithCancelCause(context.Background())
	r.stop = stop
	go func() { r.ended <- r.f.Run(ctx) }()
	t.Cleanup(func() {
		stop(nil)
		select {
		case <-r.ended:
		case <-time.After(patience):
			t.Error("Run did not return")
		}
		require.NoError(t, bucket.Close())
		left, err := filepath.Glob(filepath.Join(dir, "portainer", "contexts", "*"))
		require.NoError(t, err)
		require.Empty(t, left, "staged contexts remain")
	})
	return r
}

// build builds a Dockerfile that copies something, in an executor that does what
// do says.
func (r *rig) build(ctx context.Context, do string, change ...func(*portainer.Request)) (*portainer.Result, error) {
	dir := r.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(do), 0o644); err != nil {
		return nil, err
	}
	req := portainer.Request{
		Repository: "team/app", Tags: []string{"v1", "latest"}, Dir: dir,
		Source: []byte("FROM scratch\nCOPY file /\n"),
		Args:   map[string]string{"DO": do, "PUSHES": r.pushes},
	}
	for _, c := range change {
		c(&req)
	}
	return r.f.Build(ctx, req)
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// pushed returns the attempts that pushed.
func (r *rig) pushed() []string {
	data, err := os.ReadFile(r.pushes)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(r.t, err)
	return strings.Fields(string(data))
}

// An eventLog is a sink that remembers.
type eventLog struct {
	mu     sync.Mutex
	events []portainer.Event
}

func (l *eventLog) HandleEvent(_ context.Context, ev portainer.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, ev)
}

// texts returns the lines of output of a build, or of all if id is "".
func (l *eventLog) texts(id portainer.BuildID) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, ev := range l.events {
		if ev.Kind == portainer.EventLog && (id == "" || ev.Build == id) {
			lines = append(lines, ev.Text)
		}
	}
	return lines
}

// says reports whether there was an EventInfo with text in it.
func (l *eventLog) says(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.events, func(ev portainer.Event) bool {
		return ev.Kind == portainer.EventInfo && strings.Contains(ev.Text, text)
	})
}

// count returns how many events of that kind there were.
func (l *eventLog) count(kind portainer.EventKind) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, ev := range l.events {
		if ev.Kind == kind {
			n++
		}
	}
	return n
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, 5*time.Millisecond, what)
}

func TestFrameworkBuild(t *testing.T) {
	r := start(t, cluster(t, 1), nil)
	result, err := r.build(r.ctx(), "lines:1000", func(req *portainer.Request) { req.ID = "one" })
	require.NoError(t, err)
	digest := "sha256:" + strings.Repeat("0", 64)
	require.Equal(t, []string{
		"registry.test:5000/team/app:v1@" + digest,
		"registry.test:5000/team/app:latest@" + digest,
	}, result.Refs)
	require.Equal(t, 1, result.Attempts)
	require.Equal(t, portainer.AgentID(r.cluster.Agents()[0].ID()), result.Agent)
	lines := r.log.texts("one")
	require.Len(t, lines, 1000)
	for i, line := range lines {
		require.Equal(t, fmt.Sprintf("line %d", i), line)
	}
	require.Equal(t, []string{"one-1"}, r.pushed())
}

// TestFrameworkGPUs: agents with GPUs are asked for only where some are needed.
func TestFrameworkGPUs(t *testing.T) {
	c, err := testmesos.Start(testmesos.Config{WorkDir: t.TempDir(), ExecutorEnvironment: actorEnvironment, Agents: []testmesos.AgentConfig{
		{Hostname: "with-gpus", Resources: "cpus:8;mem:8192;disk:20000;gpus:2"}, {Hostname: "without", Resources: "cpus:2;mem:4096;disk:20000"},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	r := start(t, c, nil)
	result, err := r.build(r.ctx(), "")
	require.NoError(t, err)
	require.Equal(t, "without", result.Hostname, "the other is not offered, though it has more room")
	_, err = r.build(r.ctx(), "", func(req *portainer.Request) { req.Resources.GPUs = 1 })
	require.ErrorIs(t, err, portainer.ErrInvalid)

	r = start(t, c, func(cfg *portainer.Config) { cfg.GPUs = true })
	result, err = r.build(r.ctx(), "", func(req *portainer.Request) { req.Resources.GPUs = 2 })
	require.NoError(t, err)
	require.Equal(t, "with-gpus", result.Hostname)
}

func TestFrameworkManyBuilds(t *testing.T) {
	r := start(t, cluster(t, 3), nil)
	const n = 40
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := r.build(r.ctx(), "push", func(req *portainer.Request) { req.Resources.CPUs = 0.5; req.Resources.MemMB = 100 })
			errs <- err
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	require.Len(t, r.pushed(), n)
}

func TestFrameworkFailedStepIsNotRetried(t *testing.T) {
	r := start(t, cluster(t, 1), nil)
	_, err := r.build(r.ctx(), "fail")
	require.ErrorIs(t, err, portainer.ErrFailed)
	var failure *portainer.BuildError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, portainer.ClassUser, failure.Class)
	require.Equal(t, portainer.PhaseBuild, failure.Phase)
	require.Equal(t, "RUN false", failure.Step)
	require.Equal(t, 3, failure.Line)
	require.Equal(t, 1, failure.Attempt)
	require.Zero(t, r.log.count(portainer.EventRetrying))
	require.Empty(t, r.pushed())
}

func TestFrameworkRetriesOnAnotherAgent(t *testing.T) {
	r := start(t, cluster(t, 2), nil)
	result, err := r.build(r.ctx(), "crash-first", func(req *portainer.Request) { req.ID = "b" })
	require.NoError(t, err)
	require.Equal(t, 2, result.Attempts)
	require.Equal(t, []string{"b-2"}, r.pushed())
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	agents := make(map[portainer.AgentID]bool)
	for _, ev := range r.log.events {
		if ev.Kind == portainer.EventLaunched {
			agents[ev.Agent] = true
		}
	}
	require.Len(t, agents, 2, "the second attempt avoids the first one's agent")
}

func TestFrameworkGivesUp(t *testing.T) {
	r := start(t, cluster(t, 1), func(cfg *portainer.Config) { cfg.MaxAttempts = 2 })
	_, err := r.build(r.ctx(), "crash")
	require.ErrorIs(t, err, portainer.ErrLost)
	var failure *portainer.BuildError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, portainer.ClassLost, failure.Class)
	require.Equal(t, 2, failure.Attempt)
}

func TestFrameworkCancelledBuild(t *testing.T) {
	r := start(t, cluster(t, 1), nil)
	ctx, cancel := context.WithCancel(r.ctx())
	done := make(chan error, 1)
	go func() {
		_, err := r.build(ctx, "wait:"+filepath.Join(t.TempDir(), "never"))
		done <- err
	}()
	eventually(t, "the build runs", func() bool { return r.log.count(portainer.EventRunning) == 1 })
	cancel()
	err := <-done
	require.ErrorIs(t, err, context.Canceled)
	var failure *portainer.BuildError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, portainer.ClassCancelled, failure.Class)
	// The cluster is free again: the next build gets the agent.
	_, err = r.build(r.ctx(), "push", func(req *portainer.Request) { req.Resources.CPUs = 3.5 })
	require.NoError(t, err)
}

func TestFrameworkStopEndsEverything(t *testing.T) {
	r := start(t, cluster(t, 1), nil)
	done := make(chan error, 1)
	go func() {
		_, err := r.build(r.ctx(), "wait:"+filepath.Join(t.TempDir(), "never"))
		done <- err
	}()
	eventually(t, "the build runs", func() bool { return r.log.count(portainer.EventRunning) == 1 })
	r.stop(nil)
	require.ErrorIs(t, <-done, portainer.ErrStopped)
	err := <-r.ended
	r.ended <- err
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.build(r.ctx(), "push")
	require.ErrorIs(t, err, portainer.ErrStopped)
}

func TestFrameworkDetachAndAttach(t *testing.T) {
	c := cluster(t, 2)
	stateDir, gate := t.TempDir(), filepath.Join(t.TempDir(), "gate")
	withState := func(cfg *portainer.Config) { cfg.StateDir = stateDir }
	first := start(t, c, withState)
	ids := []portainer.BuildID{"a", "b", "c"}
	var waiting sync.WaitGroup
	for _, id := range ids {
		waiting.Go(func() {
			_, err := first.build(first.ctx(), "tick:"+gate, func(req *portainer.Request) {
				req.ID = id
				req.Source = []byte("FROM scratch\n") // its staging bucket goes with the first framework
			})
			if !errors.Is(err, portainer.ErrDetached) {
				t.Errorf("build %s: %v", id, err)
			}
		})
	}
	for _, id := range ids {
		eventually(t, "output arrives", func() bool { return len(first.log.texts(id)) > 20 })
	}
	first.stop(portainer.ErrDetached)
	waiting.Wait()
	err := <-first.ended
	first.ended <- err
	require.ErrorIs(t, err, portainer.ErrDetached)

	second := start(t, c, withState)
	require.ElementsMatch(t, ids, second.f.Recovered())
	results := make(chan *portainer.Result, len(ids))
	for _, id := range ids {
		waiting.Go(func() {
			result, err := second.f.Attach(second.ctx(), id)
			if err != nil {
				t.Errorf("attach %s: %v", id, err)
			}
			results <- result
		})
	}
	for _, id := range ids {
		eventually(t, "output goes on", func() bool { return len(second.log.texts(id)) > 20 })
	}
	require.NoError(t, os.WriteFile(gate, nil, 0o644))
	waiting.Wait()
	for range ids {
		require.Equal(t, 1, (<-results).Attempts)
	}
	for _, id := range ids {
		for i, line := range append(first.log.texts(id), second.log.texts(id)...) {
			require.Equal(t, fmt.Sprintf("line %d", i), line, "build %s", id)
		}
		require.NoError(t, second.f.Forget(t.Context(), id))
	}
	data, err := os.ReadFile(first.pushes)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"a-1", "b-1", "c-1"}, strings.Fields(string(data)))
}

// TestFrameworkLeavesWhatItCannotReach checks that builds survive a framework that
// found no master to take them over from.
func TestFrameworkLeavesWhatItCannotReach(t *testing.T) {
	c := cluster(t, 1)
	stateDir, gate := t.TempDir(), filepath.Join(t.TempDir(), "gate")
	withState := func(cfg *portainer.Config) { cfg.StateDir = stateDir }
	first := start(t, c, withState)
	detached := make(chan error, 1)
	go func() {
		_, err := first.build(first.ctx(), "wait:"+gate, func(req *portainer.Request) {
			req.ID, req.Source = "a", []byte("FROM scratch\n") // its staging bucket goes with the first framework
		})
		detached <- err
	}()
	eventually(t, "the build runs", func() bool { return first.log.count(portainer.EventRunning) == 1 })
	first.stop(portainer.ErrDetached)
	require.ErrorIs(t, <-detached, portainer.ErrDetached)
	err := <-first.ended
	first.ended <- err
	require.ErrorIs(t, err, portainer.ErrDetached)

	second := start(t, c, func(cfg *portainer.Config) {
		cfg.StateDir, cfg.Master, cfg.ConnectTimeout = stateDir, "127.0.0.1:1", 10*time.Millisecond
	})
	_, err = second.f.Attach(second.ctx(), "a")
	require.True(t, errors.Is(err, portainer.ErrUnreachable) || errors.Is(err, portainer.ErrStopped), "%v", err)
	err = <-second.ended
	second.ended <- err
	require.ErrorIs(t, err, portainer.ErrUnreachable)

	third := start(t, c, withState)
	require.NoError(t, os.WriteFile(gate, nil, 0o644))
	result, err := third.f.Attach(third.ctx(), "a")
	require.NoError(t, err)
	require.Equal(t, 1, result.Attempts)
}

func TestFrameworkSecrets(t *testing.T) {
	c := cluster(t, 1)
	// The first answers are lost.
	lost := c.Interfere(testmesos.Rule{Direction: testmesos.AgentToExecutor, Type: "MESSAGE", Times: 2, Action: testmesos.Drop})
	var asked [][]string
	r := start(t, c, func(cfg *portainer.Config) {
		cfg.StateDir = t.TempDir()
		cfg.Credentials = func(_ context.Context, registries ...string) (map[string]portainer.RegistryAuth, error) {
			asked = append(asked, registries)
			return map[string]portainer.RegistryAuth{"registry.test:5000": {Username: "robot", Password: "hunter2-and-more"}}, nil
		}
	})
	_, err := r.build(r.ctx(), "tell:token", func(req *portainer.Request) {
		req.Source = []byte("FROM base.test/image\nRUN --mount=type=secret,id=token true\n")
		req.Secrets = map[string][]byte{"token": []byte("tell-nobody")}
	})
	require.NoError(t, err)
	require.Equal(t, []string{"user robot, secret tell-nobody, <nil>"}, r.log.texts(""))
	require.Equal(t, []string{"base.test", "registry.test:5000"}, asked[0])
	require.Equal(t, 2, lost.Hits())
}

// TestFrameworkStopsAskingForCredentials checks that Run does not wait for
// credentials that nobody needs any more.
func TestFrameworkStopsAskingForCredentials(t *testing.T) {
	var once sync.Once
	submitted, asked := make(chan struct{}), make(chan struct{})
	r := start(t, cluster(t, 1), func(cfg *portainer.Config) {
		cfg.Credentials = func(ctx context.Context, registries ...string) (map[string]portainer.RegistryAuth, error) {
			select {
			case <-submitted:
				once.Do(func() { close(asked) })
				<-ctx.Done() // a helper that hangs
				return nil, ctx.Err()
			default:
				close(submitted)
				return map[string]portainer.RegistryAuth{registries[0]: {Username: "robot"}}, nil
			}
		}
	})
	built := make(chan error, 1)
	go func() {
		_, err := r.build(r.ctx(), "tell:token")
		built <- err
	}()
	<-asked
	began := time.Now()
	r.stop(nil)
	require.ErrorIs(t, <-built, portainer.ErrStopped)
	err := <-r.ended
	r.ended <- err
	require.Less(t, time.Since(began), patience/2)
}

func TestFrameworkCredentialsFail(t *testing.T) {
	r := start(t, cluster(t, 1), func(cfg *portainer.Config) {
		cfg.Credentials = func(context.Context, ...string) (map[string]portainer.RegistryAuth, error) {
			return nil, errors.New("keychain is locked")
		}
	})
	_, err := r.build(r.ctx(), "push")
	var failure *portainer.BuildError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, portainer.ClassAuth, failure.Class)
	require.ErrorContains(t, err, "credentials for registry.test:5000: keychain is locked")
	require.Zero(t, r.log.count(portainer.EventStaged), "nothing is staged for it")
}
