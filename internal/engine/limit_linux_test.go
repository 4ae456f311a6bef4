package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// unifiedHierarchy mounts the hierarchy of cgroup v2 and returns its root and a
// controller that it has.
func unifiedHierarchy(t *testing.T) (root, controller string) {
	t.Helper()
	root = t.TempDir()
	require.NoError(t, unix.Mount("none", root, "cgroup2", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(root, 0)) })
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	require.NoError(t, err)
	// Where v1 has the others, too, it seldom has this one.
	for _, c := range []string{"memory", "hugetlb"} {
		if strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " "+c+" ") {
			return root, c
		}
	}
	require.Fail(t, "no controller of cgroup v2", "cgroup.controllers has %q", controllers)
	return "", ""
}

// TestDelegate bounds the cgroups below one that has processes in it.
func TestDelegate(t *testing.T) {
	root, controller := unifiedHierarchy(t)
	top := filepath.Join(root, "portainer-test-"+strconv.Itoa(os.Getpid()))
	dir := filepath.Join(top, "task")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	sleep := exec.CommandContext(t.Context(), "sleep", "1000")
	require.NoError(t, sleep.Start())
	t.Cleanup(func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
		for _, d := range []string{filepath.Join(dir, "build"), filepath.Join(dir, leafCgroup), dir, top} {
			// It is busy for a moment after its last process.
			require.Eventually(t, func() bool { return unix.Rmdir(d) == nil }, 10*time.Second, time.Millisecond)
		}
	})
	pid := strconv.Itoa(sleep.Process.Pid)
	require.NoError(t, writeValues(dir, "cgroup.procs", pid))
	require.ErrorContains(t, delegate(root, dir, "nonsense"), `no controller "nonsense"`)

	for range 2 { // the second finds it done
		require.NoError(t, delegate(root, dir, controller))
	}
	for file, want := range map[string]string{
		filepath.Join(dir, leafCgroup, "cgroup.procs"): pid,
		filepath.Join(dir, "cgroup.procs"):             "",
		filepath.Join(dir, subtreeControl):             controller,
		filepath.Join(top, subtreeControl):             controller,
	} {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, want, strings.TrimSpace(string(data)), file)
	}
	build := filepath.Join(dir, "build")
	require.NoError(t, os.Mkdir(build, 0o755))
	files, err := filepath.Glob(filepath.Join(build, controller+".*"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "a build's cgroup can be bounded")
}

// TestMemoryUnified reads what the kernel says of a cgroup of v2 (kernel
// Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files").
func TestMemoryUnified(t *testing.T) {
	m := &memory{dir: t.TempDir(), limit: 1 << 20, peakFile: peakV2, killsFile: killsV2}
	require.Zero(t, m.kills())
	require.Zero(t, m.peak(), "kernels before 5.19 do not tell")
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "memory.events"), []byte("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "memory.peak"), []byte("1048576\n"), 0o600))
	require.Equal(t, 2, m.kills())
	require.Equal(t, int64(1048576), m.peak())
	require.NoError(t, m.close())
}

func TestAncestors(t *testing.T) {
	var dirs []string
	for d := range ancestors("/sys/fs/cgroup", "/sys/fs/cgroup/a/b") {
		dirs = append(dirs, d)
	}
	require.Equal(t, []string{"/sys/fs/cgroup", "/sys/fs/cgroup/a"}, dirs)
	for d := range ancestors("/sys/fs/cgroup", "/sys/fs/cgroup") {
		require.Fail(t, "the root has none above it", d)
	}
}
