package engine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer"
)

// sampleDisk is how often the free space of a home's disk is looked at. A step
// that fails for want of it gives it back as soon as it is cleaned up after.
const sampleDisk = 20 * time.Millisecond

// nearlyFull is how little free space means that a step may have wanted more. It need
// not have tried to write the last byte, and ext4 and xfs keep up to 32 MB to
// themselves (kernel fs/ext4/super.c, ext4_calculate_resv_clusters).
const nearlyFull = 64 << 20

// watch implements guard.
func (h *home) watch() (stop func() shortage) {
	before := 0
	if h.memory != nil {
		h.counting.Lock()
		before = h.memory.kills()
		h.counting.Unlock()
	}
	onMachine, disk := machineKills(), h.disk.watch()
	return func() shortage {
		s := disk()
		if h.memory != nil {
			h.counting.Lock()
			s.killed = h.memory.kills() > before
			h.counting.Unlock()
			s.limit, s.peak = h.memory.limit, h.memory.peak()
		}
		s.suspected = machineKills() > onMachine
		return s
	}
}

// A neighbour watches what can be seen of a daemon that is another's, but on this
// machine.
type neighbour struct{ disk space }

// watch implements guard.
func (n neighbour) watch() (stop func() shortage) {
	before, disk := machineKills(), n.disk.watch()
	return func() shortage {
		s := disk()
		s.suspected = machineKills() > before
		return s
	}
}

// machineKills returns how many processes of this machine have been killed for want
// of memory, their machine's or their cgroup's (kernel mm/oom_kill.c).
func machineKills() int { return killsIn("/proc/vmstat") }

// killsIn returns what a file of counters says of such kills; 0 if it says nothing.
func killsIn(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			kills, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				return 0
			}
			return kills
		}
	}
	return 0
}

// A space watches the free space of the disk that holds a directory.
type space struct{ dir, name string }

// watch implements guard.
func (d space) watch() (stop func() shortage) {
	s := shortage{where: d.name}
	end := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		t := time.NewTicker(sampleDisk)
		defer t.Stop()
		for {
			if free, err := freeSpace(d.dir); err == nil && free < nearlyFull {
				s.full = true
			}
			select {
			case <-t.C:
			case <-end:
				return
			}
		}
	})
	return func() shortage {
		close(end)
		sampling.Wait()
		return s
	}
}

// minSpace is what must be free for a build that does not say how much it needs: less
// hardly holds a base image and a layer.
const minSpace = 256

// enoughSpace returns an error when a disk has not got the room that the task was
// promised. Another agent may have.
func enoughSpace(cfg Config, disk space) error {
	free, err := freeSpace(disk.dir)
	need := max(minSpace, int64(cfg.DiskMB))
	if err != nil || free>>20 >= need {
		return nil //nolint:nilerr // what cannot be measured is not known to be short
	}
	return failure(portainer.PhaseLaunch, portainer.ClassDisk,
		fmt.Errorf("the disk of %s has %s free and a build needs %d MB", disk.name, megabytes(free), need))
}

// freeSpace returns the bytes that are free for root on the disk that holds dir.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bfree) * st.Bsize, nil
}
