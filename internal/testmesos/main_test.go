package testmesos_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
)

// The test binary is also the executor of the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 0 && os.Args[0] == "executor" {
		os.Exit(executorMain())
	}
	os.Exit(m.Run())
}

// An executorProcess runs one task, whose data say what it does:
//
//	run           run until killed
//	finish        end at once
//	exit N        exit with this code, without an end
//	stubborn      ignore SHUTDOWN and KILL
//	once          run, but do not subscribe again when the agent restarts
//	child         run with a child process, whose id is the task's data
type executorProcess struct {
	client   *http.Client
	endpoint string
	call     executor.Call
	tasks    []mesos.TaskInfo       // launched and not yet acknowledged
	updates  []executor.Call_Update // sent and not yet acknowledged
	script   string
	ended    bool // the terminal update was sent
}

func executorMain() int {
	x := &executorProcess{
		client:   &http.Client{Transport: &http.Transport{Proxy: nil}},
		endpoint: "http://" + os.Getenv("MESOS_AGENT_ENDPOINT") + "/api/v1/executor",
		call: executor.Call{
			FrameworkID: mesos.FrameworkID{Value: os.Getenv("MESOS_FRAMEWORK_ID")},
			ExecutorID:  mesos.ExecutorID{Value: os.Getenv("MESOS_EXECUTOR_ID")},
		},
	}
	time.AfterFunc(2*time.Minute, func() { os.Exit(99) })
	for {
		if err := x.session(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		if os.Getenv("MESOS_CHECKPOINT") != "1" || x.script == "once" {
			return 1
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (x *executorProcess) post(kind executor.Call_Type, change func(*executor.Call)) (*http.Response, error) {
	call := x.call
	call.Type = kind
	change(&call)
	b, err := call.Marshal()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, x.endpoint, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", protobufType)
	req.Header.Set("Accept", protobufType)
	if token := os.Getenv("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return x.client.Do(req)
}

// session is one subscription.
func (x *executorProcess) session() error {
	resp, err := x.post(executor.Call_SUBSCRIBE, func(c *executor.Call) {
		c.Subscribe = &executor.Call_Subscribe{UnacknowledgedTasks: x.tasks, UnacknowledgedUpdates: x.updates}
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("SUBSCRIBE: %s: %s", resp.Status, b)
	}
	r := bufio.NewReader(resp.Body)
	for {
		b, err := readRecord(r)
		if err != nil {
			return err
		}
		e := &executor.Event{}
		if err := e.Unmarshal(b); err != nil {
			return err
		}
		if err := x.handle(e); err != nil {
			return err
		}
	}
}

func (x *executorProcess) handle(e *executor.Event) error {
	switch e.Type {
	case executor.Event_LAUNCH:
		x.tasks = append(x.tasks, e.Launch.Task)
		x.script = string(e.Launch.Task.Data)
		return x.begin(e.Launch.Task.TaskID)
	case executor.Event_KILL:
		if x.script != "stubborn" {
			x.ended = true
			return x.update(e.Kill.TaskID, mesos.TASK_KILLED, "")
		}
	case executor.Event_SHUTDOWN:
		if x.script != "stubborn" {
			os.Exit(0)
		}
	case executor.Event_ACKNOWLEDGED:
		x.acknowledged(e.Acknowledged)
	}
	return nil
}

func (x *executorProcess) begin(id mesos.TaskID) error {
	verb, arg, _ := strings.Cut(x.script, " ")
	data := ""
	if verb == "child" {
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "100"}, &os.ProcAttr{})
		if err != nil {
			return err
		}
		data = strconv.Itoa(p.Pid)
	}
	if err := x.update(id, mesos.TASK_RUNNING, data); err != nil {
		return err
	}
	switch verb {
	case "finish":
		x.ended = true
		return x.update(id, mesos.TASK_FINISHED, "")
	case "exit":
		code, _ := strconv.Atoi(arg)
		os.Exit(code)
	}
	return nil
}

func (x *executorProcess) update(id mesos.TaskID, state mesos.TaskState, data string) error {
	u := executor.Call_Update{Status: mesos.TaskStatus{
		TaskID: id, State: &state, Source: new(mesos.SOURCE_EXECUTOR), ExecutorID: &x.call.ExecutorID, UUID: newUUID(), Data: []byte(data),
	}}
	x.updates = append(x.updates, u)
	resp, err := x.post(executor.Call_UPDATE, func(c *executor.Call) { c.Update = &u })
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return errors.New(resp.Status)
	}
	return nil
}

func (x *executorProcess) acknowledged(a *executor.Event_Acknowledged) {
	for i, t := range x.tasks {
		if t.TaskID == a.TaskID {
			x.tasks = append(x.tasks[:i:i], x.tasks[i+1:]...)
			break
		}
	}
	for i, u := range x.updates {
		if bytes.Equal(u.Status.UUID, a.UUID) {
			x.updates = append(x.updates[:i:i], x.updates[i+1:]...)
			break
		}
	}
	if x.ended && len(x.updates) == 0 {
		os.Exit(0)
	}
}
