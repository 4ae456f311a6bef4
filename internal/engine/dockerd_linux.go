package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/script"
)

// startDockerd starts a dockerd that is ours alone.
func startDockerd(ctx context.Context, cfg Config) (_ *docker, err error) {
	program, ok := find("dockerd")
	if !ok {
		return nil, errors.New("no dockerd is installed on this machine: install Docker Engine (Debian's docker.io), or give the address of a daemon")
	}
	h, err := newDaemonHome(ctx, cfg, program, `storage driver "vfs"`)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close(context.WithoutCancel(ctx)))
		}
	}()
	// Whatever /etc/docker/daemon.json says is for another daemon, and 20.10
	// does not read an empty file.
	config := filepath.Join(h.run, "daemon.json")
	if err := os.WriteFile(config, dockerdConfig(cfg), 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(h.run, "docker.sock")
	argv := []string{
		program,
		"--config-file", config,
		"--data-root", h.Data,
		"--exec-root", filepath.Join(h.run, "x"),
		"--pidfile", filepath.Join(h.run, "docker.pid"),
		"-H", "unix://" + socket,
		// Two daemons in one network namespace would fight over docker0 and
		// iptables, and the machine's own may be the other.
		"--bridge=none", "--iptables=false", "--ip6tables=false",
		"--storage-driver", h.driver("overlay2", "vfs"),
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", h.Cgroup,
	}
	if cfg.Asked != nil && cfg.Asked.Options.Squash {
		argv = append(argv, "--experimental") // else the classic builder refuses it
	}
	for _, r := range cfg.Insecure {
		argv = append(argv, "--insecure-registry", r)
	}
	for _, m := range cfg.hubMirrors() {
		argv = append(argv, "--registry-mirror", m)
	}
	env := daemonEnv(h.ID)
	if len(cfg.SSH) > 0 {
		temp, err := h.shortTemp()
		if err != nil {
			return nil, err
		}
		env = append(env, "DOCKER_TMPDIR="+temp)
	}
	if major, err := dockerdMajor(ctx, program); err != nil {
		return nil, err
	} else if major >= losslessSince {
		// Its BuildKit can keep all output; larger numbers are ignored.
		env = append(env, "BUILDKIT_STEP_LOG_MAX_SIZE=2147483647", "BUILDKIT_STEP_LOG_MAX_SPEED=2147483647")
	}
	certs, err := h.writeCerts(cfg.Registries)
	if err != nil {
		return nil, err
	}
	var prepare func() error
	if certs != "" {
		prepare = func() error { return overDockerCerts(certs) }
	}
	h.daemon, err = startPrepared(prepare, "dockerd", filepath.Join(h.run, "dockerd.log"), argv, env, h.Data)
	if err != nil {
		return nil, err
	}
	if err := h.daemon.ready(ctx, func(ctx context.Context) error { return ping(ctx, socket) }); err != nil {
		return nil, err
	}
	d, err := dialDocker(ctx, cfg, "unix://"+socket)
	if err != nil {
		return nil, err
	}
	d.stop, d.guards = h.close, h
	return d, nil
}

// shortTemp makes a directory for temporary files that is on the disk of the data,
// which is the task's, but has a short name: the sockets of ssh agents are made
// there. A link will not do, as dockerd follows it (moby daemon/daemon.go).
func (h *home) shortTemp() (string, error) {
	dir, there := filepath.Join(h.run, "tmp"), filepath.Join(h.Data, "tmp")
	for _, d := range []string{dir, there} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return "", err
		}
	}
	if err := unix.Mount(there, dir, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("short name for %s: %w", there, err)
	}
	return dir, nil
}

// dockerdConfig is the configuration of a dockerd of our own: it throws cache of
// BuildKit away before that fills the disk.
func dockerdConfig(cfg Config) []byte {
	if cfg.DiskMB <= 0 {
		return []byte("{}\n")
	}
	return fmt.Appendf(nil, `{"builder": {"gc": {"enabled": true, "defaultKeepStorage": "%dMB"}}}`+"\n", cacheMB(cfg))
}

// ping asks the daemon behind a socket whether it is there.
func ping(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping: %s", resp.Status)
	}
	return nil
}

// versionWords finds the release in what "dockerd --version" prints.
var versionWords = regexp.MustCompile(`version (\d+)\.`)

// dockerdMajor returns the major release of a dockerd.
func dockerdMajor(ctx context.Context, program string) (int, error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", program, err)
	}
	m := versionWords.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s --version prints %q, which tells no version", program, out)
	}
	return script.Number(string(m[1])), nil
}
