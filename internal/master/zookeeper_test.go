package master_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/master"
)

// A zooKeeperServer is Debian's ZooKeeper in a process of its own.
type zooKeeperServer struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
	done chan error // receives the end of cmd
}

func startZooKeeper(t *testing.T) *zooKeeperServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &zooKeeperServer{t: t, dir: t.TempDir(), addr: l.Addr().String()}
	require.NoError(t, l.Close())
	_, port, err := net.SplitHostPort(s.addr)
	require.NoError(t, err)
	config := fmt.Sprintf("tickTime=200\nminSessionTimeout=400\nmaxSessionTimeout=20000\ndataDir=%s\nclientPort=%s\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=*\n",
		filepath.Join(s.dir, "data"), port)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "zoo.cfg"), []byte(config), 0o600))
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *zooKeeperServer) start() {
	s.t.Helper()
	s.cmd = exec.Command("java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-cp", "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar",
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", filepath.Join(s.dir, "zoo.cfg"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, s.cmd.Start(), "this test needs Debian's packages zookeeper and default-jre-headless")
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(s.cmd, s.done)
	require.Eventually(s.t, func() bool {
		return zk.FLWRuok([]string{s.addr}, time.Second)[0]
	}, 60*time.Second, 20*time.Millisecond, "ZooKeeper does not answer")
}

func (s *zooKeeperServer) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may be gone
	<-s.done
	s.cmd = nil
}

// connect returns a session that ends with the test.
func (s *zooKeeperServer) connect() *zk.Conn {
	s.t.Helper()
	conn, events, err := zk.Connect([]string{s.addr}, 10*time.Second, zk.WithLogInfo(false))
	require.NoError(s.t, err)
	s.t.Cleanup(func() {
		conn.Close()
		for range events {
		}
	})
	require.Eventually(s.t, func() bool { return conn.State() == zk.StateHasSession }, 30*time.Second, 10*time.Millisecond)
	return conn
}

// stand puts a master at port up for election and returns its node.
func stand(t *testing.T, conn *zk.Conn, path string, port int, acl []zk.ACL) string {
	t.Helper()
	info := fmt.Sprintf(`{"address":{"hostname":"127.0.0.1","ip":"127.0.0.1","port":%d},"id":"m","version":"1.12.0"}`, port)
	node, err := conn.Create(path+"/json.info_", []byte(info), zk.FlagEphemeral|zk.FlagSequence, acl)
	require.NoError(t, err)
	return node
}

func leader(t *testing.T, r master.Resolver) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	u, err := r.Leader(ctx)
	require.NoError(t, err)
	return u.String()
}

func eventuallyLeader(t *testing.T, r master.Resolver, want string) {
	t.Helper()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		u, err := r.Leader(ctx)
		return err == nil && u.String() == want
	}, 30*time.Second, 10*time.Millisecond, "the leader is not %s", want)
}

func TestZooKeeperFollowsTheElection(t *testing.T) {
	server := startZooKeeper(t)
	conn := server.connect()
	r, err := master.Parse("zk://127.0.0.1:1," + server.addr + "/mesos") // one server is down
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })

	// No master yet, and not even the path.
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := r.Leader(ctx)
		return err != nil && err.Error() == "no leading master in zk://127.0.0.1:1,"+server.addr+
			"/mesos: there is no /mesos: no master has ever stood for election there (context deadline exceeded)"
	}, 30*time.Second, time.Millisecond)

	_, err = conn.Create("/mesos", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	_, err = conn.Create("/mesos/log_replicas", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)

	// A Leader that waits is told of the first master.
	type answer struct {
		url string
		err error
	}
	waiting := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		u, err := r.Leader(ctx)
		if err != nil {
			waiting <- answer{err: err}
			return
		}
		waiting <- answer{url: u.String()}
	}()
	first := stand(t, conn, "/mesos", 6061, zk.WorldACL(zk.PermAll))
	got := <-waiting
	require.NoError(t, got.err)
	require.Equal(t, "//127.0.0.1:6061", got.url)

	// A second one does not lead until the first is gone.
	stand(t, conn, "/mesos", 6062, zk.WorldACL(zk.PermAll))
	require.Equal(t, "//127.0.0.1:6061", leader(t, r))
	require.NoError(t, conn.Delete(first, -1))
	eventuallyLeader(t, r, "//127.0.0.1:6062")

	// The leader stays known while ZooKeeper is away, and changes are seen after.
	server.stop()
	require.Equal(t, "//127.0.0.1:6062", leader(t, r))
	server.start()
	require.Eventually(t, func() bool { return conn.State() == zk.StateHasSession }, 30*time.Second, 10*time.Millisecond)
	children, _, err := conn.Children("/mesos")
	require.NoError(t, err)
	for _, child := range children {
		if child != "log_replicas" {
			require.NoError(t, conn.Delete("/mesos/"+child, -1))
		}
	}
	stand(t, conn, "/mesos", 6063, zk.WorldACL(zk.PermAll))
	eventuallyLeader(t, r, "//127.0.0.1:6063")
}

func TestZooKeeperCredentials(t *testing.T) {
	server := startZooKeeper(t)
	conn := server.connect()
	require.NoError(t, conn.AddAuth("digest", []byte("user:secret")))
	acl := zk.DigestACL(zk.PermAll, "user", "secret")
	_, err := conn.Create("/mesos", nil, 0, acl)
	require.NoError(t, err)
	stand(t, conn, "/mesos", 6061, acl)

	r, err := master.Parse("zk://user:secret@" + server.addr + "/mesos")
	require.NoError(t, err)
	require.Equal(t, "//127.0.0.1:6061", leader(t, r))
	require.NoError(t, r.Close())

	r, err = master.Parse("zk://user:wrong@" + server.addr + "/mesos")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := r.Leader(ctx)
		return err != nil && err.Error() == "no leading master in zk://user:***@"+server.addr+
			"/mesos: /mesos may not be read with these credentials: zk: not authenticated (context deadline exceeded)"
	}, 30*time.Second, time.Millisecond)
	require.NoError(t, r.Close())
}

func TestZooKeeperOutOfReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	r, err := master.Parse("zk://" + addr + "/mesos")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := r.Leader(ctx)
		return errors.Is(err, syscall.ECONNREFUSED)
	}, 30*time.Second, time.Millisecond)

	// Close ends a Leader that waits.
	waiting := make(chan error, 1)
	go func() {
		_, err := r.Leader(t.Context())
		waiting <- err
	}()
	require.NoError(t, r.Close())
	require.ErrorIs(t, <-waiting, master.ErrClosed)
	require.NoError(t, r.Close())
}
