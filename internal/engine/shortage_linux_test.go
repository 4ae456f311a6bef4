package engine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

func TestOutOfMemory(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		if w.kind == engine.KindDocker && w.mount != "" {
			continue // BuildKit before Docker 23 bounds nothing, docs/engines.md says so
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			cfg.MemMB = 48
			cfg.CPUs = 1.5
			e := open(t, cfg)
			// sort keeps all of its input in memory.
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN true\nRUN "+w.mount+"seq 1 20000000 | sort >/dev/null; exit 3\n"))
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassOOM, be.Class, err)
			require.Equal(t, 3, be.Line)
			require.Contains(t, err.Error(), "out of memory: the task has 48 MB")
			// With cgroup v2 BuildKit sees it, too, and says that instead.
			require.Regexp(t, "exit code 3|cannot allocate memory", err.Error())

			_, err = e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"exit 3\n"))
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassUser, be.Class, err)
		})
	}
}

func TestDiskFull(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		if w.kind == engine.KindDocker {
			continue // its disk is not ours to fill
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			smallDisk(t, cfg.Sandbox)
			e := open(t, cfg)
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"dd if=/dev/zero of=/big bs=1M count=200\n"))
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassDisk, be.Class, err)
			require.Equal(t, 2, be.Line)
			require.NoError(t, e.Close(testContext(t)))
		})
	}
}

func TestDiskNotFull(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			e := open(t, r.config(t, w.kind, nil))
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"echo No space left on device; exit 1\n"))
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassUser, be.Class, err)
		})
	}
}

// smallDisk mounts a file system of 64 MB at dir.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", disk}, {"mount", "-o", "loop", disk, dir}} {
		out, err := exec.CommandContext(testContext(t), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, string(out))
	})
}
