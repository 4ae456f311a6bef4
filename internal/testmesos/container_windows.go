package testmesos

import (
	"os"
	"os/exec"
)

func newSession(*exec.Cmd) {}

func reap(cmd *exec.Cmd, exited func()) {
	_ = cmd.Wait()
	exited()
}

func killContainer(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
	}
}

func signalGroup(pid int, _ os.Signal) { killContainer(pid) }

func waitStatus(state *os.ProcessState) int32 { return int32(state.ExitCode()) << 8 }

func exitCode(status int32) (int, bool) { return int(status >> 8), true }

func exitText(status int32) (text string, ok bool) {
	code := int(status >> 8)
	return "Command exited with status " + itoa(code), code == 0
}
