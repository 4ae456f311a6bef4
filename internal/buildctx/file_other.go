//go:build !unix

package buildctx

import "io/fs"

const openFlags = 0

type inode struct{ dev, ino uint64 }

func inodeOf(fs.FileInfo) (inode, bool) { return inode{}, false }

func device(fs.FileInfo) (major, minor int64) { return 0, 0 }
