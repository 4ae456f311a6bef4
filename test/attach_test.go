package test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
)

// TestAttach kills the program in the middle of three builds. Another takes them
// over: nothing is built twice, no line is missing or repeated, and results and
// exit code are as if nothing had happened.
func TestAttach(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			const lines = 60
			c := startCluster(t, "--agents", "2", "--resources", "cpus:4;mem:8192;disk:20000")
			_, err := dockertest.PushBusybox(t.Context(), c.registry)
			require.NoError(t, err)
			files := map[string]string{}
			for _, name := range []string{"a", "b", "c"} {
				// Its own name in the output tells the builds' steps apart.
				files[name+"/Dockerfile"] = fmt.Sprintf("# portainer: repository=test/%s cpus=0.5 mem=64\nFROM busybox\nCOPY Dockerfile /\n"+
					"RUN for i in $(seq 1 %d); do echo line $i of %s; sleep 0.1; done\n", name, lines, name)
			}
			dir := write(t, files)
			state := t.TempDir()
			flags := []string{"--mesos-master", c.master, "--state-dir", state, "--staging-ttl", "0", "--stream"}
			first := start(t, append(append([]string{"build", "--to", c.registry, "--from", c.registry}, flags...), dir+"/a", dir+"/b", dir+"/c")...)
			for _, name := range []string{"a", "b", "c"} {
				first.waitFor(first.stderr, "line 10 of "+name)
			}
			require.NoError(t, first.cmd.Process.Signal(sig))
			code := first.wait()
			if sig == syscall.SIGTERM {
				require.Equal(t, exitInterrupted, code)
				require.Contains(t, strings.Join(ownMessages(first), "\n"), "portainer attach --state-dir "+state)
			}
			require.Empty(t, first.stdout.String())

			second := cli(t, 0, append([]string{"attach"}, flags...)...)
			require.Len(t, second.refs(), 3)
			for _, ref := range second.refs() {
				pushed(t, ref)
			}
			all := first.stderr.String() + second.stderr.String()
			for _, name := range []string{"a", "b", "c"} {
				var got, want []string
				for line := range strings.Lines(all) {
					if _, text, ok := strings.Cut(line, ": line "); ok && strings.HasSuffix(text, " of "+name+"\n") {
						got = append(got, strings.TrimSuffix(text, " of "+name+"\n"))
					}
				}
				for i := 1; i <= lines; i++ {
					want = append(want, fmt.Sprint(i))
				}
				require.Equal(t, want, got)
			}
			require.Empty(t, staged(t, filepath.Join(state, "staging")))

			third := cli(t, 0, append([]string{"attach"}, flags...)...)
			require.Empty(t, third.stdout.String(), "everything was told")
			c.stop()
		})
	}
}

// TestAttachStagesLate kills the program before a base image shows that it needs the build
// context: the one that takes over stages it, from where it was.
func TestAttachStagesLate(t *testing.T) {
	c := startCluster(t)
	_, err := dockertest.PushBusybox(t.Context(), c.registry)
	require.NoError(t, err)
	pushTriggers(t, c.registry)
	// The classic builder comes to the second stage when it has done the first.
	dir := write(t, map[string]string{
		"Dockerfile":    "# portainer: repository=test/late\nFROM busybox AS first\nRUN echo at work; sleep 3; echo done >/x\nFROM base:triggers\nCOPY --from=first /x /\n",
		".dockerignore": "left-out\n", "f": "copied by the base", "left-out": "",
	})
	state := t.TempDir()
	flags := []string{"--mesos-master", c.master, "--state-dir", state, "--docker-host", startDaemon(t).Host, "--staging-ttl", "0"}
	first := start(t, append(append([]string{"build", "--to", c.registry, "--from", c.registry}, flags...), dir)...)
	first.waitFor(first.stderr, "at work")
	require.NoError(t, first.cmd.Process.Kill())
	first.wait()
	require.Empty(t, staged(t, filepath.Join(state, "staging")), "nothing was needed yet")

	second := cli(t, 0, append([]string{"attach"}, flags...)...)
	require.Contains(t, second.stderr.String(), "# portainer: context=always")
	require.Equal(t, map[string]string{"f": "copied by the base", "x": "done\n"}, content(t, refOf(t, second, "test/late")))
	require.Empty(t, staged(t, filepath.Join(state, "staging")))
	c.stop()
}
