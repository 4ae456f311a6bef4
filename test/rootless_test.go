package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A nobody runs the program, the cluster and the executors as a user who is not
// root: the one that every system has.
type nobody struct {
	uid    int
	dir    string // that this user can look into
	script string // becomes the user and runs what its arguments say
}

// subIDs is where the range of user IDs begins that the user has.
const subIDs = 300000

func newNobody(t *testing.T) *nobody {
	t.Helper()
	account, err := user.Lookup("nobody")
	require.NoError(t, err)
	n := &nobody{}
	n.uid, err = strconv.Atoi(account.Uid)
	require.NoError(t, err)
	n.dir, err = os.MkdirTemp("", "portainer-nobody-") //nolint:usetesting // nobody may look into those of t
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(n.dir)) })
	require.NoError(t, os.Chmod(n.dir, 0o755))

	ranges := filepath.Join(n.dir, "ranges")
	require.NoError(t, os.WriteFile(ranges, fmt.Appendf(nil, "%s:%d:65536\n", account.Username, subIDs), 0o644))
	n.script = filepath.Join(n.dir, "become")
	// In mounts of its own, so that this machine's files stay as they are.
	text := fmt.Sprintf(`#!/bin/sh -e
mount --bind %[1]s /etc/subuid
mount --bind %[1]s /etc/subgid
chmod 711 "$TMPDIR/.."
chown %[2]d "$TMPDIR"
export HOME=%[3]s XDG_CACHE_HOME=%[3]s
exec setpriv --reuid %[2]d --regid %[2]d --clear-groups --inh-caps=-all "$@"
`, ranges, n.uid, filepath.Join(n.dir, "home"))
	require.NoError(t, os.WriteFile(n.script, []byte(text), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(n.dir, "home"), 0o755))
	require.NoError(t, os.Chown(filepath.Join(n.dir, "home"), n.uid, n.uid))
	return n
}

// gets copies a file to where the user can read it.
func (n *nobody) gets(t *testing.T, file string) string {
	t.Helper()
	copied := filepath.Join(n.dir, filepath.Base(file))
	out, err := exec.CommandContext(t.Context(), "cp", file, copied).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Chmod(copied, 0o755))
	return copied
}

// start runs the program as the user.
func (n *nobody) start(t *testing.T, args ...string) *process {
	t.Helper()
	return startProgram(t, "unshare", append([]string{"--mount", n.script, filepath.Join(n.dir, filepath.Base(program))}, args...)...)
}

// nothingLeft is that of machine, and looks for what belongs to the user.
func (n *nobody) nothingLeft(t *testing.T, before machine, p *process) {
	t.Helper()
	before.nothingLeft(t, p)
	homes, err := filepath.Glob("/tmp/portainer-*")
	require.NoError(t, err)
	for _, home := range homes {
		if info, err := os.Stat(home); err == nil && home != n.dir {
			require.NotEqual(t, uint32(n.uid), info.Sys().(*syscall.Stat_t).Uid, home)
		}
	}
}

// TestRootless builds with a bundle where nobody is root: the program, the agent
// and the executor are a user's.
func TestRootless(t *testing.T) {
	archive, err := bundle()
	require.NoError(t, err)
	n := newNobody(t)
	n.gets(t, program)
	archive = n.gets(t, archive)
	began := make(chan struct{}, 1)
	again := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-again:
		default:
			began <- struct{}{}
			<-r.Context().Done() // until the step is killed
		}
	}))
	defer server.Close()
	dockerfile := filepath.Join(n.dir, "Dockerfile")
	source := "FROM busybox\nCOPY --chown=5:6 Dockerfile /f\nRUN stat -c '%u %g' /f >/owner; mkdir -m 700 /d; touch /d/x; chown -R 7:8 /d; cat /proc/self/uid_map\n" +
		"USER 9\nRUN id -u; wget -q -O /dev/null " + server.URL + "\n"
	require.NoError(t, os.WriteFile(dockerfile, []byte(source), 0o644))
	build := func(tag string) *process {
		p := n.start(t, "build", "--to", registry, "--from", registry, "--repository", "test/rootless", "--tag", tag, "--executor-uri", archive, "--retries", "1", dockerfile)
		select {
		case <-began:
		case <-p.exited:
			require.Fail(t, "the build has ended before its step began")
		}
		return p
	}

	before := look(t)
	p := build("never")
	p.interrupt()
	require.Equal(t, exitInterrupted, p.wait())
	notPushed(t, registry+"/test/rootless:never")
	n.nothingLeft(t, before, p)

	// What a killed executor leaves, the next one of that user removes.
	p = build("again")
	close(again)
	killExecutor(t, p)
	require.Equal(t, 0, p.wait(), tailOf(p.stderr.String()))
	require.Contains(t, p.stderr.String(), "attempt 2 launched")
	require.Regexp(t, `engine buildkitd v0\.[^ ]+ ready in [^:]+: [^ ]+/buildkitd and [^ ]+/runc are there, and [^ ]+/rootlesskit for user `+
		strconv.Itoa(n.uid)+", who is not root\n", p.stderr.String())
	require.Regexp(t, fmt.Sprintf(`1 +%d +65536\n`, subIDs), p.stderr.String(), "the users of a step are those of the range")
	require.Equal(t, "5 6\n", filesIn(t, pushed(t, p.refs()[0]))["owner"])
	n.nothingLeft(t, before, p)
}

// killExecutor kills the executor that a program's own cluster runs.
func killExecutor(t *testing.T, p *process) {
	t.Helper()
	eventually(t, 10*time.Second, func() bool {
		stats, err := filepath.Glob("/proc/[0-9]*/stat")
		require.NoError(t, err)
		for _, name := range stats {
			data, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			command, rest, _ := strings.Cut(string(data[strings.IndexByte(string(data), '(')+1:]), ") ")
			fields := strings.Fields(rest)
			// A command's name holds 15 bytes.
			if len(fields) < 2 || command != "portainer-execu" || fields[1] != strconv.Itoa(p.cmd.Process.Pid) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			require.NoError(t, err)
			return syscall.Kill(pid, syscall.SIGKILL) == nil
		}
		return false
	}, "there is no executor")
}
