package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
)

// ways are all the ways of building: the engines, and each builder of a Docker
// daemon before 23. mount, put behind RUN, makes such a daemon use its BuildKit.
var ways = []struct{ name, kind, mount, by string }{
	{"given docker classic", engine.KindDocker, "", "(classic)"},
	{"given docker buildkit", engine.KindDocker, "--mount=type=cache,target=/cache ", "(buildkit)"},
	{"own dockerd classic", engine.KindDockerd, "", "(classic)"},
	{"own dockerd buildkit", engine.KindDockerd, "--mount=type=cache,target=/cache ", "(buildkit)"},
	{"own buildkitd", engine.KindBuildkitd, "", "buildkitd v0."},
}

// config returns a Config for an engine of that kind.
func (r *rig) config(t *testing.T, kind string, logs portainer.LogSink) engine.Config {
	t.Helper()
	if kind == engine.KindDocker {
		return r.given(logs)
	}
	return r.own(t, kind, logs)
}

// newerDocker reports whether the dockerd in PATH is one that builds with BuildKit
// whenever it can ("make test-docker").
func newerDocker(t *testing.T) bool {
	t.Helper()
	out, err := exec.CommandContext(testContext(t), "dockerd", "--version").Output()
	require.NoError(t, err)
	var major int
	_, err = fmt.Sscanf(string(out), "Docker version %d.", &major)
	require.NoError(t, err, string(out))
	return major >= 23
}

func TestBuild(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := r.config(t, w.kind, log)
			cfg.Bundler = files{"src/a.txt": "one", "b.txt": "two", ".dockerignore": "*.log\n"}
			req := r.request(t, "FROM BUSYBOX AS base\n# a comment\nRUN "+w.mount+"echo hello >/made &&\\\n    echo out; echo err >&2\n"+
				"FROM base\nARG V=none\nWORKDIR /w\nCOPY . /w/\nRUN echo $V > /v\nENTRYPOINT [\"/bin/sh\"]\n")
			req.Tags = []string{"v1", "v2"}
			req.Args = map[string]string{"V": "1.2"}
			req.Labels = map[string]string{"who": "me"}

			e := open(t, cfg)
			res, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			require.NoError(t, e.Close(testContext(t)))

			by := w.by
			if newerDocker(t) {
				by = strings.Replace(by, "(classic)", "(buildkit)", 1)
			}
			require.Contains(t, res.Engine, by)
			require.Equal(t, portainer.BuildID("b1"), res.ID)
			image := req.Registry + "/" + req.Repository
			require.Equal(t, image, res.Image)
			require.Equal(t, []string{image + ":v1@" + res.Digest, image + ":v2@" + res.Digest}, res.Refs)
			for _, tag := range req.Tags {
				digest, err := pull(t, image+":"+tag).Digest()
				require.NoError(t, err)
				require.Equal(t, res.Digest, digest.String())
			}
			config, err := pull(t, res.Refs[0]).ConfigFile()
			require.NoError(t, err)
			require.Equal(t, "me", config.Config.Labels["who"])
			require.Equal(t, []string{"/bin/sh"}, config.Config.Entrypoint)
			require.Equal(t, "/w", config.Config.WorkingDir)

			fs := fileSystem(t, pull(t, res.Refs[0]))
			require.Equal(t, "hello\n", fs["made"])
			require.Equal(t, "1.2\n", fs["v"])
			require.Equal(t, "one", fs["w/src/a.txt"])
			require.Equal(t, "two", fs["w/b.txt"])
			for name := range fs {
				require.NotContains(t, name, "Dockerfile")
			}

			run := log.done(t, "echo hello")
			require.Equal(t, 3, run.Line)
			require.Empty(t, run.Error)
			require.ElementsMatch(t, []string{"out", "err"}, log.lines("echo hello"))
			for _, ev := range log.all() {
				if ev.Kind == portainer.EventLog && ev.Step.ID == run.ID {
					require.Equal(t, ev.Text == "err", ev.Stderr, ev.Text)
				}
			}
			require.Equal(t, 8, log.done(t, "COPY . /w/").Line)
			require.Equal(t, 9, log.done(t, "> /v").Line)
			require.NotEmpty(t, log.lines("push"))
		})
	}
}

func TestBuildWithoutContext(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			e := open(t, r.config(t, w.kind, nil))
			res, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"echo x >/x\n"))
			require.NoError(t, err)
			require.Equal(t, "x\n", fileSystem(t, pull(t, res.Refs[0]))["x"])
		})
	}
}

func TestStepFails(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			e := open(t, r.config(t, w.kind, log))
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"true\nENV A=b\n\nRUN echo unauthorized no space; \\\n  exit 7\n"))
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassUser, be.Class)
			require.Equal(t, portainer.PhaseBuild, be.Phase)
			require.Equal(t, 5, be.Line)
			require.Equal(t, "app/Dockerfile", be.File)
			require.Equal(t, "RUN echo unauthorized no space; exit 7", be.Step)
			require.Equal(t, "app/Dockerfile:5: RUN echo unauthorized no space; exit 7: exit code 7", err.Error())
			require.ErrorIs(t, err, portainer.ErrFailed)
			require.Equal(t, []string{"unauthorized no space"}, log.lines("exit 7"))
			require.NotEmpty(t, log.done(t, "exit 7").Error)
		})
	}
}

func TestFailureClasses(t *testing.T) {
	r := theRig(t)
	tests := []struct {
		name   string
		source string
		edit   func(*portainer.Request)
		class  portainer.Class
		phase  portainer.Phase
		line   int
		says   string
	}{
		{"unknown instruction", "FROM BUSYBOX\nRUN MOUNTtrue\n\nFROB x\n", nil, portainer.ClassInvalid, portainer.PhaseBuild, 4, "FROB"},
		{"missing source", "FROM BUSYBOX\nRUN MOUNTtrue\nCOPY nowhere /x\n", nil, portainer.ClassUser, portainer.PhaseBuild, 3, "nowhere"},
		{"missing base", "# base\nFROM REGISTRY/no/such:1\nRUN MOUNTtrue\n", nil, portainer.ClassUser, portainer.PhaseBuild, 2, "no/such"},
		{"base of no registry", "FROM 127.0.0.1:1/no/such:1\nRUN MOUNTtrue\n", nil, portainer.ClassRegistry, portainer.PhaseBuild, 1, "127.0.0.1:1"},
		{"no registry", "FROM BUSYBOX\nRUN MOUNTtrue\n", func(r *portainer.Request) { r.Registry = "127.0.0.1:1" }, portainer.ClassRegistry, portainer.PhasePush, 0, "127.0.0.1:1"},
		{"bad network", "FROM BUSYBOX\nRUN MOUNTtrue\n", func(r *portainer.Request) { r.Network = "moon" }, portainer.ClassInvalid, portainer.PhaseBuild, 0, "moon"},
		{"no target", "FROM BUSYBOX\nRUN MOUNTtrue\n", func(r *portainer.Request) { r.Target = "nope" }, portainer.ClassInvalid, portainer.PhaseBuild, 0, "nope"},
	}
	for _, w := range ways {
		for _, tt := range tests {
			t.Run(w.name+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				cfg := r.config(t, w.kind, nil)
				cfg.Bundler = files{"a": "a"}
				e := open(t, cfg)
				req := r.request(t, strings.NewReplacer("MOUNT", w.mount, "REGISTRY", r.registry.Addr).Replace(tt.source))
				req.Repository = "classes"
				if tt.edit != nil {
					tt.edit(&req)
				}
				_, err := e.Build(testContext(t), req)
				var be *portainer.BuildError
				require.ErrorAs(t, err, &be)
				require.Equal(t, tt.class, be.Class, err)
				require.Equal(t, tt.phase, be.Phase, err)
				require.Equal(t, tt.line, be.Line, err)
				require.ErrorContains(t, err, tt.says)
			})
		}
	}
}

// TestSteps checks what is told of each step: its line, how long it took, and whether it
// had been done before.
func TestSteps(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		if w.kind == engine.KindDockerd {
			continue // as with a given one
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			e := open(t, r.config(t, w.kind, log))
			req := r.request(t, "FROM BUSYBOX\n\nRUN "+w.mount+"usleep 300000 && echo "+w.name+"\nWORKDIR /"+strings.ReplaceAll(w.name, " ", "-")+"\nRUN echo last\n")
			_, err := e.Build(testContext(t), req)
			require.NoError(t, err)
			first := log.done(t, "usleep")
			require.Equal(t, 3, first.Line)
			require.False(t, first.Cached)
			require.GreaterOrEqual(t, first.Duration, 300*time.Millisecond)
			require.Equal(t, 5, log.done(t, "echo last").Line)

			log.forget()
			_, err = e.Build(testContext(t), req)
			require.NoError(t, err)
			again := log.done(t, "usleep")
			require.True(t, again.Cached)
			require.Less(t, again.Duration, first.Duration)
			require.Equal(t, first.Name, again.Name)
			require.Empty(t, log.lines("usleep"))
		})
	}
}

// TestLosslessLog has a step write 20 MB as fast as it can.
func TestLosslessLog(t *testing.T) {
	r := theRig(t)
	const n = 200_000
	line := func(i int) string {
		return fmt.Sprintf("line number %d of many, %s", i, strings.Repeat("of which each is long; ", 3))
	}
	want := sha256.New()
	for i := range n {
		fmt.Fprintln(want, line(i+1))
	}
	for _, w := range ways {
		if w.by == "(buildkit)" {
			continue // that of a daemon before 23 drops output, see TestClippedLogIsReported
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			e := open(t, r.config(t, w.kind, log))
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN seq 1 "+fmt.Sprint(n)+" | sed 's/.*/"+strings.Replace(line(0), "0", "&", 1)+"/'\n"))
			require.NoError(t, err)
			lines := log.lines("seq")
			require.Len(t, lines, n)
			got := sha256.New()
			for _, line := range lines {
				fmt.Fprintln(got, line)
			}
			require.Equal(t, hex.EncodeToString(want.Sum(nil)), hex.EncodeToString(got.Sum(nil)))
			for _, ev := range log.all() {
				require.NotEqual(t, portainer.EventGap, ev.Kind, ev.Text)
			}
		})
	}
}

func TestClippedLogIsReported(t *testing.T) {
	r := theRig(t)
	log := &recorder{}
	e := open(t, r.given(log))
	_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN --mount=type=tmpfs,target=/t seq 1 200000\n"))
	require.NoError(t, err)
	var gaps []portainer.Event
	for _, ev := range log.all() {
		if ev.Kind == portainer.EventGap {
			gaps = append(gaps, ev)
		}
	}
	require.NotEmpty(t, gaps)
	require.Contains(t, gaps[0].Text, "200KiB/s")
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			log := &recorder{hook: func(ev portainer.Event) {
				if ev.Kind == portainer.EventLog && ev.Text == "sleeping" {
					cancel()
				}
			}}
			e := open(t, r.config(t, w.kind, log))
			mark := fmt.Sprintf("98%d7", time.Now().UnixNano()%1e6)
			_, err := e.Build(ctx, r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"echo sleeping; exec sleep "+mark+"\n"))
			require.ErrorIs(t, err, context.Canceled)
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, portainer.ClassCancelled, be.Class)
			require.Eventually(t, func() bool { return !running(t, "sleep "+mark) }, 10*time.Second, 10*time.Millisecond)
		})
	}
}

// running reports whether a process has that command line.
func running(t *testing.T, cmdline string) bool {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err == nil && string(bytes.ReplaceAll(bytes.TrimRight(data, "\x00"), []byte{0}, []byte{' '})) == cmdline {
			return true
		}
	}
	return false
}

func TestOpenErrors(t *testing.T) {
	tests := []struct {
		name  string
		cfg   engine.Config
		class portainer.Class
		says  string
	}{
		{"unknown kind", engine.Config{Kind: "podman"}, portainer.ClassInvalid, "podman"},
		{"docker without host", engine.Config{Kind: engine.KindDocker}, portainer.ClassInvalid, "address"},
		{"dockerd with host", engine.Config{Kind: engine.KindDockerd, Host: "unix:///x"}, portainer.ClassInvalid, "unix:///x"},
		{"nobody there", engine.Config{Host: "unix:///nowhere/docker.sock"}, portainer.ClassLaunch, "/nowhere/docker.sock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := engine.Open(testContext(t), tt.cfg)
			var be *portainer.BuildError
			require.ErrorAs(t, err, &be)
			require.Equal(t, tt.class, be.Class)
			require.Equal(t, portainer.PhaseLaunch, be.Phase)
			require.ErrorContains(t, err, tt.says)
		})
	}
}

func TestGivenDaemonKeepsItsImages(t *testing.T) {
	r := theRig(t)
	e := open(t, r.given(nil))
	req := r.request(t, "FROM BUSYBOX\nRUN echo new >/x\n")
	req.Tags = []string{"mine", "theirs"}
	// Somebody on that machine has an image of the name we push.
	theirs := req.Registry + "/" + req.Repository + ":theirs"
	docker := func(args ...string) string {
		cmd := exec.CommandContext(testContext(t), "docker", append([]string{"-H", r.daemon.Host}, args...)...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return strings.TrimSpace(string(out))
	}
	docker("pull", r.busybox)
	docker("tag", r.busybox, theirs)
	id := docker("image", "inspect", "-f", "{{.ID}}", theirs)

	res, err := e.Build(testContext(t), req)
	require.NoError(t, err)
	require.Equal(t, "new\n", fileSystem(t, pull(t, res.Refs[1]))["x"])
	require.Equal(t, id, docker("image", "inspect", "-f", "{{.ID}}", theirs))
	require.Empty(t, docker("image", "ls", "-q", req.Registry+"/"+req.Repository+":mine"))
	require.Empty(t, docker("container", "ls", "-aq", "--filter", "ancestor="+theirs))
}

func TestBundlerFails(t *testing.T) {
	r := theRig(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config(t, w.kind, nil)
			broken := errors.New("agent has lost its disk")
			cfg.Bundler = portainer.BundlerFunc(func(_ context.Context, _ portainer.Request, w io.Writer) error {
				if _, err := w.Write(make([]byte, 100)); err != nil {
					return err
				}
				return broken
			})
			e := open(t, cfg)
			_, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nRUN "+w.mount+"true\nCOPY . /x\n"))
			require.ErrorIs(t, err, broken)
			require.ErrorIs(t, err, portainer.ErrStaging)
		})
	}
}

func TestGivenBuildkitd(t *testing.T) {
	r := theRig(t)
	cfg := r.own(t, engine.KindBuildkitd, nil)
	cfg.Temp = shortTemp(t)
	open(t, cfg)
	sockets, err := filepath.Glob(filepath.Join(cfg.Temp, "*", "buildkitd.sock"))
	require.NoError(t, err)
	require.Len(t, sockets, 1)

	e := open(t, engine.Config{Kind: engine.KindBuildkitd, Host: "unix://" + sockets[0], Insecure: []string{r.registry.Addr}, Bundler: files{"a": "a"}})
	res, err := e.Build(testContext(t), r.request(t, "FROM BUSYBOX\nCOPY a /a\nRUN echo x >/x\n"))
	require.NoError(t, err)
	require.Contains(t, res.Engine, "buildkitd v0.")
	require.Equal(t, "x\n", fileSystem(t, pull(t, res.Refs[0]))["x"])
	// It is not ours to stop.
	require.NoError(t, e.Close(testContext(t)))
	require.FileExists(t, sockets[0])

	_, err = engine.Open(testContext(t), engine.Config{Kind: engine.KindBuildkitd, Host: "unix:///nowhere/buildkitd.sock"})
	var be *portainer.BuildError
	require.ErrorAs(t, err, &be)
	require.Equal(t, portainer.ClassLaunch, be.Class)
	require.ErrorContains(t, err, "/nowhere/buildkitd.sock")
}
