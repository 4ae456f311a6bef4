package master_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/master"
	"github.com/org/portainer/internal/schedapi"
	"github.com/org/portainer/internal/testmesos"
)

// TestFrameworkFollowsTheElection kills the leading one of two masters under a
// subscribed framework. As with real masters the other one sends everybody to the
// dead leader until ZooKeeper has noticed.
func TestFrameworkFollowsTheElection(t *testing.T) {
	server := startZooKeeper(t)
	cluster, err := testmesos.Start(testmesos.Config{Masters: 2, Agents: []testmesos.AgentConfig{{}}, AllocationInterval: 10 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	conn := server.connect()
	_, err = conn.Create("/mesos", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	var nodes []string
	for _, m := range cluster.Masters() {
		node, err := conn.Create("/mesos/json.info_", m.Info(), zk.FlagEphemeral|zk.FlagSequence, zk.WorldACL(zk.PermAll))
		require.NoError(t, err)
		nodes = append(nodes, node)
	}

	r, err := master.Parse("zk://" + server.addr + "/mesos")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	timeout := 3600.0
	client, err := schedapi.New(schedapi.Config{
		Masters:   r,
		Framework: &mesos.FrameworkInfo{User: "root", Name: "test", FailoverTimeout: &timeout},
	})
	require.NoError(t, err)
	var mu sync.Mutex
	var ids []string
	lost := 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- client.Run(ctx, func(event schedapi.Event) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case event.Disconnected != nil:
				lost++
			case event.Type == scheduler.Event_SUBSCRIBED:
				ids = append(ids, event.Subscribed.FrameworkID.GetValue())
			}
		})
	}()
	eventually := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return ok()
		}, 60*time.Second, 5*time.Millisecond, what)
	}
	eventually("not subscribed", func() bool { return len(ids) == 1 })

	masters := cluster.Masters()
	masters[0].Kill()
	eventually("no further attempts", func() bool { return lost >= 3 })
	require.NoError(t, conn.Delete(nodes[0], -1))
	cluster.Elect(masters[1])
	eventually("not subscribed again", func() bool { return len(ids) == 2 })
	require.Equal(t, ids[0], ids[1])

	// The first comes back, behind the second, and leads when that is gone too.
	require.NoError(t, masters[0].Restart())
	_, err = conn.Create("/mesos/json.info_", masters[0].Info(), zk.FlagEphemeral|zk.FlagSequence, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	require.Equal(t, masters[1].URL(), "http:"+leader(t, r))
	masters[1].Kill()
	require.NoError(t, conn.Delete(nodes[1], -1))
	cluster.Elect(masters[0])
	eventually("not subscribed to the first again", func() bool { return len(ids) == 3 })
	require.Equal(t, ids[0], ids[2])
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}
