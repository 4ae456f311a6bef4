package portainer_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/testmesos"
)

// An agent that is to go down gets no more builds; the one that runs there is told
// and goes on, and the operator sees that the framework agrees.
func TestFrameworkYieldsToMaintenance(t *testing.T) {
	c := cluster(t, 2)
	r := start(t, c, func(cfg *portainer.Config) { cfg.MaxAttempts = 1 })
	end := filepath.Join(t.TempDir(), "end")
	done := make(chan error, 1)
	var first *portainer.Result
	go func() {
		var err error
		first, err = r.build(r.ctx(), "wait:"+end)
		done <- err
	}()
	eventually(t, "the build runs", func() bool { return r.log.count(portainer.EventRunning) == 1 })
	agents := c.Agents()
	busy := agents[slices.IndexFunc(agents, func(a *testmesos.Agent) bool { return len(a.Executors()) > 0 })]
	busy.Maintain(time.Now().Add(10*time.Minute), 0)
	eventually(t, "the framework agrees", func() bool {
		for _, agreed := range busy.MaintenanceAnswers() {
			return agreed
		}
		return false
	})
	eventually(t, "the build is told", func() bool {
		r.log.mu.Lock()
		defer r.log.mu.Unlock()
		return slices.ContainsFunc(r.log.events, func(ev portainer.Event) bool {
			return ev.Kind == portainer.EventInfo && strings.Contains(ev.Text, "goes down for maintenance")
		})
	})
	second, err := r.build(r.ctx(), "push")
	require.NoError(t, err)
	require.NotEqual(t, busy.ID(), string(second.Agent))
	require.NoError(t, os.WriteFile(end, nil, 0o644))
	require.NoError(t, <-done)
	require.Equal(t, busy.ID(), string(first.Agent))
}
