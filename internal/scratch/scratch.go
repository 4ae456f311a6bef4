// Package scratch makes temporary directories that do not outlive their makers for
// long: what a process leaves that was killed, the next one finds and removes.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// lockName is the file in a directory on which its maker holds a lock, which the
// kernel lets go however the maker ends.
const lockName = "owner"

// A Dir is a temporary directory.
type Dir struct {
	dir  string
	lock *os.File
}

// Make makes a directory below os.TempDir whose name begins with prefix. The
// caller removes it.
func Make(prefix string) (*Dir, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	d := &Dir{dir: dir}
	if d.lock, err = makeLock(dir); err == nil {
		err = os.Mkdir(d.Path(), 0o755)
	}
	if err == nil {
		// MkdirTemp makes it for one user, but executors may run as another.
		err = os.Chmod(dir, 0o755) //nolint:gosec // see above
	}
	if err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// Path is where the maker may keep what it likes.
func (d *Dir) Path() string { return filepath.Join(d.dir, "data") }

// Remove removes the directory with all that is in it.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.dir)
	return errors.Join(err, d.Leave())
}

// Leave gives the directory up as it is, for a later Abandoned.
func (d *Dir) Leave() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// makeLock makes the lock of dir. Nobody sees it before it is locked.
func makeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = lock(f); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Abandoned returns the directories of this user whose names begin with prefix and
// whose makers are gone. They are the caller's to remove; nobody else gets them
// meanwhile.
func Abandoned(prefix string) ([]*Dir, error) {
	locks, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*", lockName))
	if err != nil {
		return nil, err
	}
	var dirs []*Dir
	var errs []error
	for _, path := range locks {
		f, err := openOwn(path)
		if err != nil {
			errs = append(errs, err)
		}
		if f == nil {
			continue
		}
		free, err := lock(f)
		if err != nil || !free {
			errs = append(errs, err, f.Close())
			continue
		}
		if now, err := os.Stat(path); err != nil || !sameFile(f, now) {
			errs = append(errs, f.Close()) // its owner has removed it meanwhile
			continue
		}
		dirs = append(dirs, &Dir{dir: filepath.Dir(path), lock: f})
	}
	return dirs, errors.Join(errs...)
}

func sameFile(f *os.File, other os.FileInfo) bool {
	info, err := f.Stat()
	return err == nil && os.SameFile(info, other)
}
