package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

// leftovers returns whatever of engines with sockets below temp and data below
// sandbox is there: processes, mounts, cgroups, files.
func leftovers(t *testing.T, temp, sandbox string) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{temp, sandbox} {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, temp) || strings.Contains(line, sandbox) {
			left = append(left, "mount "+line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, p := range processes {
		cmdline, err := os.ReadFile(p)
		if err == nil && (bytes.Contains(cmdline, []byte(temp)) || bytes.Contains(cmdline, []byte(sandbox))) {
			left = append(left, "process "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return left
}

// cgroupOf returns the name of the cgroup of the engine with sockets below temp.
func cgroupOf(t *testing.T, temp string) string {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(temp, "portainer-*", "engine.json"))
	require.NoError(t, err)
	require.Len(t, states, 1)
	data, err := os.ReadFile(states[0])
	require.NoError(t, err)
	var state struct{ Cgroup string }
	require.NoError(t, json.Unmarshal(data, &state))
	return filepath.Base(state.Cgroup)
}

// cgroups returns the cgroups of that name.
func cgroups(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name {
			found = append(found, path)
		}
		return nil
	}))
	return found
}

func TestCloseLeavesNothing(t *testing.T) {
	r := theRig(t)
	for _, kind := range ownKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cfg := r.own(t, kind, nil)
			cfg.Temp = shortTemp(t)
			e := open(t, cfg)
			require.NotEmpty(t, leftovers(t, cfg.Temp, cfg.Sandbox))
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN echo x >/x\n"))
			require.NoError(t, err)
			require.NoError(t, e.Close(testContext(t)))
			require.Empty(t, leftovers(t, cfg.Temp, cfg.Sandbox))
		})
	}
}

func TestCloseInTheMiddleOfAStep(t *testing.T) {
	r := theRig(t)
	for _, kind := range ownKinds(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			began := make(chan struct{})
			cfg := r.own(t, kind, &recorder{hook: func(ev portainer.Event) {
				if ev.Text == "sleeping" {
					close(began)
				}
			}})
			cfg.Temp = shortTemp(t)
			e := open(t, cfg)
			ctx, cancel := context.WithCancel(testContext(t))
			ended := make(chan error, 1)
			mark := fmt.Sprintf("97%d3", time.Now().UnixNano()%1e6)
			go func() {
				_, err := e.Build(ctx, r.request(t, "FROM BUSYBOX\nRUN echo sleeping; trap '' TERM; sleep "+mark+"; true\n"))
				ended <- err
			}()
			select {
			case <-began:
			case err := <-ended:
				require.NoError(t, err)
			}
			cancel()
			require.ErrorIs(t, <-ended, context.Canceled)
			require.NoError(t, e.Close(testContext(t)))
			require.False(t, running(t, "sleep "+mark))
			require.Empty(t, leftovers(t, cfg.Temp, cfg.Sandbox))
		})
	}
}

// The program that is killed: it opens an engine, begins a build and says so.
func TestMainOfKilledProgram(t *testing.T) {
	spec := os.Getenv("ENGINE_TEST_KILLED")
	if spec == "" {
		// As a test of its own it shows that an engine in use is not swept.
		r := theRig(t)
		cfg := r.own(t, engine.KindDockerd, nil)
		cfg.Temp = shortTemp(t)
		e := open(t, cfg)
		require.NoError(t, engine.Sweep(testContext(t), cfg.Temp, nil))
		_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN true\n"))
		require.NoError(t, err)
		return
	}
	f := strings.Split(spec, "|")
	e, err := engine.Open(t.Context(), engine.Config{
		Kind: f[0], Temp: f[1], Sandbox: f[2], Insecure: []string{f[3]}, Host: f[6], MemMB: 256, Asked: asksParent(f[8]),
		Logs: portainer.LogSinkFunc(func(_ context.Context, ev portainer.Event) {
			if ev.Kind == portainer.EventLog {
				fmt.Fprintln(os.Stdout, ev.Text)
			}
		}),
	})
	require.NoError(t, err)
	_, err = e.Build(t.Context(), portainer.Request{
		Options:  portainer.Options{CgroupParent: f[8]},
		Registry: f[3], Repository: "killed", Source: fmt.Appendf(nil, "FROM %s\nRUN %secho sleeping; trap '' TERM; sleep %s; true\n", f[4], f[7], f[5]),
	})
	require.NoError(t, err)
}

// shimSockets returns the sockets of the shims of the containerd with its socket
// below temp, by the way containerd names them.
func shimSockets(t *testing.T, temp string) []string {
	t.Helper()
	containerds, err := filepath.Glob(filepath.Join(temp, "*", "x", "containerd", "containerd.sock"))
	require.NoError(t, err)
	tasks, err := filepath.Glob(filepath.Join(temp, "*", "x", "containerd", "daemon", "io.containerd.runtime.v2.task", "moby", "*"))
	require.NoError(t, err)
	var sockets []string
	for _, containerd := range containerds {
		for _, task := range tasks {
			sum := sha256.Sum256([]byte(filepath.Join(containerd, "moby", filepath.Base(task))))
			sockets = append(sockets, fmt.Sprintf("/run/containerd/s/%x", sum))
		}
	}
	for _, s := range sockets {
		_, err := os.Stat(s)
		require.NoError(t, err)
	}
	return sockets
}

func TestSweepMindsOnlyItsOwn(t *testing.T) {
	temp := shortTemp(t)
	victim := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.Mkdir(victim, 0o755))
	other := filepath.Join(temp, "portainer-other")
	require.NoError(t, os.Mkdir(other, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(other, "engine.json"), fmt.Appendf(nil, `{"id":"0123456789abcdef","data":%q,"cgroup":"/"}`, victim), 0o600))
	require.ErrorContains(t, engine.Sweep(testContext(t), temp, nil), "not the state of an engine")
	require.DirExists(t, victim)
	require.DirExists(t, other)
}

// killDaemon kills the daemon with its socket below temp.
func killDaemon(name, temp string) error {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		args := strings.Split(string(data), "\x00")
		if filepath.Base(args[0]) == name && strings.Contains(string(data), temp) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("no %s runs below %s", name, temp)
}

// TestEngineNextToTheExecutor opens an engine in a program that has buildkitd and
// an OCI runtime next to it, as in the executor's bundle, and nothing in PATH.
func TestEngineNextToTheExecutor(t *testing.T) {
	if os.Getenv("ENGINE_TEST_BUNDLE") != "" {
		e, err := engine.Open(t.Context(), engine.Config{Kind: engine.KindAuto, Sandbox: t.TempDir(), Insecure: []string{os.Getenv("ENGINE_TEST_REGISTRY")}})
		require.NoError(t, err)
		fmt.Fprintln(os.Stdout, "opened", e.Name())
		res, err := e.Build(t.Context(), portainer.Request{
			Registry: os.Getenv("ENGINE_TEST_REGISTRY"), Repository: "bundle", Source: []byte("FROM " + os.Getenv("ENGINE_TEST_BASE") + "\nRUN echo x >/x\n"),
		})
		require.NoError(t, err)
		fmt.Fprintln(os.Stdout, "built", res.Refs[0])
		require.NoError(t, e.Close(t.Context()))
		return
	}
	r := theRig(t)
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	for name, from := range map[string]string{"executor": self, "buildkitd": "buildkitd", "runc": "runc"} {
		from, err := exec.LookPath(from)
		require.NoError(t, err)
		data, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o755))
	}
	cmd := exec.CommandContext(testContext(t), filepath.Join(dir, "executor"), "-test.run=^TestEngineNextToTheExecutor$")
	cmd.Env = []string{"ENGINE_TEST_BUNDLE=1", "ENGINE_TEST_REGISTRY=" + r.registry.Addr, "ENGINE_TEST_BASE=" + r.busybox}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "opened buildkitd v0.")
	require.Contains(t, string(out), "built "+r.registry.Addr+"/bundle:latest@sha256:")
}
