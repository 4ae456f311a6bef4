package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// End ends the processes of this user that work in the directory: SIGTERM, and
// SIGKILL for those that are still there when ctx is done. It returns when there is
// none.
func (d *Dir) End(ctx context.Context) error {
	asked := map[int]bool{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Time{}
	for {
		pids := d.processes()
		if len(pids) == 0 {
			return nil
		}
		sig := unix.SIGTERM
		if ctx.Err() != nil {
			sig = unix.SIGKILL
			if deadline.IsZero() {
				deadline = time.Now().Add(killTime)
			} else if time.Now().After(deadline) {
				return fmt.Errorf("processes %v in %s do not end", pids, d.dir)
			}
		}
		for _, pid := range pids {
			if sig == unix.SIGTERM && asked[pid] {
				continue
			}
			asked[pid] = true
			if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d in %s: %w", pid, d.dir, err)
			}
		}
		<-tick.C
	}
}

// killTime is how long the kernel may take to end what was killed.
const killTime = 5 * time.Second

// processes returns those whose working directory is in the directory.
func (d *Dir) processes() []int {
	dir := d.dir
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Of another user's, and of one that has ended, this cannot be read.
		if cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}
