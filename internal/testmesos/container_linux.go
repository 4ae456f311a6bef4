package testmesos

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// reap waits for a command, kills what it left behind and calls exited. The
// dead process is not released before its session was searched: its id cannot
// belong to another one meanwhile.
func reap(cmd *exec.Cmd, exited func()) {
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	killContainer(cmd.Process.Pid)
	exited()
	_ = cmd.Wait()
}

// killContainer kills a process, its descendants and its session, as the
// POSIX launcher of Mesos does (mesos 3rdparty/stout, os::killtree).
func killContainer(pid int) {
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	// A process may have been forked while the list was made, so look until
	// there is nobody left to kill.
	for range 100 {
		alive := 0
		for _, p := range containerProcesses(pid) {
			if syscall.Kill(p, syscall.SIGKILL) == nil {
				alive++
			}
		}
		if alive == 0 {
			return
		}
	}
}

// containerProcesses lists the live processes that descend from pid or are in
// its session, without pid itself if that is dead already.
func containerProcesses(pid int) []int {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	type process struct{ pid, parent, session int }
	var all []process
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// pid (command) state ppid pgrp session …; the command may hold anything.
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) < 4 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
			continue
		}
		parent, _ := strconv.Atoi(string(fields[1]))
		session, _ := strconv.Atoi(string(fields[3]))
		all = append(all, process{n, parent, session})
	}
	inside := map[int]bool{pid: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !inside[p.pid] && (p.session == pid || inside[p.parent]) {
				inside[p.pid] = true
				grown = true
			}
		}
	}
	var out []int
	for _, p := range all {
		if inside[p.pid] {
			out = append(out, p.pid)
		}
	}
	return out
}
