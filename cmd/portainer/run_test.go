package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

// ran is what one run of the program left.
type ran struct {
	code           int
	stdout, stderr string
}

// portainerWith runs the program with an environment of its own.
func portainerWith(t *testing.T, env map[string]string, args ...string) ran {
	t.Helper()
	var stdout, stderr strings.Builder
	code := run(t.Context(), invocation{
		args:   args,
		env:    func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		stdin:  strings.NewReader(""),
		stdout: &stdout,
		stderr: &stderr,
	})
	return ran{code, stdout.String(), stderr.String()}
}

func TestExitCodes(t *testing.T) {
	buildError := func(class portainer.Class, phase portainer.Phase) error {
		return &portainer.BuildError{Class: class, Phase: phase, Err: errors.New("it broke")}
	}
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"nothing", nil, 0},
		{"a failed step", buildError(portainer.ClassUser, portainer.PhaseBuild), 1},
		{"a registry", buildError(portainer.ClassRegistry, portainer.PhasePush), 1},
		{"credentials", buildError(portainer.ClassAuth, portainer.PhasePush), 1},
		{"memory", buildError(portainer.ClassOOM, portainer.PhaseBuild), 1},
		{"a build that takes too long", buildError(portainer.ClassTimeout, portainer.PhaseBuild), 1},
		{"a queue that takes too long", buildError(portainer.ClassTimeout, portainer.PhaseQueue), 3},
		{"a bad Dockerfile", buildError(portainer.ClassInvalid, portainer.PhaseRead), 2},
		{"a flag", usagef("--tag"), 2},
		{"a lost build", buildError(portainer.ClassLost, portainer.PhaseBuild), 3},
		{"an executor that does not start", buildError(portainer.ClassLaunch, portainer.PhaseLaunch), 3},
		{"staging", buildError(portainer.ClassStaging, portainer.PhaseStage), 3},
		{"a refused framework", fmt.Errorf("role x: %w", portainer.ErrRejected), 3},
		{"a stopped framework", portainer.ErrStopped, 3},
		{"a build that came after the framework's end", &portainer.BuildError{Class: portainer.ClassCancelled, Phase: portainer.PhaseQueue, Err: portainer.ErrStopped}, 3},
		{"an interrupt that stops the framework", fmt.Errorf("%w: %w", portainer.ErrStopped, errInterrupted), 130},
		{"this machine", os.ErrPermission, 3},
		{"an interrupt", buildError(portainer.ClassCancelled, portainer.PhaseBuild), 130},
		{"an interrupt by cause", errInterrupted, 130},
		{"told already", &toldError{buildError(portainer.ClassUser, portainer.PhaseBuild)}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, exitCode(tt.err)) })
	}

	failed, lost := buildError(portainer.ClassUser, portainer.PhaseBuild), buildError(portainer.ClassLost, portainer.PhaseBuild)
	cancelled := buildError(portainer.ClassCancelled, portainer.PhaseQueue)
	require.Equal(t, 1, exitCode(&toldError{&buildsError{[]error{failed, failed}}}))
	require.Equal(t, 3, exitCode(&toldError{&buildsError{[]error{failed, lost}}}), "another run may help")
	require.Equal(t, 130, exitCode(&toldError{&buildsError{[]error{failed, cancelled, lost}}}))
}

// TestUsage has every mistake that can be told before anything is started.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	good := write("good/Dockerfile", "# portainer: repository=team/app\nFROM scratch\nLABEL a=b\n")
	same := write("same/Dockerfile", "# portainer: repository=team/app\nFROM scratch\nLABEL a=b\n")
	bare := write("bare/Dockerfile", "FROM scratch\nLABEL a=b\n")
	unknown := write("unknown/Dockerfile", "FROM scratch\nCOPPY a b\n")
	broken := write("broken/Dockerfile", "FROM scratch\n\nENV\n")
	missing := filepath.Join(dir, "none", "Dockerfile")

	tests := []struct {
		name string
		args []string
		want []string // parts of the message
	}{
		{"no command", nil, []string{"Usage:"}},
		{"unknown command", []string{"frobnicate"}, []string{"frobnicate", "--help"}},
		{"command that needs another", []string{"staging"}, []string{"portainer staging [command]"}},
		{"unknown command below another", []string{"context", "frobnicate"}, []string{"frobnicate", "portainer context --help"}},
		{"unknown flag", []string{"build", "--frobnicate", good}, []string{"--frobnicate", "portainer build --help"}},
		{"no Dockerfile", []string{"build"}, []string{"no Dockerfile given"}},
		{"missing Dockerfile", []string{"build", "--to", "r.example", missing}, []string{missing, "no such file"}},
		{"directory without one", []string{"build", "--to", "r.example", filepath.Join(dir)}, []string{filepath.Join(dir, "Dockerfile")}},
		{"unknown instruction", []string{"build", "--to", "r.example", unknown}, []string{unknown + ":2: ", "COPPY"}},
		{"syntax error", []string{"build", "--to", "r.example", "--repository", "x", broken}, []string{broken + ":3: "}},
		{"every bad one is told", []string{"build", "--to", "r.example", unknown, broken}, []string{unknown + ":2: ", broken + ":3: "}},
		{"no registry", []string{"build", good}, []string{good, "--to", "registry="}},
		{"no repository", []string{"build", "--to", "r.example", bare}, []string{bare, "--repository", "repository="}},
		{"one repository for several", []string{"build", "--to", "r.example", "--repository", "x", good, bare}, []string{"--repository", "2 Dockerfiles"}},
		{"one image twice", []string{"build", "--to", "r.example", good, same}, []string{good, same, "r.example/team/app"}},
		{"progress", []string{"build", "--to", "r.example", "--progress", "fancy", good}, []string{"--progress", "fancy"}},
		{"stream and quiet", []string{"build", "--to", "r.example", "--progress", "quiet", "--stream", good}, []string{"--stream", "--progress"}},
		{"cache of no executor", []string{"build", "--to", "r.example", "--executor-cache", good}, []string{"--executor-cache", "--executor-uri"}},
		{"metadata nowhere", []string{"build", "--to", "r.example", "--metadata-file", missing, good}, []string{"--metadata-file " + missing, filepath.Dir(missing)}},
		{"negative retries", []string{"build", "--to", "r.example", "--retries", "-1", good}, []string{"--retries"}},
		{"negative cpus", []string{"build", "--to", "r.example", "--build-cpu", "-1", good}, []string{"--build-cpu"}},
		{"memory", []string{"build", "--to", "r.example", "--build-mem", "lots", good}, []string{"--build-mem", "lots"}},
		{"engine", []string{"build", "--to", "r.example", "--engine", "podman", good}, []string{"--engine", "podman"}},
		{"docker without host", []string{"build", "--to", "r.example", "--engine", "docker", good}, []string{"--docker-host"}},
		{"dockerd with host", []string{"build", "--to", "r.example", "--engine", "dockerd", "--docker-host", "unix:///x", good}, []string{"--docker-host", "--engine"}},
		{"build argument", []string{"build", "--to", "r.example", "--build-arg", "=x", good}, []string{"--build-arg", "NAME=VALUE"}},
		{"label", []string{"build", "--to", "r.example", "--label", "=x", good}, []string{"--label", "NAME=VALUE"}},
		{"container image and daemon", []string{"build", "--to", "r.example", "--docker-host", "unix:///x", "--container-image", "x", good}, []string{"--container-image", "--docker-host"}},
		{"container image by its old name", []string{"build", "--to", "r.example", "--docker-host", "unix:///x", "--docker-executor-image", "x", good}, []string{"--container-image", "--docker-host"}},
		{"number of agents", []string{"build", "--to", "r.example", "--mesos-master", "local:0", good}, []string{"local:0", "number of agents"}},
		{"remote without staging", []string{"build", "--to", "r.example", "--mesos-master", "zk://me:hunter2@zk/mesos", good}, []string{"--staging-uri", "zk://…@zk/mesos"}},
		{"staging in memory", []string{"build", "--to", "r.example", "--staging-uri", "mem://x", good}, []string{"mem://x"}},
		{"state of a cluster that ends", []string{"build", "--to", "r.example", "--state-dir", dir, good}, []string{"--state-dir", "local"}},
		{"attach to nothing", []string{"attach"}, []string{"--state-dir"}},
		{"attach to a missing directory", []string{"attach", "--mesos-master", "127.0.0.1:1", "--state-dir", missing}, []string{missing}},
		{"arguments of version", []string{"version", "x"}, []string{"takes no arguments"}},
		{"argument file", []string{"build", "@" + missing}, []string{missing}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := portainerWith(t, nil, tt.args...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Empty(t, got.stdout)
			for _, part := range tt.want {
				require.Contains(t, got.stderr, part)
			}
			require.NotContains(t, got.stderr, "hunter2")
		})
	}
}

// TestNoEngineCan: what no engine that may get a build can do is told before
// anything is started or staged, with the option and the engine that can.
func TestNoEngineCan(t *testing.T) {
	dir, staging := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "Dockerfile")
	require.NoError(t, os.WriteFile(file, []byte("# portainer: repository=team/app\nFROM scratch\nCOPY Dockerfile /\n"), 0o644))
	for _, tt := range []struct{ args, want []string }{
		{[]string{"--engine", "buildkitd", "--squash"}, []string{file, "engine buildkitd", "squash", "docker: classic builder"}},
		{[]string{"--engine", "dockerd", "--provenance", "max"}, []string{file, "engine dockerd", "provenance", "buildkitd"}},
		{[]string{"--docker-host", "unix:///none", "--annotation", "a=b"}, []string{file, "unix:///none", "annotation", "buildkitd"}},
		{[]string{"--squash", "--sbom", "default"}, []string{file, "no engine can do all"}},
		{[]string{"--compression", "xz"}, []string{file, "compression", "xz"}},
		{[]string{"--network", "bridge"}, []string{file, "network", "bridge"}},
	} {
		refused(t, staging, file, tt.args, tt.want)
	}
	// The same of what the Dockerfile itself asks for.
	for _, tt := range []struct {
		meta       string
		args, want []string
	}{
		{"platform=linux/amd64,linux/arm64", []string{"--docker-host", "unix:///none"}, []string{file, "unix:///none", "several platforms", "buildkitd"}},
		{"platform=linux/arm64", []string{"--squash"}, []string{file, "one platform", "no engine can do all"}},
		{"target=other", nil, []string{file, `"other"`}},
	} {
		require.NoError(t, os.WriteFile(file, []byte("# portainer: repository=team/app "+tt.meta+"\nFROM scratch\nCOPY Dockerfile /\n"), 0o644))
		refused(t, staging, file, tt.args, tt.want)
	}
}

// refused checks that a build is refused with those words, before anything is staged.
func refused(t *testing.T, staging, file string, args, want []string) {
	t.Helper()
	got := portainerWith(t, nil, slices.Concat([]string{"build", "--to", "r.example", "--staging-uri", staging}, args, []string{file})...)
	require.Equal(t, exitUsage, got.code, got.stderr)
	require.Empty(t, got.stdout)
	for _, part := range want {
		require.Contains(t, got.stderr, part)
	}
	left, err := os.ReadDir(staging)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestGlobalFlagsBeforeAndAfterTheCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Dockerfile")
	require.NoError(t, os.WriteFile(file, []byte("# portainer: repository=a\nFROM scratch\nLABEL a=b\n"), 0o644))
	for _, args := range [][]string{
		{"--mesos-master", "far.example:5050", "build", "--to", "r.example", file},
		{"build", "--to", "r.example", "--mesos-master", "far.example:5050", file},
		{"build", "--to", "r.example", file, "--mesos-master=far.example:5050"},
	} {
		got := portainerWith(t, nil, args...)
		require.Equal(t, exitUsage, got.code)
		require.Contains(t, got.stderr, "far.example:5050", args)
	}
	got := portainerWith(t, map[string]string{"PORTAINER_MESOS_MASTER": "far.example:5050", "PORTAINER_TO": "r.example"}, "build", file)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "far.example:5050")
}

func TestHelpAndVersion(t *testing.T) {
	got := portainerWith(t, nil, "build", "--help")
	require.Equal(t, exitOK, got.code)
	require.Empty(t, got.stderr)
	for _, flag := range []string{
		"mesos-master", "executor-uri", "framework-id", "framework-role", "verbose", "docker-host",
		"staging-uri", "tag", "to", "from", "repository", "build-cpu", "build-mem", "stream", "insecure", "retries", "container-image",
		"engine", "progress", "metadata-file", "build-arg", "target", "label", "no-cache", "pull", "network", "add-host", "context",
	} {
		require.Contains(t, got.stdout, "--"+flag+" ", flag)
	}
	got = portainerWith(t, nil, "--help")
	require.Equal(t, exitOK, got.code)
	require.NotContains(t, got.stdout, "executor  ", "agents' own command is nobody else's business")
	got = portainerWith(t, nil, "version")
	require.Equal(t, exitOK, got.code)
	require.Regexp(t, `^portainer .* \(wire \d+, go1\..*/.*\)\n$`, got.stdout)
}

// TestPrecedence: an explicit flag, then the Dockerfile, then the environment.
func TestPrecedence(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	require.NoError(t, os.WriteFile(full, []byte("REGISTRY file.example\nREPOSITORY team/file\nCPUS 2\nMEM 2g\nFROM scratch\n"), 0o644))
	bare := filepath.Join(dir, "bare")
	require.NoError(t, os.WriteFile(bare, []byte("FROM scratch\n"), 0o644))
	env := map[string]string{
		"PORTAINER_TO": "env.example", "PORTAINER_REPOSITORY": "team/env",
		"PORTAINER_BUILD_CPU": "3", "PORTAINER_BUILD_MEM": "3g",
	}
	request := func(env map[string]string, args ...string) portainer.Request {
		g := &globals{invocation: invocation{
			env:    func(name string) (string, bool) { v, ok := env[name]; return v, ok },
			stderr: io.Discard,
		}}
		cmd, b := newBuildCommand(g)
		require.NoError(t, cmd.ParseFlags(args))
		require.NoError(t, g.prepare(cmd))
		b.explicit = cmd.Flags().Changed
		in, err := (&inputs{}).input(t.Context(), cmd.Flags().Arg(0))
		require.NoError(t, err)
		req, err := b.request(portainer.Request{}, in)
		require.NoError(t, err)
		return req
	}
	all := []string{"--to", "flag.example", "--repository", "team/flag", "--build-cpu", "4", "--build-mem", "4096"}

	// What the Dockerfile says is left to the framework, which reads it too.
	req := request(env, full)
	require.Equal(t, [2]string{"file.example", "team/file"}, [2]string{req.Registry, req.Repository})
	require.Zero(t, req.Resources)
	req = request(env, append(all, full)...)
	require.Equal(t, [2]string{"flag.example", "team/flag"}, [2]string{req.Registry, req.Repository})
	require.Equal(t, portainer.Resources{CPUs: 4, MemMB: 4096}, req.Resources)
	req = request(env, bare)
	require.Equal(t, [2]string{"env.example", "team/env"}, [2]string{req.Registry, req.Repository})
	require.Equal(t, portainer.Resources{CPUs: 3, MemMB: 3072}, req.Resources)
}

// TestHelpShowsEveryFlag: one that is in no group would be in no help.
func TestHelpShowsEveryFlag(t *testing.T) {
	for _, name := range []string{"build", "attach"} {
		help := portainerWith(t, nil, name, "--help")
		require.Equal(t, exitOK, help.code, help.stderr)
		cmd, _, err := newRoot(invocation{}).Find([]string{name})
		require.NoError(t, err)
		seen := 0
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			require.Equal(t, !f.Hidden, regexp.MustCompile(`(?m)^ +(-\w, )?--`+f.Name+` `).MatchString(help.stdout), "%s --%s", name, f.Name)
			seen++
		})
		require.Greater(t, seen, 20)
		require.NotContains(t, help.stdout, "stringArray", "no name of a value")
	}
}

func TestFirstOf(t *testing.T) {
	require.Equal(t, "a, b", firstOf([]string{"a", "b"}, 2))
	require.Equal(t, "a, b and 3 more", firstOf([]string{"a", "b", "c", "d", "e"}, 2))
}

func TestFrameworkName(t *testing.T) {
	jobs := []*job{{image: "r/a"}, {image: "r/b"}, {image: "r/c"}, {image: "r/d"}, {image: "r/e"}}
	require.Equal(t, "portainer: r/a", frameworkName(jobs[:1]))
	require.Equal(t, "portainer: r/a, r/b, r/c", frameworkName(jobs[:3]))
	require.Equal(t, "portainer: r/a, r/b, r/c and 2 more", frameworkName(jobs))
}

// TestFlagsOfBuildx: what docker buildx build takes and portainer does not is refused
// with advice, and is in no help.
func TestFlagsOfBuildx(t *testing.T) {
	help := portainerWith(t, nil, "build", "--help")
	for _, f := range foreignFlags {
		for _, args := range [][]string{{"--" + f.name}, {"--" + f.name + "=value"}} {
			got := portainerWith(t, nil, append([]string{"build"}, append(args, t.TempDir())...)...)
			require.Equal(t, exitUsage, got.code, args)
			require.Contains(t, got.stderr, "--"+f.name)
			require.Contains(t, got.stderr, f.advice)
		}
		require.NotContains(t, help.stdout, "--"+f.name+" ")
	}
	got := portainerWith(t, nil, "build", "--quiet", "--stream", t.TempDir())
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "--progress quiet")
}
