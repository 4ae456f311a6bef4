//go:build unix

package registryauth

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// ownGroup puts cmd in a process group of its own, all of which is killed when
// the context of cmd ends.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
