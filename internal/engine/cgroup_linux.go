package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/pause"
)

// cgroupRoot is where cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// hierarchies returns the roots of the cgroup hierarchies: one with cgroup v2,
// one for each controller with v1.
func hierarchies() []string {
	if unified() {
		return []string{cgroupRoot}
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil
	}
	var roots []string
	for _, e := range entries {
		if e.IsDir() { // the links of v1 name hierarchies once more
			roots = append(roots, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return roots
}

// unified reports whether this machine has cgroup v2 alone.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// firstCgroupNamespace is the cgroup namespace of a machine that is in no container
// (kernel include/linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const firstCgroupNamespace = "cgroup:[4026531835]"

// writableCgroups makes the cgroups of the container that we run in writable: a
// container runtime mounts them read-only unless the container is privileged.
// Outside of containers they are left as they are.
func writableCgroups() error {
	for _, root := range hierarchies() {
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			return fmt.Errorf("cgroups at %s: %w", root, err)
		}
		if st.Flags&unix.ST_RDONLY == 0 || !ownMount(root) {
			continue
		}
		// The flags of statfs are those of mount as far as they matter here
		// (kernel include/linux/statfs.h).
		const kept = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME | unix.ST_NODIRATIME
		flags := unix.MS_REMOUNT | unix.MS_BIND | uintptr(st.Flags)&kept
		if st.Flags&unix.ST_RELATIME != 0 {
			flags |= unix.MS_RELATIME
		}
		if err := unix.Mount("", root, "", flags, ""); err != nil {
			return fmt.Errorf("%s is read-only in this container and cannot be made writable: %w; run the container with --privileged, or with "+
				"--cap-add SYS_ADMIN and, where AppArmor is used, --security-opt apparmor=unconfined", root, err)
		}
	}
	return nil
}

// ownMount reports whether what is mounted at dir is the view of a container.
func ownMount(dir string) bool {
	if ns, err := os.Readlink("/proc/self/ns/cgroup"); err == nil && ns != firstCgroupNamespace {
		return true
	}
	mounts, err := readMounts()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(mounts, func(m mountPoint) bool { return m.path == dir && m.root != "/" })
}

// ownCgroup returns the cgroup we run in: that of the memory controller with v1, and
// with v2 the one that an engine before may have moved us out of.
// What we start belongs below it, so that whoever limits us limits that too.
func ownCgroup() string {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "/"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// cgroups(7): hierarchy-ID:controller-list:cgroup-path
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if unified() && parts[0] == "0" {
			return filepath.Join("/", strings.TrimSuffix(parts[2], "/"+leafCgroup))
		}
		if slices.Contains(strings.Split(parts[1], ","), "memory") {
			return parts[2]
		}
	}
	return "/"
}

// cgroupDirs returns the directories of a cgroup and all below it, those below
// first, in every hierarchy.
func cgroupDirs(cgroup string) []string {
	var dirs []string
	for _, root := range hierarchies() {
		// What cannot be read is not there.
		_ = filepath.WalkDir(filepath.Join(root, cgroup), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs)
	return dirs
}

// cgroupProcesses returns the processes in a cgroup and below it.
func cgroupProcesses(cgroup string) []int {
	seen := map[int]bool{}
	for _, dir := range cgroupDirs(cgroup) {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for s := range strings.FieldsSeq(string(data)) {
			// 0 is a process that our pid namespace does not hold.
			if pid, err := strconv.Atoi(s); err == nil && pid > 0 && pid != os.Getpid() {
				seen[pid] = true
			}
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	return pids
}

// missingDirs returns the directories that have to be made for a cgroup, from the
// top down, in every hierarchy. runc makes them all, and nobody removes those
// above the cgroup unless we do.
func missingDirs(cgroup string) []string {
	var dirs []string
	for _, root := range hierarchies() {
		dir := root
		for name := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
			dir = filepath.Join(dir, name)
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// removeCgroup removes a cgroup and all below it, and what of made was made for
// it. The kernel lets a cgroup go only some time after its last process.
func removeCgroup(ctx context.Context, cgroup string, made []string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		var busy error
		for _, dir := range cgroupDirs(cgroup) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				busy = fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
		if busy == nil {
			break
		}
		if pause.For(ctx, 10*time.Millisecond) != nil {
			return busy
		}
	}
	for _, dir := range slices.Backward(made) {
		// Somebody else may have come to use it.
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}
