//go:build unix

package buildctx

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// openFlags keep the opening of what was a regular file a moment ago from going
// through a link or waiting at a pipe.
const openFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// An inode is the identity of a file on this machine.
type inode struct{ dev, ino uint64 }

// inodeOf returns the identity of a file, and whether it has several names.
func inodeOf(fi fs.FileInfo) (inode, bool) {
	s, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}, false
	}
	return inode{uint64(s.Dev), uint64(s.Ino)}, s.Nlink > 1
}

func device(fi fs.FileInfo) (major, minor int64) {
	s, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	return int64(unix.Major(uint64(s.Rdev))), int64(unix.Minor(uint64(s.Rdev)))
}
