package testmesos_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
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
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

const (
	protobufType = "application/x-protobuf"
	patience     = 20 * time.Second
)

// readRecord reads one RecordIO record.
func readRecord(r *bufio.Reader) ([]byte, error) {
	head, err := r.ReadString('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && head != "" {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(head, "\n"))
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// A framework is a scheduler under test.
type framework struct {
	t        testing.TB
	client   *http.Client
	master   string
	user     string // "principal:secret"
	info     *mesos.FrameworkInfo
	streamID string
	stop     context.CancelFunc
	events   chan *scheduler.Event
	ended    chan error
	waiting  []*scheduler.Event
	done     map[string]bool // uuids that were acknowledged
}

// newFramework prepares a scheduler.
func newFramework(t testing.TB, c *testmesos.Cluster, change func(*mesos.FrameworkInfo)) *framework {
	f := &framework{
		t:      t,
		master: c.Master(),
		done:   map[string]bool{},
		client: &http.Client{
			Transport:     &http.Transport{Proxy: nil},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		info: &mesos.FrameworkInfo{User: "nobody", Name: t.Name(), Checkpoint: new(true), FailoverTimeout: new(600.0)},
	}
	if change != nil {
		change(f.info)
	}
	t.Cleanup(f.close)
	return f
}

// subscribed is a scheduler that has subscribed.
func subscribed(t testing.TB, c *testmesos.Cluster, change func(*mesos.FrameworkInfo)) *framework {
	f := newFramework(t, c, change)
	f.subscribe()
	return f
}

func (f *framework) close() {
	if f.stop != nil {
		f.stop()
	}
	f.client.CloseIdleConnections()
}

// post sends a call without looking at the answer.
func (f *framework) post(ctx context.Context, call *scheduler.Call) (*http.Response, error) {
	if f.info.ID != nil {
		call.FrameworkID = f.info.ID
	}
	b, err := call.Marshal()
	require.NoError(f.t, err)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.master+"/api/v1/scheduler", bytes.NewReader(b))
	require.NoError(f.t, err)
	req.Header.Set("Content-Type", protobufType)
	req.Header.Set("Accept", protobufType)
	if call.Type != scheduler.Call_SUBSCRIBE {
		req.Header.Set("Mesos-Stream-Id", f.streamID)
	}
	if user, secret, ok := strings.Cut(f.user, ":"); ok {
		req.SetBasicAuth(user, secret)
	}
	return f.client.Do(req)
}

// open subscribes; it does not wait for SUBSCRIBED.
func (f *framework) open() error {
	if f.stop != nil {
		f.stop()
	}
	// A connection that is kept may have died with its master.
	f.client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(f.t.Context())
	f.stop = cancel
	resp, err := f.post(ctx, &scheduler.Call{Type: scheduler.Call_SUBSCRIBE, Subscribe: &scheduler.Call_Subscribe{FrameworkInfo: f.info}}) //nolint:bodyclose // the reader of the stream closes it
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("SUBSCRIBE: %s: %s", resp.Status, b)
	}
	f.streamID = resp.Header.Get("Mesos-Stream-Id")
	f.waiting = nil
	events, ended := make(chan *scheduler.Event, 100000), make(chan error, 1)
	f.events, f.ended = events, ended
	go func() {
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		for {
			b, err := readRecord(r)
			if err != nil {
				ended <- err
				return
			}
			e := &scheduler.Event{}
			if err := e.Unmarshal(b); err != nil {
				ended <- err
				return
			}
			events <- e
		}
	}()
	return nil
}

// subscribe subscribes and waits for SUBSCRIBED.
func (f *framework) subscribe() {
	f.t.Helper()
	require.NoError(f.t, f.open())
	f.info.ID = f.expect(scheduler.Event_SUBSCRIBED).Subscribed.FrameworkID
}

// call sends a call and wants 202.
func (f *framework) call(call *scheduler.Call) {
	f.t.Helper()
	resp, err := f.post(f.t.Context(), call)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	require.Equal(f.t, http.StatusAccepted, resp.StatusCode, "%s: %s", call.Type, b)
}

// unanswered sends a call and wants no answer.
func (f *framework) unanswered(call *scheduler.Call) {
	f.t.Helper()
	resp, err := f.post(f.t.Context(), call)
	if err == nil {
		defer resp.Body.Close()
	}
	require.Error(f.t, err)
}

// await returns the first event that matches, nil after d. Others stay.
func (f *framework) await(d time.Duration, match func(*scheduler.Event) bool) *scheduler.Event {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for i := 0; ; i++ {
		if i == len(f.waiting) {
			select {
			case e := <-f.events:
				f.waiting = append(f.waiting, e)
			case <-timer.C:
				return nil
			}
		}
		if e := f.waiting[i]; match(e) {
			f.waiting = append(f.waiting[:i:i], f.waiting[i+1:]...)
			return e
		}
	}
}

// have lists the events that wait.
func (f *framework) have() string {
	var out []string
	for _, e := range f.waiting {
		if e.Type != scheduler.Event_HEARTBEAT && e.Type != scheduler.Event_OFFERS {
			out = append(out, e.String())
		}
	}
	return strings.Join(out, "; ")
}

// expect waits for an event of a type.
func (f *framework) expect(kind scheduler.Event_Type) *scheduler.Event {
	f.t.Helper()
	e := f.await(patience, func(e *scheduler.Event) bool { return e.Type == kind })
	require.NotNil(f.t, e, "no %s; have %s", kind, f.have())
	return e
}

// none wants no event of a type for a moment.
func (f *framework) none(kind scheduler.Event_Type, d time.Duration) {
	f.t.Helper()
	e := f.await(d, func(e *scheduler.Event) bool { return e.Type == kind })
	require.Nil(f.t, e)
}

// end waits for the end of the stream.
func (f *framework) end() error {
	f.t.Helper()
	select {
	case err := <-f.ended:
		return err
	case <-time.After(patience):
		require.Fail(f.t, "the stream did not end")
		return nil
	}
}

// update waits for the next update of a task.
func (f *framework) update(task string) *mesos.TaskStatus {
	f.t.Helper()
	e := f.await(patience, func(e *scheduler.Event) bool {
		return e.Type == scheduler.Event_UPDATE && e.Update.Status.TaskID.Value == task
	})
	require.NotNil(f.t, e, "no update of %s; have %s", task, f.have())
	return &e.Update.Status
}

// acked waits for the next update of a task that has not been acknowledged,
// wants a state and acknowledges it.
func (f *framework) acked(task string, state mesos.TaskState) *mesos.TaskStatus {
	f.t.Helper()
	s := f.update(task)
	for f.done[string(s.UUID)] {
		s = f.update(task)
	}
	require.Equal(f.t, state.String(), s.GetState().String(), "%s", s.GetMessage())
	f.acknowledge(s)
	return s
}

func (f *framework) acknowledge(s *mesos.TaskStatus) {
	f.t.Helper()
	f.done[string(s.UUID)] = true
	f.call(&scheduler.Call{Type: scheduler.Call_ACKNOWLEDGE, Acknowledge: &scheduler.Call_Acknowledge{
		AgentID: *s.AgentID, TaskID: s.TaskID, UUID: s.UUID,
	}})
}

// offer waits for the next offer.
func (f *framework) offer() mesos.Offer {
	f.t.Helper()
	e := f.expect(scheduler.Event_OFFERS)
	offers := e.Offers.Offers
	if len(offers) > 1 {
		// The rest is for the next one who asks.
		f.waiting = append([]*scheduler.Event{{Type: scheduler.Event_OFFERS, Offers: &scheduler.Event_Offers{Offers: offers[1:]}}}, f.waiting...)
	}
	return offers[0]
}

// offerOf waits for an offer of an agent.
func (f *framework) offerOf(agent string) mesos.Offer {
	f.t.Helper()
	for {
		if o := f.offer(); o.AgentID.Value == agent {
			return o
		}
	}
}

// wholeOffer waits for an offer of an agent on which nothing runs.
func (f *framework) wholeOffer() mesos.Offer {
	f.t.Helper()
	for {
		o := f.offer()
		for _, r := range o.Resources {
			if r.Name == "cpus" && r.Scalar.Value == 4 {
				return o
			}
		}
		f.decline(o, 0)
	}
}

// decline declines an offer for so many seconds.
func (f *framework) decline(o mesos.Offer, seconds float64) {
	f.t.Helper()
	f.call(&scheduler.Call{Type: scheduler.Call_DECLINE, Decline: &scheduler.Call_Decline{
		OfferIDs: []mesos.OfferID{o.ID}, Filters: &mesos.Filters{RefuseSeconds: &seconds},
	}})
}

func scalar(name string, v float64) mesos.Resource {
	return mesos.Resource{Name: name, Type: new(mesos.SCALAR), Scalar: &mesos.Value_Scalar{Value: v}}
}

// taskFor makes a task for an executor of its own that does what script says,
// see executorMain.
func taskFor(o mesos.Offer, id, script string) mesos.TaskInfo {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return mesos.TaskInfo{
		Name:      id,
		TaskID:    mesos.TaskID{Value: id},
		AgentID:   o.AgentID,
		Resources: []mesos.Resource{scalar("cpus", 0.1), scalar("mem", 32)},
		Data:      []byte(script),
		Executor: &mesos.ExecutorInfo{
			Type:       mesos.ExecutorInfo_CUSTOM,
			ExecutorID: mesos.ExecutorID{Value: "x-" + id},
			Command:    &mesos.CommandInfo{Shell: new(false), Value: new(self), Arguments: []string{"executor"}},
			Resources:  []mesos.Resource{scalar("cpus", 0.1), scalar("mem", 32)},
		},
	}
}

// commandFor makes a task that is a shell command.
func commandFor(o mesos.Offer, id, shell string) mesos.TaskInfo {
	t := taskFor(o, id, "")
	t.Executor = nil
	t.Command = &mesos.CommandInfo{Value: new(shell)}
	return t
}

// accept launches tasks on an offer.
func (f *framework) accept(o mesos.Offer, tasks ...mesos.TaskInfo) {
	f.t.Helper()
	f.call(acceptCall(o, tasks...))
}

func acceptCall(o mesos.Offer, tasks ...mesos.TaskInfo) *scheduler.Call {
	return &scheduler.Call{Type: scheduler.Call_ACCEPT, Accept: &scheduler.Call_Accept{
		OfferIDs:   []mesos.OfferID{o.ID},
		Operations: []mesos.Offer_Operation{{Type: mesos.Offer_Operation_LAUNCH, Launch: &mesos.Offer_Operation_Launch{TaskInfos: tasks}}},
		Filters:    &mesos.Filters{RefuseSeconds: new(0.0)},
	}}
}

// launch runs a task until it is TASK_RUNNING.
func (f *framework) launch(id, script string) mesos.Offer {
	f.t.Helper()
	o := f.offer()
	f.accept(o, taskFor(o, id, script))
	f.acked(id, mesos.TASK_RUNNING)
	return o
}

func (f *framework) kill(task string) {
	f.t.Helper()
	f.call(&scheduler.Call{Type: scheduler.Call_KILL, Kill: &scheduler.Call_Kill{TaskID: mesos.TaskID{Value: task}}})
}

// killUntil repeats KILL until there is an update.
func (f *framework) killUntil(task string) *mesos.TaskStatus {
	f.t.Helper()
	for begin := time.Now(); time.Since(begin) < patience; {
		f.kill(task)
		if e := f.await(50*time.Millisecond, func(e *scheduler.Event) bool { return e.Type == scheduler.Event_UPDATE }); e != nil {
			return &e.Update.Status
		}
	}
	return nil
}

// reconcile asks for one task.
func (f *framework) reconcile(task, agent string) {
	f.t.Helper()
	r := scheduler.Call_Reconcile_Task{TaskID: mesos.TaskID{Value: task}}
	if agent != "" {
		r.AgentID = &mesos.AgentID{Value: agent}
	}
	f.call(&scheduler.Call{Type: scheduler.Call_RECONCILE, Reconcile: &scheduler.Call_Reconcile{Tasks: []scheduler.Call_Reconcile_Task{r}}})
}

func partitionAware(info *mesos.FrameworkInfo) {
	info.Capabilities = append(info.Capabilities, mesos.FrameworkInfo_Capability{Type: mesos.FrameworkInfo_Capability_PARTITION_AWARE})
}

func noCheckpoint(info *mesos.FrameworkInfo) { info.Checkpoint = nil }

func newUUID() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return b
}

// getJSON reads a JSON document.
func getJSON(t testing.TB, url string) map[string]any {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var v map[string]any
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&v))
	return v
}

// eventually polls a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, "%s", what)
}
