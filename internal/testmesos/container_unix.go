//go:build unix

package testmesos

import (
	"os"
	"os/exec"
	"syscall"
)

// newSession gives a command its own session and process group.
func newSession(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

func signalGroup(pid int, sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok {
		_ = syscall.Kill(-pid, s)
	}
}

// waitStatus returns the status of a process in the form of waitpid.
func waitStatus(state *os.ProcessState) int32 {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok {
		return int32(ws)
	}
	return -1
}

// exitCode returns the exit code of a status, false if it was a signal.
func exitCode(status int32) (int, bool) {
	ws := syscall.WaitStatus(status)
	return ws.ExitStatus(), ws.Exited()
}

// exitText describes the end of a command as Mesos's command executor does,
// and tells whether it succeeded.
func exitText(status int32) (text string, ok bool) {
	ws := syscall.WaitStatus(status)
	if ws.Signaled() {
		return "Command terminated with signal " + signalName(ws.Signal()), false
	}
	return "Command exited with status " + itoa(ws.ExitStatus()), ws.ExitStatus() == 0
}
