package local_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/local"
)

// agentsOf is what the master tells of its agents.
func agentsOf(t *testing.T, master string) []map[string]float64 {
	t.Helper()
	resp, err := http.Get(master + "/master/state")
	require.NoError(t, err)
	defer resp.Body.Close()
	var state struct {
		Slaves []struct {
			Resources struct{ CPUs, Mem, Disk float64 }
		}
	}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&state))
	var agents []map[string]float64
	for _, s := range state.Slaves {
		agents = append(agents, map[string]float64{"cpus": s.Resources.CPUs, "mem": s.Resources.Mem, "disk": s.Resources.Disk})
	}
	return agents
}

func TestClusterDividesTheMachine(t *testing.T) {
	c, err := local.Start(local.Config{Agents: 3})
	require.NoError(t, err)
	defer c.Close()
	require.Len(t, c.Agents(), 3)
	require.Empty(t, c.Registry())
	agents := agentsOf(t, c.Master())
	require.Len(t, agents, 3)
	for _, a := range agents {
		require.GreaterOrEqual(t, a["cpus"], 2.0)
		require.GreaterOrEqual(t, a["mem"], 2048.0)
		require.Positive(t, a["disk"])
	}
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "a second Close changes nothing")
	_, err = net.Dial("tcp", strings.TrimPrefix(c.Master(), "http://"))
	require.Error(t, err, "nobody listens any more")
}

func TestClusterTakesWhatItIsGiven(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	c, err := local.Start(local.Config{Resources: "cpus:7;mem:700;disk:70", Registry: true, WorkDir: dir})
	require.NoError(t, err)
	require.Equal(t, []map[string]float64{{"cpus": 7, "mem": 700, "disk": 70}}, agentsOf(t, c.Master()))
	require.NotEmpty(t, c.Registry())
	require.NoError(t, c.Close())
	_, err = os.Stat(dir)
	require.NoError(t, err, "a directory of the caller's stays")
}

func TestClusterLeavesNoTemporaryFile(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	c, err := local.Start(local.Config{Registry: true})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = local.Start(local.Config{Registry: true, Resources: "cpus:many"})
	require.ErrorContains(t, err, "many")
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left)
}
