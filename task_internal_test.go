package portainer

import (
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
)

// TestExecutorCommand has what agents are told to fetch, and how to start it.
func TestExecutorCommand(t *testing.T) {
	const start = `cd "${MESOS_SANDBOX:-.}" && exec ./portainer-executor`
	yes, no := true, false
	tests := []struct {
		name string
		cfg  Config
		want []mesos.CommandInfo_URI
	}{
		{"nothing to fetch", Config{}, nil},
		{"a program of any name", Config{ExecutorURI: "file:///mnt/portainer/executors/0123"},
			[]mesos.CommandInfo_URI{{Value: "file:///mnt/portainer/executors/0123", Executable: &yes, Extract: &no, OutputFile: new("portainer-executor")}}},
		{"an archive at a signed URL", Config{ExecutorURI: "https://bucket.example/x.tar.gz?sig=a/b"},
			[]mesos.CommandInfo_URI{{Value: "https://bucket.example/x.tar.gz?sig=a/b", Extract: &yes, OutputFile: new("x.tar.gz")}}},
		{"an archive that agents keep", Config{ExecutorURI: "https://files.example/x.tgz", ExecutorCache: true},
			[]mesos.CommandInfo_URI{{Value: "https://files.example/x.tgz", Extract: &yes, OutputFile: new("x.tgz"), Cache: &yes}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.ExecutorCommand = "./portainer-executor"
			info := tt.cfg.executorCommand()
			require.Equal(t, start, info.GetValue())
			require.Equal(t, tt.want, info.URIs)
		})
	}
}
