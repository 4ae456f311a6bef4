package dockerfile_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockerfile"
)

func mustParse(t *testing.T, text string) *dockerfile.File {
	t.Helper()
	f, err := dockerfile.Parse("Dockerfile", []byte(text))
	require.NoError(t, err)
	return f
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name, text, want string
		line             int
	}{
		{"empty", "", "Dockerfile: the file is empty: it needs at least a FROM instruction", 0},
		{"comments only", "# hello\n\n", "Dockerfile: the file has no instruction: it needs at least a FROM", 0},
		{"no FROM", "ARG A=1\n", "Dockerfile: the file has no FROM instruction", 0},
		{"metadata only", "REPOSITORY a/b\n", "Dockerfile: the file has no FROM instruction", 0},
		{"unknown instruction", "FROM scratch\n\nCOPPY a b\n", "Dockerfile:3: unknown instruction: COPPY (did you mean COPY?)", 3},
		{"unknown metadata", "FROM scratch\nREPOSITRY a/b\n", "Dockerfile:2: unknown instruction: REPOSITRY (did you mean REPOSITORY?)", 2},
		{"misspelt FROM", "FORM scratch\n", "Dockerfile:1: unknown instruction: FORM (did you mean FROM?)", 1},
		{"before FROM", "RUN true\nFROM scratch\n", "Dockerfile:1: RUN stands before the first FROM: only ARG may", 1},
		{"copy needs two", "FROM scratch\nCOPY a\n", "Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined", 2},
		{"unknown flag", "FROM scratch\nCOPY --form=x a /\n", "Dockerfile:2: unknown flag: --form (did you mean from?)", 2},
		{"unterminated heredoc", "FROM scratch\nCOPY <<EOF /a\nhello\n", "Dockerfile:2: unterminated heredoc", 2},
		{"repository without argument", "REPOSITORY\nFROM scratch\n", "Dockerfile:1: REPOSITORY takes exactly one argument, not 0", 1},
		{"repository with tag", "REPOSITORY a:b\nFROM scratch\n", `Dockerfile:1: REPOSITORY: "a:b" is not a repository path such as team/app: lower case, without host, tag or digest`, 1},
		{"registry with scheme", "REGISTRY http://x\nFROM scratch\n", `Dockerfile:1: REGISTRY: "http://x" has a scheme: give the host, or host:port, alone`, 1},
		{"bad cpus", "FROM scratch\nBUILD_CPU many\n", `Dockerfile:2: BUILD_CPU: "many" is not a number of CPUs above 0`, 2},
		{"part of a gpu", "# portainer: gpus=0.5\nFROM scratch\n", `Dockerfile:1: # portainer: gpus: "0.5" is not a whole number of GPUs above 0`, 1},
		{"bad mem", "FROM scratch\nMEM -1\n", `Dockerfile:2: MEM: "-1" is not an amount of memory above 0, such as 512 (MB), 512m or 1g`, 2},
		{"said twice", "CPUS 1\nBUILD_CPU 2\nFROM scratch\n", "Dockerfile:2: BUILD_CPU: cpus has another value in line 1", 2},
		{"no platform", "# portainer: platform=linux\nFROM scratch\n", `Dockerfile:1: # portainer: platform: "linux" is not a platform such as linux/arm64 or linux/arm/v7`, 1},
		{"another target", "# portainer: target=a\n# portainer: target=b\nFROM scratch AS a\n", "Dockerfile:2: # portainer: target: target has another value in line 1", 2},
		{"comment without value", "FROM scratch\n# portainer: cpus\n", `Dockerfile:2: # portainer: "cpus" is not of the form key=value`, 2},
		{"comment with unknown key", "FROM scratch\n# portainer: cpu=1\n", "Dockerfile:2: # portainer: cpu: unknown key; the keys are registry, repository, cpus, mem, gpus, target, platform, context (did you mean cpus?)", 2},
		{"all of them", "FROM scratch\nNONSENSE\nMEM x\nCOPY a\n",
			"Dockerfile:2: unknown instruction: NONSENSE\n" +
				"Dockerfile:3: MEM: \"x\" is not an amount of memory above 0, such as 512 (MB), 512m or 1g\n" +
				"Dockerfile:4: COPY requires at least two arguments, but only one was provided. Destination could not be determined", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dockerfile.Parse("Dockerfile", []byte(tt.text))
			require.EqualError(t, err, tt.want)
			var e *dockerfile.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, tt.line, e.Line)
		})
	}
}

func TestMetadata(t *testing.T) {
	tests := []struct {
		name, text string
		want       dockerfile.Metadata
	}{
		{"none", "FROM scratch\n", dockerfile.Metadata{}},
		{"instructions", "registry reg:5000\nREPOSITORY team/app\nFROM scratch\nCPUS 0.5\nMEM 512\n",
			dockerfile.Metadata{Registry: "reg:5000", Repository: "team/app", CPUs: 0.5, MemMB: 512,
				Lines: map[string]int{"registry": 1, "repository": 2, "cpus": 4, "mem": 5}}},
		{"synonyms", "FROM scratch\nBUILD_CPU 2\nBUILD_MEM 1g\n",
			dockerfile.Metadata{CPUs: 2, MemMB: 1024, Lines: map[string]int{"cpus": 2, "mem": 3}}},
		{"gpus", "# portainer: gpus=2\nFROM scratch\n", dockerfile.Metadata{GPUs: 2, Lines: map[string]int{"gpus": 1}}},
		{
			"target and platforms", "# portainer: target=app platform=linux/amd64,linux/arm/v7\nFROM scratch AS app\n",
			dockerfile.Metadata{Target: "app", Platforms: []string{"linux/amd64", "linux/arm/v7"}, Lines: map[string]int{"target": 1, "platform": 1}},
		},
		{"comment", "FROM scratch\n#  portainer:  repository=team/app cpus=2 mem=1.5g registry=[::1]:80\n",
			dockerfile.Metadata{Registry: "[::1]:80", Repository: "team/app", CPUs: 2, MemMB: 1536,
				Lines: map[string]int{"registry": 2, "repository": 2, "cpus": 2, "mem": 2}}},
		{"comment between continued lines", "FROM scratch\nRUN a && \\\n  # portainer: cpus=3\n  b\n",
			dockerfile.Metadata{CPUs: 3, Lines: map[string]int{"cpus": 3}}},
		{"comment in a heredoc is none", "FROM scratch\nCOPY <<EOF /a\n# portainer: nonsense\nMEM x\nEOF\n", dockerfile.Metadata{}},
		{"same value twice", "CPUS 1\nFROM scratch\n# portainer: cpus=1.0\n", dockerfile.Metadata{CPUs: 1, Lines: map[string]int{"cpus": 1}}},
		{"BOM and CRLF", "\ufeff# portainer: cpus=1\r\nFROM scratch\r\nMEM 8\r\n",
			dockerfile.Metadata{CPUs: 1, MemMB: 8, Lines: map[string]int{"cpus": 1, "mem": 3}}},
		{"continued", "FROM scratch\nREPOSITORY \\\n  team/app\n", dockerfile.Metadata{Repository: "team/app", Lines: map[string]int{"repository": 2}}},
		{"foreign language", "# syntax=r2d4/mocker\n# portainer: cpus=1\napiVersion: v1\n# portainer: cpus=2\n",
			dockerfile.Metadata{CPUs: 1, Lines: map[string]int{"cpus": 2}}},
		{"context", "# portainer: context=always\nFROM scratch\n", dockerfile.Metadata{ContextAlways: true, Lines: map[string]int{"context": 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, mustParse(t, tt.text).Metadata())
		})
	}
}

func TestRender(t *testing.T) {
	const from = "mirror:5000"
	tests := []struct {
		name, text, want string
		opt              dockerfile.Options
	}{
		{name: "plain", text: "FROM busybox\n", want: "FROM mirror:5000/busybox\n"},
		{name: "no newline at the end", text: "FROM busybox", want: "FROM mirror:5000/busybox"},
		{name: "path", text: "FROM team/app:1@sha256:0\n", want: "FROM mirror:5000/team/app:1@sha256:0\n"},
		{name: "registry named", text: "FROM host.io/a\nFROM localhost/a\nFROM h:1/a\n", want: "FROM host.io/a\nFROM localhost/a\nFROM h:1/a\n"},
		{name: "scratch", text: "FROM scratch\n", want: "FROM scratch\n"},
		{name: "stages", text: "FROM a AS Build\nFROM build\nFROM b\nCOPY --from=Build x y\nCOPY --from=0 x y\n",
			want: "FROM mirror:5000/a AS Build\nFROM build\nFROM mirror:5000/b\nCOPY --from=Build x y\nCOPY --from=0 x y\n"},
		{name: "later stage is no base", text: "FROM late\nFROM b AS late\nCOPY --from=late x y\n",
			want: "FROM mirror:5000/late\nFROM mirror:5000/b AS late\nCOPY --from=late x y\n"},
		{name: "flags and layout", text: "from   --platform=linux/arm64\t busybox   as  x \n",
			want: "from   --platform=linux/arm64\t mirror:5000/busybox   as  x \n"},
		{name: "continuation", text: "FROM --platform=x \\\n # c\n\n  bus\\\nybox\n", want: "FROM --platform=x \\\n # c\n\n  mirror:5000/bus\\\nybox\n"},
		{name: "backtick", text: "# escape=`\nFROM `\n a\n", want: "# escape=`\nFROM `\n mirror:5000/a\n"},
		{name: "CRLF and BOM", text: "\ufeffFROM a\r\nMEM 1\r\nRUN x\r\n", want: "\ufeffFROM mirror:5000/a\r\n\r\nRUN x\r\n"},
		{name: "BOM before metadata", text: "\ufeffMEM 1\nFROM a\n", want: "\ufeff\nFROM mirror:5000/a\n"},
		{name: "arguments", text: "ARG V=1\nARG B=busybox:$V\nARG R=reg.io/\nARG S=scratch\nARG N\nFROM $B AS one\nFROM ${R}x\nFROM $S\nFROM ${N:-one}\nFROM ${N}\n",
			want: "ARG V=1\nARG B=busybox:$V\nARG R=reg.io/\nARG S=scratch\nARG N\nFROM mirror:5000/$B AS one\nFROM ${R}x\nFROM $S\nFROM ${N:-one}\nFROM ${N}\n"},
		{name: "given arguments", text: "ARG B=busybox\nFROM $B\n", want: "ARG B=busybox\nFROM $B\n", opt: dockerfile.Options{Args: map[string]string{"B": "reg:1/b"}}},
		{name: "platform arguments", text: "FROM --platform=$BUILDPLATFORM tool-$TARGETARCH\n", want: "FROM --platform=$BUILDPLATFORM mirror:5000/tool-$TARGETARCH\n"},
		{name: "named contexts", text: "FROM base\nCOPY --from=lib a b\n", want: "FROM base\nCOPY --from=lib a b\n", opt: dockerfile.Options{Contexts: []string{"base", "lib"}}},
		{name: "named contexts in other words", text: "FROM docker.io/library/base:latest\nFROM lib:2 AS x\nCOPY --from=team/lib a b\nCOPY --from=lib:1 a b\nCOPY --from=lib:3 a b\n",
			want: "FROM docker.io/library/base:latest\nFROM mirror:5000/lib:2 AS x\nCOPY --from=team/lib a b\nCOPY --from=lib:1 a b\nCOPY --from=mirror:5000/lib:3 a b\n",
			opt:  dockerfile.Options{Contexts: []string{"base", "team/lib", "lib:1"}}},
		{name: "stage replaced", text: "FROM a AS base\nRUN x\nFROM base\n", want: "FROM a AS base\nRUN x\nFROM base\n", opt: dockerfile.Options{Contexts: []string{"base"}}},
		{name: "copy from", text: "FROM a\nCOPY --chown=1 --from=busybox:1 /a \"--from=b\"\nCOPY --from='q' a b\nCOPY --from=r.io/q a b\n",
			want: "FROM mirror:5000/a\nCOPY --chown=1 --from=mirror:5000/busybox:1 /a \"--from=b\"\nCOPY --from='mirror:5000/q' a b\nCOPY --from=r.io/q a b\n"},
		{name: "run mount", text: "FROM a AS s\nRUN --mount=from=busybox,target=/b --mount=type=cache,target=/c,from=s --mount=type=bind,\"from=x\" --network=none echo --mount=from=no\n",
			want: "FROM mirror:5000/a AS s\nRUN --mount=from=mirror:5000/busybox,target=/b --mount=type=cache,target=/c,from=s --mount=type=bind,\"from=mirror:5000/x\" --network=none echo --mount=from=no\n"},
		{name: "onbuild", text: "FROM a\nONBUILD COPY --from=busybox a b\n", want: "FROM mirror:5000/a\nONBUILD COPY --from=busybox a b\n"},
		{name: "heredoc", text: "FROM a\nRUN <<EOF\nFROM b\nMEM 3\nEOF\nMEM 3\n", want: "FROM mirror:5000/a\nRUN <<EOF\nFROM b\nMEM 3\nEOF\n\n"},
		{name: "metadata over lines", text: "FROM a\nREPOSITORY \\\n # hm\n x\nRUN y\n", want: "FROM mirror:5000/a\n\n\n\nRUN y\n"},
		{name: "foreign", text: "# syntax=other/lang\nFROM x\nMEM 1\n", want: "# syntax=other/lang\nFROM x\nMEM 1\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := mustParse(t, tt.text).With(tt.opt)
			require.NoError(t, err)
			got, err := f.Render(from + "/")
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestRenderWithoutFrom(t *testing.T) {
	f := mustParse(t, "MEM 1\nFROM a\n")
	got, err := f.Render("")
	require.NoError(t, err)
	require.Equal(t, "\nFROM a\n", string(got))
}

func TestSources(t *testing.T) {
	tests := []struct {
		name, text string
		want       []dockerfile.Source
		uses       bool
	}{
		{"none", "FROM a\nRUN x\nADD https://x/y /\nADD git@host:x.git /\nCOPY --from=b x y\nCOPY <<E /x\nE\nRUN --mount=type=cache,target=/c --mount=from=a,target=/x y\n", nil, false},
		{"copy", "FROM scratch\nCOPY a b*.c /x/\nADD [\"a b\", \"/\"]\n", []dockerfile.Source{
			{Instruction: "COPY", Path: "a", Line: 2, Sure: true},
			{Instruction: "COPY", Path: "b*.c", Line: 2, Sure: true},
			{Instruction: "ADD", Path: "a b", Line: 3, Sure: true}}, true},
		{"bind mount", "FROM a\nRUN --mount=target=/x --mount=type=bind,source=src,target=/y z\n", []dockerfile.Source{
			{Instruction: "RUN", Path: "", Line: 2, Sure: true},
			{Instruction: "RUN", Path: "src", Line: 2, Sure: true}}, true},
		{"onbuild", "FROM a\nONBUILD COPY . /x\n", []dockerfile.Source{{Instruction: "COPY", Path: ".", Line: 2, Sure: true, OnBuild: true}}, true},
		{"variables", "ARG G=g\nFROM scratch AS one\nARG G\nARG H=h\nARG U\nENV E=e$H E2=$E\nCOPY $G $H $E/$U x$E2 /\nFROM one\nCOPY $G $NO /\nFROM base\nARG G\nENV V=v\nCOPY $G $V $NO /\n",
			[]dockerfile.Source{
				{Instruction: "COPY", Path: "g", Line: 7, Sure: true},
				{Instruction: "COPY", Path: "h", Line: 7, Sure: true},
				{Instruction: "COPY", Path: "eh/", Line: 7, Sure: true},
				{Instruction: "COPY", Path: "x", Line: 7, Sure: true},
				{Instruction: "COPY", Path: "g", Line: 9, Stage: 1, Sure: true},
				{Instruction: "COPY", Path: "", Line: 9, Stage: 1, Sure: true},
				{Instruction: "COPY", Path: "g", Line: 13, Stage: 2},
				{Instruction: "COPY", Path: "v", Line: 13, Stage: 2, Sure: true},
				{Instruction: "COPY", Path: "", Line: 13, Stage: 2},
			}, true},
		{"onbuild base", "FROM node:6-onbuild\n", nil, true},
		{"asked for", "FROM node\n# portainer: context=always\n", nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := mustParse(t, tt.text)
			require.Equal(t, tt.want, f.Sources())
			require.Equal(t, tt.uses, f.UsesContext())
		})
	}
}

// TestReplacedStages checks that a further context takes the place of a stage of its
// name: what the stage copies is not needed, what it bequeaths is.
func TestReplacedStages(t *testing.T) {
	const text = "FROM scratch AS base\nCOPY a /\nFROM img AS Build\nENV D=d\nCOPY b /\nONBUILD COPY c /\nRUN --mount=from=tool,target=/t --mount=source=s,target=/s x\n" +
		"FROM build\nARG D=e\nCOPY $D /\nCOPY --from=base /a /\n"
	f, err := mustParse(t, text).With(dockerfile.Options{Contexts: []string{"build", "tool"}})
	require.NoError(t, err)
	require.Equal(t, []dockerfile.Source{
		{Instruction: "COPY", Path: "a", Line: 2, Sure: true},
		{Instruction: "COPY", Path: "c", Line: 6, Stage: 1, Sure: true, OnBuild: true},
		{Instruction: "COPY", Path: "e", Line: 10, Stage: 2},
	}, f.Sources())
	require.Empty(t, f.Bases())
	target, err := f.TargetSources("")
	require.NoError(t, err)
	require.Len(t, target, 2)
	target, err = f.TargetSources("build")
	require.NoError(t, err)
	require.Empty(t, target)
}

func TestContextName(t *testing.T) {
	for name, want := range map[string]string{
		"lib": "lib", "alpine:latest": "alpine", "docker.io/library/alpine": "alpine", "alpine:3": "alpine:3",
		"team/app": "team/app", "host:5000/app": "host:5000/app",
	} {
		got, err := dockerfile.ContextName(name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"", "Lib", "scratch", "context", "a b"} {
		_, err := dockerfile.ContextName(bad)
		require.Error(t, err, bad)
	}
}

func TestIsRemoteContext(t *testing.T) {
	for _, s := range []string{
		"https://host/repo.git#main:dir", "http://host/a.tar.gz", "git://host/repo", "ssh://git@host/repo.git", "git@host:team/repo.git#v1", "github.com/team/repo",
	} {
		require.True(t, dockerfile.IsRemoteContext(s), s)
	}
	for _, s := range []string{"", "-", ".", "Dockerfile", "a/github.com/b", "docker-image://x", "C:\\x", "host:dir"} {
		require.False(t, dockerfile.IsRemoteContext(s), s)
	}
}

func TestSourcePaths(t *testing.T) {
	tests := []struct {
		path, clean       string
		outside, wildcard bool
	}{
		{"a/b", "a/b", false, false},
		{"/a//b/", "a/b", false, false},
		{"", ".", false, false},
		{"./a/../b", "b", false, false},
		{"../lib", "lib", true, false},
		{"a/../../lib/*.c", "lib/*.c", true, true},
		{"..a", "..a", false, false},
		{"/../a", "a", true, false},
	}
	for _, tt := range tests {
		s := dockerfile.Source{Path: tt.path}
		require.Equal(t, tt.clean, s.Clean(), tt.path)
		require.Equal(t, tt.outside, s.Outside(), tt.path)
		require.Equal(t, tt.wildcard, s.Wildcard(), tt.path)
	}
}

func TestTarget(t *testing.T) {
	f := mustParse(t, "FROM a AS one\nCOPY x /\nFROM b AS Two\nCOPY y /\nRUN --mount=from=one,target=/z true\nFROM c\nCOPY --from=1 / /\nFROM d\nCOPY w /\n")
	s, err := f.Target("two")
	require.NoError(t, err)
	require.Equal(t, 1, s.Index)
	s, err = f.Target("")
	require.NoError(t, err)
	require.Equal(t, 3, s.Index)
	_, err = f.Target("twoo")
	require.EqualError(t, err, `Dockerfile: no stage is named "twoo": the target must be a name after FROM … AS (did you mean two?)`)

	paths := func(target string) (p []string) {
		sources, err := f.TargetSources(target)
		require.NoError(t, err)
		for _, s := range sources {
			p = append(p, s.Path)
		}
		return p
	}
	require.Equal(t, []string{"x"}, paths("one"))
	require.Equal(t, []string{"x", "y"}, paths("two"))
	require.Equal(t, []string{"w"}, paths(""))
}

func TestBases(t *testing.T) {
	f := mustParse(t, "ARG V=3\nFROM a:$V AS one\nFROM one\nFROM scratch\nCOPY --from=b x y\nRUN --mount=type=bind,from=c,target=/t x\nFROM a:3\n")
	require.Equal(t, []dockerfile.Base{{Ref: "a:3", Line: 2}, {Ref: "b", Line: 5}, {Ref: "c", Line: 6}}, f.Bases())
}
