package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cpuPeriod is the time, in microseconds, that a share of processors is a share
// of: the kernel's default.
const cpuPeriod = 100_000

// minQuota is the least of a cpuPeriod that the kernel lets anybody have.
const minQuota = 1000

// limit makes a cgroup and bounds what runs in it. It returns nil when memory is
// not bounded.
func limit(cgroup string, cpus, memMB float64) (*memory, error) {
	quota := max(minQuota, int64(cpus*cpuPeriod))
	bytes := int64(memMB * (1 << 20))
	if unified() {
		return limitUnified(filepath.Join(cgroupRoot, cgroup), cpus > 0, quota, bytes)
	}
	if cpus > 0 {
		dir := filepath.Join(cgroupRoot, "cpu", cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := writeValues(dir, "cpu.cfs_period_us", cpuPeriod, "cpu.cfs_quota_us", quota); err != nil {
			return nil, err
		}
	}
	if bytes <= 0 {
		return nil, nil
	}
	dir := filepath.Join(cgroupRoot, "memory", cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := writeValues(dir, "memory.limit_in_bytes", bytes); err != nil {
		return nil, err
	}
	// Memory and swap together; the file is there only if swap is counted.
	if err := writeValues(dir, "memory.memsw.limit_in_bytes", bytes); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m := &memory{dir: dir, limit: bytes, peakFile: "memory.max_usage_in_bytes"}
	return m, m.listen()
}

// limitUnified does the work of limit with cgroup v2.
func limitUnified(dir string, cpu bool, quota, bytes int64) (*memory, error) {
	if !cpu && bytes <= 0 {
		return nil, nil
	}
	if err := delegate(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if cpu {
		if err := os.WriteFile(filepath.Join(dir, "cpu.max"), fmt.Appendf(nil, "%d %d", quota, cpuPeriod), 0); err != nil {
			return nil, err
		}
	}
	if bytes <= 0 {
		return nil, nil
	}
	if err := writeValues(dir, "memory.max", bytes); err != nil {
		return nil, err
	}
	if err := writeValues(dir, "memory.swap.max", 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &memory{dir: dir, limit: bytes, peakFile: "memory.peak"}, nil
}

// delegate lets the cgroups below dir be bounded. A cgroup of v2 other than the
// root can do that only when no process is in it itself, so those in it, among
// them our own, move to one below (cgroups(7), "no internal processes").
func delegate(dir string) error {
	control := filepath.Join(dir, "cgroup.subtree_control")
	enable := func() error { return os.WriteFile(control, []byte("+cpu +memory"), 0) }
	err := enable()
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	leaf := filepath.Join(dir, "portainer-executor")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to %s: %w", pid, leaf, err)
		}
	}
	return enable()
}

// writeValues writes numbers to files of a cgroup: name, value, name, value, …
func writeValues(dir string, pairs ...any) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		path := filepath.Join(dir, fmt.Sprint(pairs[i]))
		// Not os.WriteFile: a file that is not there must not be made.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(f, pairs[i+1])
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("write %v: %w", pairs[i+1], err)
		}
	}
	return nil
}

// A memory is the bounded memory of a cgroup.
type memory struct {
	dir      string
	limit    int64
	peakFile string

	// With v1 each cgroup counts only its own kills, and takes the count with
	// it when it is removed. But a descriptor can be told of them all
	// (kernel Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
	listens bool
	event   int // an eventfd that never blocks
	control *os.File
	told    int // kills read from event so far
}

// listen opens event.
func (m *memory) listen() (err error) {
	if m.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	m.listens = true
	if m.control, err = os.Open(filepath.Join(m.dir, "memory.oom_control")); err == nil {
		err = os.WriteFile(filepath.Join(m.dir, "cgroup.event_control"), fmt.Appendf(nil, "%d %d", m.event, m.control.Fd()), 0)
	}
	if err != nil {
		return errors.Join(err, m.close())
	}
	return nil
}

// kills returns how many processes have been killed for want of memory. Calls
// must not overlap.
func (m *memory) kills() int {
	if m.listens {
		var buf [8]byte
		// There is nothing to read when there is nothing new.
		if n, err := unix.Read(m.event, buf[:]); err == nil && n == len(buf) {
			m.told += int(binary.NativeEndian.Uint64(buf[:]))
		}
		return m.told
	}
	data, err := os.ReadFile(filepath.Join(m.dir, "memory.events"))
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

// peak returns the most that was used, in bytes; 0 if the kernel does not tell.
func (m *memory) peak() int64 {
	data, err := os.ReadFile(filepath.Join(m.dir, m.peakFile))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// close closes what listen has opened.
func (m *memory) close() error {
	var errs []error
	if m.listens {
		m.listens = false
		errs = append(errs, unix.Close(m.event))
	}
	if m.control != nil {
		errs = append(errs, m.control.Close())
	}
	return errors.Join(errs...)
}
