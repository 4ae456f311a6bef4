package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLongLogIsCompleteAndInOrder writes 200 000 lines in one RUN.
func TestLongLogIsCompleteAndInOrder(t *testing.T) {
	const lines = 200_000
	daemon := startDaemon(t)
	for _, flags := range [][]string{{"--docker-host", daemon.Host}, {"--engine", "dockerd"}} {
		t.Run(flags[1], func(t *testing.T) {
			dir := write(t, map[string]string{
				"Dockerfile": fmt.Sprintf("FROM busybox\nRUN awk 'BEGIN { for (i = 1; i <= %d; i++) print \"line \" i \" of the long log\" }'\n", lines),
			})
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/log", "--stream", "--no-cache"}, flags...)
			p := cli(t, 0, append(args, dir)...)
			next := 1
			for line := range strings.Lines(p.stderr.String()) {
				if !strings.HasPrefix(line, "line ") || !strings.HasSuffix(line, " of the long log\n") {
					continue
				}
				require.Equal(t, fmt.Sprintf("line %d of the long log\n", next), line)
				next++
			}
			require.Equal(t, lines, next-1)
		})
	}
}
