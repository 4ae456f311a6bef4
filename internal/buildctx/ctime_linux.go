package buildctx

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime returns when the kernel last changed anything about a file.
func changeTime(fi fs.FileInfo) (time.Time, bool) {
	s, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(s.Ctim.Unix()), true
}
