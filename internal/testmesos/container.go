package testmesos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A container is the process of one executor run with all its children. There
// is no isolation: it has its own session and its own working directory.
type container struct {
	cancel    context.CancelFunc // ends fetching
	destroyed <-chan struct{}    // closed by kill
	done      chan struct{}      // closed when the process has been waited for

	mu     sync.Mutex
	cmd    *exec.Cmd
	stop   func() // ends the process if SIGKILL is not the way
	killed bool
	exited bool
}

// pid returns the process id, 0 before the start.
func (p *container) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.cmd.Process == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// kill ends the container: SIGKILL to everything in it.
func (p *container) kill() {
	p.cancel()
	p.mu.Lock()
	p.killed = true
	stop := p.stop
	p.mu.Unlock()
	if stop != nil {
		stop()
		return
	}
	p.killProcess()
}

// killProcess sends SIGKILL to everything in the container.
func (p *container) killProcess() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.Process != nil && !p.exited {
		killContainer(p.cmd.Process.Pid)
	}
}

// setStop replaces SIGKILL.
func (p *container) setStop(stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = stop
}

func (p *container) wasKilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

// signal sends a signal to the process group, if it still runs.
func (p *container) signal(sig os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.Process != nil && !p.exited {
		signalGroup(p.cmd.Process.Pid, sig)
	}
}

// await waits for ready; false means that the container was killed before.
func (p *container) await(ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-p.destroyed:
		return false
	}
}

// errDestroyed ends a launch whose container was destroyed meanwhile.
var errDestroyed = errors.New("container is being destroyed")

// start starts the command, unless the container was killed before.
func (p *container) start(cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return errDestroyed
	}
	p.cmd = cmd
	return cmd.Start()
}

// wait waits for the process, ends what it left behind and returns its status
// in the form of waitpid.
func (p *container) wait(cmd *exec.Cmd) int32 {
	reap(cmd, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.exited = true
	})
	return waitStatus(cmd.ProcessState)
}

// startContainer fetches the URIs of an executor and starts it. It returns at
// once; onTerminated is called at the end.
func (a *Agent) startContainer(x *agentExecutor) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &container{cancel: cancel, destroyed: ctx.Done(), done: make(chan struct{})}
	x.proc = p
	var docker *dockerRun
	refusal := a.unsupported(x)
	if c := x.info.Container; refusal == nil && c != nil && c.GetType() == mesos.ContainerInfo_DOCKER {
		var err error
		if docker, err = a.dockerRun(x); err != nil {
			refusal = &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_CONTAINER_LAUNCH_FAILED, message: "Failed to launch container: " + err.Error()}
		}
	}
	env := a.environment(x)
	command, dir, checkpointed := x.info.Command, x.dir, x.framework.info.GetCheckpoint()
	a.log.Info("executor starts", "framework", x.framework.id, "executor", x.id, "container", x.container, "checkpoint", checkpointed)
	a.workers.Go(func() {
		defer close(p.done)
		defer cancel()
		end := func(status int32, t *termination) {
			a.fromContainer(func() { a.onTerminated(x, status, t) })
		}
		launchFailed := func(err error) {
			end(256, &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_CONTAINER_LAUNCH_FAILED, message: "Failed to launch container: " + err.Error()})
		}
		if refusal != nil {
			end(-1, refusal)
			return
		}
		stdout, stderr, err := outputFiles(dir)
		if err != nil {
			launchFailed(err)
			return
		}
		defer stdout.Close()
		defer stderr.Close()
		if err := a.c.fetcher.fetch(ctx, command.GetURIs(), dir, x.container, stderr); err != nil {
			if ctx.Err() != nil {
				end(9, nil)
				return
			}
			launchFailed(err)
			return
		}
		if docker != nil {
			switch err := a.runDocker(ctx, x, p, docker, stdout, stderr, end); {
			case err != nil && p.wasKilled():
				end(9, nil)
			case err != nil:
				launchFailed(err)
			}
			return
		}
		if x.command {
			a.runCommand(x, p, env, stdout, stderr, end)
			return
		}
		cmd := buildCommand(command, env, dir)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		switch err := p.start(cmd); {
		case errors.Is(err, errDestroyed):
			end(9, nil)
		case err != nil:
			fmt.Fprintf(stderr, "Failed to execute command: %v\n", err)
			end(256, nil)
		default:
			end(p.wait(cmd), nil)
		}
	})
}

// outputFiles makes the files stdout and stderr of a sandbox.
func outputFiles(dir string) (stdout, stderr *os.File, err error) {
	const flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if stdout, err = os.OpenFile(filepath.Join(dir, "stdout"), flags, 0o644); err != nil {
		return nil, nil, err
	}
	if stderr, err = os.OpenFile(filepath.Join(dir, "stderr"), flags, 0o644); err != nil {
		stdout.Close()
		return nil, nil, err
	}
	return stdout, stderr, nil
}

// launcherPath is the PATH of containers that are given none (mesos
// src/slave/containerizer/mesos/launch.cpp).
const launcherPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment makes the environment of an executor: it inherits nothing, and
// CommandInfo wins over what the agent sets.
func (a *Agent) environment(x *agentExecutor) []string {
	env := a.agentVariables(x)
	env["MESOS_SANDBOX"] = x.dir
	for _, v := range x.info.Command.GetEnvironment().GetVariables() {
		if v.Value != nil {
			env[v.Name] = *v.Value
		}
	}
	if _, ok := env["PATH"]; !ok {
		env["PATH"] = launcherPath
	}
	return environmentList(env)
}

// agentVariables are those that the agent sets for every executor (mesos
// src/slave/slave.cpp, executorEnvironment).
func (a *Agent) agentVariables(x *agentExecutor) map[string]string {
	env := map[string]string{"LIBPROCESS_IP": a.server.address.ip}
	maps.Copy(env, a.c.cfg.ExecutorEnvironment)
	env["LIBPROCESS_PORT"] = "0"
	env["MESOS_FRAMEWORK_ID"] = x.framework.id
	env["MESOS_EXECUTOR_ID"] = x.id
	env["MESOS_DIRECTORY"] = x.dir
	env["MESOS_SLAVE_ID"] = a.ID()
	env["MESOS_SLAVE_PID"] = "slave(1)@" + a.server.address.String()
	env["MESOS_AGENT_ENDPOINT"] = a.server.address.String()
	env["MESOS_CHECKPOINT"] = "0"
	env["MESOS_HTTP_COMMAND_EXECUTOR"] = "0"
	env["MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD"] = formatDuration(nanos(x.info.ShutdownGracePeriod, a.c.cfg.ShutdownGrace))
	if x.framework.info.GetCheckpoint() {
		env["MESOS_CHECKPOINT"] = "1"
		env["MESOS_RECOVERY_TIMEOUT"] = formatDuration(a.c.cfg.RecoveryTimeout)
		env["MESOS_SUBSCRIPTION_BACKOFF_MAX"] = formatDuration(a.c.cfg.ReregistrationTimeout)
	}
	if key := a.c.cfg.ExecutorSecret; len(key) > 0 {
		env["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"] = executorToken(key, x.framework.id, x.id, x.container)
	}
	return env
}

func environmentList(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// buildCommand makes the process of a CommandInfo. PATH of the new environment
// counts, not that of this process.
func buildCommand(c *mesos.CommandInfo, env []string, dir string) *exec.Cmd {
	cmd := &exec.Cmd{Env: env, Dir: dir}
	if c.GetShell() {
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", c.GetValue()}
	} else {
		cmd.Path, cmd.Args = lookPath(c.GetValue(), env), slices.Clone(c.Arguments)
		if len(cmd.Args) == 0 {
			cmd.Args = []string{c.GetValue()}
		}
	}
	newSession(cmd)
	return cmd
}

// lookPath finds a program as execvp does.
func lookPath(name string, env []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, v := range env {
		dirs, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(dirs) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				return path
			}
		}
	}
	return filepath.Join("/", name) // does not exist, and the error names it
}

// killGrace is how long a command task has between SIGTERM and SIGKILL if
// nothing else is said (mesos src/slave/constants.hpp).
const killGrace = 3 * time.Second
