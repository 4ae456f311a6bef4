package dockertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A Daemon is a dockerd that a test has started.
type Daemon struct {
	Host string // its address, as DOCKER_HOST spells it
	Pid  int

	run  string // short directory for sockets
	dir  string // of its data
	args []string
	p    *process
}

// runDir makes a directory that is short enough for sockets, with a daemon's
// configuration in it: a file of that name with what text returns for the directory.
func runDir(name string, text func(run string) string) (run, config string, err error) {
	if run, err = os.MkdirTemp("/tmp", "dt-"); err != nil {
		return "", "", err
	}
	defer removeOnError(run, &err)
	config = filepath.Join(run, name)
	return run, config, os.WriteFile(config, []byte(text(run)), 0o600)
}

// removeOnError removes a directory if err is one in the end.
func removeOnError(dir string, err *error) {
	if *err != nil {
		*err = errors.Join(*err, os.RemoveAll(dir))
	}
}

// StartDaemon starts a dockerd with its data in dir. It has no bridge network:
// builds that need one use the host's. The caller stops it.
func StartDaemon(ctx context.Context, dir string, args ...string) (d *Daemon, err error) {
	run, config, err := runDir("daemon.json", func(string) string { return "{}\n" })
	if err != nil {
		return nil, err
	}
	defer removeOnError(run, &err)
	d = &Daemon{Host: "unix://" + filepath.Join(run, "docker.sock"), run: run, dir: filepath.Join(dir, "docker"), args: append([]string{
		"--config-file", config,
		"--data-root", filepath.Join(dir, "docker"),
		"--exec-root", filepath.Join(run, "x"),
		"--pidfile", filepath.Join(run, "docker.pid"),
		"--host", "unix://" + filepath.Join(run, "docker.sock"),
		"--bridge=none", "--iptables=false", "--ip6tables=false",
		"--exec-opt", "native.cgroupdriver=cgroupfs",
	}, args...)}
	return d, d.Restart(ctx)
}

// Restart starts the daemon again, after Kill.
func (d *Daemon) Restart(ctx context.Context) error {
	// Its containerd died with it, but a dockerd that finds the process there still,
	// be it a zombie, waits for it in vain.
	if err := os.Remove(filepath.Join(d.run, "x", "containerd", "containerd.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p, err := start(filepath.Join(d.run, "dockerd.log"), nil, "dockerd", d.args...)
	if err != nil {
		return err
	}
	d.p, d.Pid = p, p.cmd.Process.Pid
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(d.Host, "unix://"))
		},
	}
	if err := p.ready(ctx, func() error { return get(ctx, t, "http://docker/_ping") }); err != nil {
		return errors.Join(err, p.stop())
	}
	return nil
}

// Stop stops the daemon and removes its sockets. Its data stays for the caller
// to remove.
func (d *Daemon) Stop() error {
	err := d.p.stop()
	return errors.Join(err, unmountBelow(d.run), unmountBelow(d.dir), os.RemoveAll(d.run))
}

// StartBuildkitd starts a buildkitd of Tools with its data in dir. args say where it
// listens. The caller stops it.
func StartBuildkitd(ctx context.Context, dir string, args ...string) (d *Daemon, err error) {
	return StartBoundBuildkitd(ctx, dir, "", args...)
}

// StartBoundBuildkitd starts a buildkitd whose containers run below a cgroup. Unless
// args say where else it listens at Host.
func StartBoundBuildkitd(ctx context.Context, dir, cgroup string, args ...string) (d *Daemon, err error) {
	data := filepath.Join(dir, "buildkit")
	run, config, err := runDir("buildkitd.toml", func(run string) string {
		return fmt.Sprintf("root = %q\n[otel]\n  socketPath = %q\n[cdi]\n  disabled = true\n[worker.containerd]\n  enabled = false\n"+
			"[worker.oci]\n  enabled = true\n  snapshotter = \"overlayfs\"\n  networkMode = \"host\"\n  defaultCgroupParent = %q\n", data, filepath.Join(run, "otel.sock"), cgroup)
	})
	if err != nil {
		return nil, err
	}
	defer removeOnError(run, &err)
	host := "unix://" + filepath.Join(run, "buildkitd.sock")
	if len(args) == 0 {
		args = []string{"--addr", host}
	}
	p, err := start(filepath.Join(run, "buildkitd.log"), nil, "buildkitd", append([]string{"--config", config}, args...)...)
	if err != nil {
		return nil, err
	}
	d = &Daemon{Host: host, Pid: p.cmd.Process.Pid, run: run, dir: data, p: p}
	err = p.ready(ctx, func() error {
		if d.TCP() == "" && !strings.Contains(p.log(), "running server on /") {
			return errors.New("it does not listen yet")
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return d, nil
}

// listens is how daemons tell where they listen.
var listens = regexp.MustCompile(`(?:API listen|running server) on ([0-9.]+:[0-9]+)`)

// TCP returns the host:port at which a daemon listens that was started with
// tcp://127.0.0.1:0; "" if it does not.
func (d *Daemon) TCP() string {
	data, err := os.ReadFile(d.p.logFile)
	if m := listens.FindSubmatch(data); err == nil && m != nil {
		return string(m[1])
	}
	return ""
}

// Kill kills the daemon as a crash would, with what it has started.
func (d *Daemon) Kill() error {
	err := d.p.cmd.Process.Kill()
	<-d.p.exited
	return err
}

// get fetches url and wants 200.
func get(ctx context.Context, t *http.Transport, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
