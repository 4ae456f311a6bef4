package engine_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// TestCgroupParent has steps run below a cgroup that was made for them, which is up to
// who runs the daemon: an engine of our own keeps to the cgroup of its task.
func TestCgroupParent(t *testing.T) {
	r := theRig(t)
	buildkitd, err := dockertest.StartBuildkitd(testContext(t), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, buildkitd.Stop()) })
	given := r.given(nil)
	given.Host, given.Kind = buildkitd.Host, engine.KindBuildkitd
	for name, cfg := range map[string]engine.Config{"docker": r.given(nil), "buildkitd": given} {
		t.Run(name, func(t *testing.T) {
			parent := boundedCgroup(t, 64)
			before := memoryPeak(t, parent)
			req := r.request(t, "FROM BUSYBOX\nRUN head -c 8m /dev/zero | tail -c 8m | wc -c\n")
			req.NoCache, req.Options = true, portainer.Options{CgroupParent: parent}
			_, err := open(t, cfg).Build(testContext(t), req)
			require.NoError(t, err)
			require.Greater(t, memoryPeak(t, parent), before+8<<20)
		})
	}
	req := r.request(t, "FROM BUSYBOX\n")
	req.Options.CgroupParent = "/builds"
	_, err = open(t, r.own(t, engine.KindBuildkitd, nil)).Build(testContext(t), req)
	require.ErrorIs(t, err, portainer.ErrInvalid)
	require.ErrorContains(t, err, `cgroup-parent "/builds": the steps of an engine that the executor starts stay in the cgroup of their task`)
}

// memoryPeak is the most memory in bytes that the processes below a cgroup had.
func memoryPeak(t *testing.T, cgroup string) int {
	t.Helper()
	file := filepath.Join("/sys/fs/cgroup/memory", cgroup, "memory.max_usage_in_bytes")
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		file = filepath.Join("/sys/fs/cgroup", cgroup, "memory.peak")
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	return n
}
