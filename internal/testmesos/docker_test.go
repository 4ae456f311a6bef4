package testmesos_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"
)

// dockerScript stands for the docker client: it writes its arguments to a log,
// one a line, and runs the command of "run" on this machine.
const dockerScript = `#!/bin/sh
for a in "$@"; do printf '%s\n' "$a"; done >> LOG
echo --- >> LOG
shift 2
case $1 in
inspect) case $2 in missing*) exit 1;; esac; exit 0;;
pull) echo "no such image" >&2; exit 1;;
run)
	while [ $# -gt 1 ]; do
		if [ "$1" = -e ]; then export "$2"; fi
		shift
	done
	cd "$MESOS_DIRECTORY"
	exec /bin/sh -c "$1";;
stop) exit 1;;
esac
`

func dockerTask(o mesos.Offer, id, shell, image string) mesos.TaskInfo {
	ti := taskFor(o, id, "run")
	ti.Resources = []mesos.Resource{scalar("cpus", 0.5), scalar("mem", 256)}
	ti.Executor.Resources = []mesos.Resource{scalar("cpus", 0.1), scalar("mem", 64)}
	ti.Executor.Command = &mesos.CommandInfo{
		Value: new(shell),
		Environment: &mesos.Environment{Variables: []mesos.Environment_Variable{
			{Name: "OWN", Value: new("value")}, {Name: "MESOS_CHECKPOINT", Value: new("mine")},
		}},
	}
	ti.Executor.Container = &mesos.ContainerInfo{
		Type: new(mesos.ContainerInfo_DOCKER),
		Docker: &mesos.ContainerInfo_DockerInfo{
			Image:      image,
			Privileged: new(true),
			Network:    new(mesos.ContainerInfo_DockerInfo_BRIDGE),
			Parameters: []mesos.Parameter{{Key: "security-opt", Value: "seccomp=unconfined"}},
		},
		Volumes: []mesos.Volume{
			{ContainerPath: "/var/lib/portainer", HostPath: new("cache"), Mode: new(mesos.RW)},
			{ContainerPath: "/host-etc", HostPath: new("/etc"), Mode: new(mesos.RO)},
		},
	}
	return ti
}

func TestDockerContainerizer(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	docker := filepath.Join(dir, "docker")
	require.NoError(t, os.WriteFile(docker, []byte(strings.ReplaceAll(dockerScript, "LOG", log)), 0o755))
	cfg := fast(1)
	cfg.Agents[0].Docker, cfg.Agents[0].DockerSocket = docker, "/run/some.sock"
	c := start(t, cfg)
	a := c.Agents()[0]
	f := subscribed(t, c, nil)
	self, err := os.Executable()
	require.NoError(t, err)
	shell := "exec -a executor " + self
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Fatal("the test needs /bin/bash for exec -a")
	}
	shell = "exec /bin/bash -c '" + shell + "'"

	o := f.offer()
	f.accept(o, dockerTask(o, "t1", shell, "image"))
	f.acked("t1", mesos.TASK_RUNNING)
	x := a.Executors()[0]
	b, err := os.ReadFile(log)
	require.NoError(t, err)
	calls := strings.Split(strings.TrimSuffix(string(b), "---\n"), "---\n")
	require.Equal(t, "-H\nunix:///run/some.sock\ninspect\nimage:latest\n", calls[0])
	endpoint := strings.TrimPrefix(a.URL(), "http://")
	require.Equal(t, []string{
		"-H", "unix:///run/some.sock", "run", "--privileged", "--cpu-shares", "614", "--memory", "335544320",
		"-e", "GORACE=atexit_sleep_ms=0",
		"-e", "LIBPROCESS_IP=127.0.0.1",
		"-e", "LIBPROCESS_PORT=0",
		"-e", "MESOS_AGENT_ENDPOINT=" + endpoint,
		"-e", "MESOS_ALLOCATION_ROLE=*",
		"-e", "MESOS_CHECKPOINT=1",
		"-e", "MESOS_CONTAINER_NAME=mesos-" + x.Container,
		"-e", "MESOS_DIRECTORY=" + x.Sandbox,
		"-e", "MESOS_EXECUTOR_ID=x-t1",
		"-e", "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD=1secs",
		"-e", "MESOS_FRAMEWORK_ID=" + f.info.ID.Value,
		"-e", "MESOS_HTTP_COMMAND_EXECUTOR=0",
		"-e", "MESOS_RECOVERY_TIMEOUT=15mins",
		"-e", "MESOS_SANDBOX=/mnt/mesos/sandbox",
		"-e", "MESOS_SLAVE_ID=" + a.ID(),
		"-e", "MESOS_SLAVE_PID=slave(1)@" + endpoint,
		"-e", "MESOS_SUBSCRIPTION_BACKOFF_MAX=500ms",
		"-e", "OWN=value",
		"-v", x.Sandbox + "/cache:/var/lib/portainer:rw",
		"-v", "/etc:/host-etc:ro",
		"-v", x.Sandbox + ":/mnt/mesos/sandbox",
		"--net", "bridge", "--entrypoint", "/bin/sh", "--name", "mesos-" + x.Container,
		"--security-opt=seccomp=unconfined", "image", "-c", shell,
	}, strings.Split(strings.TrimSuffix(calls[1], "\n"), "\n"))
	require.DirExists(t, filepath.Join(x.Sandbox, "cache"))

	f.kill("t1")
	f.acked("t1", mesos.TASK_KILLED)
	require.Equal(t, int32(0), *f.expect(scheduler.Event_FAILURE).Failure.Status)
	b, err = os.ReadFile(log)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(b), "rm\n-f\n-v\nmesos-"+x.Container+"\n---\n"), "the container is removed")

	for _, tt := range []struct {
		id, shell, image string
		reason           mesos.TaskStatus_Reason
		text             string
		status           int32
	}{
		{"t2", "exit 125", "image", mesos.REASON_CONTAINER_LAUNCH_FAILED, "Failed to launch container: Container exited with status 125", -1},
		{"t3", "exit 0", "image", mesos.REASON_EXECUTOR_TERMINATED, "Container terminated", 0},
		{"t4", "exit 0", "missing:v1", mesos.REASON_CONTAINER_LAUNCH_FAILED, "stderr='no such image'", 256},
	} {
		o := f.wholeOffer()
		f.accept(o, dockerTask(o, tt.id, tt.shell, tt.image))
		s := f.acked(tt.id, mesos.TASK_FAILED)
		require.Equal(t, tt.reason, s.GetReason())
		require.Contains(t, s.GetMessage(), tt.text)
		require.Equal(t, tt.status, *f.expect(scheduler.Event_FAILURE).Failure.Status)
	}

	// An executor that hangs is killed: first the container, here with its
	// client.
	o = f.wholeOffer()
	hang := dockerTask(o, "t5", "sleep 100", "image")
	f.accept(o, hang)
	eventually(t, "it runs", func() bool { return len(a.Executors()) == 1 && a.Executors()[0].PID != 0 })
	pid := a.Executors()[0].PID
	f.call(&scheduler.Call{Type: scheduler.Call_SHUTDOWN, Shutdown: &scheduler.Call_Shutdown{
		ExecutorID: hang.Executor.ExecutorID, AgentID: o.AgentID,
	}})
	require.Equal(t, "Container killed", f.acked("t5", mesos.TASK_FAILED).GetMessage())
	requireGone(t, pid)
}

// TestDockerThatStartsNothing: a container that is made and never started cannot be
// killed, and "docker run" waits for it. That does not hold the agent up.
func TestDockerThatStartsNothing(t *testing.T) {
	docker := filepath.Join(t.TempDir(), "docker")
	script := strings.ReplaceAll(strings.Replace(dockerScript, "stop) exit 1", "stop) exit 0", 1), "LOG", os.DevNull)
	require.NoError(t, os.WriteFile(docker, []byte(script), 0o755))
	cfg := fast(1)
	cfg.Agents[0].Docker, cfg.RegistrationTimeout = docker, 200*time.Millisecond
	c := start(t, cfg)
	f := subscribed(t, c, nil)
	o := f.offer()
	f.accept(o, dockerTask(o, "t1", "exec sleep 100", "image"))
	eventually(t, "it runs", func() bool { x := c.Agents()[0].Executors(); return len(x) == 1 && x[0].PID != 0 })
	pid := c.Agents()[0].Executors()[0].PID
	s := f.acked("t1", mesos.TASK_FAILED)
	require.Equal(t, mesos.REASON_EXECUTOR_REGISTRATION_TIMEOUT, s.GetReason())
	require.Equal(t, "Executor did not register within 200ms; Container killed", s.GetMessage())
	requireGone(t, pid)
}

func TestContainersThatNobodyTakes(t *testing.T) {
	c := start(t, fast(1))
	f := subscribed(t, c, nil)
	image := &mesos.Image{Type: new(mesos.Image_DOCKER), Docker: &mesos.Image_Docker{Name: "image"}}
	for _, tt := range []struct {
		id        string
		container *mesos.ContainerInfo
		text      string
	}{
		{"docker", &mesos.ContainerInfo{Type: new(mesos.ContainerInfo_DOCKER), Docker: &mesos.ContainerInfo_DockerInfo{Image: "image"}},
			"Abnormal executor termination: unknown container"},
		{"image", &mesos.ContainerInfo{Type: new(mesos.ContainerInfo_MESOS), Mesos: &mesos.ContainerInfo_MesosInfo{Image: image}},
			"Failed to launch container: Container root filesystems not supported"},
		{"volume", &mesos.ContainerInfo{Type: new(mesos.ContainerInfo_MESOS), Volumes: []mesos.Volume{{ContainerPath: "/x", Mode: new(mesos.RW)}}},
			"Failed to launch container: Volumes in ContainerInfo is not supported"},
	} {
		o := f.offer()
		ti := taskFor(o, tt.id, "run")
		ti.Executor.Container = tt.container
		f.accept(o, ti)
		require.Equal(t, tt.text, f.acked(tt.id, mesos.TASK_FAILED).GetMessage())
	}
	o := f.offer()
	ti := taskFor(o, "plain", "run")
	ti.Executor.Container = &mesos.ContainerInfo{Type: new(mesos.ContainerInfo_MESOS)}
	f.accept(o, ti)
	f.acked("plain", mesos.TASK_RUNNING)
}
