package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// ownMessages are the lines in which the program itself says what is wrong.
func ownMessages(p *process) []string {
	var lines []string
	for line := range strings.Lines(p.stderr.String()) {
		if text, ok := strings.CutPrefix(line, "portainer: "); ok {
			lines = append(lines, strings.TrimSpace(text))
		}
	}
	return lines
}

// TestErrors has each way a build can go wrong: its exit code, one clear
// sentence, in seconds, and nothing on standard output.
func TestErrors(t *testing.T) {
	nowhere := freeAddr(t)
	file := filepath.Join(write(t, map[string]string{"file": ""}), "file")
	tests := []struct {
		name  string
		files map[string]string
		flags []string
		code  int
		want  []string // parts of the message; DIR is the directory of the context
		shown []string // parts of the whole of standard error
	}{
		{
			name:  "a step fails",
			files: map[string]string{"Dockerfile": "FROM busybox\nENV A=1\n\nRUN echo to-be-seen; exit 7\n"},
			code:  1, want: []string{"DIR/Dockerfile:4", "exit 7", "7"}, shown: []string{"to-be-seen"},
		},
		{
			name:  "a step fails quietly",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN echo to-be-seen; exit 7\n"},
			flags: []string{"--progress", "quiet"},
			code:  1, want: []string{"DIR/Dockerfile:2"}, shown: []string{"to-be-seen"},
		},
		{
			name:  "no such base image",
			files: map[string]string{"Dockerfile": "FROM nosuchimage\nRUN true\n"},
			code:  1, want: []string{"nosuchimage"},
		},
		{
			name:  "syntax error",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=nonsense true\n"},
			code:  2, want: []string{"DIR/Dockerfile:2: "},
		},
		{
			name:  "unknown instruction",
			files: map[string]string{"Dockerfile": "FROM busybox\nCOPPY a b\n"},
			code:  2, want: []string{"DIR/Dockerfile:2: ", "COPPY"},
		},
		{
			name:  "missing source",
			files: map[string]string{"Dockerfile": "FROM busybox\nCOPY not/there /x\n"},
			code:  2, want: []string{"DIR/Dockerfile:2", "not/there"},
		},
		{
			name:  "no such target",
			files: map[string]string{"Dockerfile": "FROM busybox AS one\nRUN true\n"},
			flags: []string{"--target", "two"},
			code:  2, want: []string{"two"},
		},
		{
			name:  "no registry at the address",
			files: map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"},
			flags: []string{"--to", nowhere},
			code:  1, want: []string{nowhere},
		},
		{
			name:  "no master",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN true\n"},
			flags: []string{"--mesos-master", nowhere},
			code:  3, want: []string{nowhere},
		},
		{
			name:  "no daemon",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN true\n"},
			flags: []string{"--docker-host", "unix:///nonexistent/docker.sock"},
			code:  3, want: []string{"/nonexistent/docker.sock"},
		},
		{
			name:  "staging in a file",
			files: map[string]string{"Dockerfile": "FROM busybox\nCOPY Dockerfile /\n"},
			flags: []string{"--staging-uri", filepath.Join(file, "staging")},
			code:  3, want: []string{file},
		},
		{
			name:  "staging that cannot be written",
			files: map[string]string{"Dockerfile": "FROM busybox\nCOPY Dockerfile /\n"},
			flags: []string{"--staging-uri", "/proc/self"},
			code:  3, want: []string{"/proc/self"},
		},
		{
			name:  "more than any agent has",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN true\n"},
			flags: []string{"--build-cpu", "1000", "--queue-timeout", "2s"},
			code:  3, want: []string{"offer", "cpus"},
		},
		{
			name:  "a build that takes too long",
			files: map[string]string{"Dockerfile": "FROM busybox\nRUN sleep 600\n"},
			flags: []string{"--timeout", "3s"},
			code:  1, want: []string{"3s"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := look(t)
			dir := write(t, tt.files)
			began := time.Now()
			args := append([]string{"build", "--to", registry, "--from", registry, "--repository", "test/errors", "--tag", "never"}, tt.flags...)
			p := cli(t, tt.code, append(args, filepath.Join(dir, "Dockerfile"))...)
			require.Less(t, time.Since(began), 30*time.Second)

			require.Empty(t, p.stdout.String())
			messages := ownMessages(p)
			require.Len(t, messages, 1, "one sentence")
			for _, part := range tt.want {
				require.Contains(t, messages[0], strings.ReplaceAll(part, "DIR", dir))
			}
			for _, part := range tt.shown {
				require.Contains(t, p.stderr.String(), part)
			}
			notPushed(t, registry+"/test/errors:never")
			before.nothingLeft(t, p)
		})
	}
}

// TestOneOfSeveralFails has the good one pushed and told all the same.
func TestOneOfSeveralFails(t *testing.T) {
	dir := write(t, map[string]string{
		"good/Dockerfile": "# portainer: repository=test/good\nFROM busybox\nRUN true\n",
		"bad/Dockerfile":  "# portainer: repository=test/bad\nFROM busybox\nRUN exit 3\n",
	})
	meta := filepath.Join(t.TempDir(), "meta.json")
	p := cli(t, 1, "build", "--mesos-master", "local:2", "--to", registry, "--from", registry, "--metadata-file", meta,
		filepath.Join(dir, "bad"), filepath.Join(dir, "good"))
	require.Len(t, p.refs(), 1)
	pushed(t, refOf(t, p, "test/good"))
	notPushed(t, registry+"/test/bad:latest")

	m := readMetadata(t, meta)
	require.Equal(t, "user", m.Builds[0].Class)
	require.Equal(t, "build", m.Builds[0].Phase)
	require.Equal(t, 3, m.Builds[0].Line)
	require.Empty(t, m.Builds[1].Class)
	require.Equal(t, p.refs(), m.Builds[1].Refs)
	require.Empty(t, m.Digest, "there is no one digest of two")
}

// TestMetadataFileThatCannotBeWritten: the image is there, only the file is not.
func TestMetadataFileThatCannotBeWritten(t *testing.T) {
	taken := filepath.Join(t.TempDir(), "meta.json")
	require.NoError(t, os.Mkdir(taken, 0o755))
	p := cli(t, 3, "build", "--to", registry, "--from", registry, "--tag", "meta", "--metadata-file", taken, "examples/tree/b")
	require.Len(t, p.refs(), 1)
	require.Contains(t, p.stderr.String(), taken)
	left, err := os.ReadDir(filepath.Dir(taken))
	require.NoError(t, err)
	require.Len(t, left, 1)
}
