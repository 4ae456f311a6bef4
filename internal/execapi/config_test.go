package execapi_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/execapi"
)

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestFromEnv(t *testing.T) {
	env := map[string]string{
		"MESOS_AGENT_ENDPOINT": "10.0.0.1:5051", "MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_SLAVE_ID": "a",
		"MESOS_DIRECTORY": "/host/sandbox", "MESOS_SANDBOX": "/mnt/mesos/sandbox",
		"MESOS_CHECKPOINT": "1", "MESOS_RECOVERY_TIMEOUT": "15mins", "MESOS_SUBSCRIPTION_BACKOFF_MAX": "2secs",
		"MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "1.5mins", "MESOS_EXECUTOR_AUTHENTICATION_TOKEN": "t",
	}
	want := execapi.Config{
		Endpoint: "10.0.0.1:5051", FrameworkID: "f", ExecutorID: "e", AgentID: "a", Sandbox: "/mnt/mesos/sandbox",
		Checkpoint: true, RecoveryTimeout: 15 * time.Minute, BackoffMax: 2 * time.Second, ShutdownGrace: 90 * time.Second, Token: "t",
	}
	got, err := execapi.FromEnv(getenv(env))
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestFromEnvDefaults(t *testing.T) {
	got, err := execapi.FromEnv(getenv(map[string]string{
		"MESOS_AGENT_ENDPOINT": "h:1", "MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_DIRECTORY": "/d", "MESOS_CHECKPOINT": "0",
	}))
	require.NoError(t, err)
	require.Equal(t, execapi.Config{
		Endpoint: "h:1", FrameworkID: "f", ExecutorID: "e", Sandbox: "/d",
		RecoveryTimeout: 15 * time.Minute, BackoffMax: 2 * time.Second, ShutdownGrace: 5 * time.Second,
	}, got)
}

func TestFromEnvNamesEverythingWrong(t *testing.T) {
	_, err := execapi.FromEnv(getenv(map[string]string{"MESOS_RECOVERY_TIMEOUT": "15m", "LIBPROCESS_SSL_ENABLED": "1", "LIBPROCESS_SSL_CA_FILE": "/nowhere"}))
	require.EqualError(t, err, `not started as an executor by a Mesos agent: MESOS_AGENT_ENDPOINT is not set
MESOS_FRAMEWORK_ID is not set
MESOS_EXECUTOR_ID is not set
MESOS_RECOVERY_TIMEOUT: "15m" is no duration such as 5secs
neither MESOS_SANDBOX nor MESOS_DIRECTORY is set
LIBPROCESS_SSL_CA_FILE, LIBPROCESS_SSL_CA_DIR: open /nowhere: no such file or directory`)
}

func TestFromEnvDurations(t *testing.T) {
	tests := []struct {
		text string
		want time.Duration
	}{
		{"1ns", 1}, {"2us", 2 * time.Microsecond}, {"3ms", 3 * time.Millisecond}, {"5secs", 5 * time.Second}, {"0.5secs", 500 * time.Millisecond},
		{"1e+02secs", 100 * time.Second}, {"1.5mins", 90 * time.Second}, {"2hrs", 2 * time.Hour}, {"1days", 24 * time.Hour}, {"2weeks", 336 * time.Hour},
		{"5s", -1}, {"secs", -1}, {"-1secs", -1}, {"NaNsecs", -1}, {"1e300weeks", -1}, {"5", -1},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := execapi.FromEnv(getenv(map[string]string{
				"MESOS_AGENT_ENDPOINT": "h:1", "MESOS_FRAMEWORK_ID": "f", "MESOS_EXECUTOR_ID": "e", "MESOS_SANDBOX": "/d", "MESOS_RECOVERY_TIMEOUT": tt.text,
			}))
			if tt.want < 0 {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got.RecoveryTimeout)
		})
	}
}
