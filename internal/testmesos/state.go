package testmesos

import (
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// This file shows the state of masters and agents to people and to programs
// that read /state. The JSON has the shape of Mesos's, with the fields that are
// in common use.

type masterState struct {
	Version             string           `json:"version"`
	ID                  string           `json:"id"`
	PID                 string           `json:"pid"`
	Hostname            string           `json:"hostname"`
	Leader              string           `json:"leader"`
	StartTime           float64          `json:"start_time"`
	ActivatedAgents     int              `json:"activated_slaves"`
	Agents              []agentSummary   `json:"slaves"`
	Frameworks          []frameworkState `json:"frameworks"`
	CompletedFrameworks []frameworkState `json:"completed_frameworks"`
}

type agentSummary struct {
	ID               string            `json:"id"`
	Hostname         string            `json:"hostname"`
	Port             int32             `json:"port"`
	PID              string            `json:"pid"`
	Active           bool              `json:"active"`
	Resources        map[string]any    `json:"resources"`
	UsedResources    map[string]any    `json:"used_resources"`
	OfferedResources map[string]any    `json:"offered_resources"`
	Attributes       map[string]string `json:"attributes"`
}

type frameworkState struct {
	ID               string         `json:"id"`
	Name             string         `json:"name"`
	User             string         `json:"user"`
	Principal        string         `json:"principal,omitempty"`
	Hostname         string         `json:"hostname"`
	WebUIURL         string         `json:"webui_url"`
	Roles            []string       `json:"roles"`
	Checkpoint       bool           `json:"checkpoint"`
	FailoverTimeout  float64        `json:"failover_timeout"`
	Active           bool           `json:"active"`
	Connected        bool           `json:"connected"`
	RegisteredTime   float64        `json:"registered_time"`
	UnregisteredTime float64        `json:"unregistered_time"`
	Resources        map[string]any `json:"used_resources"`
	Labels           []labelState   `json:"labels,omitempty"`
	Tasks            []taskState    `json:"tasks"`
	UnreachableTasks []taskState    `json:"unreachable_tasks"`
	CompletedTasks   []taskState    `json:"completed_tasks"`
	Offers           []offerState   `json:"offers"`
	Executors        []executorInfo `json:"executors"`
}

type labelState struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

type taskState struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	FrameworkID string         `json:"framework_id"`
	ExecutorID  string         `json:"executor_id"`
	AgentID     string         `json:"slave_id"`
	State       string         `json:"state"`
	Resources   map[string]any `json:"resources"`
	Message     string         `json:"message,omitempty"`
}

type offerState struct {
	ID        string         `json:"id"`
	AgentID   string         `json:"slave_id"`
	Role      string         `json:"role"`
	Resources map[string]any `json:"resources"`
}

type executorInfo struct {
	ID      string `json:"executor_id"`
	AgentID string `json:"slave_id"`
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// summarize shows resources as /state does: numbers, and ranges as text.
func summarize(rs resources) map[string]any {
	out := map[string]any{"cpus": 0.0, "mem": 0.0, "disk": 0.0, "gpus": 0.0}
	for _, r := range rs {
		switch r.meta.GetType() {
		case mesos.SCALAR:
			sum, _ := out[r.meta.Name].(float64)
			out[r.meta.Name] = float64(milli(sum)+r.milli) / 1000
		case mesos.RANGES:
			out[r.meta.Name] = formatSpans(r.ranges)
		default:
			out[r.meta.Name] = "{" + strings.Join(r.items, ", ") + "}"
		}
	}
	return out
}

func (t *task) describe() taskState {
	s := taskState{
		ID:          t.info.TaskID.Value,
		Name:        t.info.Name,
		FrameworkID: t.framework.id,
		ExecutorID:  t.executorID,
		AgentID:     t.agentID,
		State:       t.state.String(),
		Resources:   summarize(t.resources),
	}
	if t.last != nil {
		s.Message = t.last.GetMessage()
	}
	return s
}

func (f *framework) describe(m *master) frameworkState {
	s := frameworkState{
		ID:               f.id,
		Name:             f.info.Name,
		User:             f.info.User,
		Principal:        f.info.GetPrincipal(),
		Hostname:         f.info.GetHostname(),
		WebUIURL:         f.info.GetWebUiURL(),
		Roles:            f.roles,
		Checkpoint:       f.info.GetCheckpoint(),
		FailoverTimeout:  f.info.GetFailoverTimeout(),
		Active:           f.connected(),
		Connected:        f.connected(),
		RegisteredTime:   seconds(f.registered),
		UnregisteredTime: seconds(f.removed),
		Tasks:            []taskState{},
		UnreachableTasks: []taskState{},
		CompletedTasks:   []taskState{},
		Offers:           []offerState{},
		Executors:        []executorInfo{},
	}
	for _, l := range f.info.GetLabels().GetLabels() {
		s.Labels = append(s.Labels, labelState{l.Key, l.GetValue()})
	}
	var used resources
	for _, t := range sortedTasks(f.tasks) {
		s.Tasks = append(s.Tasks, t.describe())
		if !t.released {
			used = used.plus(t.resources)
		}
	}
	for _, t := range sortedTasks(f.unreachable) {
		s.UnreachableTasks = append(s.UnreachableTasks, t.describe())
	}
	for _, t := range f.completed {
		s.CompletedTasks = append(s.CompletedTasks, t.describe())
	}
	for _, o := range sortedByID(f.offers) {
		s.Offers = append(s.Offers, offerState{o.id, o.agent.id, o.role, summarize(o.resources)})
	}
	for _, id := range slices.Sorted(maps.Keys(m.agents)) {
		for _, x := range slices.Sorted(maps.Keys(m.agents[id].executors[f.id])) {
			s.Executors = append(s.Executors, executorInfo{x, id})
			used = used.plus(newResources(m.agents[id].executors[f.id][x].Resources))
		}
	}
	s.Resources = summarize(used)
	return s
}

func (a *agentRecord) describe() agentSummary {
	var offered resources
	for _, o := range a.offers {
		offered = offered.plus(o.resources.allocatedTo(""))
	}
	used, _ := a.total.minus(a.available)
	used, _ = used.minus(offered)
	addr := a.agent.server.address
	s := agentSummary{
		ID:               a.id,
		Hostname:         a.info.Hostname,
		Port:             int32(addr.port),
		PID:              "slave(1)@" + addr.String(),
		Active:           a.connected && a.drain == nil,
		Resources:        summarize(a.total),
		UsedResources:    summarize(used),
		OfferedResources: summarize(offered),
		Attributes:       map[string]string{},
	}
	for _, at := range a.info.Attributes {
		switch at.Type {
		case mesos.SCALAR:
			s.Attributes[at.Name] = formatMilli(milli(at.Scalar.GetValue()))
		case mesos.TEXT:
			s.Attributes[at.Name] = at.Text.GetValue()
		}
	}
	return s
}

// snapshot describes the master; it is called in the master's turn.
func (m *master) snapshot() masterState {
	addr := m.handle.server.address
	s := masterState{
		Version:             version,
		ID:                  m.id,
		PID:                 "master@" + addr.String(),
		Hostname:            addr.ip,
		Leader:              "master@" + addr.String(),
		StartTime:           seconds(m.started),
		Agents:              []agentSummary{},
		Frameworks:          []frameworkState{},
		CompletedFrameworks: []frameworkState{},
	}
	for _, id := range slices.Sorted(maps.Keys(m.agents)) {
		a := m.agents[id].describe()
		if a.Active {
			s.ActivatedAgents++
		}
		s.Agents = append(s.Agents, a)
	}
	for _, id := range slices.Sorted(maps.Keys(m.frameworks)) {
		s.Frameworks = append(s.Frameworks, m.frameworks[id].describe(m))
	}
	for _, f := range m.completed {
		s.CompletedFrameworks = append(s.CompletedFrameworks, f.describe(m))
	}
	return s
}

func (m *master) serveState(w http.ResponseWriter) {
	var s masterState
	if !m.call(func() { s = m.snapshot() }) {
		panic(http.ErrAbortHandler)
	}
	answerJSON(w, s)
}

func answerJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		(&reply{status: http.StatusInternalServerError, text: err.Error()}).write(w)
		return
	}
	writeJSON(w, body)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<title>testmesos</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 2em }
table { border-collapse: collapse; margin-bottom: 1.5em }
th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
h2 { font-size: 1.1em }
</style>
<h1>Mesos master {{.Hostname}}</h1>
<p>{{.ID}}, testmesos imitating Mesos {{.Version}}. In JSON: <a href="/state">/state</a>.</p>
<h2>Agents</h2>
<table><tr><th>Agent<th>Host<th>Active<th>cpus<th>mem (MB)<th>disk (MB)<th>Attributes
{{range .Agents}}<tr><td>{{.ID}}<td>{{.Hostname}}:{{.Port}}<td>{{.Active}}
<td>{{.UsedResources.cpus}} used of {{.Resources.cpus}}<td>{{.UsedResources.mem}} used of {{.Resources.mem}}<td>{{.UsedResources.disk}} used of {{.Resources.disk}}
<td>{{range $k, $v := .Attributes}}{{$k}}:{{$v}} {{end}}
{{else}}<tr><td colspan="7">none
{{end}}</table>
{{range .Frameworks}}<h2>Framework {{.Name}}</h2>
<p>{{.ID}}, {{if .Connected}}connected{{else}}not connected{{end}}, roles {{.Roles}}{{if .WebUIURL}}, <a href="{{.WebUIURL}}">{{.WebUIURL}}</a>{{end}}, {{len .Offers}} offers held.</p>
{{template "tasks" .Tasks}}{{if .UnreachableTasks}}<p>Unreachable:</p>{{template "tasks" .UnreachableTasks}}{{end}}{{if .CompletedTasks}}<p>Completed:</p>{{template "tasks" .CompletedTasks}}{{end}}
{{else}}<h2>No framework is active</h2>
{{end}}
{{range .CompletedFrameworks}}<h2>Framework {{.Name}} (gone)</h2><p>{{.ID}}</p>
{{template "tasks" .CompletedTasks}}
{{end}}
{{define "tasks"}}<table><tr><th>Task<th>Name<th>State<th>Agent<th>Executor<th>cpus<th>mem (MB)<th>Message
{{range .}}<tr><td>{{.ID}}<td>{{.Name}}<td>{{.State}}<td>{{.AgentID}}<td>{{.ExecutorID}}<td>{{.Resources.cpus}}<td>{{.Resources.mem}}<td>{{.Message}}
{{else}}<tr><td colspan="8">none
{{end}}</table>{{end}}`))

// servePage shows the state to a person.
func (m *master) servePage(w http.ResponseWriter) {
	var s masterState
	if !m.call(func() { s = m.snapshot() }) {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, s); err != nil {
		m.log.Debug("page not written", "err", err)
	}
}

type agentDescription struct {
	Version    string                `json:"version"`
	ID         string                `json:"id"`
	PID        string                `json:"pid"`
	Hostname   string                `json:"hostname"`
	Resources  map[string]any        `json:"resources"`
	Frameworks []agentFrameworkState `json:"frameworks"`
}

type agentFrameworkState struct {
	ID                 string               `json:"id"`
	Name               string               `json:"name"`
	Executors          []agentExecutorState `json:"executors"`
	CompletedExecutors []agentExecutorState `json:"completed_executors"`
}

type agentExecutorState struct {
	ID        string         `json:"id"`
	Container string         `json:"container"`
	Directory string         `json:"directory"`
	Resources map[string]any `json:"resources"`
	Queued    []string       `json:"queued_tasks"`
	Tasks     []string       `json:"tasks"`
}

// serveState answers GET /state of an agent.
func (a *Agent) serveState(w http.ResponseWriter) {
	s := agentDescription{
		Version:    version,
		ID:         a.ID(),
		PID:        "slave(1)@" + a.server.address.String(),
		Hostname:   a.cfg.Hostname,
		Resources:  summarize(a.total),
		Frameworks: []agentFrameworkState{},
	}
	ok := a.call(func() {
		for _, id := range slices.Sorted(maps.Keys(a.frameworks)) {
			f := a.frameworks[id]
			fs := agentFrameworkState{ID: id, Name: f.info.Name, Executors: []agentExecutorState{}, CompletedExecutors: []agentExecutorState{}}
			for _, xid := range slices.Sorted(maps.Keys(f.executors)) {
				x := f.executors[xid]
				if x.state == executorTerminated {
					fs.CompletedExecutors = append(fs.CompletedExecutors, x.describe())
				} else {
					fs.Executors = append(fs.Executors, x.describe())
				}
			}
			s.Frameworks = append(s.Frameworks, fs)
		}
	})
	if !ok {
		panic(http.ErrAbortHandler)
	}
	answerJSON(w, s)
}

func (x *agentExecutor) describe() agentExecutorState {
	s := agentExecutorState{
		ID:        x.id,
		Container: x.container,
		Directory: x.dir,
		Resources: summarize(newResources(x.info.Resources)),
		Queued:    []string{},
		Tasks:     slices.Sorted(maps.Keys(x.launched)),
	}
	for _, q := range x.queued {
		for _, t := range q.tasks {
			s.Queued = append(s.Queued, t.TaskID.Value)
		}
	}
	return s
}
