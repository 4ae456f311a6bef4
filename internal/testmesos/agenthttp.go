package testmesos

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/agent"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// ServeHTTP serves the HTTP endpoints of the agent.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	for _, prefix := range []string{"/slave(1)/", "/slave/"} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			path = "/" + rest
			break
		}
	}
	switch path {
	case "/api/v1/executor":
		a.serveExecutor(w, r)
		return
	case "/health":
		(&reply{status: http.StatusOK}).write(w)
		return
	case "/version":
		body, _ := json.Marshal(map[string]string{"version": version})
		writeJSON(w, body)
		return
	}
	// What an operator or a scheduler may ask.
	realm := "mesos-agent-readonly"
	if path == "/api/v1" {
		realm = "mesos-agent-readwrite"
	}
	if _, refusal := authenticate(r, a.c.cfg.AgentCredentials, realm); refusal != nil {
		refusal.write(w)
		return
	}
	if strings.HasPrefix(path, "/files/") && a.refuseFile(w) {
		return
	}
	switch strings.TrimSuffix(path, ".json") {
	case "/api/v1":
		a.serveOperator(w, r)
	case "/files/read":
		a.files.serveRead(w, r.URL.Query())
	case "/files/browse":
		a.files.serveBrowse(w, r.URL.Query())
	case "/files/download":
		a.files.serveDownload(w, r)
	case "/files/debug":
		a.files.serveDebug(w)
	case "/state":
		a.serveState(w)
	default:
		(&reply{status: http.StatusNotFound}).write(w)
	}
}

// serveOperator answers the agent's operator API as far as it has to do with
// files and health.
func (a *Agent) serveOperator(w http.ResponseWriter, r *http.Request) {
	call := &agent.Call{}
	typed, refusal := agentAPI.readCall(r, call)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if err := validateAgentCall(call, typed); err != nil {
		badRequest("Failed to validate agent::Call: %v", err).write(w)
		return
	}
	contentType, refusal := agentAPI.accept(r)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if (call.ReadFile != nil || call.ListFiles != nil) && a.refuseFile(w) {
		return
	}
	switch call.Type {
	case agent.Call_GET_HEALTH:
		writeMessage(w, contentType, &agent.Response{Type: agent.Response_GET_HEALTH, GetHealth: &agent.Response_GetHealth{Healthy: true}})
	case agent.Call_GET_VERSION:
		writeMessage(w, contentType, &agent.Response{Type: agent.Response_GET_VERSION, GetVersion: &agent.Response_GetVersion{
			VersionInfo: mesos.VersionInfo{Version: version},
		}})
	case agent.Call_GET_AGENT:
		var info *mesos.AgentInfo
		a.call(func() { info = a.info })
		writeMessage(w, contentType, &agent.Response{Type: agent.Response_GET_AGENT, GetAgent: &agent.Response_GetAgent{AgentInfo: info}})
	case agent.Call_READ_FILE:
		length := int64(-1)
		if call.ReadFile.Length != nil {
			length = int64(*call.ReadFile.Length)
		}
		size, data, err := a.files.read(call.ReadFile.Path, int64(call.ReadFile.Offset), length)
		if err != nil {
			failure(err).write(w)
			return
		}
		writeMessage(w, contentType, &agent.Response{Type: agent.Response_READ_FILE, ReadFile: &agent.Response_ReadFile{
			Size_: uint64(size), Data: data,
		}})
	case agent.Call_LIST_FILES:
		infos, err := a.files.list(call.ListFiles.Path)
		if err != nil {
			failure(err).write(w)
			return
		}
		writeMessage(w, contentType, &agent.Response{Type: agent.Response_LIST_FILES, ListFiles: &agent.Response_ListFiles{FileInfos: infos}})
	default:
		(&reply{status: http.StatusNotImplemented}).write(w)
	}
}

// refuseFile tells whether a request for a file was refused, see RefuseFiles.
func (a *Agent) refuseFile(w http.ResponseWriter) bool {
	refusal := a.files.refused()
	if refusal == nil {
		return false
	}
	if refusal.status < 0 {
		panic(http.ErrAbortHandler)
	}
	refusal.write(w)
	return true
}

func validateAgentCall(call *agent.Call, typed bool) error {
	switch {
	case !typed:
		return says("Expecting 'type' to be present")
	case call.Type == agent.Call_READ_FILE && call.ReadFile == nil:
		return says("Expecting 'read_file' to be present")
	case call.Type == agent.Call_LIST_FILES && call.ListFiles == nil:
		return says("Expecting 'list_files' to be present")
	}
	return nil
}

// httpSink is the stream of an executor that subscribed over HTTP.
type httpSink struct{ s *stream }

func (h httpSink) deliver(e *executor.Event) { h.s.send(e) }

func (h httpSink) close() { h.s.close() }

// serveExecutor answers the executor API. The order of the checks is that of
// mesos src/slave/http.cpp, Http::executor.
func (a *Agent) serveExecutor(w http.ResponseWriter, r *http.Request) {
	var claims *tokenClaims
	if key := a.c.cfg.ExecutorSecret; len(key) > 0 {
		var refusal *reply
		if claims, refusal = authenticateExecutor(r, key); refusal != nil {
			refusal.write(w)
			return
		}
	}
	call := &executor.Call{}
	typed, refusal := executorAPI.readCall(r, call)
	if refusal != nil {
		refusal.write(w)
		return
	}
	if err := validateExecutorCall(call, typed); err != nil {
		badRequest("Failed to validate Executor::Call: %v", err).write(w)
		return
	}
	contentType := ""
	switch call.Type {
	case executor.Call_SUBSCRIBE:
		if contentType, refusal = executorAPI.accept(r); refusal != nil {
			refusal.write(w)
			return
		}
	case executorHeartbeat:
		accepted().write(w)
		return
	}
	msg := Message{Direction: ExecutorToAgent, Type: executor.Call_Type_name[int32(call.Type)], Agent: a.ID(),
		Framework: call.FrameworkID.Value, Executor: call.ExecutorID.Value}
	if call.Update != nil {
		msg.Task, msg.State = call.Update.Status.TaskID.Value, call.Update.Status.GetState().String()
	}
	a.c.faults.call(w, r, msg, func(w http.ResponseWriter) {
		if call.Type == executor.Call_SUBSCRIBE {
			a.serveExecutorStream(w, r, call, claims, contentType)
			return
		}
		var answer *reply
		if !a.call(func() { answer = a.handleExecutorCall(call, claims) }) {
			panic(http.ErrAbortHandler)
		}
		answer.write(w)
	})
}

func (a *Agent) serveExecutorStream(w http.ResponseWriter, r *http.Request, call *executor.Call, claims *tokenClaims, contentType string) {
	sink := httpSink{newStream(contentType)}
	var answer *reply
	ok := a.call(func() {
		var x *agentExecutor
		if x, answer = a.findExecutor(call, claims); answer == nil {
			a.subscribeExecutor(x, sink, call.Subscribe)
		}
	})
	if !ok {
		panic(http.ErrAbortHandler)
	}
	if answer != nil {
		answer.write(w)
		return
	}
	defer a.post(func() { a.sinkEnded(sink) })
	w.Header().Set("Content-Type", contentType)
	sink.s.serve(w, r, serverDone(r))
}

// findExecutor finds the executor of a call, or says why not.
func (a *Agent) findExecutor(call *executor.Call, claims *tokenClaims) (*agentExecutor, *reply) {
	if a.state == agentDown || a.state == agentRecovering && call.Type != executor.Call_SUBSCRIBE {
		return nil, unavailable("Agent has not finished recovery")
	}
	f := a.frameworks[call.FrameworkID.Value]
	if f == nil {
		return nil, badRequest("Framework cannot be found")
	}
	x := f.executors[call.ExecutorID.Value]
	if x == nil {
		return nil, badRequest("Executor cannot be found")
	}
	if claims != nil {
		if err := claims.check(f.id, x.id, x.container); err != nil {
			return nil, forbidden("%v", err)
		}
	}
	return x, nil
}

// handleExecutorCall handles UPDATE and MESSAGE, in the agent's turn.
func (a *Agent) handleExecutorCall(call *executor.Call, claims *tokenClaims) *reply {
	x, refusal := a.findExecutor(call, claims)
	if refusal != nil {
		return refusal
	}
	if x.state == executorRegistering {
		return forbidden("Executor is not subscribed")
	}
	switch call.Type {
	case executor.Call_UPDATE:
		a.onStatus(x.framework.id, &call.Update.Status, x)
	case executor.Call_MESSAGE:
		fid, id, data := x.framework.id, x.id, call.Message.Data
		a.tell(Message{Type: "MESSAGE", Framework: fid, Executor: id}, func(m *master) { m.onExecutorMessage(a.ID(), fid, id, data) })
	default:
		return &reply{status: http.StatusNotImplemented}
	}
	return accepted()
}

// validateExecutorCall checks a call of an executor (mesos
// src/common/validation.cpp, validateExecutorCall).
func validateExecutorCall(call *executor.Call, typed bool) error {
	if !typed {
		return says("Expecting 'type' to be present")
	}
	switch call.Type {
	case executor.Call_SUBSCRIBE:
		if call.Subscribe == nil {
			return says("Expecting 'subscribe' to be present")
		}
	case executor.Call_MESSAGE:
		if call.Message == nil {
			return says("Expecting 'message' to be present")
		}
	case executor.Call_UPDATE:
		if call.Update == nil {
			return says("Expecting 'update' to be present")
		}
		return validateExecutorStatus(call, &call.Update.Status)
	}
	return nil
}

func validateExecutorStatus(call *executor.Call, s *mesos.TaskStatus) error {
	who := fmt.Sprintf("from executor %s of framework %s", call.ExecutorID.Value, call.FrameworkID.Value)
	switch {
	case s.UUID == nil:
		return says("Expecting 'uuid' to be present")
	case !validUUID(s.UUID):
		return says("Not a valid UUID")
	case s.ExecutorID != nil && s.ExecutorID.Value != call.ExecutorID.Value:
		return says("ExecutorID in Call: %s does not match ExecutorID in TaskStatus: %s", call.ExecutorID.Value, s.ExecutorID.Value)
	case s.GetSource() != mesos.SOURCE_EXECUTOR:
		return says("Received Call %s with invalid source, expecting 'SOURCE_EXECUTOR'", who)
	case s.GetState() == mesos.TASK_STAGING:
		return says("Received TASK_STAGING %s which is not allowed", who)
	}
	return nil
}
