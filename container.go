package portainer

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A Container says in what container the docker containerizer of an agent runs
// the executor. The zero value means none: the executor is a process on the agent.
//
// The image brings the engine; the executor is fetched into the sandbox as
// always, which is mounted at $MESOS_SANDBOX. A staging bucket in a directory,
// file:///DIR, is mounted where it is on the agent, unless a volume is there.
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

// volumes are those of c, which has been validated, and the directory of a staging
// bucket at stagingURL: the executor opens it in the container.
func (c *Container) volumes(stagingURL string) []mesos.Volume {
	var volumes []mesos.Volume
	for _, v := range c.Volumes {
		volume, _ := parseVolume(v) // validated
		volumes = append(volumes, volume)
	}
	u, err := url.Parse(stagingURL)
	if err != nil || u.Scheme != "file" || !path.IsAbs(u.Path) {
		return volumes
	}
	dir := path.Clean(u.Path)
	holds := func(v mesos.Volume) bool {
		return dir == path.Clean(v.ContainerPath) || strings.HasPrefix(dir, strings.TrimRight(path.Clean(v.ContainerPath), "/")+"/")
	}
	if !slices.ContainsFunc(volumes, holds) {
		mode := mesos.RW
		volumes = append(volumes, mesos.Volume{HostPath: &dir, ContainerPath: dir, Mode: &mode})
	}
	return volumes
}

// info is c for Mesos, for a bucket at stagingURL. c has been validated.
func (c *Container) info(stagingURL string) *mesos.ContainerInfo {
	if c.Image == "" {
		return nil
	}
	kind, privileged := mesos.ContainerInfo_DOCKER, !c.Unprivileged
	info := &mesos.ContainerInfo{
		Type:    &kind,
		Docker:  &mesos.ContainerInfo_DockerInfo{Image: c.Image, Privileged: &privileged},
		Volumes: c.volumes(stagingURL),
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
