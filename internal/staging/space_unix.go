//go:build unix

package staging

import "syscall"

const errNoSpace = syscall.ENOSPC
