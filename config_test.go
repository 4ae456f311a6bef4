package portainer_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer"
)

func TestNewNamesEveryBadField(t *testing.T) {
	bucket := memblob.OpenBucket(nil)
	defer func() { require.NoError(t, bucket.Close()) }()
	tests := []struct {
		name string
		cfg  portainer.Config
		bad  []string // how the problems begin
	}{
		{"nothing", portainer.Config{}, []string{"master"}},
		{"master", portainer.Config{Master: "zk:///mesos"}, []string{`master "zk:///mesos"`}},
		{"bucket without URL", portainer.Config{Staging: bucket}, []string{"StagingURL: "}},
		{"URL without bucket", portainer.Config{StagingURL: "mem://"}, []string{"Staging: "}},
		{"signer without bucket", portainer.Config{StagingSigner: bucket}, []string{"Staging: "}},
		{"signing", portainer.Config{StagingSign: "perhaps", StagingTTL: -1}, []string{`StagingSign: "perhaps"`, "StagingTTL: "}},
		{"registries", portainer.Config{Registry: "https://registry.example", From: "team"}, []string{"Registry: ", "From: "}},
		{"cache of nothing", portainer.Config{ExecutorCache: true}, []string{"ExecutorURI: "}},
		{"secret without principal", portainer.Config{Secret: "s3cret"}, []string{"Principal: "}},
		{"engine", portainer.Config{Engine: portainer.Engine{Kind: "podman"}}, []string{`Engine.Kind: "podman"`}},
		{"engine without a host", portainer.Config{Engine: portainer.Engine{Kind: "docker"}}, []string{"Engine.Host: "}},
		{"engine with a host too many", portainer.Config{Engine: portainer.Engine{Kind: "dockerd", Host: "unix:///d"}}, []string{"Engine.Host: "}},
		{
			"constraint", portainer.Config{Constraints: []portainer.Constraint{{Attribute: "rack", Operator: "NEAR"}}},
			[]string{"Constraints: "},
		},
		{
			"amounts", portainer.Config{
				Resources:   portainer.Resources{CPUs: -1, MemMB: math.Inf(1), DiskMB: math.NaN(), GPUs: -1},
				MaxAttempts: -1, OOMRetryMemMB: -1,
			},
			[]string{"Resources.CPUs: ", "Resources.MemMB: ", "Resources.DiskMB: ", "Resources.GPUs: ", "MaxAttempts: ", "OOMRetryMemMB: "},
		},
		{
			"durations", portainer.Config{
				FailoverTimeout: -1, QueueTimeout: -1, BuildTimeout: -1, LaunchTimeout: -1, UnreachableTimeout: -1,
				ConnectTimeout: -1, ShutdownTimeout: -time.Hour,
			},
			[]string{
				"FailoverTimeout: ", "QueueTimeout: ", "BuildTimeout: ", "LaunchTimeout: ", "UnreachableTimeout: ",
				"ConnectTimeout: ", "ShutdownTimeout: ",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := portainer.New(tt.cfg)
			require.Nil(t, f)
			require.ErrorIs(t, err, portainer.ErrInvalid)
			for _, bad := range tt.bad {
				require.ErrorContains(t, err, bad)
			}
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
}

func TestNewAcceptsDefaults(t *testing.T) {
	for _, master := range []string{
		"master.example:5050", "a.example:5050,b.example:5050", "https://master.example", "zk://user:password@a:2181,b:2181/mesos",
	} {
		_, err := portainer.New(portainer.Config{Master: master})
		require.NoError(t, err, master)
	}
}
