package engine

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unmountBelow undoes every mount at or below dir, the newest first.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(p, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // somebody else was faster
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow returns the mount points at or below dir, the oldest first.
func mountsBelow(dir string) ([]string, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // mountinfo knows no links
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range mounts {
		if m.path == dir || strings.HasPrefix(m.path, dir+"/") {
			points = append(points, m.path)
		}
	}
	return points, nil
}

// A mountPoint is where a file system is mounted.
type mountPoint struct {
	path string
	root string // what of the file system is there
}

// readMounts returns what is mounted, the oldest first.
func readMounts() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []mountPoint
	for s := bufio.NewScanner(f); ; {
		if !s.Scan() {
			return mounts, s.Err()
		}
		// proc(5): the fourth field is the root, the fifth the mount point.
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		mounts = append(mounts, mountPoint{path: unescapeMount(fields[4]), root: unescapeMount(fields[3])})
	}
}

// unescapeMount undoes the octal escapes of mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// tryOverlay reports why overlay file systems cannot be used below dir; nil if
// they can.
func tryOverlay(dir string) error {
	dir = filepath.Join(dir, "overlay-probe")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	// A mount's options hold neither commas nor colons: name the directories
	// relative to where we are by way of descriptors.
	var opts [3]string
	for i, d := range []string{"lower", "upper", "work"} {
		f, err := os.Open(filepath.Join(dir, d))
		if err != nil {
			return err
		}
		defer f.Close()
		opts[i] = fmt.Sprintf("%sdir=/proc/self/fd/%d", d, f.Fd())
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, strings.Join(opts[:], ",")); err != nil {
		return fmt.Errorf("mount an overlay file system: %w", err)
	}
	return unix.Unmount(merged, 0)
}
