package engine_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/wire"
)

// endWays are the ways of building that a build can come to a bad end in.
var endWays = []endWay{
	{name: "given docker classic", kind: engine.KindDocker, given: true},
	{name: "given docker buildkit", kind: engine.KindDocker, given: true, mount: "--mount=type=cache,target=/cache ", unbounded: true},
	{name: "own dockerd classic", kind: engine.KindDockerd},
	{name: "own dockerd buildkit", kind: engine.KindDockerd, mount: "--mount=type=cache,target=/cache "},
	{name: "own buildkitd", kind: engine.KindBuildkitd},
	{name: "given buildkitd", kind: engine.KindBuildkitd, given: true, unbounded: true},
}

type endWay struct {
	name, kind string
	mount      string // behind RUN
	given      bool   // the daemon is another's
	unbounded  bool   // and bounds no step
	parent     string // of the steps' cgroups, that the build asks for
}

// A site is a place where a build comes to its end.
type site struct {
	endWay
	t         *testing.T
	cfg       engine.Config
	dir       string // of a given daemon's data, or of the sandboxes
	mark      string // of the step's process
	docker    *dockertest.Daemon
	buildkitd *dockertest.Daemon
	cgroup    string            // of a given daemon's containers, bounded; "" without
	otherTemp string            // for sockets of another user's engine
	others    map[string]string // state of another user's containers, by name
	small     bool              // the disk
	dead      bool              // the daemon was killed
}

// ends are the bad ends. Each returns what the build said.
var ends = []struct {
	name  string
	small bool // the disk
	bound bool // the memory
	meet  func(*site) error
	class portainer.Class
	says  []string
}{
	{
		// sort keeps all of its input in memory; without a limit known to us only the
		// exit code of the one that was killed tells.
		name: "out of memory", bound: true, class: portainer.ClassOOM, says: []string{"out of memory"},
		meet: func(s *site) error {
			return s.build("RUN " + s.mount + "seq 1 20000000 | sort >/dev/null; test $? = 137 && exit 137; exit 3")
		},
	},
	{
		name: "disk full", small: true, class: portainer.ClassDisk, says: []string{"no space left on the disk of "},
		meet: func(s *site) error { return s.build("RUN " + s.mount + "dd if=/dev/zero of=/big bs=1M count=600") },
	},
	{name: "killed executor", meet: (*site).buildKilled},
	{
		name: "killed daemon", class: portainer.ClassLost,
		meet: func(s *site) error {
			var killed error
			var once sync.Once
			s.cfg.Logs = &recorder{hook: func(ev portainer.Event) {
				if ev.Kind == portainer.EventLog && ev.Text == "sleeping" {
					once.Do(func() { killed = s.killDaemon() })
				}
			}}
			err := s.build("RUN " + s.mount + "echo sleeping; sleep " + s.mark)
			require.NoError(s.t, killed)
			return err
		},
	},
}

// TestEnds lets a build come to each bad end in each way of building: it says what
// happened and where, and nothing of it is left, but everything of others.
func TestEnds(t *testing.T) {
	r := theRig(t)
	for _, end := range ends {
		for _, w := range endWays {
			t.Run(end.name+"/"+w.name, func(t *testing.T) {
				t.Parallel()
				w.unbounded = w.unbounded || w.kind == engine.KindDocker && newerDocker(t) // BuildKit everywhere
				s := newSite(t, r, w, end.small, end.bound)
				err := end.meet(s)
				if end.class != "" {
					var be *portainer.BuildError
					require.ErrorAs(t, err, &be)
					require.Equal(t, end.class, be.Class, err)
					for _, says := range end.says {
						require.Contains(t, err.Error(), says)
					}
					if end.class != portainer.ClassLost {
						require.Equal(t, 3, be.Line, err)
						require.Contains(t, be.Step, "RUN ")
					}
					if end.bound && !w.unbounded {
						require.Regexp(t, `the task has 48 MB and the build used 4[78] MB( \(.*cannot allocate memory.*)?$`, be.Err.Error())
					}
				}
				s.nothingLeft()
			})
		}
	}
}

// asksParent is what builds ask for whose steps are to run below a cgroup; nil if that is
// "".
func asksParent(cgroup string) *ability.Build {
	if cgroup == "" {
		return nil
	}
	return &ability.Build{Options: wire.Options{CgroupParent: cgroup}}
}

// TestEndsBelowACgroupParent lets builds come to a bad end whose steps run, in a given
// daemon, below a cgroup that they ask for: that is left as it was.
func TestEndsBelowACgroupParent(t *testing.T) {
	r := theRig(t)
	for _, end := range ends {
		if end.small {
			continue // has nothing to do with it
		}
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			parent := boundedCgroup(t, 512)
			before := cgroupTree(t, parent[1:])
			s := newSite(t, r, endWay{name: "given docker classic", kind: engine.KindDocker, given: true, parent: parent}, false, end.bound)
			err := end.meet(s)
			if end.class != "" {
				var be *portainer.BuildError
				require.ErrorAs(t, err, &be)
				require.Equal(t, end.class, be.Class, err)
			}
			if end.bound && !newerDocker(t) {
				require.ErrorContains(t, err, "the task has 48 MB and the build used 4")
			}
			s.nothingLeft()
			require.Equal(t, before, cgroupTree(t, parent[1:]))
		})
	}
}

// newSite makes a place for one way of building.
func newSite(t *testing.T, r *rig, w endWay, small, bound bool) *site {
	t.Helper()
	s := &site{endWay: w, t: t, dir: t.TempDir(), mark: fmt.Sprintf("9%d5", time.Now().UnixNano()%1e9), others: map[string]string{}, small: small}
	s.cfg = r.own(t, w.kind, nil)
	s.cfg.Temp = shortTemp(t)
	if w.given {
		s.cfg.Sandbox = t.TempDir()
	}
	if small {
		if !w.given {
			s.dir = s.cfg.Sandbox
		}
		smallDisk(t, s.dir)
	}
	if bound {
		s.cfg.MemMB, s.cfg.CPUs = 48, 1.5
	}
	if !w.given {
		return s
	}
	s.cfg.Asked = asksParent(w.parent)
	if bound && w.unbounded {
		s.cgroup = boundedCgroup(t, 48)
	}
	s.startDaemon(r)
	return s
}

// startDaemon starts the given daemon and has another user use it.
func (s *site) startDaemon(r *rig) {
	s.t.Helper()
	var err error
	if s.kind == engine.KindBuildkitd {
		s.buildkitd, err = dockertest.StartBoundBuildkitd(s.t.Context(), s.dir, s.cgroup)
		require.NoError(s.t, err)
		s.t.Cleanup(func() { require.NoError(s.t, s.buildkitd.Stop()) })
		s.cfg.Host = s.buildkitd.Host
		return
	}
	var args []string
	if s.cgroup != "" {
		args = []string{"--cgroup-parent", s.cgroup}
	}
	s.docker, err = dockertest.StartDaemon(s.t.Context(), s.dir, args...)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, s.docker.Stop()) })
	s.cfg.Host = s.docker.Host
	s.dockerDo("run", "--detach", "--network", "none", "--name", "runs", "--stop-signal", "KILL", r.busybox, "sleep", s.mark+"1")
	s.dockerDo("run", "--network", "none", "--name", "ended", r.busybox, "true")
	s.others = map[string]string{"runs": "running", "ended": "exited"}
}

// dockerDo runs Docker's client against the given daemon.
func (s *site) dockerDo(args ...string) string {
	s.t.Helper()
	out, err := exec.CommandContext(testContext(s.t), "docker", append([]string{"--host", s.docker.Host}, args...)...).CombinedOutput()
	require.NoError(s.t, err, string(out))
	return string(out)
}

// build builds with an engine that is closed afterwards.
func (s *site) build(step string) error {
	s.t.Helper()
	e, err := engine.Open(testContext(s.t), s.cfg)
	require.NoError(s.t, err)
	stop := s.otherBuild()
	req := theRig(s.t).request(s.t, "FROM BUSYBOX\nRUN true\n"+step+"\n")
	req.Options.CgroupParent = s.parent
	_, err = e.Build(testContext(s.t), req)
	require.NoError(s.t, e.Close(testContext(s.t)))
	stop()
	return err
}

// otherBuild has another user build with the given daemon meanwhile. stop waits for
// that build, which succeeds unless its daemon was killed.
func (s *site) otherBuild() (stop func()) {
	s.t.Helper()
	if !s.given {
		return func() {}
	}
	began, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		once.Do(func() { close(began) })
		select {
		case <-gate:
		case <-req.Context().Done():
		}
	}))
	s.t.Cleanup(server.Close)
	r := theRig(s.t)
	s.otherTemp = shortTemp(s.t)
	e := open(s.t, engine.Config{Kind: s.kind, Host: s.cfg.Host, Temp: s.otherTemp, Insecure: s.cfg.Insecure})
	req := r.request(s.t, "FROM BUSYBOX\nRUN "+s.mount+"wget -q -O /answer "+server.URL+"\n")
	req.Repository += "-other"
	ended := make(chan error, 1)
	go func() {
		_, err := e.Build(testContext(s.t), req)
		ended <- err
	}()
	select {
	case <-began:
	case err := <-ended:
		require.NoError(s.t, err)
	}
	return func() {
		s.t.Helper()
		close(gate)
		err := <-ended
		if s.dead {
			require.ErrorIs(s.t, err, portainer.ErrLost)
		} else {
			require.NoError(s.t, err)
		}
		require.NoError(s.t, e.Close(testContext(s.t)))
	}
}

// buildKilled builds in a process of its own, kills that in the middle of a step, and
// has the next executor sweep.
func (s *site) buildKilled() error {
	s.t.Helper()
	r := theRig(s.t)
	stop := s.otherBuild()
	self, err := os.Executable()
	require.NoError(s.t, err)
	cmd := exec.CommandContext(testContext(s.t), self, "-test.run=^TestMainOfKilledProgram$")
	cmd.Env = append(os.Environ(), "ENGINE_TEST_KILLED="+strings.Join([]string{
		s.kind, s.cfg.Temp, s.cfg.Sandbox, r.registry.Addr, r.busybox, s.mark, s.cfg.Host, s.mount, s.parent}, "|"))
	out, err := cmd.StdoutPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, cmd.Start())
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said = append(said, lines.Text()); lines.Text() == "sleeping" {
			break
		}
	}
	require.Contains(s.t, said, "sleeping")
	require.Eventually(s.t, func() bool { return running(s.t, "sleep "+s.mark) }, time.Minute, time.Millisecond)
	var cgroup string
	if s.kind == engine.KindDocker || !s.given {
		cgroup = cgroupOf(s.t, s.cfg.Temp)
		require.NotEmpty(s.t, cgroups(s.t, cgroup))
	}
	sockets := shimSockets(s.t, s.cfg.Temp)
	require.Equal(s.t, s.kind == engine.KindDockerd && s.mount == "" && !newerDocker(s.t), len(sockets) > 0)
	require.NoError(s.t, cmd.Process.Kill())
	require.Error(s.t, cmd.Wait())

	require.NoError(s.t, engine.Sweep(testContext(s.t), s.cfg.Temp, nil))
	if cgroup != "" {
		require.Empty(s.t, cgroups(s.t, cgroup))
	}
	for _, name := range sockets {
		require.NoFileExists(s.t, name)
	}
	require.NoError(s.t, engine.Sweep(testContext(s.t), s.cfg.Temp, nil))
	stop()
	return nil
}

// killDaemon kills the daemon that builds.
func (s *site) killDaemon() error {
	s.dead = true
	switch {
	case s.docker != nil:
		return s.docker.Kill()
	case s.buildkitd != nil:
		return s.buildkitd.Kill()
	}
	return killDaemon(s.kind, s.cfg.Temp)
}

// nothingLeft checks that nothing of the build is there, and all of others. A given
// Docker daemon that was killed knows its containers when it is started again.
func (s *site) nothingLeft() {
	s.t.Helper()
	if s.dead && s.unbounded {
		s.endOrphan()
	}
	require.Eventually(s.t, func() bool { return !running(s.t, "sleep "+s.mark) }, 10*time.Second, 10*time.Millisecond)
	if s.docker != nil && s.dead {
		s.restartDocker()
		for _, temp := range []string{s.cfg.Temp, s.otherTemp} {
			require.NoError(s.t, engine.Sweep(testContext(s.t), temp, nil))
		}
	}
	var left []string
	for _, name := range leftovers(s.t, s.cfg.Temp, s.cfg.Sandbox) {
		if filepath.Base(name) != "lost+found" && !strings.HasPrefix(name, "mount ") || !s.small {
			left = append(left, name)
		}
	}
	require.Empty(s.t, left)
	if s.docker == nil {
		return
	}
	found := map[string]string{}
	for line := range strings.Lines(s.dockerDo("ps", "--all", "--format", "{{.Names}} {{.State}}")) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[name] = state
	}
	require.Equal(s.t, s.others, found)
}

// endOrphan ends the step of a BuildKit that was killed. It may run on, as nothing
// tells whose it is, and its daemon would not end it either.
func (s *site) endOrphan() {
	s.t.Helper()
	pids, err := exec.CommandContext(testContext(s.t), "pgrep", "--full", "--exact", "sleep "+s.mark).Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 { // 1: there is none
		require.NoError(s.t, err)
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		n, err := strconv.Atoi(pid)
		require.NoError(s.t, err)
		if err := syscall.Kill(n, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			require.NoError(s.t, err)
		}
	}
}

// restartDocker starts a given Docker daemon that was killed on the same data and
// the same socket.
func (s *site) restartDocker() {
	s.t.Helper()
	require.NoError(s.t, s.docker.Restart(s.t.Context()))
	s.others["runs"] = "exited" // with the daemon, as it does not say --live-restore
}

// TestCancelledBuildOnASharedDaemon: a Docker daemon that others use has neither
// container nor image more than before.
func TestCancelledBuildOnASharedDaemon(t *testing.T) {
	r := theRig(t)
	for _, w := range endWays[:2] {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, r, w, false, false)
			s.dockerDo("pull", r.busybox)
			images := func() []string { // of the same second in any order
				return slices.Sorted(slices.Values(strings.Fields(s.dockerDo("images", "--all", "--quiet", "--no-trunc"))))
			}
			before := images()
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			s.cfg.Logs = &recorder{hook: func(ev portainer.Event) {
				if ev.Kind == portainer.EventLog && ev.Text == "sleeping" {
					cancel()
				}
			}}
			e := open(t, s.cfg)
			source := "FROM BUSYBOX\nENV A=1\nRUN echo a >/a\nRUN echo b >/b\n"
			_, err := e.Build(ctx, r.request(t, source+"RUN "+w.mount+"echo sleeping; sleep "+s.mark+"\n"))
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, e.Close(testContext(t)))
			s.nothingLeft()
			require.Equal(t, before, images())

			// Steps that others have built stay, as they may be building on them.
			s.cfg.Logs = nil
			other := open(t, s.cfg)
			_, err = other.Build(testContext(t), r.request(t, source+"RUN "+w.mount+"exit 1\n"))
			require.ErrorIs(t, err, portainer.ErrFailed)
			before = images()
			s.cfg.Logs = &recorder{hook: func(ev portainer.Event) {
				if ev.Kind == portainer.EventLog && ev.Text == "sleeping again" {
					cancel()
				}
			}}
			ctx, cancel = context.WithCancel(testContext(t))
			defer cancel()
			again := open(t, s.cfg)
			_, err = again.Build(ctx, r.request(t, source+"ENV B=2\nRUN "+w.mount+"echo sleeping again; sleep "+s.mark+"\n"))
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, before, images())
		})
	}
}
