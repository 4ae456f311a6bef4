package testmesos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// version is the release of Mesos that is imitated.
const version = "1.12.0"

// A Master is one of a Cluster's masters. It keeps its address through
// restarts, each of which gives it a new id and an empty memory. Its methods
// may be called from any goroutine.
type Master struct {
	c      *Cluster
	index  int
	server *server

	mu  sync.Mutex
	cur *master // nil while it is down
}

// URL returns the base URL.
func (h *Master) URL() string { return h.server.url() }

// ID returns the id of the master's present life, "" while it is down.
func (h *Master) ID() string {
	if m := h.current(); m != nil {
		return m.id
	}
	return ""
}

// Info returns the master's MasterInfo in JSON, as Mesos stores it in the
// ZooKeeper nodes json.info_NNNNNNNNNN; nil while it is down.
func (h *Master) Info() []byte {
	m := h.current()
	if m == nil {
		return nil
	}
	return appendJSON(nil, m.info())
}

// Leading tells whether this master is the leader.
func (h *Master) Leading() bool { return h.c.leader() == h && h.current() != nil }

func (h *Master) current() *master {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cur
}

// ServeHTTP serves the HTTP endpoints of the master.
func (h *Master) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := h.current()
	if m == nil {
		panic(http.ErrAbortHandler)
	}
	path := r.URL.Path
	if path == "/master" {
		path = "/"
	}
	path = strings.TrimPrefix(path, "/master/")
	switch strings.TrimPrefix(path, "/") {
	case "api/v1/scheduler":
		m.serveScheduler(w, r)
	case "redirect":
		h.redirect(r).write(w)
	case "state", "state.json":
		if refusal := h.elsewhere(r); refusal != nil {
			refusal.write(w)
			return
		}
		m.serveState(w)
	case "teardown":
		if refusal := h.elsewhere(r); refusal != nil {
			refusal.write(w)
			return
		}
		m.serveTeardown(w, r)
	case "health":
		(&reply{status: http.StatusOK}).write(w)
	case "version":
		body, _ := json.Marshal(map[string]string{"version": version})
		writeJSON(w, body)
	case "":
		if refusal := h.elsewhere(r); refusal != nil {
			refusal.write(w)
			return
		}
		m.servePage(w)
	default:
		(&reply{status: http.StatusNotFound}).write(w)
	}
}

// elsewhere sends a request to the leader unless this master is it.
func (h *Master) elsewhere(r *http.Request) *reply {
	if h.c.leader() == h {
		return nil
	}
	return h.redirect(r)
}

// redirect points to the leader. The leader may be dead: nobody knows until
// another one is elected.
func (h *Master) redirect(r *http.Request) *reply {
	leader := h.c.leader()
	if leader == nil {
		return unavailable("No leader elected")
	}
	base := "//" + leader.server.address.String()
	switch path := r.URL.Path; {
	case path == "/redirect" || path == "/master/redirect":
	case strings.HasPrefix(path, "/master/"):
		base += r.URL.RequestURI()
	default:
		base += "/master" + r.URL.RequestURI()
	}
	return &reply{status: http.StatusTemporaryRedirect, header: map[string]string{"Location": base}}
}

// serveScheduler answers the scheduler API. The order of the checks is that of
// mesos src/master/http.cpp, Master::Http::scheduler.
func (m *master) serveScheduler(w http.ResponseWriter, r *http.Request) {
	principal, refusal := authenticate(r, m.c.cfg.Credentials, "mesos-master-scheduler")
	if refusal != nil {
		refusal.write(w)
		return
	}
	if refusal := m.handle.elsewhere(r); refusal != nil {
		refusal.write(w)
		return
	}
	call := &scheduler.Call{}
	typed, refusal := schedulerAPI.readCall(r, call)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if err := validateCall(call, typed, principal); err != nil {
		badRequest("Failed to validate scheduler::Call: %v", err).write(w)
		return
	}
	msg := callMessage(call)
	m.c.faults.call(w, r, msg, func(w http.ResponseWriter) {
		if call.Type == scheduler.Call_SUBSCRIBE {
			m.serveSubscribe(w, r, call, principal, msg)
			return
		}
		if call.Type == scheduler.Call_RECONCILE_OPERATIONS {
			if _, refusal := schedulerAPI.accept(r); refusal != nil {
				refusal.write(w)
				return
			}
		}
		var answer *reply
		if !m.call(func() { answer = m.handleCall(call, principal, r.Header.Get("Mesos-Stream-Id")) }) {
			panic(http.ErrAbortHandler)
		}
		answer.write(w)
	})
}

// serveSubscribe opens an event stream.
func (m *master) serveSubscribe(w http.ResponseWriter, r *http.Request, call *scheduler.Call, principal string, msg Message) {
	contentType, refusal := schedulerAPI.accept(r)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if _, ok := r.Header["Mesos-Stream-Id"]; ok {
		badRequest("Subscribe calls should not include the 'Mesos-Stream-Id' header").write(w)
		return
	}
	if info := call.Subscribe.FrameworkInfo; principal != "" && info.Principal == nil {
		info.Principal = new(principal)
	}
	s := newStream(contentType)
	streamID := uuidString(newUUID())
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Mesos-Stream-Id", streamID)
	if !m.post(func() { m.subscribe(call, s, streamID) }) {
		panic(http.ErrAbortHandler)
	}
	defer m.post(func() { m.streamEnded(s) })
	s.serve(w, r, m.done)
}

// handleCall handles any other call, in the master's turn.
func (m *master) handleCall(call *scheduler.Call, principal, streamID string) *reply {
	f := m.frameworks[call.FrameworkID.Value]
	switch {
	case f == nil:
		return badRequest("Framework cannot be found")
	case principal != "" && principal != f.info.GetPrincipal():
		return badRequest("Authenticated principal '%s' does not match principal '%s' set in `FrameworkInfo`", principal, f.info.GetPrincipal())
	case f.stream == nil:
		return forbidden("Framework is not subscribed")
	case streamID == "":
		return badRequest("All non-subscribe calls should include the 'Mesos-Stream-Id' header")
	case streamID != f.streamID:
		return badRequest("The stream ID '%s' included in this request didn't match the stream ID currently associated with framework ID %s",
			streamID, f.id)
	}
	switch call.Type {
	case scheduler.Call_TEARDOWN:
		m.removeFramework(f)
	case scheduler.Call_ACCEPT:
		m.accept(f, call.Accept)
	case scheduler.Call_DECLINE:
		m.decline(f, call.Decline.OfferIDs, call.Decline.Filters)
	case scheduler.Call_REVIVE:
		m.revive(f, call.GetRevive().GetRoles())
	case scheduler.Call_SUPPRESS:
		m.suppress(f, call.GetSuppress().GetRoles())
	case scheduler.Call_KILL:
		m.kill(f, call.Kill)
	case scheduler.Call_SHUTDOWN:
		m.shutdown(f, call.Shutdown)
	case scheduler.Call_ACKNOWLEDGE:
		m.acknowledge(f, call.Acknowledge)
	case scheduler.Call_RECONCILE:
		m.reconcile(f, call.Reconcile.Tasks)
	case scheduler.Call_MESSAGE:
		m.message(f, call.Message)
	case scheduler.Call_UPDATE_FRAMEWORK:
		return m.updateFramework(f, call.UpdateFramework)
	case scheduler.Call_ACCEPT_INVERSE_OFFERS:
		m.answerInverse(f, call.AcceptInverseOffers.InverseOfferIDs, call.AcceptInverseOffers.Filters, true)
	case scheduler.Call_DECLINE_INVERSE_OFFERS:
		m.answerInverse(f, call.DeclineInverseOffers.InverseOfferIDs, call.DeclineInverseOffers.Filters, false)
	case scheduler.Call_REQUEST, scheduler.Call_ACKNOWLEDGE_OPERATION_STATUS, scheduler.Call_RECONCILE_OPERATIONS:
		// The default allocator ignores REQUEST; operation feedback has no effect
		// here.
	default:
		return &reply{status: http.StatusNotImplemented}
	}
	return accepted()
}

// serveTeardown answers the operator endpoint POST /teardown.
func (m *master) serveTeardown(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		methodNotAllowed(r.Method).write(w)
		return
	}
	id := r.PostFormValue("frameworkId")
	if id == "" {
		badRequest("Missing 'frameworkId' query parameter in the request body").write(w)
		return
	}
	found := false
	ok := m.call(func() {
		if f := m.frameworks[id]; f != nil {
			found = true
			m.removeFramework(f)
		}
	})
	switch {
	case !ok:
		panic(http.ErrAbortHandler)
	case !found:
		badRequest("No framework found with specified ID").write(w)
	default:
		(&reply{status: http.StatusOK}).write(w)
	}
}

// callMessage describes a call to fault rules.
func callMessage(call *scheduler.Call) Message {
	msg := Message{Direction: SchedulerToMaster, Type: scheduler.Call_Type_name[int32(call.Type)], Framework: call.FrameworkID.GetValue()}
	switch {
	case call.Kill != nil:
		msg.Task = call.Kill.TaskID.Value
	case call.Acknowledge != nil:
		msg.Task, msg.Agent = call.Acknowledge.TaskID.Value, call.Acknowledge.AgentID.Value
	case call.Message != nil:
		msg.Executor, msg.Agent = call.Message.ExecutorID.Value, call.Message.AgentID.Value
	case call.Shutdown != nil:
		msg.Executor, msg.Agent = call.Shutdown.ExecutorID.Value, call.Shutdown.AgentID.Value
	case call.Accept != nil:
		for i := range call.Accept.Operations {
			for _, t := range operationTasks(&call.Accept.Operations[i]) {
				msg.Task, msg.Agent = t.TaskID.Value, t.AgentID.Value
			}
		}
	}
	return msg
}

// String names the master in logs.
func (h *Master) String() string { return fmt.Sprintf("master %d", h.index) }
