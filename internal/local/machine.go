package local

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fallbackMemMB is assumed where the system does not tell its memory the way
// Linux does.
const fallbackMemMB = 4096

// What an agent has at least, whatever its share: enough for a build with the
// default resources and its executor.
const (
	leastCPUs  = 2
	leastMemMB = 2048
)

// share returns the resources of one of n agents that divide this machine: its
// CPUs, its memory less a quarter for everybody else, and the free space of the
// file system that holds dir.
func share(dir string, n int) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("free space of %s: %w", dir, err)
	}
	diskMB := uint64(fs.Bavail) * uint64(fs.Bsize) >> 20
	cpus := max(leastCPUs, float64(runtime.NumCPU())/float64(n))
	mem := max(leastMemMB, memoryMB()*3/4/n)
	return fmt.Sprintf("cpus:%.3g;mem:%d;disk:%d;ports:[31000-32000]", cpus, mem, diskMB/uint64(n)), nil
}

// memoryMB returns the memory of this machine in MB of 2^20 bytes.
func memoryMB() int {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return fallbackMemMB
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 2 && fields[0] == "MemTotal:" {
			if kb, err := strconv.Atoi(fields[1]); err == nil {
				return kb >> 10
			}
		}
	}
	return fallbackMemMB
}
