package script

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRead(t *testing.T) {
	s := Read([]byte("# escape=`\n# a comment\n\nARG V=1\nFROM --platform=linux/amd64 alpine:$V AS Build\n" +
		"RUN echo a && `\n# comment inside\n\n   echo b\n  copy x /y\nFROM scratch\nCOPY --from=build /y /\nWORKDIR /w\nFROM build\nRUN x\n"))
	require.Equal(t, []Instruction{
		{4, "ARG", "ARG V=1"},
		{5, "FROM", "FROM --platform=linux/amd64 alpine:$V AS Build"},
		{6, "RUN", "RUN echo a && echo b"},
		{10, "COPY", "copy x /y"},
		{11, "FROM", "FROM scratch"},
		{12, "COPY", "COPY --from=build /y /"},
		{13, "WORKDIR", "WORKDIR /w"},
		{14, "FROM", "FROM build"},
		{15, "RUN", "RUN x"},
	}, s.Instructions)
	require.Equal(t, []Stage{
		{Name: "build", First: 1, Base: "alpine:$V", Based: true},
		{First: 4, Base: "scratch"},
		{First: 7, Base: "build"},
	}, s.Stages)
	require.Empty(t, s.BuildKit)
	require.Equal(t, "RUN echo a && echo b", s.TextAt(9))

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
		require.Equal(t, line, s.LineOf(name), name)
	}
	require.Equal(t, 5, s.LineOfBase("docker.io/library/alpine:1"))
}

func TestReadOneStage(t *testing.T) {
	s := Read([]byte("FROM a\nENV X=y\nRUN b\n"))
	require.Equal(t, 1, s.LineOf("[1/2] FROM docker.io/library/a"))
	require.Equal(t, 3, s.LineOf("[2/2] RUN b"))
	require.Equal(t, 3, s.LineOf("[linux/arm64 2/2] RUN b"))
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
		require.Equal(t, want, Read([]byte(source)).BuildKit, source)
	}
}

func TestHeredocsAreNoInstructions(t *testing.T) {
	s := Read([]byte("FROM a\nRUN <<A cat <<-B\nRUN one\nA\n\tRUN two\n\tB\nCOPY x y\n"))
	require.Equal(t, []Instruction{{1, "FROM", "FROM a"}, {2, "RUN", "RUN <<A cat <<-B"}, {7, "COPY", "COPY x y"}}, s.Instructions)
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{"FROM a\nRUN b \\\n c", "# escape=`\nRUN <<X\n", "RUN <<-A\n\tA", "\xef\xbb\xbfFROM x AS y\nCOPY --from=y a b\\"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		s := Read(source)
		last := 0
		for _, in := range s.Instructions {
			require.Greater(t, in.Line, last)
			last = in.Line
			require.NotEmpty(t, in.Word)
			require.NotEmpty(t, s.TextAt(in.Line))
		}
		s.LineOf("[stage-0 1/1] FROM x")
	})
}
