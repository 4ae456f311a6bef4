package testmesos

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// An Agent is a Mesos agent of a Cluster. Its exported methods may be called
// from any goroutine.
type Agent struct {
	*actor
	c       *Cluster
	index   int
	cfg     AgentConfig
	log     *slog.Logger
	server  *server
	workDir string
	total   resources
	attrs   []mesos.Attribute
	files   files
	ready   chan struct{} // closed when the agent has registered for the first time

	// What follows belongs to the actor.
	state      agentState
	master     *master // the leader this agent talks to
	registered bool
	info       *mesos.AgentInfo
	frameworks map[string]*agentFramework
	updates    map[taskKey]*updateQueue
	drain      *drain
	retry      *timer   // of the registration
	recovery   *timer   // ends agentRecovering
	held       []func() // what happened in containers while the agent was down

	partitioned atomic.Bool // no message passes between agent and master

	idMu sync.Mutex
	id   string
}

// agentState tells whether the agent's process is up.
type agentState int

const (
	agentRunning    agentState = iota
	agentDown                  // the process is not there: nothing is answered
	agentRecovering            // executors may subscribe again, all else is refused
)

// An agentFramework is what an agent knows of a framework.
type agentFramework struct {
	id          string
	info        *mesos.FrameworkInfo
	caps        capabilities
	terminating bool
	executors   map[string]*agentExecutor
}

type executorState int

const (
	executorRegistering executorState = iota
	executorRunning
	executorTerminating
	executorTerminated
)

// A sink takes the events for an executor: an HTTP stream, or a function for
// executors that live in this process.
type sink interface {
	deliver(*executor.Event)
	close()
}

// An agentExecutor is one run of an executor.
type agentExecutor struct {
	framework *agentFramework
	id        string
	info      *mesos.ExecutorInfo
	container string
	command   bool // generated for a task with only a CommandInfo
	state     executorState
	sink      sink
	launched  map[string]*agentTask
	queued    []*queuedTasks
	ended     map[string]*agentTask // terminal, not acknowledged by the scheduler
	met       bool                  // the executor has subscribed, be it long ago
	spoke     bool                  // the executor has reported on a task
	pending   *termination
	proc      *container
	dir       string
	register  *timer
	grace     *timer
	beat      *timer
}

// queuedTasks wait for their executor; a group is launched as one.
type queuedTasks struct {
	tasks []*mesos.TaskInfo
	group bool
}

// An agentTask is a task that its executor has got.
type agentTask struct {
	info   *mesos.TaskInfo
	state  mesos.TaskState
	status *mesos.TaskStatus
}

// A termination says why the agent ended a container.
type termination struct {
	state   mesos.TaskState // 0 says nothing of state and reason
	reason  mesos.TaskStatus_Reason
	message string
	limited []mesos.Resource // what the container used too much of
}

type taskKey struct{ framework, task string }

func newAgent(c *Cluster, index int, cfg AgentConfig) (*Agent, error) {
	a := &Agent{
		actor:      newActor(&c.workers),
		c:          c,
		index:      index,
		cfg:        cfg,
		workDir:    filepath.Join(c.workDir, fmt.Sprintf("agent-%d", index)),
		frameworks: map[string]*agentFramework{},
		updates:    map[taskKey]*updateQueue{},
		ready:      make(chan struct{}),
	}
	var err error
	if a.total, err = parseResources(cfg.Resources); err != nil {
		return nil, fmt.Errorf("agent %d: %w", index, err)
	}
	if a.attrs, err = parseAttributes(cfg.Attributes); err != nil {
		return nil, fmt.Errorf("agent %d: %w", index, err)
	}
	a.log = c.cfg.Logger.With("agent", index)
	return a, nil
}

// ID returns the id that the master gave to the agent, "" before it registered.
func (a *Agent) ID() string {
	a.idMu.Lock()
	defer a.idMu.Unlock()
	return a.id
}

// URL returns the base URL of the agent's HTTP endpoints.
func (a *Agent) URL() string { return a.server.url() }

// WorkDir returns the agent's work directory; sandboxes are below it at
// slaves/<agent>/frameworks/<framework>/executors/<executor>/runs/<container>.
func (a *Agent) WorkDir() string { return a.workDir }

// Hostname returns the host name that offers show.
func (a *Agent) Hostname() string { return a.cfg.Hostname }

// fromMaster runs a message of a master, unless the agent follows another one
// or is not up.
func (a *Agent) fromMaster(m *master, f func(*Agent)) {
	if a.master != m || a.state == agentDown {
		return
	}
	f(a)
}

// tell sends a message to the leading master. It is lost if there is none, or
// if the agent is not registered with it.
func (a *Agent) tell(msg Message, f func(m *master)) {
	if a.registered && a.state == agentRunning {
		a.tellAnyway(msg, f)
	}
}

func (a *Agent) tellAnyway(msg Message, f func(m *master)) {
	m := a.master
	if m == nil {
		return
	}
	msg.Direction, msg.Agent = AgentToMaster, a.ID()
	a.c.faults.internal(a, msg, func() { m.post(func() { f(m) }) })
}

// follow makes the agent register with a new leader, or with none.
func (a *Agent) follow(m *master) {
	a.master, a.registered = m, false
	a.signUp()
}

// registerBackoff is how long an agent waits for an answer to its
// registration before it tries again.
const registerBackoff = time.Second

// signUp registers for the first time, or again with all that runs here.
func (a *Agent) signUp() {
	a.retry.stop()
	if a.master == nil || a.state != agentRunning {
		return
	}
	if a.ID() == "" {
		a.tellAnyway(Message{Type: "REGISTER"}, func(m *master) { m.onRegister(a) })
	} else {
		report := a.report()
		a.tellAnyway(Message{Type: "REREGISTER"}, func(m *master) { m.onReregister(a, report) })
	}
	a.retry = a.after(registerBackoff, func() {
		if !a.registered {
			a.signUp()
		}
	})
}

// onRegistered takes the answer to either registration. The master names tasks
// that it knows and the agent did not report.
func (a *Agent) onRegistered(id string, missing []missingTask) {
	a.retry.stop()
	a.registered = true
	if a.info == nil {
		a.idMu.Lock()
		a.id = id
		a.idMu.Unlock()
		a.info = a.describe(id)
		a.log = a.c.cfg.Logger.With("agent", id)
		close(a.ready)
	}
	// What the scheduler has not acknowledged is sent again at once.
	for _, q := range a.updates {
		a.resend(q)
	}
	for _, t := range missing {
		if f := a.frameworks[t.framework]; f != nil && f.executorOf(t.task) != nil {
			continue
		}
		s := agentStatus(t.task, "", t.caps.or(mesos.TASK_DROPPED), mesos.REASON_RECONCILIATION, "Reconciliation: task unknown to the agent")
		s.AgentID = &mesos.AgentID{Value: a.ID()}
		a.enqueue(t.framework, s)
	}
}

// A missingTask is one that the master knows and an agent did not report.
type missingTask struct {
	framework, task string
	caps            capabilities
}

// describe makes the AgentInfo.
func (a *Agent) describe(id string) *mesos.AgentInfo {
	info := &mesos.AgentInfo{
		Hostname:   a.cfg.Hostname,
		Port:       new(int32(a.server.address.port)),
		Resources:  a.total.proto(),
		Attributes: a.attrs,
	}
	if id != "" {
		info.ID = &mesos.AgentID{Value: id}
	}
	return info
}

// A report is what an agent tells when it registers again.
type report struct {
	id         string
	frameworks map[string]*mesos.FrameworkInfo
	executors  []*mesos.ExecutorInfo
	tasks      []reportedTask
}

type reportedTask struct {
	framework, executor string
	info                *mesos.TaskInfo
	state               mesos.TaskState
	status              *mesos.TaskStatus
	sent                *mesos.TaskStatus // the update that awaits an acknowledgement
}

func (a *Agent) report() *report {
	r := &report{id: a.ID(), frameworks: map[string]*mesos.FrameworkInfo{}}
	for _, f := range a.frameworks {
		if f.terminating {
			continue
		}
		r.frameworks[f.id] = f.info
		for _, x := range f.executors {
			if x.state != executorTerminated && !x.command {
				r.executors = append(r.executors, x.info)
			}
			add := func(info *mesos.TaskInfo, state mesos.TaskState, status *mesos.TaskStatus) {
				t := reportedTask{framework: f.id, executor: x.id, info: info, state: state, status: status}
				if x.command {
					t.executor = ""
				}
				if q := a.updates[taskKey{f.id, info.TaskID.Value}]; q != nil && len(q.pending) > 0 {
					t.sent = q.pending[0]
				}
				r.tasks = append(r.tasks, t)
			}
			for _, q := range x.queued {
				for _, info := range q.tasks {
					add(info, mesos.TASK_STAGING, nil)
				}
			}
			for _, t := range x.launched {
				add(t.info, t.state, t.status)
			}
			for _, t := range x.ended {
				add(t.info, t.state, t.status)
			}
		}
	}
	return r
}
