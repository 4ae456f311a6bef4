package engine_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

// TestNoShortage has steps that only say that there was one.
func TestNoShortage(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			cfg.MemMB = 256
			e := open(t, cfg)
			steps := []string{"echo No space left on device; exit 1", "exit 137"}
			if w.kind == engine.KindDocker && w.mount != "" {
				steps = steps[:1] // nothing bounds it: what happens elsewhere counts, and other tests run out of memory
			}
			for _, step := range steps {
				_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+step+"\n"))
				var be *portainer.BuildError
				require.ErrorAs(t, err, &be)
				require.Equal(t, portainer.ClassUser, be.Class, err)
			}
		})
	}
}

// TestTooLittleSpace: no engine is started, or used, on a disk that has not got what
// a build needs, be it said or not.
func TestTooLittleSpace(t *testing.T) {
	r := theRig(t)
	tests := []struct {
		name, kind string
		diskMB     float64
		says       string
	}{
		{"own dockerd", engine.KindDockerd, 0, "a build needs 256 MB"},
		{"own buildkitd", engine.KindBuildkitd, 500, "a build needs 500 MB"},
		{"given docker", engine.KindDocker, 1e9, "a build needs 1000000000 MB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, tt.kind, nil)
			cfg.Temp, cfg.DiskMB = shortTemp(t), tt.diskMB
			if tt.kind != engine.KindDocker {
				smallDisk(t, cfg.Sandbox)
				if tt.diskMB == 0 {
					require.NoError(t, os.WriteFile(filepath.Join(cfg.Sandbox, "other"), make([]byte, 200<<20), 0o600))
				}
			}
			_, err := engine.Open(testContext(t), cfg)
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassDisk, be.Class, err)
			require.ErrorIs(t, err, portainer.ErrLost, "another agent may have more")
			require.Contains(t, err.Error(), tt.says)
			left, err := os.ReadDir(cfg.Temp)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestCopyingStorage: where overlay file systems do not work, an engine of our own
// starts only if that is allowed.
func TestCopyingStorage(t *testing.T) {
	r := theRig(t)
	for _, kind := range ownKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cfg := r.own(t, kind, nil)
			mountOverlay(t, cfg.Sandbox) // an overlay's upper directory cannot be on an overlay
			_, err := engine.Open(testContext(t), cfg)
			require.ErrorContains(t, err, "--allow-vfs")

			cfg.AllowVFS = true
			e := open(t, cfg)
			_, err = e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN echo x >/x\n"))
			require.NoError(t, err)
			require.NoError(t, e.Close(testContext(t)))
		})
	}
}

// mountOverlay mounts an overlay file system at dir.
func mountOverlay(t *testing.T, dir string) {
	t.Helper()
	layers := t.TempDir()
	options := "lowerdir=" + filepath.Join(layers, "lower") + ",upperdir=" + filepath.Join(layers, "upper") + ",workdir=" + filepath.Join(layers, "work")
	for _, name := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(layers, name), 0o755))
	}
	out, err := exec.CommandContext(testContext(t), "mount", "-t", "overlay", "overlay", "-o", options, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	t.Cleanup(func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, string(out))
	})
}

// smallDisk mounts a file system of 400 MB at dir, to be unmounted before the test's
// directories are removed.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 400<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", disk}, {"mount", "-o", "loop", disk, dir}} {
		out, err := exec.CommandContext(testContext(t), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, string(out))
	})
}

// boundedCgroup makes a cgroup whose memory is bounded, in MB.
func boundedCgroup(t *testing.T, mb int) string {
	t.Helper()
	name := "/et-" + strings.ToLower(rand.Text()[:8])
	file := filepath.Join("/sys/fs/cgroup/memory", name, "memory.limit_in_bytes")
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		file = filepath.Join("/sys/fs/cgroup", name, "memory.max")
	}
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "%d", mb<<20), 0))
	t.Cleanup(func() {
		// Daemons make it in the other hierarchies, too, and those below it.
		for _, dir := range slices.Backward(cgroupTree(t, name[1:])) {
			require.Eventually(t, func() bool { return os.Remove(dir) == nil }, 10*time.Second, 10*time.Millisecond, dir)
		}
	})
	return name
}

// cgroupTree returns the cgroups of that name and those below them.
func cgroupTree(t *testing.T, name string) []string {
	t.Helper()
	var all []string
	for _, top := range cgroups(t, name) {
		require.NoError(t, filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		}))
	}
	return all
}
