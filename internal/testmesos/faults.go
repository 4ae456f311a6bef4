package testmesos

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// A Direction says between whom a message goes.
type Direction string

// The directions of messages.
const (
	SchedulerToMaster Direction = "scheduler to master" // calls, such as ACCEPT
	MasterToScheduler Direction = "master to scheduler" // events, such as UPDATE
	ExecutorToAgent   Direction = "executor to agent"   // calls, such as SUBSCRIBE
	AgentToExecutor   Direction = "agent to executor"   // events, such as LAUNCH
	MasterToAgent     Direction = "master to agent"     // RUN_TASK, RUN_TASK_GROUP, KILL, SHUTDOWN_EXECUTOR, SHUTDOWN_FRAMEWORK, ACKNOWLEDGE, MESSAGE, UPDATE_FRAMEWORK, REGISTERED
	AgentToMaster     Direction = "agent to master"     // REGISTER, REREGISTER, STATUS_UPDATE, MESSAGE, EXITED_EXECUTOR
)

// A Message describes a call, an event or a message between master and agent.
// Fields that a message does not have are empty; of several tasks in an ACCEPT
// or in LAUNCH_GROUP only one is named.
type Message struct {
	Direction Direction
	Type      string // as in the protobuf enum, such as "UPDATE"
	Framework string
	Agent     string
	Executor  string
	Task      string
	State     string // of a status update, such as "TASK_RUNNING"
}

// An Action is what happens to a message that a Rule matches.
type Action int

// The actions.
const (
	// Drop loses the message. A call's connection is closed without an answer.
	Drop Action = iota
	// Delay holds the message back for Rule.Delay. Others may overtake it.
	Delay
	// Duplicate delivers the message twice. SUBSCRIBE is delivered once.
	Duplicate
	// LoseAnswer processes a call and closes its connection without an answer:
	// a lost 202, or a lost SUBSCRIBED. For other messages it is Drop.
	LoseAnswer
	// Answer refuses a call with the HTTP status Rule.Status, unprocessed.
	// For other messages it is Drop.
	Answer
	// Cut writes half of an event's record and breaks the connection. For
	// other messages it is Drop.
	Cut
	// Freeze leaves the connection of an event's stream open and writes
	// nothing to it any more, neither this event nor later ones, heartbeats
	// included: a half-open connection. For other messages it is Drop.
	Freeze
)

// A Rule injects a fault. The zero value of a field matches everything.
type Rule struct {
	Direction Direction
	Type      string
	Match     func(Message) bool // further conditions; must not call the Cluster
	Skip      int                // let this many matching messages pass first
	Times     int                // and then hit this many, 0 for all
	Action    Action
	Delay     time.Duration // for Delay
	Status    int           // for Answer, 503 by default
}

// faults applies the rules of a cluster.
type faults struct {
	clock *actor // delivers what was delayed

	mu    sync.Mutex
	rules []*activeRule
}

type activeRule struct {
	Rule
	seen int
	hits int
}

// An Interference is a rule in force.
type Interference struct {
	f *faults
	r *activeRule
}

// Hits returns how many messages the rule has hit.
func (i *Interference) Hits() int {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	return i.r.hits
}

// Stop ends the rule.
func (i *Interference) Stop() {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	i.f.rules = slices.DeleteFunc(i.f.rules, func(r *activeRule) bool { return r == i.r })
}

// Interfere puts a rule into force. The first rule that matches a message
// decides.
func (c *Cluster) Interfere(rule Rule) *Interference {
	r := &activeRule{Rule: rule}
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.faults.rules = append(c.faults.rules, r)
	return &Interference{c.faults, r}
}

// match returns the rule that hits a message, or nil.
func (f *faults) match(msg Message) *Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if r.Direction != "" && r.Direction != msg.Direction || r.Type != "" && r.Type != msg.Type ||
			r.Match != nil && !r.Match(msg) {
			continue
		}
		r.seen++
		if r.seen <= r.Skip || r.Times > 0 && r.hits >= r.Times {
			continue
		}
		r.hits++
		return &r.Rule
	}
	return nil
}

// call lets a call pass to handle, or not.
func (f *faults) call(w http.ResponseWriter, r *http.Request, msg Message, handle func(http.ResponseWriter)) {
	rule := f.match(msg)
	if rule == nil {
		handle(w)
		return
	}
	switch rule.Action {
	case Delay:
		select {
		case <-time.After(rule.Delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-serverDone(r):
			panic(http.ErrAbortHandler)
		}
		handle(w)
	case Duplicate:
		if msg.Type != "SUBSCRIBE" {
			handle(&blindWriter{header: http.Header{}})
		}
		handle(w)
	case LoseAnswer:
		handle(&blindWriter{header: http.Header{}, abort: true})
		panic(http.ErrAbortHandler)
	case Answer:
		status := rule.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		(&reply{status: status, text: http.StatusText(status)}).write(w)
	default:
		panic(http.ErrAbortHandler)
	}
}

// A blindWriter takes a response that nobody gets.
type blindWriter struct {
	header http.Header
	abort  bool // end the handler at the first byte of the body
}

func (w *blindWriter) Header() http.Header { return w.header }

func (w *blindWriter) WriteHeader(int) {}

func (w *blindWriter) Flush() {}

func (w *blindWriter) Write(b []byte) (int, error) {
	if w.abort {
		panic(http.ErrAbortHandler)
	}
	return len(b), nil
}

// stream puts an event on a stream, or not.
func (f *faults) stream(s *stream, msg Message, data []byte) {
	rule := f.match(msg)
	if rule == nil {
		s.put(record{data: data})
		return
	}
	switch rule.Action {
	case Delay:
		f.clock.after(rule.Delay, func() { s.put(record{data: data}) })
	case Duplicate:
		s.put(record{data: data})
		s.put(record{data: data})
	case Cut:
		s.put(record{data: data, cut: true})
	case Freeze:
		s.freeze()
	}
}

// event sends an event of the scheduler API.
func (f *faults) event(s *stream, msg Message, e *scheduler.Event) { f.stream(s, msg, s.encode(e)) }

func schedulerMessage(fw *framework, e *scheduler.Event) Message {
	msg := Message{Direction: MasterToScheduler, Type: eventType(e), Framework: fw.id}
	switch {
	case e.Update != nil:
		s := &e.Update.Status
		msg.Task, msg.Agent, msg.Executor = s.TaskID.Value, s.GetAgentID().GetValue(), s.GetExecutorID().GetValue()
		msg.State = s.GetState().String()
	case e.Failure != nil:
		msg.Agent, msg.Executor = e.Failure.GetAgentID().GetValue(), e.Failure.GetExecutorID().GetValue()
	case e.Message != nil:
		msg.Agent, msg.Executor = e.Message.AgentID.Value, e.Message.ExecutorID.Value
	}
	return msg
}

// executorEvent sends an event of the executor API.
func (f *faults) executorEvent(a *Agent, x *agentExecutor, e *executor.Event) {
	f.executorStream(a, x, x.sink, e)
}

func (f *faults) executorStream(a *Agent, x *agentExecutor, to sink, e *executor.Event) {
	h, ok := to.(httpSink)
	if !ok {
		to.deliver(e) // an executor in this process has no connection that could fail
		return
	}
	msg := Message{Direction: AgentToExecutor, Type: executor.Event_Type_name[int32(e.Type)],
		Framework: x.framework.id, Executor: x.id, Agent: a.ID()}
	switch {
	case e.Launch != nil:
		msg.Task = e.Launch.Task.TaskID.Value
	case e.Kill != nil:
		msg.Task = e.Kill.TaskID.Value
	case e.Acknowledged != nil:
		msg.Task = e.Acknowledged.TaskID.Value
	}
	f.stream(h.s, msg, h.s.encode(e))
}

// internal delivers a message between a master and an agent, or not.
func (f *faults) internal(a *Agent, msg Message, deliver func()) {
	if a.partitioned.Load() {
		return
	}
	rule := f.match(msg)
	if rule == nil {
		deliver()
		return
	}
	switch rule.Action {
	case Delay:
		f.clock.after(rule.Delay, deliver)
	case Duplicate:
		deliver()
		deliver()
	}
}
