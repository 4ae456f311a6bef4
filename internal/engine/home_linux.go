package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/pause"
)

// homePrefix begins the names of our short-named directories. What follows it is
// random, and Sweep looks at nothing else.
const homePrefix = "portainer-"

// marker is the variable in the environment of a daemon of ours, and so of all
// its children, by which they are known.
const marker = "PORTAINER_ENGINE"

// stateFile, in a home's short directory, says what belongs to it. Who owns the
// home holds a lock on it, which the kernel lets go however the owner ends.
const stateFile = "engine.json"

// maxTemp bounds the path of the directory that short directories are made in: a
// socket's path holds 107 bytes, of which containerd's shims take 70 more.
const maxTemp = 32

// A home is everything on this machine that belongs to one engine.
type home struct {
	ID     string `json:"id"`
	Data   string `json:"data"`   // directory of the daemon's data
	Cgroup string `json:"cgroup"` // parent of its containers' cgroups, from the root of every hierarchy; "" if rootless
	// Made are the directories that had to be made for Cgroup.
	Made []string `json:"made"`
	// Rootless is the rootlesskit that the daemon runs in; "" means that it is root's.
	Rootless string `json:"rootless,omitempty"`
	// Host is the address of the Docker daemon whose containers run there; "" if
	// the home is that of a daemon of our own. There is no Data then.
	Host string `json:"host,omitempty"`

	run    string   // short directory: sockets, pid files, state
	lock   *os.File // stateFile, locked
	daemon *daemon  // nil before it is started
	memory *memory  // what its containers use; nil if they are not bounded
	disk   space    // that it is on
	copies bool     // overlays do not work there, and need not
	tidy   bool     // the daemon at Host has no container of ours
	log    *slog.Logger

	counting sync.Mutex // of kills
}

// close kills the daemon and removes the home. Nothing is asked to end by itself: a
// dockerd takes a second for that, and longer where containers run, and then there is
// no less to remove than after a kill.
func (h *home) close(ctx context.Context) error {
	if h.daemon != nil {
		h.daemon.kill()
	}
	// Cleaning up is not cancelled with what it cleans up after.
	return h.remove(context.WithoutCancel(ctx))
}

// newDaemonHome is newHome for a daemon that this process may start and that can
// use overlays there. slow is what it would use instead.
func newDaemonHome(ctx context.Context, cfg Config, program, slow string) (*home, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%s must be started by root, and this is user %d", program, os.Geteuid())
	}
	if err := writableCgroups(); err != nil {
		return nil, err
	}
	h, err := newHome(ctx, cfg, "", "")
	if err != nil {
		return nil, err
	}
	if err := enoughSpace(cfg, h.disk); err != nil {
		return nil, errors.Join(err, h.close(context.WithoutCancel(ctx)))
	}
	err = tryOverlay(h.Data)
	h.copies = err != nil && cfg.AllowVFS
	if err != nil && !h.copies {
		err = fmt.Errorf("the data of %s would be in %s, where only its %s works, which copies an image for every step "+
			"and is refused: %w; let the agent's work directory be on ext4 or xfs, or allow it with --allow-vfs", filepath.Base(program), h.Data, slow, err)
		return nil, errors.Join(err, h.close(context.WithoutCancel(ctx)))
	}
	return h, nil
}

// driver returns which of two storage drivers works here.
func (h *home) driver(overlay, copying string) string {
	if h.copies {
		return copying
	}
	return overlay
}

// cacheMB is how much of its disk a daemon of our own may fill with cache.
func cacheMB(cfg Config) int64 { return int64(cfg.DiskMB * 0.9) }

// newHome makes the directories of a new engine, and its cgroup unless it is to run
// in rootlesskit. host is the address of the daemon if that is not our own.
func newHome(ctx context.Context, cfg Config, rootlesskit, host string) (_ *home, err error) {
	if len(cfg.Temp) > maxTemp {
		return nil, fmt.Errorf("directory for sockets %s: its path is longer than %d bytes", cfg.Temp, maxTemp)
	}
	h := &home{ID: strings.ToLower(rand.Text()[:16]), Rootless: rootlesskit, Host: host, log: cfg.Logger}
	h.run = filepath.Join(cfg.Temp, homePrefix+h.ID[:8])
	if err := os.Mkdir(h.run, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(h.run))
		}
	}()
	sandbox := cfg.Sandbox
	if sandbox == "" {
		sandbox = h.run
	}
	if sandbox, err = filepath.Abs(sandbox); err != nil {
		return nil, err
	}
	if host == "" {
		h.Data = filepath.Join(sandbox, "engine-"+h.ID[:8])
		h.disk = space{h.Data, h.Data}
	}
	if rootlesskit == "" {
		above := ownCgroup()
		if host != "" {
			above = cmp.Or(cfg.cgroupParent(), above)
		}
		h.Cgroup = filepath.Join(above, homePrefix+h.ID)
		h.Made = missingDirs(h.Cgroup)
	}
	if h.lock, err = h.writeState(); err != nil {
		return nil, err
	}
	if h.Data != "" {
		if err := os.Mkdir(h.Data, 0o711); err != nil {
			return nil, errors.Join(err, h.lock.Close())
		}
	}
	if rootlesskit != "" {
		h.memory = ownMemory()
		return h, nil
	}
	if h.memory, err = limit(h.Cgroup, cfg.CPUs, cfg.MemMB); err != nil {
		return nil, errors.Join(fmt.Errorf("bound what the steps may use: %w", err), h.remove(ctx))
	}
	return h, nil
}

// writeState writes stateFile and locks it before anybody can see it.
func (h *home) writeState() (*os.File, error) {
	data, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(h.run, stateFile)
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// remove ends every process of the home, undoes its mounts, and removes its
// cgroups and directories. It is safe to call again.
func (h *home) remove(ctx context.Context) error {
	var errs []error
	if h.memory != nil {
		errs = append(errs, h.memory.close())
		h.memory = nil
	}
	errs = append(errs, h.killAll(ctx))
	if h.Data != "" {
		errs = append(errs, unmountBelow(h.Data))
	}
	errs = append(errs, unmountBelow(h.run))
	if h.Rootless != "" {
		errs = append(errs, h.removeRootless(ctx))
	} else {
		errs = append(errs, removeCgroup(ctx, h.Cgroup, h.Made))
		if h.Data != "" {
			errs = append(errs, os.RemoveAll(h.Data))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// The state stays, for a later Sweep.
		return fmt.Errorf("remove engine %s: %w", h.ID, err)
	}
	if h.Host != "" && !h.tidy {
		if err := removeContainers(ctx, h.Host, h.Cgroup); err != nil {
			// It may have crashed, and then still knows them when it is back.
			h.log.Warn("containers not removed now, but by a later executor", "engine", h.ID, "err", err)
			return h.lock.Close()
		}
	}
	if err := os.RemoveAll(h.run); err != nil {
		return fmt.Errorf("remove engine %s: %w", h.ID, err)
	}
	return h.lock.Close()
}

// killAll kills every process that carries our mark or runs in our cgroup or, if
// rootless, in our user namespace, and returns when there is none.
func (h *home) killAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errors.New("processes do not end"))
	defer cancel()
	spaces := userSpaces{}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		ours := marked(h.ID)
		// Whoever is killed cannot remove its sockets.
		for _, path := range shimSockets(ours) {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		pids := ours
		if h.Rootless == "" {
			pids = append(pids, cgroupProcesses(h.Cgroup)...)
		} else {
			spaces.add(ours)
			pids = append(pids, spaces.processes()...)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if pause.For(ctx, wait) != nil {
			return withCause(ctx, fmt.Errorf("kill processes %v", pids))
		}
	}
}

// Sweep removes what engines left whose process was killed: their daemons,
// containers, mounts, cgroups and data. temp is the Config.Temp they were opened
// with; "" means /tmp. Engines that are in use are left alone.
func Sweep(ctx context.Context, temp string, log *slog.Logger) error {
	if temp == "" {
		temp = "/tmp"
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	states, err := filepath.Glob(filepath.Join(temp, homePrefix+"*", stateFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range states {
		h, err := abandoned(path)
		if err != nil {
			errs = append(errs, err)
		}
		if h == nil {
			continue
		}
		h.log = log
		log.Info("removing what a killed engine left", "engine", h.ID, "data", h.Data)
		if err := h.remove(ctx); err != nil {
			errs = append(errs, err, h.lock.Close())
		}
	}
	return errors.Join(errs...)
}

// abandoned returns the home whose state is at path if nobody owns it any more,
// else nil. The caller owns it then.
func abandoned(path string) (*home, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return nil, nil // gone meanwhile, or not ours
		}
		return nil, err
	}
	h, err := readState(f)
	if h == nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// readState locks f and reads it. It returns nil when somebody else has the lock.
func readState(f *os.File) (*home, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() {
		return nil, nil // anybody may write to /tmp: never act on another's word
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	h := &home{run: filepath.Dir(f.Name()), lock: f}
	if err := json.NewDecoder(f).Decode(h); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if len(h.ID) != 16 || filepath.Base(h.run) != homePrefix+h.ID[:8] ||
		(h.Host == "") == (h.Data == "") || h.Data != "" && filepath.Base(h.Data) != "engine-"+h.ID[:8] ||
		(h.Rootless == "") != (filepath.Base(h.Cgroup) == homePrefix+h.ID) {
		return nil, fmt.Errorf("%s: it is not the state of an engine", f.Name())
	}
	return h, nil
}
