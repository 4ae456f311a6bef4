package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/testmesos"
)

// longLog is a Dockerfile whose one step writes so many lines, and then does what
// follows.
func longLog(lines int, then string) string {
	return fmt.Sprintf("FROM busybox\nRUN awk 'BEGIN { for (i = 1; i <= %d; i++) print \"line \" i \" of the long log\" }'%s\n", lines, then)
}

// requireLongLog checks that p has shown all of these lines, once and in order.
func requireLongLog(t *testing.T, p *process, lines int) {
	t.Helper()
	next := 1
	for line := range strings.Lines(p.stderr.String()) {
		if !strings.HasPrefix(line, "line ") || !strings.HasSuffix(line, " of the long log\n") {
			continue
		}
		require.Equal(t, fmt.Sprintf("line %d of the long log\n", next), line)
		next++
	}
	require.Equal(t, lines, next-1)
}

// TestLongLogIsCompleteAndInOrder writes 200 000 lines in one RUN.
func TestLongLogIsCompleteAndInOrder(t *testing.T) {
	const lines = 200_000
	daemon := startDaemon(t)
	for _, flags := range [][]string{{"--docker-host", daemon.Host}, {"--engine", "dockerd"}} {
		t.Run(flags[1], func(t *testing.T) {
			dir := write(t, map[string]string{"Dockerfile": longLog(lines, "")})
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/log", "--stream", "--no-cache"}, flags...)
			requireLongLog(t, cli(t, 0, append(args, dir)...), lines)
		})
	}
}

// TestAgentsOutOfReach builds where the program reaches the master and no agent: all
// is as it would be otherwise, and the log says why it may be slow.
func TestAgentsOutOfReach(t *testing.T) {
	const lines = 50_000
	daemon := startDaemon(t)
	c := startMesos(t, testmesos.Config{Agents: []testmesos.AgentConfig{{}}})
	c.Agents()[0].RefuseFiles(-1)
	for _, tt := range []struct {
		name, then string
		code       int
	}{{"succeeds", "", 0}, {"fails", " && false", 1}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, map[string]string{"Dockerfile": longLog(lines, tt.then)})
			p := cli(t, tt.code, "build", "--mesos-master", c.Master(), "--to", registry, "--from", registry, "--repository", "test/reach",
				"--stream", "--no-cache", "--docker-host", daemon.Host, dir)
			requireLongLog(t, p, lines)
			require.Equal(t, 1, strings.Count(p.stderr.String(), "its log comes over the master"))
			require.NotContains(t, p.stderr.String(), "could not be read")
			if tt.code == 0 {
				pushed(t, refOf(t, p, "test/reach"))
			}
		})
	}
}
