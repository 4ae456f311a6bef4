package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A machine is what can be seen of this one that a run may leave changed.
type machine struct {
	children map[int]bool // of this process
	mounts   map[string]bool
}

// look takes note of the machine before a run.
func look(t *testing.T) machine {
	t.Helper()
	m := machine{children: map[int]bool{}, mounts: map[string]bool{}}
	for _, c := range children(t) {
		m.children[c.pid] = true
	}
	for _, point := range mountPoints(t) {
		m.mounts[point] = true
	}
	return m
}

// nothingLeft checks that a run has left no process, no mount and no temporary
// file. What is still ending gets a moment.
func (m machine) nothingLeft(t *testing.T, p *process) {
	t.Helper()
	left := func() (found []string) {
		for _, c := range children(t) {
			if m.children[c.pid] {
				continue
			}
			if c.state == "Z" {
				// An orphan that became ours: bury it.
				_, _ = syscall.Wait4(c.pid, nil, syscall.WNOHANG, nil)
				continue
			}
			found = append(found, fmt.Sprintf("process %d: %s", c.pid, c.command))
		}
		for _, point := range mountPoints(t) {
			// The tests of other packages mount things, too, but not here.
			if !m.mounts[point] && strings.HasPrefix(point, p.temp) {
				found = append(found, "mount "+point)
			}
		}
		for _, name := range filesBelow(t, p.temp) {
			found = append(found, "file "+name)
		}
		for _, name := range engines(t, p.temp) {
			found = append(found, "engine "+name)
		}
		return found
	}
	var found []string
	eventually(t, 5*time.Second, func() bool {
		found = left()
		return len(found) == 0
	}, "left behind: %v", &found)
}

// engines lists the short directories of engines whose data is in temp. Those of
// other tests are none of ours.
func engines(t *testing.T, temp string) []string {
	t.Helper()
	states, err := filepath.Glob("/tmp/portainer-*/engine.json")
	require.NoError(t, err)
	return slices.DeleteFunc(states, func(name string) bool {
		data, err := os.ReadFile(name)
		return err != nil || !strings.Contains(string(data), temp)
	})
}

// A child is a process that this one has to wait for.
type child struct {
	pid     int
	state   string
	command string
}

// children lists the children of this process.
func children(t *testing.T) []child {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var found []child
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// proc(5): pid (command) state ppid …; a command may hold anything.
		end := strings.LastIndex(string(data), ")")
		fields := strings.Fields(string(data[end+1:]))
		if ppid, err := strconv.Atoi(fields[1]); err != nil || ppid != os.Getpid() {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		require.NoError(t, err)
		command, err := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		if err != nil {
			continue
		}
		found = append(found, child{pid, fields[0], strings.ReplaceAll(string(command), "\x00", " ")})
	}
	return found
}

func mountPoints(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var points []string
	for line := range strings.Lines(string(data)) {
		// proc(5): the fifth field is the mount point.
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, fields[4])
		}
	}
	return points
}

// filesBelow lists what is in a directory, at any depth.
func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			names = append(names, path)
		}
		return err
	})
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return names
}

// staged lists what of build contexts is in a staging directory.
func staged(t *testing.T, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(filesOf(t, dir), func(name string) bool { return strings.Contains(name, "/portainer/executors/") })
}

// processes lists the command lines of all processes.
func processes(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var all strings.Builder
	for _, name := range files {
		if command, err := os.ReadFile(name); err == nil {
			all.WriteString(strings.ReplaceAll(string(command), "\x00", " ") + "\n")
		}
	}
	return all.String()
}

// processesBelow lists the command lines of the processes that run in a directory.
func processesBelow(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	var found []string
	for _, link := range links {
		cwd, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(cwd, dir+"/") {
			continue
		}
		if command, err := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline")); err == nil {
			found = append(found, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}

// filesOf lists the files in a directory, at any depth.
func filesOf(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	for _, name := range filesBelow(t, dir) {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			files = append(files, name)
		}
	}
	return files
}
