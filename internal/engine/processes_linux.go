package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/pause"
)

// marked returns the processes whose environment names the engine with that ID.
func marked(id string) []int {
	want := []byte(marker + "=" + id)
	var pids []int
	for _, pid := range processes() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes returns all processes but this one.
func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// shimDir is where containerd's shims have their sockets, whichever containerd
// they belong to (containerd runtime/v2/shim/util_unix.go).
const shimDir = "/run/containerd/s/"

// shimSockets returns the sockets below shimDir that processes have open.
func shimSockets(pids []int) []string {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil
	}
	paths := map[string]string{} // by what a descriptor of the socket is called
	for line := range strings.Lines(string(table)) {
		// proc_net(5): the seventh field is the inode, the eighth the path.
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], shimDir) {
			paths["socket:["+f[6]+"]"] = f[7]
		}
	}
	if len(paths) == 0 {
		return nil
	}
	var found []string
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, e := range entries {
			if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && paths[name] != "" {
				found = append(found, paths[name])
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// systemPath is where daemons are installed. Mesos gives an executor no PATH
// unless the operator does (mesos docs/configuration/agent.md,
// --executor_environment_variables).
var systemPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// find returns the path of a program: next to our own, in PATH, or where daemons
// are installed.
func find(program string) (string, bool) {
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), program)); err == nil {
			return path, true
		}
	}
	if path, err := exec.LookPath(program); err == nil {
		return path, true
	}
	for _, dir := range systemPath {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, true
		}
	}
	return "", false
}

// daemonEnv is the environment of a daemon of ours: our own, without what would
// steer it elsewhere or is secret, with a PATH that holds its helpers.
func daemonEnv(id string, more ...string) []string {
	path := os.Getenv("PATH")
	if self, err := os.Executable(); err == nil {
		path = strings.Trim(filepath.Dir(self)+":"+path, ":")
	}
	for _, dir := range systemPath {
		if !slices.Contains(filepath.SplitList(path), dir) {
			path += ":" + dir
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "PATH" || name == "TMPDIR" || name == "NOTIFY_SOCKET" || name == marker ||
			strings.HasPrefix(name, "DOCKER_") || strings.HasPrefix(name, "BUILDKIT") || strings.HasPrefix(name, "OTEL_") ||
			strings.HasPrefix(name, "MESOS_") || strings.HasPrefix(name, "LIBPROCESS_")
	})
	return append(append(env, "PATH="+path, marker+"="+id), more...)
}

// A daemon is a process of ours that is to outlive no one.
type daemon struct {
	name    string
	logFile string
	process *os.Process
	exited  chan struct{} // closed when it has been reaped
	err     error         // how it ended; valid after exited
}

// startDaemon starts a program in a process group of its own. The kernel sends it
// SIGTERM when we die: it can then put away what it holds.
func startDaemon(name, logFile string, argv, env []string, dir string) (*daemon, error) {
	return startPrepared(nil, name, logFile, argv, env, dir)
}

// startPrepared is startDaemon from a thread that prepare, unless it is nil, has
// changed. The thread does nothing else and ends with the daemon.
func startPrepared(prepare func() error, name, logFile string, argv, env []string, dir string) (*daemon, error) {
	out, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = env, dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	d := &daemon{name: name, logFile: logFile, exited: make(chan struct{})}
	started := make(chan error)
	go onThread(prepare != nil, func() {
		var err error
		if prepare != nil {
			err = prepare()
		}
		if err == nil {
			// The signal comes when the thread that started the process ends, so
			// the thread must stay.
			err = cmd.Start()
		}
		d.process = cmd.Process
		started <- err
		if err == nil {
			d.err = cmd.Wait()
			close(d.exited)
		}
	})
	err = <-started
	if cerr := out.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return d, nil
}

// onThread calls run on one thread. If it changes the thread, which is never the
// main one then, whose /proc/self is, the thread ends with it.
func onThread(changes bool, run func()) {
	runtime.LockOSThread()
	if !changes || unix.Gettid() != unix.Getpid() {
		run()
		if !changes {
			runtime.UnlockOSThread()
		}
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() { // elsewhere, as this thread is taken
		defer close(done)
		onThread(changes, run)
	}()
	<-done
}

// maxReady bounds the start of a daemon.
const maxReady = 60 * time.Second

// ready calls check until it returns nil. It gives up when the daemon has exited.
func (d *daemon) ready(ctx context.Context, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, maxReady, fmt.Errorf("%s was not ready within %s", d.name, maxReady))
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("%s exited while it started (%w): %s", d.name, d.exitError(), d.lastWords())
		default:
		}
		if pause.For(ctx, 10*time.Millisecond) != nil {
			return withCause(ctx, fmt.Errorf("%w: %s", err, d.lastWords()))
		}
	}
}

// exitError says how the daemon ended.
func (d *daemon) exitError() error {
	if d.err == nil {
		return errors.New("exit status 0")
	}
	return d.err
}

// lastWords returns the end of the daemon's log, in one line.
func (d *daemon) lastWords() string {
	f, err := os.Open(d.logFile)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 800
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-most), io.SeekStart)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(strings.Join(strings.Fields(string(data)), " "), "")
}

// kill ends the daemon and the process group that it leads.
func (d *daemon) kill() {
	select {
	case <-d.exited: // the number may be another's by now
	default:
		_ = unix.Kill(-d.process.Pid, unix.SIGKILL)
		<-d.exited
	}
}
