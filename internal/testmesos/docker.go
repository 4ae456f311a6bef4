package testmesos

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// This file is the Docker containerizer: it runs an executor through the
// docker client with the command line that Mesos makes (mesos
// src/docker/docker.cpp and src/slave/containerizer/docker.cpp).

// dockerSandbox is where a Docker container sees its sandbox.
const dockerSandbox = "/mnt/mesos/sandbox"

// dockerStartup is how long after "docker run" an exit counts as a failed
// launch: the first inspection of the container comes that late.
const dockerStartup = time.Second

// unsupported tells why the agent cannot run an executor, nil if it can.
func (a *Agent) unsupported(x *agentExecutor) *termination {
	c := x.info.Container
	refuse := func(text string) *termination {
		return &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_CONTAINER_LAUNCH_FAILED, message: "Failed to launch container: " + text}
	}
	switch {
	case c == nil:
		return nil
	case c.GetType() == mesos.ContainerInfo_DOCKER:
		if a.cfg.Docker == "" || x.command {
			// No containerizer takes it, and nobody has heard of it later.
			return &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_EXECUTOR_TERMINATED, message: "Abnormal executor termination: unknown container"}
		}
		return nil
	case c.GetMesos().GetImage() != nil:
		return refuse("Container root filesystems not supported")
	case len(c.Volumes) > 0:
		return refuse("Volumes in ContainerInfo is not supported")
	}
	return nil
}

// A dockerRun is an executor in a Docker container.
type dockerRun struct {
	client string
	socket string
	name   string // of the container
	image  string
	pull   bool // in any case
	args   []string
}

// dockerRun makes the command line; it is called in the agent's turn.
func (a *Agent) dockerRun(x *agentExecutor) (*dockerRun, error) {
	info := x.info.Container.Docker
	if info == nil {
		return nil, says("No docker info found in container info")
	}
	d := &dockerRun{
		client: a.cfg.Docker,
		socket: "unix://" + a.cfg.DockerSocket,
		name:   "mesos-" + x.container,
		image:  info.Image,
		pull:   info.GetForcePullImage(),
	}
	requests := newResources(x.info.Resources)
	if len(x.queued) > 0 {
		for _, t := range x.queued[0].tasks {
			requests = requests.plus(newResources(t.Resources))
		}
	}
	d.args = []string{"run"}
	add := func(args ...string) { d.args = append(d.args, args...) }
	if info.GetPrivileged() {
		add("--privileged")
	}
	if requests.has("cpus") {
		add("--cpu-shares", strconv.FormatInt(max(requests.scalar("cpus")*1024/1000, 2), 10))
	}
	if requests.has("mem") {
		add("--memory", strconv.FormatInt(max(requests.scalar("mem"), minMem)*1024*1024/1000, 10))
	}
	for _, v := range a.dockerEnvironment(x, d.name, requests) {
		add("-e", v)
	}
	volumes, err := dockerVolumes(x.info.Container, x.dir)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		add("-v", v)
	}
	network, options, err := dockerNetwork(x.info.Container, requests)
	if err != nil {
		return nil, err
	}
	add("--net", network)
	add(options...)
	command := x.info.Command
	if command.GetShell() {
		add("--entrypoint", "/bin/sh")
	}
	add("--name", d.name)
	for _, p := range info.Parameters {
		if p.Key != "net" && p.Key != "network" {
			add("--" + p.Key + "=" + p.Value)
		}
	}
	add(d.image)
	if command.GetShell() {
		add("-c", command.GetValue())
	} else {
		if command.Value != nil {
			add(*command.Value)
		}
		add(command.Arguments...)
	}
	return d, nil
}

// dockerEnvironment is the environment of an executor in Docker: that of any
// executor, with no PATH, and the agent's variables win.
func (a *Agent) dockerEnvironment(x *agentExecutor, name string, requests resources) []string {
	own := a.agentVariables(x)
	own["MESOS_SANDBOX"] = dockerSandbox
	own["MESOS_CONTAINER_NAME"] = name
	if len(requests) > 0 {
		own["MESOS_ALLOCATION_ROLE"] = requests[0].meta.AllocationInfo.GetRole()
	}
	for _, v := range x.info.Command.GetEnvironment().GetVariables() {
		if _, ok := own[v.Name]; !ok && v.Value != nil {
			own[v.Name] = *v.Value
		}
	}
	return environmentList(own)
}

func dockerVolumes(c *mesos.ContainerInfo, sandbox string) ([]string, error) {
	var out []string
	for _, v := range c.Volumes {
		inside := v.ContainerPath
		if !path.IsAbs(inside) {
			inside = path.Join(dockerSandbox, inside)
		}
		if v.HostPath == nil {
			return nil, says("Host path or volume source is required")
		}
		host := *v.HostPath
		if !path.IsAbs(host) {
			if !path.IsAbs(v.ContainerPath) {
				return nil, says("Both host_path '%s' and container_path '%s' of a volume are relative", host, v.ContainerPath)
			}
			host = filepath.Join(sandbox, host)
			if err := os.MkdirAll(host, 0o755); err != nil {
				return nil, err
			}
		}
		mode := "rw"
		if v.GetMode() == mesos.RO {
			mode = "ro"
		}
		out = append(out, host+":"+inside+":"+mode)
	}
	return append(out, sandbox+":"+dockerSandbox), nil
}

func dockerNetwork(c *mesos.ContainerInfo, requests resources) (network string, options []string, err error) {
	network = "host"
	if n := c.Docker.Network; n != nil {
		switch *n {
		case mesos.ContainerInfo_DockerInfo_BRIDGE:
			network = "bridge"
		case mesos.ContainerInfo_DockerInfo_NONE:
			network = "none"
		case mesos.ContainerInfo_DockerInfo_USER:
			if len(c.NetworkInfos) != 1 || c.NetworkInfos[0].Name == nil {
				return "", nil, says("No network name found in network info")
			}
			network = *c.NetworkInfos[0].Name
		}
	}
	for _, p := range c.Docker.Parameters {
		if p.Key == "net" || p.Key == "network" {
			network = p.Value
		}
	}
	if c.Hostname != nil {
		if network == "host" {
			return "", nil, says("Unable to set hostname with host network mode")
		}
		options = append(options, "--hostname", *c.Hostname)
	}
	for _, m := range c.Docker.PortMappings {
		if network == "host" || network == "none" {
			return "", nil, says("Port mappings are only supported for bridge and user-defined networks")
		}
		offered := slices.ContainsFunc(requests, func(r resource) bool {
			return r.meta.Name == "ports" && slices.ContainsFunc(r.ranges, func(s span) bool {
				return s.begin <= uint64(m.HostPort) && uint64(m.HostPort) <= s.end
			})
		})
		if !offered {
			return "", nil, says("Port [%d] not included in resources", m.HostPort)
		}
		mapping := fmt.Sprintf("%d:%d", m.HostPort, m.ContainerPort)
		if m.Protocol != nil {
			mapping += "/" + strings.ToLower(*m.Protocol)
		}
		options = append(options, "-p", mapping)
	}
	return network, options, nil
}

// command makes a call of the docker client.
func (d *dockerRun) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.client, append([]string{"-H", d.socket}, args...)...)
}

// fetchImage pulls the image unless it is there.
func (d *dockerRun) fetchImage(ctx context.Context) error {
	image := d.image
	if !strings.Contains(path.Base(image), ":") && !strings.Contains(image, "@") {
		image += ":latest"
	}
	if !d.pull && d.command(ctx, "inspect", image).Run() == nil {
		return nil
	}
	var stderr bytes.Buffer
	pull := d.command(ctx, "pull", image)
	pull.Stderr = &stderr
	if err := pull.Run(); err != nil {
		return says("Failed to run '%s': %w; stderr='%s'", strings.Join(pull.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// dockerPatience bounds the calls that end a container.
const dockerPatience = time.Minute

// kill ends the container as an agent does whose --docker_stop_timeout is the default,
// 0: it is killed at once. The client that runs it ends with it.
func (d *dockerRun) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), dockerPatience)
	defer cancel()
	return d.command(ctx, "stop", "-t", "0", d.name).Run()
}

// end kills the container, and if that does not help the client that runs it. One that
// is made but not started yet cannot be killed, and docker does not call that an error.
func (d *dockerRun) end(p *container) {
	for wait := 100 * time.Millisecond; wait < 2*time.Second && d.kill() == nil; wait *= 2 {
		select {
		case <-p.done:
			return
		case <-time.After(wait):
		}
	}
	p.killProcess()
}

// remove removes what is left of the container.
func (d *dockerRun) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), dockerPatience)
	defer cancel()
	_ = d.command(ctx, "rm", "-f", "-v", d.name).Run()
}

// runDocker runs an executor in Docker to its end.
func (a *Agent) runDocker(ctx context.Context, x *agentExecutor, p *container, d *dockerRun, stdout, stderr *os.File,
	end func(int32, *termination)) error {
	if err := d.fetchImage(ctx); err != nil {
		return err
	}
	cmd := d.command(context.Background(), d.args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	newSession(cmd)
	p.setStop(func() { a.workers.Go(func() { d.end(p) }) })
	begin := time.Now()
	if err := p.start(cmd); err != nil {
		return err
	}
	status := p.wait(cmd)
	d.remove()
	text := "Container terminated"
	if p.wasKilled() {
		text = "Container killed"
	}
	code, exited := exitCode(status)
	if exited && code != 0 && !p.wasKilled() && time.Since(begin) < dockerStartup {
		end(-1, &termination{state: mesos.TASK_FAILED, reason: mesos.REASON_CONTAINER_LAUNCH_FAILED,
			message: fmt.Sprintf("Failed to launch container: Container exited with status %d", code)})
		return nil
	}
	end(status, &termination{message: text})
	return nil
}
