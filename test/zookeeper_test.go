package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// startZooKeeper starts Debian's ZooKeeper in a process of its own and returns
// its address. It ends with the test.
func startZooKeeper(t *testing.T) string {
	t.Helper()
	addr, dir := freeAddr(t), t.TempDir()
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	config := filepath.Join(dir, "zoo.cfg")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "tickTime=200\nminSessionTimeout=400\nmaxSessionTimeout=20000\ndataDir=%s\n"+
		"clientPort=%s\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=*\n", filepath.Join(dir, "data"), port), 0o600))
	cmd := exec.Command("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-cp", "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar",
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
	require.NoError(t, cmd.Start(), "this test needs Debian's packages zookeeper and default-jre-headless")
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	})
	eventually(t, time.Minute, func() bool { return zk.FLWRuok([]string{addr}, time.Second)[0] }, "ZooKeeper does not answer at %s", addr)
	return addr
}

// A candidate is a master's session with ZooKeeper, which holds its node there.
type candidate struct {
	conn *zk.Conn
	node string

	mu   sync.Mutex
	dead bool
	wire net.Conn
}

// stand puts a master up for election, as masters do (mesos
// src/master/contender/zookeeper.cpp).
func stand(t *testing.T, addr, path string, master *testmesos.Master) *candidate {
	t.Helper()
	c := &candidate{}
	conn, events, err := zk.Connect([]string{addr}, time.Second, zk.WithLogger(silence{}), zk.WithDialer(c.dial))
	require.NoError(t, err)
	c.conn = conn
	t.Cleanup(func() {
		conn.Close()
		for range events {
		}
	})
	eventually(t, time.Minute, func() bool { return conn.State() == zk.StateHasSession }, "no session with ZooKeeper at %s", addr)
	_, err = conn.Create(path, nil, 0, zk.WorldACL(zk.PermAll))
	require.True(t, err == nil || errors.Is(err, zk.ErrNodeExists), "%v", err)
	c.node, err = conn.Create(path+"/json.info_", master.Info(), zk.FlagEphemeral|zk.FlagSequence, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	return c
}

func (c *candidate) dial(network, addr string, timeout time.Duration) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return nil, errors.New("this master is dead")
	}
	conn, err := net.DialTimeout(network, addr, timeout)
	c.wire = conn
	return conn, err
}

// die ends the session as the death of its master does: nobody says goodbye, and
// the node stays until the session has timed out.
func (c *candidate) die(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	require.NoError(t, c.wire.Close())
}

// A silence is the log of a session that is meant to die.
type silence struct{}

func (silence) Printf(string, ...any) {}

// count counts the messages of a kind, and lets them pass.
func count(c *testmesos.Cluster, direction testmesos.Direction, kind string) *atomic.Int32 {
	n := &atomic.Int32{}
	c.Interfere(testmesos.Rule{Direction: direction, Type: kind, Match: func(testmesos.Message) bool {
		n.Add(1)
		return false
	}})
	return n
}

// TestMasterDiesDuringBuild kills the leading master in the middle of a step. The
// next one is elected, ZooKeeper says where it is, and the build ends there as if
// nothing had happened: one attempt, every line of its log once.
func TestMasterDiesDuringBuild(t *testing.T) {
	const lines, path = 50, "/mesos"
	addr := startZooKeeper(t)
	c := startMesos(t, testmesos.Config{Masters: 2, Agents: []testmesos.AgentConfig{{}, {}}})
	first, second := c.Masters()[0], c.Masters()[1]
	leading, waiting := stand(t, addr, path, first), stand(t, addr, path, second)
	require.Less(t, leading.node, waiting.node)
	subscribed := count(c, testmesos.SchedulerToMaster, "SUBSCRIBE")
	launched := count(c, testmesos.MasterToAgent, "RUN_TASK")

	before := look(t)
	dir := write(t, map[string]string{
		"Dockerfile": fmt.Sprintf("FROM busybox\nCOPY Dockerfile /\nRUN for i in $(seq 1 %d); do echo line $i; sleep 0.1; done\n", lines),
	})
	staging, meta := t.TempDir(), filepath.Join(t.TempDir(), "meta.json")
	p := start(t, "build", "--mesos-master", "zk://"+addr+path, "--staging-uri", staging, "--staging-ttl", "0", "--to", registry, "--from", registry,
		"--repository", "test/failover", "--tag", "a", "--tag", "b", "--engine", "dockerd", "--stream", "--metadata-file", meta, dir)
	p.waitFor(p.stderr, "line 10\n")
	require.EqualValues(t, 1, subscribed.Load())
	first.Kill()
	leading.die(t)
	eventually(t, 30*time.Second, func() bool {
		left, _, err := waiting.conn.Exists(leading.node)
		return err == nil && !left
	}, "ZooKeeper keeps the node of the dead master")
	c.Elect(second)

	require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
	require.GreaterOrEqual(t, subscribed.Load(), int32(2), "the framework subscribed with the next master")
	require.EqualValues(t, 1, launched.Load(), "launches")
	require.Len(t, p.refs(), 2)
	for _, ref := range p.refs() {
		pushed(t, ref)
	}
	var got, want []string
	for line := range strings.Lines(p.stderr.String()) {
		if strings.HasPrefix(line, "line ") {
			got = append(got, line)
		}
	}
	for i := 1; i <= lines; i++ {
		want = append(want, fmt.Sprintf("line %d\n", i))
	}
	require.Equal(t, want, got)
	m := readMetadata(t, meta)
	require.Len(t, m.Builds, 1)
	require.Equal(t, 1, m.Builds[0].Attempts)
	require.Empty(t, staged(t, staging))
	require.NoError(t, c.Close(), "it waits for its own processes, which nothingLeft must not bury")
	before.nothingLeft(t, p)
}
