package schedapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/testmesos"
)

// A subscriber is a client of a cluster that keeps what it is told.
type subscriber struct {
	t      *testing.T
	client *schedapi.Client
	cancel context.CancelFunc
	done   chan error

	mu           sync.Mutex
	framework    string
	subscribed   int
	disconnected []error
	offers       int
	updates      []mesos.TaskStatus
}

func startCluster(t *testing.T, cfg testmesos.Config) *testmesos.Cluster {
	t.Helper()
	if cfg.Agents == nil {
		cfg.Agents = []testmesos.AgentConfig{{}}
	}
	cfg.AllocationInterval = 10 * time.Millisecond
	c, err := testmesos.Start(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// clusterFramework is a framework that has an hour to come back.
func clusterFramework() *mesos.FrameworkInfo {
	f := framework()
	f.Capabilities = []mesos.FrameworkInfo_Capability{{Type: mesos.FrameworkInfo_Capability_MULTI_ROLE}}
	return f
}

func subscribe(t *testing.T, cfg schedapi.Config) *subscriber {
	t.Helper()
	if cfg.Framework == nil {
		cfg.Framework = clusterFramework()
	}
	s := &subscriber{t: t, client: newClient(t, cfg), done: make(chan error, 1)}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	go func() { s.done <- s.client.Run(ctx, s.handle) }()
	t.Cleanup(func() {
		s.cancel()
		select {
		case <-s.done:
		case <-time.After(30 * time.Second):
			t.Error("Run does not return")
		}
	})
	return s
}

func (s *subscriber) handle(event schedapi.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case event.Disconnected != nil:
		s.disconnected = append(s.disconnected, event.Disconnected)
	case event.Type == scheduler.Event_SUBSCRIBED:
		s.framework = event.Subscribed.FrameworkID.GetValue()
		s.subscribed++
	case event.Type == scheduler.Event_OFFERS:
		s.offers += len(event.Offers.Offers)
	case event.Type == scheduler.Event_UPDATE:
		s.updates = append(s.updates, event.Update.Status)
	}
}

func (s *subscriber) eventually(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return ok()
	}, 60*time.Second, 2*time.Millisecond, what)
}

// id is the ID of the framework.
func (s *subscriber) id() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.framework
}

// waitSubscribed waits for the n-th subscription.
func (s *subscriber) waitSubscribed(n int) {
	s.t.Helper()
	s.eventually("not subscribed", func() bool { return s.subscribed >= n })
}

// works proves that calls reach the master: it answers a question about a task that
// it does not know.
func (s *subscriber) works() {
	s.t.Helper()
	s.mu.Lock()
	before := len(s.updates)
	s.mu.Unlock()
	s.eventually("no answer to RECONCILE", func() bool {
		s.client.Send(&scheduler.Call{Type: scheduler.Call_RECONCILE, Reconcile: &scheduler.Call_Reconcile{
			Tasks: []scheduler.Call_Reconcile_Task{{TaskID: mesos.TaskID{Value: "nobody's"}, AgentID: &mesos.AgentID{Value: "nobody"}}},
		}})
		return len(s.updates) > before
	})
}

func (s *subscriber) end() error {
	s.t.Helper()
	select {
	case err := <-s.done:
		s.done <- err
		return err
	case <-time.After(60 * time.Second):
		require.Fail(s.t, "Run does not return")
		return nil
	}
}

func TestClusterLife(t *testing.T) {
	cluster := startCluster(t, testmesos.Config{})
	s := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master())})
	s.waitSubscribed(1)
	s.eventually("no offers", func() bool { return s.offers > 0 })
	s.works()
	require.NoError(t, s.client.Do(t.Context(), &scheduler.Call{Type: scheduler.Call_SUPPRESS, Suppress: &scheduler.Call_Suppress{}}))
	require.NoError(t, s.client.Do(t.Context(), &scheduler.Call{Type: scheduler.Call_REVIVE, Revive: &scheduler.Call_Revive{}}))
	require.NoError(t, s.client.Do(t.Context(), &scheduler.Call{Type: scheduler.Call_TEARDOWN}))
	require.NoError(t, s.end())

	// The ID is used up.
	again := clusterFramework()
	again.ID = &mesos.FrameworkID{Value: s.id()}
	gone := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), Framework: again})
	require.ErrorIs(t, gone.end(), schedapi.ErrRemoved)
}

func TestClusterSuppressedFromTheBeginning(t *testing.T) {
	cluster := startCluster(t, testmesos.Config{})
	s := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), Suppressed: func() []string { return []string{"a", "b"} }})
	s.waitSubscribed(1)
	s.works()
	s.mu.Lock()
	require.Zero(t, s.offers)
	s.mu.Unlock()
	s.client.Send(&scheduler.Call{Type: scheduler.Call_REVIVE, Revive: &scheduler.Call_Revive{}})
	s.eventually("no offers", func() bool { return s.offers > 0 })
}

func TestClusterFailover(t *testing.T) {
	// A second scheduler with the same ID makes the first stop.
	cluster := startCluster(t, testmesos.Config{})
	first := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master())})
	first.waitSubscribed(1)
	info := clusterFramework()
	info.ID = &mesos.FrameworkID{Value: first.id()}
	second := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), Framework: info})
	err := first.end()
	require.ErrorIs(t, err, schedapi.ErrFailedOver)
	require.EqualError(t, err, "master "+strings.TrimPrefix(cluster.Master(), "http://")+": another scheduler took over the framework (Framework failed over)")
	second.waitSubscribed(1)
	second.works()
	second.eventually("subscribed twice", func() bool { return second.subscribed == 1 })
}

func TestClusterMasters(t *testing.T) {
	// Whichever master is asked, the leader is found; also the next one.
	cluster := startCluster(t, testmesos.Config{Masters: 3})
	masters := cluster.Masters()
	spec := strings.TrimPrefix(masters[2].URL(), "http://") + "," + strings.TrimPrefix(masters[1].URL(), "http://")
	s := subscribe(t, schedapi.Config{Masters: parse(t, spec)})
	s.waitSubscribed(1)
	s.works()
	id := s.id()

	// The leader dies; for a while the others send everybody to it.
	masters[0].Kill()
	s.eventually("not sent to the dead leader", func() bool {
		return len(s.disconnected) > 0 && strings.Contains(s.disconnected[len(s.disconnected)-1].Error(), strings.TrimPrefix(masters[0].URL(), "http://")+": dial tcp")
	})
	cluster.Elect(masters[1])
	s.waitSubscribed(2)
	s.works()
	require.Equal(t, id, s.id())

	// For a while nobody leads.
	s.mu.Lock()
	before := len(s.disconnected)
	s.mu.Unlock()
	cluster.Elect(nil)
	s.eventually("still subscribed", func() bool { return len(s.disconnected) > before+1 })
	cluster.Elect(masters[2])
	s.waitSubscribed(3)
	s.works()
	require.Equal(t, id, s.id())
}

func TestClusterFaults(t *testing.T) {
	tests := []struct {
		name string
		rule testmesos.Rule
	}{
		{"SUBSCRIBE lost", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "SUBSCRIBE", Times: 2, Action: testmesos.Drop}},
		{"SUBSCRIBED lost", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "SUBSCRIBE", Times: 2, Action: testmesos.LoseAnswer}},
		{"SUBSCRIBED cut", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "SUBSCRIBED", Times: 2, Action: testmesos.Cut}},
		{"SUBSCRIBED frozen", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "SUBSCRIBED", Times: 1, Action: testmesos.Freeze}},
		{"master recovering", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "SUBSCRIBE", Times: 3, Action: testmesos.Answer}},
		{"offers cut", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "OFFERS", Times: 1, Action: testmesos.Cut}},
		{"stream frozen", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "OFFERS", Times: 1, Action: testmesos.Freeze}},
		{"heartbeats lost", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "HEARTBEAT", Skip: 1, Times: 20, Action: testmesos.Drop}},
		{"offers twice", testmesos.Rule{Direction: testmesos.MasterToScheduler, Type: "OFFERS", Action: testmesos.Duplicate}},
		{"calls lost", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "RECONCILE", Times: 2, Action: testmesos.Drop}},
		{"answers to calls lost", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "RECONCILE", Times: 2, Action: testmesos.LoseAnswer}},
		{"calls answered 503", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "RECONCILE", Times: 2, Action: testmesos.Answer}},
		{"calls held up", testmesos.Rule{Direction: testmesos.SchedulerToMaster, Type: "RECONCILE", Times: 1, Action: testmesos.Delay, Delay: 2 * time.Second}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cluster := startCluster(t, testmesos.Config{HeartbeatInterval: 100 * time.Millisecond})
			interference := cluster.Interfere(tt.rule)
			s := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), ConnectTimeout: time.Second, CallTimeout: time.Second, BackoffMax: 200 * time.Millisecond})
			s.waitSubscribed(1)
			s.works()
			s.eventually("no offers", func() bool { return s.offers > 0 })
			require.Eventually(t, func() bool { return interference.Hits() > 0 }, 30*time.Second, time.Millisecond)
			interference.Stop()
			s.works()
		})
	}
}

func TestClusterBrokenConnections(t *testing.T) {
	cluster := startCluster(t, testmesos.Config{HeartbeatInterval: 100 * time.Millisecond})
	s := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), BackoffMax: 200 * time.Millisecond})
	for n := 1; n < 10; n += 2 {
		s.waitSubscribed(n)
		s.works()
		cluster.SeverScheduler("")
		s.waitSubscribed(n + 1)
		s.works()
		cluster.FreezeScheduler("")
	}
	s.waitSubscribed(11)
}

// certificate is a certificate for 127.0.0.1 and the pool that trusts it.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	source := httptest.NewTLSServer(nil)
	source.Close()
	pool := x509.NewCertPool()
	pool.AddCert(source.Certificate())
	return &tls.Config{Certificates: source.TLS.Certificates}, &tls.Config{RootCAs: pool}
}

func TestClusterCredentialsAndTLS(t *testing.T) {
	server, client := certificate(t)
	cluster := startCluster(t, testmesos.Config{
		Masters: 2, TLS: server,
		Credentials:      map[string]string{"portainer": "secret"},
		AgentCredentials: map[string]string{"portainer": "files"},
	})
	require.Contains(t, cluster.Master(), "https://")
	other := cluster.Masters()[1].URL() // redirects
	s := subscribe(t, schedapi.Config{
		Masters: parse(t, strings.TrimPrefix(other, "https://")), Principal: "portainer", Secret: "secret", TLS: client,
	})
	s.waitSubscribed(1)
	s.works()

	wrong := subscribe(t, schedapi.Config{Masters: parse(t, cluster.Master()), Principal: "portainer", Secret: "guess", TLS: client})
	require.ErrorIs(t, wrong.end(), schedapi.ErrUnauthorized)
	require.Empty(t, wrong.disconnected)

	agent := cluster.Agents()[0].URL()
	read := func(cfg schedapi.FilesConfig) error {
		f := schedapi.NewFiles(cfg)
		defer f.Close()
		_, _, err := f.ReadFile(t.Context(), agent, "/frameworks/none", 0, 1)
		return err
	}
	require.ErrorIs(t, read(schedapi.FilesConfig{Principal: "portainer", Secret: "files", TLS: client}), schedapi.ErrFileNotFound)
	require.ErrorIs(t, read(schedapi.FilesConfig{Principal: "portainer", Secret: "secret", TLS: client}), schedapi.ErrFileForbidden)
	require.ErrorIs(t, read(schedapi.FilesConfig{TLS: client}), schedapi.ErrFileForbidden)
	var unknown x509.UnknownAuthorityError
	err := read(schedapi.FilesConfig{Principal: "portainer", Secret: "files"})
	require.ErrorIs(t, err, schedapi.ErrUnreachable)
	require.ErrorAs(t, err, &unknown)
}
