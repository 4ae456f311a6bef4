package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// This file is about a buildkitd of a user who is not root. It runs as the root of
// a user namespace that rootlesskit makes, whose other users are those of the range
// that /etc/subuid gives to the user (buildkit docs/rootless.md).

// home makes the home of a buildkitd.
func (k kit) home(ctx context.Context, cfg Config) (*home, error) {
	if k.rootlesskit == "" {
		return newDaemonHome(ctx, cfg, k.buildkitd, `snapshotter "native"`)
	}
	h, err := newHome(ctx, cfg, k.rootlesskit, "")
	if err != nil {
		return nil, err
	}
	if err := enoughSpace(cfg, h.disk); err != nil {
		return nil, errors.Join(err, h.close(context.WithoutCancel(ctx)))
	}
	return h, nil
}

// prefix is what comes before the command line of a daemon.
func (k kit) prefix(h *home) []string {
	if k.rootlesskit == "" {
		return nil
	}
	argv := rootlessArgs(k.rootlesskit, filepath.Join(h.run, "rootlesskit"))
	if !procMasked() {
		// All that is in it ends with it.
		argv = append(argv, "--pidns")
	}
	return argv
}

// rootlessArgs are the arguments of a rootlesskit that uses the network of this
// machine; the command comes behind them.
func rootlessArgs(program, state string) []string {
	return []string{program, "--state-dir", state, "--net=host"}
}

// procMasked reports whether something hides parts of /proc, as container runtimes
// do. The kernel then lets nobody but root mount another one, which a pid namespace
// needs (kernel fs/namespace.c, mount_too_revealing).
func procMasked() bool {
	points, err := mountsBelow("/proc")
	if err != nil {
		return true
	}
	for _, p := range points {
		// The kernel takes no offence at what covers an empty directory.
		if p != "/proc" && p != "/proc/sys/fs/binfmt_misc" {
			return true
		}
	}
	return false
}

// snapshotterLabel is where a worker says how it keeps the layers (buildkit
// worker/label.go).
const snapshotterLabel = "org.mobyproject.buildkit.worker.snapshotter"

// usesOverlays returns an error if the daemon, which chooses for itself if it is
// rootless, copies an image for every step.
func (h *home) usesOverlays(ctx context.Context, b *buildKit) error {
	if h.Rootless == "" {
		return nil
	}
	workers, err := b.c.ListWorkers(ctx)
	if err != nil {
		return err
	}
	for _, w := range workers {
		if w.Labels[snapshotterLabel] == "native" {
			return fmt.Errorf("the data of buildkitd would be in %s, where only its snapshotter \"native\" works for user %d, which copies an image "+
				"for every step and is refused: run the executor on Linux 5.11 or newer, with its sandbox on ext4 or xfs, or install fuse-overlayfs", h.Data, os.Geteuid())
		}
	}
	return nil
}

// removeTimeout bounds the removal of data.
const removeTimeout = time.Minute

// removeRootless removes the data, of which much belongs to other users.
func (h *home) removeRootless(ctx context.Context) error {
	err := os.RemoveAll(h.Data)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, removeTimeout, fmt.Errorf("not done within %s", removeTimeout))
	defer cancel()
	argv := append(rootlessArgs(h.Rootless, filepath.Join(h.run, "remove")), "rm", "-rf", "--", h.Data)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = daemonEnv(h.ID)
	cmd.WaitDelay = callTimeout
	if out, err := cmd.CombinedOutput(); err != nil {
		return withCause(ctx, fmt.Errorf("remove %s as root of a user namespace: %w: %s", h.Data, err, strings.Join(strings.Fields(string(out)), " ")))
	}
	return nil
}

// userSpaces are user namespaces other than our own.
type userSpaces map[string]bool

// add adds those that processes are in.
func (u userSpaces) add(pids []int) {
	own := userSpaceOf(os.Getpid())
	for _, pid := range pids {
		if ns := userSpaceOf(pid); ns != "" && ns != own {
			u[ns] = true
		}
	}
}

// processes returns the processes in them.
func (u userSpaces) processes() []int {
	if len(u) == 0 {
		return nil
	}
	var pids []int
	for _, pid := range processes() {
		if u[userSpaceOf(pid)] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// userSpaceOf names the user namespace of a process; "" if it is not ours to know.
func userSpaceOf(pid int) string {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return ""
	}
	return ns
}
