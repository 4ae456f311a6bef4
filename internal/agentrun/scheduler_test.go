package agentrun_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

// A rig is a cluster with a scheduler that launches what a test gives it.
type rig struct {
	t       testing.TB
	cluster *testmesos.Cluster
	files   *schedapi.Files
	client  *schedapi.Client
	command string
	env     map[string]string // of the executor
	asked   func(ask seal.Ask, agent mesos.AgentID, executor mesos.ExecutorID)

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced at each event
	framework string
	agentID   mesos.AgentID
	waiting   []*mesos.TaskInfo
	updates   []mesos.TaskStatus
	hints     []wire.Hint
	exits     map[string]syscall.WaitStatus // of executors that have ended
}

func newRig(t testing.TB, cfg testmesos.Config, checkpoint bool) *rig {
	t.Helper()
	return newRigOver(t, cfg, checkpoint, nil)
}

// newRigOver is newRig with a scheduler that speaks TLS.
func newRigOver(t testing.TB, cfg testmesos.Config, checkpoint bool, client *tls.Config) *rig {
	t.Helper()
	if cfg.Agents == nil {
		cfg.Agents = []testmesos.AgentConfig{{}}
	}
	cfg.AllocationInterval = 20 * time.Millisecond
	cfg.StatusUpdateRetryMin = time.Second
	cluster, err := testmesos.Start(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	self, err := os.Executable()
	require.NoError(t, err)
	r := &rig{t: t, cluster: cluster, command: "exec " + self, env: map[string]string{executorVariable: "1"}, changed: make(chan struct{}), exits: map[string]syscall.WaitStatus{}}
	masters, err := master.Parse(cluster.Master())
	require.NoError(t, err)
	timeout := 3600.0
	r.client, err = schedapi.New(schedapi.Config{
		Masters: masters,
		Framework: &mesos.FrameworkInfo{
			User: "root", Name: "test", Roles: []string{"test"}, FailoverTimeout: &timeout, Checkpoint: &checkpoint,
			Capabilities: []mesos.FrameworkInfo_Capability{
				{Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE},
				{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE},
				{Type: mesos.FrameworkInfo_Capability_TASK_KILLING_STATE},
				{Type: mesos.FrameworkInfo_Capability_RESERVATION_REFINEMENT},
			},
		},
		TLS: client,
	})
	require.NoError(t, err)
	r.files = schedapi.NewFiles(schedapi.FilesConfig{TLS: client})
	t.Cleanup(r.files.Close)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.client.Run(ctx, r.handle) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.NoError(t, masters.Close())
	})
	return r
}

func (r *rig) handle(event schedapi.Event) {
	if event.Event == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch event.Type {
	case scheduler.Event_SUBSCRIBED:
		r.framework = event.Subscribed.FrameworkID.GetValue()
	case scheduler.Event_OFFERS:
		for i := range event.Offers.Offers {
			r.use(&event.Offers.Offers[i])
		}
	case scheduler.Event_UPDATE:
		status := event.Update.Status
		r.updates = append(r.updates, status)
		if len(status.UUID) > 0 {
			r.client.Send(&scheduler.Call{Type: scheduler.Call_ACKNOWLEDGE, Acknowledge: &scheduler.Call_Acknowledge{
				AgentID: *status.AgentID, TaskID: status.TaskID, UUID: status.UUID,
			}})
		}
		if ask, err := seal.DecodeAsk(status.Data); err == nil {
			r.asked(ask, *status.AgentID, *status.ExecutorID)
		}
	case scheduler.Event_MESSAGE:
		if ask, err := seal.DecodeAsk(event.Message.Data); err == nil {
			r.asked(ask, event.Message.AgentID, event.Message.ExecutorID)
		}
		if ask, err := wire.DecodePushAsk(event.Message.Data); err == nil {
			grant := wire.PushGrant{Serial: ask.Serial, Lease: time.Minute}
			r.client.Send(calls.Message(event.Message.AgentID.Value, event.Message.ExecutorID.Value, grant.Encode()))
		}
		if hint, err := wire.DecodeHint(event.Message.Data); err == nil {
			r.hints = append(r.hints, *hint)
		}
	case scheduler.Event_FAILURE:
		if id := event.Failure.GetExecutorID(); id != nil {
			r.exits[id.Value] = syscall.WaitStatus(event.Failure.GetStatus())
		}
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// use launches what waits on an offer. The caller holds mu.
func (r *rig) use(offer *mesos.Offer) {
	refuse := 0.0
	filters := &mesos.Filters{RefuseSeconds: &refuse}
	r.agentID = offer.AgentID
	accept := &scheduler.Call_Accept{OfferIDs: []mesos.OfferID{offer.ID}, Filters: filters}
	for _, task := range r.waiting {
		task.AgentID = offer.AgentID
		task.Executor.FrameworkID = &mesos.FrameworkID{Value: r.framework}
		accept.Operations = append(accept.Operations, mesos.Offer_Operation{
			Type: mesos.Offer_Operation_LAUNCH, Launch: &mesos.Offer_Operation_Launch{TaskInfos: []mesos.TaskInfo{*task}},
		})
	}
	r.waiting = nil
	if len(accept.Operations) == 0 {
		r.client.Send(&scheduler.Call{Type: scheduler.Call_DECLINE, Decline: &scheduler.Call_Decline{OfferIDs: accept.OfferIDs, Filters: filters}})
		return
	}
	r.client.Send(&scheduler.Call{Type: scheduler.Call_ACCEPT, Accept: accept})
}

func scalars(cpus, mem float64) []mesos.Resource {
	kind := mesos.SCALAR
	role := "test"
	resource := func(name string, value float64) mesos.Resource {
		return mesos.Resource{Name: name, Type: &kind, Scalar: &mesos.Value_Scalar{Value: value}, AllocationInfo: &mesos.Resource_AllocationInfo{Role: &role}}
	}
	return []mesos.Resource{resource("cpus", cpus), resource("mem", mem)}
}

// build is a task that builds by the given script.
func build(script string) *wire.Task {
	return &wire.Task{
		Build: "b", Attempt: 1, Registry: "registry:5000", Repository: "team/app", Tags: []string{"v1"},
		Dockerfile: []byte(script), Name: "Dockerfile", CPUs: 0.5, MemMB: 64,
	}
}

// launch launches a task in an executor of the given ID with the next offer.
func (r *rig) launch(id, executor string, data []byte) {
	r.t.Helper()
	env := &mesos.Environment{}
	for name, value := range r.env {
		env.Variables = append(env.Variables, mesos.Environment_Variable{Name: name, Value: &value})
	}
	kind := mesos.ExecutorInfo_CUSTOM
	task := &mesos.TaskInfo{
		Name: id, TaskID: mesos.TaskID{Value: id}, Resources: scalars(0.5, 64), Data: data,
		Executor: &mesos.ExecutorInfo{
			Type: kind, ExecutorID: mesos.ExecutorID{Value: executor}, Resources: scalars(0.1, 64),
			Command: &mesos.CommandInfo{Value: &r.command, Environment: env},
		},
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, task)
}

func (r *rig) launchBuild(id string, task *wire.Task) {
	r.t.Helper()
	data, err := task.Encode()
	require.NoError(r.t, err)
	r.launch(id, id, data)
}

// wait waits until ok, which is called with the rig locked.
func (r *rig) wait(what string, ok func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	for {
		r.mu.Lock()
		done, changed := ok(), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.mu.Lock()
			defer r.mu.Unlock()
			require.Fail(r.t, "waited in vain for "+what, "updates: %v\nstderr: %s", r.states(""), r.sandboxFile("", "stderr"))
		}
	}
}

// states are the states that a task has reported, repetitions left out.
func (r *rig) states(id string) []string {
	var states []string
	seen := map[string]bool{}
	for _, u := range r.updates {
		if (id == "" || u.TaskID.Value == id) && (len(u.UUID) == 0 || !seen[string(u.UUID)]) {
			seen[string(u.UUID)] = true
			states = append(states, strings.TrimPrefix(u.GetState().String(), "TASK_"))
		}
	}
	return states
}

// waitFor waits until a task has reported a state.
func (r *rig) waitFor(id string, state mesos.TaskState) mesos.TaskStatus {
	r.t.Helper()
	var found mesos.TaskStatus
	r.wait(fmt.Sprintf("%s of %s", state, id), func() bool {
		for _, u := range r.updates {
			if u.TaskID.Value == id && u.GetState() == state {
				found = u
				return true
			}
		}
		return false
	})
	return found
}

// outcome waits for a state and returns what came with it.
func (r *rig) outcome(id string, state mesos.TaskState) *wire.Outcome {
	r.t.Helper()
	status := r.waitFor(id, state)
	o, err := wire.DecodeOutcome(status.Data)
	require.NoError(r.t, err)
	return o
}

func (r *rig) kill(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client.Send(&scheduler.Call{Type: scheduler.Call_KILL, Kill: &scheduler.Call_Kill{TaskID: mesos.TaskID{Value: id}, AgentID: &r.agentID}})
}

func (r *rig) shutdown(executor string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client.Send(&scheduler.Call{Type: scheduler.Call_SHUTDOWN, Shutdown: &scheduler.Call_Shutdown{
		ExecutorID: mesos.ExecutorID{Value: executor}, AgentID: r.agentID,
	}})
}

// gone waits until the process of an executor has ended.
func (r *rig) gone(executor string) {
	r.t.Helper()
	r.wait("the end of "+executor, func() bool { _, ended := r.exits[executor]; return ended })
}

// status tells how the process of an executor that is gone ended.
func (r *rig) status(executor string) syscall.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exits[executor]
}

// log reads the frames of a task's log as the framework does, up to size.
func (r *rig) log(executor string, size int64) []wire.Frame {
	r.t.Helper()
	var data []byte
	for int64(len(data)) < size {
		page, _, err := r.files.ReadFile(r.t.Context(), r.cluster.Agents()[0].URL(),
			"/frameworks/"+r.framework+"/executors/"+executor+"/runs/latest/"+wire.LogFile, int64(len(data)), schedapi.MaxRead)
		require.NoError(r.t, err)
		require.NotEmpty(r.t, page)
		data = append(data, page...)
	}
	require.Len(r.t, data, int(size), "the log goes on behind its end")
	var frames []wire.Frame
	for len(data) > 0 {
		f, n, err := wire.DecodeFrame(data)
		require.NoError(r.t, err)
		require.NotZero(r.t, n)
		frames = append(frames, f)
		data = data[n:]
	}
	return frames
}

// said are the lines of the build's output.
func said(frames []wire.Frame) []string {
	var lines []string
	for _, f := range frames {
		if f.Kind == wire.FrameOut {
			lines = append(lines, string(f.Data))
		}
	}
	return lines
}

// sandbox is the sandbox directory of an executor; "" means of any.
func (r *rig) sandbox(executor string) string {
	for _, e := range r.cluster.Agents()[0].Executors() {
		if executor == "" || e.ID == executor {
			return e.Sandbox
		}
	}
	return ""
}

func (r *rig) sandboxFile(executor, name string) string {
	data, err := os.ReadFile(r.sandbox(executor) + "/" + name)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
