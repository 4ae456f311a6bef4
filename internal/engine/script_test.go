package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestReadScript(t *testing.T) {
	s := readScript([]byte("# escape=`\n# a comment\n\nARG V=1\nFROM --platform=linux/amd64 alpine:$V AS Build\n" +
		"RUN echo a && `\n# comment inside\n\n   echo b\n  copy x /y\nFROM scratch\nCOPY --from=build /y /\nWORKDIR /w\nFROM build\nRUN x\n"))
	require.Equal(t, []instruction{
		{4, "ARG", "ARG V=1"},
		{5, "FROM", "FROM --platform=linux/amd64 alpine:$V AS Build"},
		{6, "RUN", "RUN echo a && echo b"},
		{10, "COPY", "copy x /y"},
		{11, "FROM", "FROM scratch"},
		{12, "COPY", "COPY --from=build /y /"},
		{13, "WORKDIR", "WORKDIR /w"},
		{14, "FROM", "FROM build"},
		{15, "RUN", "RUN x"},
	}, s.instructions)
	require.Equal(t, []stage{
		{name: "build", first: 1, base: "alpine:$V", based: true},
		{first: 4, base: "scratch"},
		{first: 7, base: "build"},
	}, s.stages)
	require.Empty(t, s.buildKit)
	require.Equal(t, "RUN echo a && echo b", s.textAt(9))

	for name, line := range map[string]int{
		"[build 1/3] FROM docker.io/library/alpine:1@sha256:00":      5,
		"[build 2/3] RUN echo a &&    echo b":                        6,
		"[linux/amd64 build 3/3] COPY x /y":                          10,
		"[stage-1 1/2] COPY --from=build /y /":                       12,
		"[stage-1 2/2] WORKDIR /w":                                   13,
		"[stage-2 1/1] RUN x":                                        15,
		"[stage-2 1/1] COPY x":                                       0,
		"[build 9/9] RUN x":                                          0,
		"[internal] load build definition from Dockerfile":           0,
		"exporting to image":                                         0,
		"[1/2] FROM docker.io/library/alpine:1 of a build elsewhere": 0,
	} {
		require.Equal(t, line, s.lineOf(name), name)
	}
	require.Equal(t, 5, s.lineOfBase("docker.io/library/alpine:1"))
}

func TestReadScriptOneStage(t *testing.T) {
	s := readScript([]byte("FROM a\nENV X=y\nRUN b\n"))
	require.Equal(t, 1, s.lineOf("[1/2] FROM docker.io/library/a"))
	require.Equal(t, 3, s.lineOf("[2/2] RUN b"))
	require.Equal(t, 3, s.lineOf("[linux/arm64 2/2] RUN b"))
}

func TestNeedsBuildKit(t *testing.T) {
	tests := map[string]string{
		"FROM a\nRUN x --mount=type=cache":                     "",
		"FROM a\nRUN --mount=type=cache,target=/c x":           "RUN --mount",
		"FROM a\nRUN --security=insecure --mount=type=tmpfs x": "RUN --mount",
		"FROM a\nCOPY --from=b --chmod=755 x /":                "COPY --chmod",
		"FROM a\nCOPY --chown=1:1 x /":                         "",
		"FROM a\nADD --link x /":                               "ADD --link",
		"# syntax=docker/dockerfile:1\nFROM a":                 "# syntax=docker/dockerfile:1",
		"FROM a\n# syntax=docker/dockerfile:1\n":               "",
		"FROM a\nRUN <<EOF\necho --mount\nEOF\n":               "here-document",
		"FROM a\nRUN cat <<'EOF' > /x\na\nEOF\nRUN b":          "here-document",
		"FROM a\nRUN echo $((1<<3))":                           "",
		"FROM a\nRUN echo '<<EOF is no document'":              "",
		"FROM a\nARG TARGETARCH\nRUN x":                        "ARG TARGETARCH",
		"FROM a\nARG TARGETS\nRUN x":                           "",
		"FROM a\nCOPY --from=b x /\nHEALTHCHECK CMD --mount x": "",
	}
	for source, want := range tests {
		require.Equal(t, want, readScript([]byte(source)).buildKit, source)
	}
}

func TestHeredocsAreNoInstructions(t *testing.T) {
	s := readScript([]byte("FROM a\nRUN <<A cat <<-B\nRUN one\nA\n\tRUN two\n\tB\nCOPY x y\n"))
	require.Equal(t, []instruction{{1, "FROM", "FROM a"}, {2, "RUN", "RUN <<A cat <<-B"}, {7, "COPY", "COPY x y"}}, s.instructions)
}

func TestRegistries(t *testing.T) {
	s := readScript([]byte("ARG R=reg.example:5000\nARG Q\nFROM $R/a AS one\nFROM ${Q:-quay.io}/b\nFROM one\nFROM scratch\n" +
		"COPY --from=localhost/c x /\nCOPY --from=one x /\nCOPY --from=0 x /\nFROM busybox\nFROM team/app\n"))
	require.Equal(t, []string{"reg.example:5000", "quay.io", "docker.io", "localhost"}, s.registries(nil))
	require.Equal(t, []string{"other:1", "quay.io", "docker.io", "localhost"}, s.registries(map[string]string{"R": "other:1"}))
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"Sun, 22 Nov 2026 08:01:30 GMT": 90 * time.Second,
		"Sun, 22 Nov 2026 07:00:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(s, now), s)
	}
}

func FuzzReadScript(f *testing.F) {
	for _, s := range []string{"FROM a\nRUN b \\\n c", "# escape=`\nRUN <<X\n", "RUN <<-A\n\tA", "\xef\xbb\xbfFROM x AS y\nCOPY --from=y a b\\"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		s := readScript(source)
		last := 0
		for _, in := range s.instructions {
			require.Greater(t, in.line, last)
			last = in.line
			require.NotEmpty(t, in.word)
			require.NotEmpty(t, s.textAt(in.line))
		}
		s.registries(nil)
		s.lineOf("[stage-0 1/1] FROM x")
	})
}

func TestClassOf(t *testing.T) {
	for msg, want := range map[string]portainer.Class{
		"received unexpected HTTP status: 503 Service Unavailable":                            portainer.ClassRegistry,
		"unexpected status from HEAD request to http://h/v2/: 500 Internal Server Error":      portainer.ClassRegistry,
		"toomanyrequests: 429 Too Many Requests":                                              portainer.ClassRegistry,
		`Get "https://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`:    portainer.ClassRegistry,
		`Get "https://h/v2/": http: server gave HTTP response to HTTPS client`:                portainer.ClassRegistry,
		"unauthorized: authentication required":                                               portainer.ClassAuth,
		"denied: requested access to the resource is denied":                                  portainer.ClassAuth,
		"unexpected status from POST request to https://h/v2/x/blobs/uploads/: 403 Forbidden": portainer.ClassAuth,
		"write /var/lib/x: no space left on device":                                           portainer.ClassDisk,
		"h:5000/app:503: not found":                                                           portainer.ClassUser,
		"h:403/app:401: manifest unknown":                                                     portainer.ClassUser,
	} {
		require.Equal(t, want, classOf(msg, portainer.ClassUser), msg)
	}
}

func TestTidy(t *testing.T) {
	err := errors.New("failed to solve: failed to solve with frontend dockerfile.v0: rpc error: code = Unknown desc = nothing here")
	require.EqualError(t, tidy(err), "nothing here")
	require.ErrorIs(t, tidy(err), err)
	plain := errors.New("failed to solve: ")
	require.Equal(t, plain, tidy(plain))
}
