package test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMoreMemory: a build that runs out of memory fails, and is launched once more if
// it is said with how much.
func TestMoreMemory(t *testing.T) {
	daemon := startDaemon(t)
	withBuildkitd(t)
	given, own := []string{"--docker-host", daemon.Host}, []string{"--engine", "buildkitd"}
	// dd fills its buffer.
	dir := write(t, map[string]string{"Dockerfile": "FROM busybox\nRUN true\nRUN dd if=/dev/zero of=/dev/null bs=100M count=1\n"})
	for _, tt := range []struct {
		name     string
		flags    []string
		attempts int
		bound    string // of the last attempt; "" if it succeeds
	}{
		{"once in a given daemon", given, 1, "48"},
		{"once more in a given daemon", append([]string{"--oom-retry-mem", "256m"}, given...), 2, ""},
		{"once more in buildkitd of its own", append([]string{"--oom-retry-mem", "256m"}, own...), 2, ""},
		{"no third time", append([]string{"--oom-retry-mem", "64m"}, own...), 2, "64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			code := 1
			if tt.bound == "" {
				code = 0
			}
			meta := filepath.Join(t.TempDir(), "meta.json")
			args := []string{"build", "--to", registry, "--from", registry, "--repository", "test/memory" + tt.bound, "--build-mem", "48m", "--metadata-file", meta}
			p := cli(t, code, append(append(args, tt.flags...), dir)...)
			built := readMetadata(t, meta).Builds[0]
			require.Equal(t, tt.attempts, built.Attempts)
			require.Contains(t, p.stderr.String(), "out of memory: the task has 48 MB and the build used 4")
			if tt.bound == "" {
				require.Len(t, p.refs(), 1)
				pushed(t, p.refs()[0])
				require.Empty(t, ownMessages(p))
			} else {
				require.Equal(t, "oom", built.Class)
				require.Equal(t, 3, built.Line)
				require.Len(t, ownMessages(p), 1)
				require.Contains(t, ownMessages(p)[0], "out of memory: the task has "+tt.bound+" MB")
				notPushed(t, registry+"/test/memory"+tt.bound+":latest")
			}
			before.nothingLeft(t, p)
			require.Empty(t, docker(t, daemon.Host, "ps", "--all", "--quiet"))
		})
	}
}
