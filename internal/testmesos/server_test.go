package testmesos_test

import (
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// TestRestartWaitsForItsPort: while a master is down its port is free for the
// connections of others.
func TestRestartWaitsForItsPort(t *testing.T) {
	c, err := testmesos.Start(testmesos.Config{})
	require.NoError(t, err)
	defer c.Close()
	u, err := url.Parse(c.Master())
	require.NoError(t, err)
	own, err := net.ResolveTCPAddr("tcp", u.Host)
	require.NoError(t, err)
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer elsewhere.Close()

	master := c.Masters()[0]
	master.Kill()
	conn, err := (&net.Dialer{LocalAddr: own}).DialContext(t.Context(), "tcp", elsewhere.Addr().String())
	require.NoError(t, err)
	_, err = net.Listen("tcp", u.Host)
	require.Error(t, err, "the connection holds the port")
	restarted := make(chan error, 1)
	go func() { restarted <- master.Restart() }()
	select {
	case err := <-restarted:
		require.FailNow(t, "restarted on a port that is taken", "%v", err)
	case <-time.After(50 * time.Millisecond): // it has tried
	}
	require.NoError(t, conn.(*net.TCPConn).SetLinger(0), "it ends at once")
	require.NoError(t, conn.Close())
	require.NoError(t, <-restarted)
	require.True(t, master.Leading())
}
