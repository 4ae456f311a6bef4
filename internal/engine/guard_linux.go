package engine

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sampleDisk is how often the free space of a home's disk is looked at. A step
// that fails for want of it gives it back as soon as it is cleaned up after.
const sampleDisk = 20 * time.Millisecond

// nearlyFull is how little free space means that a step may have wanted more: it
// need not have tried to write the last byte.
const nearlyFull = 4 << 20

// watch implements guard.
func (h *home) watch() (stop func() shortage) {
	before := 0
	if h.memory != nil {
		h.counting.Lock()
		before = h.memory.kills()
		h.counting.Unlock()
	}
	s := shortage{where: h.Data}
	end := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		t := time.NewTicker(sampleDisk)
		defer t.Stop()
		for {
			if free, err := freeSpace(h.Data); err == nil && free < nearlyFull {
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
		if h.memory != nil {
			h.counting.Lock()
			s.killed = h.memory.kills() > before
			h.counting.Unlock()
			s.limit, s.peak = h.memory.limit, h.memory.peak()
		}
		return s
	}
}

// freeSpace returns the bytes that are free for root on the disk that holds dir.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bfree) * st.Bsize, nil
}
