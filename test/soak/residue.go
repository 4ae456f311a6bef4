//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settle is how long what is ending may take.
const settle = 30 * time.Second

// A sight is what can be seen of this machine that builds may leave changed.
type sight struct {
	processes map[int]string // descendants of this one
	mounts    map[string]bool
}

func look() (sight, error) {
	s := sight{processes: map[int]string{}, mounts: map[string]bool{}}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(data)) {
		// proc(5): the fifth field is the mount point.
		if fields := strings.Fields(line); len(fields) > 4 {
			s.mounts[fields[4]] = true
		}
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return s, err
	}
	children := map[int][]int{}
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// proc(5): pid (command) state ppid …; a command may hold anything.
		end := strings.LastIndex(string(data), ")")
		fields := strings.Fields(string(data[end+1:]))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return s, err
		}
		ppid, err := strconv.Atoi(fields[1])
		if err != nil {
			return s, err
		}
		children[ppid] = append(children[ppid], pid)
	}
	for list := children[os.Getpid()]; len(list) > 0; {
		pid := list[0]
		list = append(list[1:], children[pid]...)
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil {
			s.processes[pid] = strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return s, nil
}

// A footprint is what a process takes.
type footprint struct {
	heapMB, goroutines, files int
}

func (f footprint) String() string {
	return fmt.Sprintf("heap %d MB, %d goroutines, %d open files", f.heapMB, f.goroutines, f.files)
}

// own is the footprint of this process.
func own() footprint {
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		files = nil
	}
	return footprint{heapMB: int(mem.HeapAlloc >> 20), goroutines: runtime.NumGoroutine(), files: len(files)}
}

// awaitNoExecutors waits until the agents have no executors any more and returns
// those that stay.
func (m *machine) awaitNoExecutors() []string {
	return await(func() (left []string) {
		for _, agent := range m.mesos.Agents() {
			for _, x := range agent.Executors() {
				left = append(left, fmt.Sprintf("executor %s, process %d, on %s", x.ID, x.PID, agent.ID()))
			}
		}
		return left
	})
}

// residue is what builds have left, of which there is nothing. The cluster must
// be closed.
func (m *machine) residue() []string {
	return await(func() (left []string) {
		now, err := look()
		if err != nil {
			return []string{err.Error()}
		}
		for pid, command := range now.processes {
			if _, old := m.before.processes[pid]; old {
				continue
			}
			// An orphan that became ours may only need to be buried.
			if got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); err == nil && got == pid {
				continue
			}
			left = append(left, fmt.Sprintf("process %d: %s", pid, command))
		}
		for point := range now.mounts {
			if !m.before.mounts[point] && strings.HasPrefix(point, m.dir) {
				left = append(left, "mount "+point)
			}
		}
		for what, dir := range map[string]string{"staged": m.staging, "temporary file": m.temp, "build context": filepath.Join(m.dir, "contexts")} {
			for _, name := range filesBelow(dir) {
				left = append(left, what+" "+name)
			}
		}
		out, err := exec.Command("docker", "--host", m.daemon.Host, "ps", "--all", "--quiet").Output()
		if err != nil {
			return append(left, fmt.Sprintf("docker ps: %v", err))
		}
		for id := range strings.FieldsSeq(string(out)) {
			left = append(left, "container "+id)
		}
		return left
	})
}

// await waits until nothing is left, and returns what stays.
func await(left func() []string) []string {
	deadline := time.NewTimer(settle)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		found := left()
		if len(found) == 0 {
			return nil
		}
		select {
		case <-deadline.C:
			return found
		case <-tick.C:
		}
	}
}

// filesBelow lists the files in a directory, at any depth.
func filesBelow(dir string) []string {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		names = append(names, err.Error())
	}
	return names
}
