package portainer

import (
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
)

func TestContainerInfo(t *testing.T) {
	require.Nil(t, (&Container{}).info("file:///staging"), "no image, no container")

	c := Container{
		Image:        "registry.example/engine:v1",
		Unprivileged: true,
		Parameters:   []string{"cap-add=SYS_ADMIN", "security-opt=seccomp=unconfined"},
		Volumes:      []string{"cache:/var/cache/engine", "/etc/docker:/etc/docker:ro"},
	}
	require.Empty(t, c.validate())
	info := c.info("s3://bucket?region=x")
	require.Equal(t, mesos.ContainerInfo_DOCKER, info.GetType())
	require.Equal(t, &mesos.ContainerInfo_DockerInfo{
		Image:      "registry.example/engine:v1",
		Privileged: new(false),
		Network:    new(mesos.ContainerInfo_DockerInfo_HOST),
		Parameters: []mesos.Parameter{{Key: "cap-add", Value: "SYS_ADMIN"}, {Key: "security-opt", Value: "seccomp=unconfined"}},
	}, info.Docker)
	require.Equal(t, []mesos.Volume{
		{HostPath: new("cache"), ContainerPath: "/var/cache/engine", Mode: new(mesos.RW)},
		{HostPath: new("/etc/docker"), ContainerPath: "/etc/docker", Mode: new(mesos.RO)},
	}, info.Volumes)
	require.True(t, *(&Container{Image: "x"}).info("").Docker.Privileged)
}

func TestContainerNetworks(t *testing.T) {
	for name, want := range map[string]mesos.ContainerInfo_DockerInfo_Network{
		"": mesos.ContainerInfo_DockerInfo_HOST, "host": mesos.ContainerInfo_DockerInfo_HOST, "bridge": mesos.ContainerInfo_DockerInfo_BRIDGE,
		"none": mesos.ContainerInfo_DockerInfo_NONE, "builds": mesos.ContainerInfo_DockerInfo_USER,
	} {
		info := (&Container{Image: "x", Network: name}).info("")
		require.Equal(t, want, info.Docker.GetNetwork(), name)
		if want == mesos.ContainerInfo_DockerInfo_USER {
			require.Equal(t, []mesos.NetworkInfo{{Name: new("builds")}}, info.NetworkInfos)
		} else {
			require.Empty(t, info.NetworkInfos)
		}
	}
}

// TestContainerStaging: an executor in a container opens a staging directory where
// the agent has it.
func TestContainerStaging(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		volumes   []string
		want      string // the volume that is added
	}{
		{"directory", "file:///mnt/staging?create_dir=true", nil, "/mnt/staging"},
		{"unclean", "file:///mnt/../mnt/staging/", nil, "/mnt/staging"},
		{"beside others", "file:///mnt/staging", []string{"/mnt/stag:/mnt/stag"}, "/mnt/staging"},
		{"mounted", "file:///mnt/staging", []string{"/nfs/builds:/mnt/staging:ro"}, ""},
		{"mounted above", "file:///mnt/staging", []string{"/mnt:/mnt"}, ""},
		{"bucket", "s3://mnt/staging", nil, ""},
		{"no bucket", "", nil, ""},
	} {
		volumes := (&Container{Image: "x", Volumes: tt.volumes}).info(tt.url).Volumes
		require.Len(t, volumes, len(tt.volumes)+min(1, len(tt.want)), tt.name)
		if tt.want != "" {
			require.Equal(t, mesos.Volume{HostPath: &tt.want, ContainerPath: tt.want, Mode: new(mesos.RW)}, volumes[len(volumes)-1], tt.name)
		}
	}
}
