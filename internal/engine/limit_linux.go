package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
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
	m := &memory{dir: dir, limit: bytes, peakFile: peakV1}
	if err := m.listen(); err != nil {
		return nil, err
	}
	return m, nil
}

// limitUnified does the work of limit with cgroup v2.
func limitUnified(dir string, cpu bool, quota, bytes int64) (*memory, error) {
	if !cpu && bytes <= 0 {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { // a parent that was asked for may not be there
		return nil, err
	}
	if err := delegate(cgroupRoot, filepath.Dir(dir), "cpu", "memory"); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if cpu {
		if err := writeValues(dir, "cpu.max", fmt.Sprintf("%d %d", quota, cpuPeriod)); err != nil {
			return nil, err
		}
	}
	if bytes <= 0 {
		return nil, nil
	}
	if err := writeValues(dir, limitV2, bytes); err != nil {
		return nil, err
	}
	// The file is there only if swap is counted.
	if err := writeValues(dir, "memory.swap.max", 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &memory{dir: dir, limit: bytes, peakFile: peakV2, killsFile: killsV2}, nil
}

// leafCgroup is the cgroup that those move to who are in the way of controllers.
const leafCgroup = "portainer-executor"

// delegate lets the cgroups below dir be bounded by controllers; root is that of
// the hierarchy. A cgroup of v2 other than the root can do that only when no process
// is in it itself, so those in it, among them our own, move to one below (kernel
// Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
func delegate(root, dir string, controllers ...string) error {
	// One has what the one above enables. They may hold processes and refuse:
	// what is missing in the end is seen below.
	for above := range ancestors(root, dir) {
		for _, c := range controllers {
			_ = writeValues(above, subtreeControl, "+"+c)
		}
	}
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range controllers {
		if !slices.Contains(strings.Fields(string(has)), c) {
			return fmt.Errorf("cgroup %s has no controller %q to bound builds with: whoever made it must delegate it (with systemd: Delegate=yes)", dir, c)
		}
	}
	enable := func() error { return writeValues(dir, subtreeControl, "+"+strings.Join(controllers, " +")) }
	err = enable()
	for tries := 0; tries < maxMoves && inTheWay(err); tries++ {
		if errors.Is(err, unix.EOPNOTSUPP) {
			if err := disable(dir); err != nil {
				return err
			}
		}
		if err := moveProcesses(dir, filepath.Join(dir, leafCgroup)); err != nil {
			return err
		}
		err = enable()
	}
	return err
}

// disable takes all controllers from the cgroups below dir.
func disable(dir string) error {
	enabled, err := os.ReadFile(filepath.Join(dir, subtreeControl))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(enabled)) {
		if err := writeValues(dir, subtreeControl, "-"+c); err != nil {
			return err
		}
	}
	return nil
}

const subtreeControl = "cgroup.subtree_control"

// maxMoves is how often processes are moved: meanwhile they may start others.
const maxMoves = 10

// inTheWay reports whether controllers cannot be enabled because of processes. The
// second is how the kernel says it when somebody has enabled such as are for threads,
// too, for example a runc that was started there: then processes can neither stay nor
// move below (kernel kernel/cgroup/cgroup.c, cgroup_vet_subtree_control_enable).
func inTheWay(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) }

// ancestors yields the directories from root down to the one above dir.
func ancestors(root, dir string) iter.Seq[string] {
	return func(yield func(string) bool) {
		rest, ok := strings.CutPrefix(dir, root+"/")
		if !ok {
			return
		}
		above := root
		for name := range strings.SplitSeq(rest, "/") {
			if !yield(above) {
				return
			}
			above = filepath.Join(above, name)
		}
	}
}

// moveProcesses moves those in one cgroup to another, which it makes.
func moveProcesses(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	procs, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		if err := writeValues(to, "cgroup.procs", pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to %s: %w", pid, to, err)
		}
	}
	return nil
}

// writeValues writes to files of a cgroup: name, value, name, value, …
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

// The files of a cgroup that tell what has become of its memory.
const (
	limitV1, peakV1, killsV1 = "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"
	limitV2, peakV2, killsV2 = "memory.max", "memory.peak", "memory.events"
)

// A memory is the bounded memory of a cgroup.
type memory struct {
	dir       string
	limit     int64
	peakFile  string
	killsFile string // unless it listens

	// With v1 each cgroup counts only its own kills, and takes the count with
	// it when it is removed. But a descriptor can be told of them all
	// (kernel Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
	listens bool
	event   int // an eventfd that never blocks
	control *os.File
	told    int // kills read from event so far
}

// noLimit is more than any machine has, and no more than the limit that the kernel
// tells with v1 where there is none.
const noLimit = 1 << 60

// ownMemory is the memory of the cgroup that we are in, which we may not change.
// It is nil if nobody has bounded it: others may then be in that cgroup, too.
func ownMemory() *memory {
	root, limitFile := cgroupRoot, limitV2
	m := &memory{peakFile: peakV2, killsFile: killsV2}
	if !unified() {
		// The count is of this cgroup alone, but so it is where we and all that
		// we start are.
		root, limitFile = filepath.Join(cgroupRoot, "memory"), limitV1
		m.peakFile, m.killsFile = peakV1, killsV1
	}
	m.dir = filepath.Join(root, ownCgroup())
	if _, err := os.Stat(m.dir); err != nil {
		m.dir = root // a container sees its own as the root, but its name as others do
	}
	data, err := os.ReadFile(filepath.Join(m.dir, limitFile))
	if err != nil {
		return nil
	}
	if m.limit, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err != nil || m.limit >= noLimit {
		return nil // or "max"
	}
	return m
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
	return killsIn(filepath.Join(m.dir, m.killsFile))
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
