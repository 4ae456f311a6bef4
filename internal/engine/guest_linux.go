package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	dockerclient "github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// openGuest makes what an engine needs at the Docker daemon at host, which keeps its
// data in dataRoot. It returns nil when the daemon is not on this machine, or hides
// from us.
func openGuest(ctx context.Context, cfg Config, host, dataRoot string, ownCgroups bool) (*guest, error) {
	pid := peer(host)
	if pid == 0 || os.Geteuid() != 0 {
		return nil, nil
	}
	disk := space{inRootOf(pid, dataRoot), dataRoot}
	if err := enoughSpace(cfg, disk); err != nil {
		return nil, err
	}
	g := &guest{guards: neighbour{disk}}
	above := cfg.cgroupParent()
	if !ownCgroups || !sameCgroups(pid) || above != "" && !holdsCgroups(above) {
		return g, nil
	}
	h, err := newHome(ctx, cfg, "", host)
	if err != nil {
		return g, fmt.Errorf("bound the steps by a cgroup: %w", err)
	}
	h.disk = disk
	g.cgroup, g.above, g.guards = h.Cgroup, above, h
	g.leave = func(ctx context.Context, tidy bool) error {
		h.tidy = tidy
		return h.close(ctx)
	}
	return g, nil
}

// cgroupParent is the parent that the builds ask for, for the cgroups of their steps; ""
// means ours.
func (cfg *Config) cgroupParent() string {
	if cfg.Asked == nil {
		return ""
	}
	return cfg.Asked.Options.CgroupParent
}

// holdsCgroups reports whether a cgroup of ours can be below one that was asked for. With
// v2 that is in the way whose processes are in it, and they are not ours to move.
func holdsCgroups(cgroup string) bool {
	if !filepath.IsAbs(cgroup) || filepath.Clean(cgroup) != cgroup {
		return false
	}
	if !unified() {
		return true
	}
	procs, err := os.ReadFile(filepath.Join(cgroupRoot, cgroup, "cgroup.procs"))
	return errors.Is(err, fs.ErrNotExist) || err == nil && len(procs) == 0
}

// guestDisk watches the disk of the buildkitd at host; nil if it is not on this
// machine, or hides from us.
func guestDisk(cfg Config, host string) (guard, error) {
	pid := peer(host)
	if pid == 0 || os.Geteuid() != 0 {
		return nil, nil
	}
	// It holds a lock in the directory of its data as long as it lives (buildkit
	// cmd/buildkitd/main.go).
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil
	}
	for _, e := range entries {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && filepath.Base(name) == "buildkitd.lock" {
			disk := space{inRootOf(pid, filepath.Dir(name)), filepath.Dir(name)}
			return neighbour{disk}, enoughSpace(cfg, disk)
		}
	}
	return nil, nil
}

// inRootOf is the path by which we find what a process calls path.
func inRootOf(pid int, path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), path)
}

// peer returns the process that listens at host; 0 if that cannot be told. Of a
// socket that systemd has opened it is systemd, whose view of the machine a daemon
// shares unless its unit says otherwise.
func peer(host string) int {
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return 0
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		// 0 is a process that our pid namespace does not hold.
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// sameCgroups reports whether a cgroup has the same path for a process and for us.
func sameCgroups(pid int) bool {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", pid))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/cgroup")
	return err == nil && ours == theirs && !slices.ContainsFunc(hierarchies(), ownMount)
}

// removeContainers removes the containers that the Docker daemon at host keeps below
// a cgroup of ours: those of steps that were broken off together with the daemon or
// with whoever asked for them.
func removeContainers(ctx context.Context, host, cgroup string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %s", callTimeout))
	defer cancel()
	if _, err := os.Stat(strings.TrimPrefix(host, "unix://")); errors.Is(err, fs.ErrNotExist) {
		return nil // it was taken away
	}
	cli, err := dockerclient.NewClientWithOpts(dockerclient.WithHost(host), dockerclient.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	defer cli.Close()
	all, err := cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return withCause(ctx, fmt.Errorf("list containers of the docker daemon at %s: %w", host, err))
	}
	var errs []error
	for _, c := range all {
		// One that is gone meanwhile is not found.
		info, err := cli.ContainerInspect(ctx, c.ID)
		if err == nil && info.HostConfig != nil && info.HostConfig.CgroupParent == cgroup {
			errs = append(errs, removeContainer(ctx, cli, c.ID))
		}
	}
	return errors.Join(errs...)
}
