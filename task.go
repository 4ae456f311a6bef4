package portainer

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// executorFile is the name of the executor's binary in its sandbox.
const executorFile = "portainer-executor"

// shutdownGrace is how long an executor has to stop its engine and remove what
// it leaves, before Mesos kills it.
const shutdownGrace = 60 * time.Second

// executorShare is what the executor itself takes, besides its task. Mesos warns
// about less than 0.01 cpus and 32 MB.
var executorShare = Resources{CPUs: 0.1, MemMB: 64}

// taskInfo makes the task of at out of pool, which loses what the task takes.
func (l *loop) taskInfo(at *attempt, pool []mesos.Resource, role string) (*mesos.TaskInfo, error) {
	b := at.build
	own, ok := carve(pool, role, executorShare)
	if !ok {
		return nil, errors.New("offer is too small for the executor")
	}
	used, ok := carve(pool, role, b.resources.Sub(executorShare))
	if !ok {
		return nil, errors.New("offer is too small for the task")
	}
	task := b.task
	task.Attempt = at.n
	data, err := task.Encode()
	if err != nil {
		return nil, err
	}
	cfg := &l.f.cfg
	grace := mesos.DurationInfo{Nanoseconds: shutdownGrace.Nanoseconds()}
	name, source := "portainer executor", b.image
	return &mesos.TaskInfo{
		Name:      b.image,
		TaskID:    mesos.TaskID{Value: at.task},
		AgentID:   mesos.AgentID{Value: string(at.agent)},
		Resources: used,
		Data:      data,
		Labels:    labels("portainer.build", string(b.id), "portainer.image", b.image, "portainer.attempt", fmt.Sprint(at.n)),
		Executor: &mesos.ExecutorInfo{
			Type:                mesos.ExecutorInfo_CUSTOM,
			ExecutorID:          mesos.ExecutorID{Value: at.task},
			FrameworkID:         &mesos.FrameworkID{Value: l.frameworkID},
			Name:                &name,
			Source:              &source,
			Command:             executorCommand(cfg.ExecutorURI, cfg.ExecutorCommand),
			Container:           cfg.Container.info(),
			Resources:           own,
			ShutdownGracePeriod: &grace,
		},
	}, nil
}

// labels makes Mesos labels of keys and values.
func labels(pairs ...string) *mesos.Labels {
	var l mesos.Labels
	for i := 0; i+1 < len(pairs); i += 2 {
		l.Labels = append(l.Labels, mesos.Label{Key: pairs[i], Value: &pairs[i+1]})
	}
	return &l
}

// archiveSuffixes are those that Mesos's fetcher unpacks (mesos docs/fetcher.md).
var archiveSuffixes = []string{".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip"}

// executorCommand is the command that starts the executor. A container's working
// directory is that of its image, so the sandbox is entered first.
func executorCommand(uri, command string) *mesos.CommandInfo {
	value := `cd "${MESOS_SANDBOX:-.}" && exec ` + command
	info := &mesos.CommandInfo{Value: &value}
	if uri == "" {
		return info
	}
	fetched := mesos.CommandInfo_URI{Value: uri}
	yes, no := true, false
	base, _, _ := strings.Cut(path.Base(uri), "?")
	if isArchive(base) {
		fetched.Extract = &yes
		fetched.OutputFile = &base // a signed URL's query would be in the name
	} else {
		file := executorFile
		fetched.Executable, fetched.Extract, fetched.OutputFile = &yes, &no, &file
	}
	info.URIs = []mesos.CommandInfo_URI{fetched}
	return info
}

func isArchive(name string) bool {
	return slices.ContainsFunc(archiveSuffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}

// A Container says in what container the docker containerizer of an agent runs
// the executor. The zero value means none: the executor is a process on the agent.
//
// The image brings the engine; the executor is fetched into the sandbox as
// always, which is mounted at $MESOS_SANDBOX.
type Container struct {
	// Image is what the agent pulls. "" means no container.
	Image string
	// Unprivileged runs the container without --privileged. An engine in it then
	// needs what Parameters grant.
	Unprivileged bool
	// Parameters are further flags of docker run, as "key=value":
	// "cap-add=SYS_ADMIN".
	Parameters []string
	// Network is "host", "bridge", "none" or the name of a docker network. ""
	// means "host". The executor must be able to reach its agent.
	Network string
	// Volumes are mounted into the container, as "host:container" or
	// "host:container:ro". A relative host path lies in the sandbox.
	Volumes []string
}

// validate returns everything that is wrong with c.
func (c *Container) validate() []error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Image == "" && (c.Unprivileged || len(c.Parameters) > 0 || c.Network != "" || len(c.Volumes) > 0) {
		bad("Container.Image: missing; the rest of Container is about the container of an image")
	}
	for _, p := range c.Parameters {
		if key, _, ok := strings.Cut(p, "="); !ok || key == "" {
			bad("Container.Parameters: %q is not key=value", p)
		}
	}
	for _, v := range c.Volumes {
		if _, err := parseVolume(v); err != nil {
			bad("Container.Volumes: %w", err)
		}
	}
	return problems
}

// parseVolume reads "host:container[:ro|:rw]".
func parseVolume(s string) (mesos.Volume, error) {
	parts := strings.Split(s, ":")
	mode := mesos.RW
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			mode = mesos.RO
		case "rw":
		default:
			return mesos.Volume{}, fmt.Errorf("%q: the mode is ro or rw", s)
		}
		parts = parts[:2]
	}
	if len(parts) != 2 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return mesos.Volume{}, fmt.Errorf("%q is not host:container, with an absolute path in the container", s)
	}
	return mesos.Volume{HostPath: &parts[0], ContainerPath: parts[1], Mode: &mode}, nil
}

// info is c for Mesos. c has been validated.
func (c *Container) info() *mesos.ContainerInfo {
	if c.Image == "" {
		return nil
	}
	kind, privileged := mesos.ContainerInfo_DOCKER, !c.Unprivileged
	info := &mesos.ContainerInfo{
		Type:   &kind,
		Docker: &mesos.ContainerInfo_DockerInfo{Image: c.Image, Privileged: &privileged},
	}
	for _, v := range c.Volumes {
		volume, _ := parseVolume(v) // validated
		info.Volumes = append(info.Volumes, volume)
	}
	for _, p := range c.Parameters {
		key, value, _ := strings.Cut(p, "=")
		info.Docker.Parameters = append(info.Docker.Parameters, mesos.Parameter{Key: key, Value: value})
	}
	network := mesos.ContainerInfo_DockerInfo_HOST
	switch c.Network {
	case "", "host":
	case "bridge":
		network = mesos.ContainerInfo_DockerInfo_BRIDGE
	case "none":
		network = mesos.ContainerInfo_DockerInfo_NONE
	default:
		network = mesos.ContainerInfo_DockerInfo_USER
		info.NetworkInfos = []mesos.NetworkInfo{{Name: &c.Network}}
	}
	info.Docker.Network = &network
	return info
}
