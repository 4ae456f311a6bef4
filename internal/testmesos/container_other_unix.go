//go:build unix && !linux

package testmesos

import (
	"os/exec"
	"syscall"
)

// reap waits for a command, calls exited and kills what is left of its group.
func reap(cmd *exec.Cmd, exited func()) {
	_ = cmd.Wait()
	exited()
	killContainer(cmd.Process.Pid)
}

// killContainer kills a process group.
func killContainer(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
