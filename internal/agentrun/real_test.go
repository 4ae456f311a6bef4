package agentrun_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/testmesos"
	"github.com/org/portainer/internal/wire"
)

// realExecutor builds the executor that agents run. TestMain removes it.
var realExecutor = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(binDir, "executor")
	if out, err := exec.Command("go", "build", "-o", bin, "../../executor").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// newRealRig is a rig with the real executor, a registry, and a busybox image in it.
func newRealRig(t *testing.T) (r *rig, registry, busybox string) {
	t.Helper()
	return newRealRigWith(t, 30*time.Second)
}

// newRealRigWith is newRealRig with an agent that is that patient with executors that it
// has told to shut down.
func newRealRigWith(t *testing.T, grace time.Duration) (r *rig, registry, busybox string) {
	t.Helper()
	bin, err := realExecutor()
	require.NoError(t, err)
	tools, err := dockertest.Tools(t.Context())
	require.NoError(t, err)
	reg, err := dockertest.StartRegistry(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Stop()) })
	busybox, err = dockertest.PushBusybox(t.Context(), reg.Addr)
	require.NoError(t, err)
	r = newRig(t, testmesos.Config{ShutdownGrace: grace}, true)
	r.command = "exec " + bin
	r.env = map[string]string{"PATH": tools + ":" + os.Getenv("PATH"), "HOME": t.TempDir()}
	return r, reg.Addr, busybox
}

// manifestDigest asks a registry what a tag is.
func manifestDigest(t *testing.T, registry, repository, tag string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+registry+"/v2/"+repository+"/manifests/"+tag, nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
	return resp.Header.Get("Docker-Content-Digest")
}

// realBuild is a build of a small image with a context in it.
func realBuild(t *testing.T, registry, script string, engine wire.Engine) *wire.Task {
	t.Helper()
	return &wire.Task{
		Build: "b", Attempt: 1, Registry: registry, Repository: "team/app", Tags: []string{"v1", "latest"},
		Dockerfile: []byte(script), Name: "Dockerfile", Context: stage(t, t.TempDir(), 300_000),
		Engine: engine, Insecure: []string{registry}, CPUs: 0.5, MemMB: 512,
	}
}

// leftovers lists processes and mounts that mention dir or one of the others, and
// engines with their data in dir.
func leftovers(t *testing.T, dir string, others ...string) []string {
	t.Helper()
	var found []string
	mentions := func(text string) bool {
		return slices.ContainsFunc(append(others, dir), func(s string) bool { return strings.Contains(text, s) })
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, proc := range procs {
		cmdline, err := os.ReadFile(proc + "/cmdline")
		if text := strings.ReplaceAll(string(cmdline), "\x00", " "); err == nil && mentions(text) {
			found = append(found, proc+": "+text)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if mentions(line) {
			found = append(found, line)
		}
	}
	engines, err := filepath.Glob("/tmp/portainer-*/engine.json")
	require.NoError(t, err)
	for _, name := range engines {
		if state, err := os.ReadFile(name); err == nil && mentions(string(state)) {
			found = append(found, name)
		}
	}
	return found
}

func TestRealBuildWithAnEngineOfItsOwn(t *testing.T) {
	r, registry, busybox := newRealRig(t)
	task := realBuild(t, registry, "FROM "+busybox+"\nCOPY data /data\nRUN i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done\n", wire.Engine{Kind: "dockerd"})
	r.launchBuild("b-1", task)
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Nil(t, o.Failure)
	require.Equal(t, manifestDigest(t, registry, "team/app", "v1"), o.Digest)
	require.Equal(t, manifestDigest(t, registry, "team/app", "latest"), o.Digest)
	image := registry + "/team/app"
	require.Equal(t, []string{image + ":v1@" + o.Digest, image + ":latest@" + o.Digest}, o.Refs)
	lines := said(r.log("b-1", o.LogSize))
	next := 0
	for _, line := range lines {
		if line == fmt.Sprintf("line %d", next) {
			next++
		}
	}
	require.Equal(t, 3000, next, "lines lost")
	r.gone("b-1")
	require.Empty(t, leftovers(t, r.cluster.Agents()[0].WorkDir()))
}

func TestRealBuildWithAGivenDaemon(t *testing.T) {
	r, registry, busybox := newRealRig(t)
	daemon, err := dockertest.StartDaemon(t.Context(), t.TempDir(), "--insecure-registry", registry)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, daemon.Stop()) })
	given := wire.Engine{Kind: "docker", Host: daemon.Host}
	r.launchBuild("b-1", realBuild(t, registry, "FROM "+busybox+"\nCOPY data /data\nRUN ls -l /data\n", given))
	r.launchBuild("b-2", realBuild(t, registry, "FROM "+busybox+"\nRUN echo before\nRUN echo oh no; exit 42\n", given))
	o := r.outcome("b-1", mesos.TASK_FINISHED)
	require.Equal(t, manifestDigest(t, registry, "team/app", "v1"), o.Digest)
	o = r.outcome("b-2", mesos.TASK_FAILED)
	require.Equal(t, "user", o.Failure.Class)
	require.Equal(t, "build", o.Failure.Phase)
	require.Equal(t, "RUN echo oh no; exit 42", o.Failure.Step)
	require.Equal(t, 3, o.Failure.Line)
	require.Contains(t, said(r.log("b-2", o.LogSize)), "oh no")
}

// realEngines are those that an executor can have for itself.
var realEngines = []string{"dockerd", "buildkitd"}

// inTheMiddle launches a build and waits until a step of it sleeps. It returns the
// executor and the command line of that step.
func inTheMiddle(t *testing.T, r *rig, registry, busybox, kind string) (executor testmesos.RunningExecutor, step string) {
	t.Helper()
	step = fmt.Sprintf("sleep 95%09d", time.Now().UnixNano()%1e9)
	r.launchBuild("b-1", realBuild(t, registry, "FROM "+busybox+"\nRUN echo begun; "+step+"\n", wire.Engine{Kind: kind}))
	require.Eventually(t, func() bool {
		for _, e := range r.cluster.Agents()[0].Executors() {
			executor = e
		}
		data, err := os.ReadFile(filepath.Join(executor.Sandbox, "stdout"))
		return err == nil && strings.Contains(string(data), " begun\n")
	}, 60*time.Second, 10*time.Millisecond)
	return executor, step
}

// TestRealBuildEnds ends executors in the middle of a build, in the ways that give them
// time: all of the build is gone before that is over.
func TestRealBuildEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(r *rig, pid int)
	}{
		{"KILL", func(r *rig, _ int) { r.kill("b-1") }},
		{"SHUTDOWN", func(r *rig, _ int) { r.shutdown("b-1") }},
		{"SIGTERM", func(r *rig, pid int) { require.NoError(r.t, syscall.Kill(pid, syscall.SIGTERM)) }},
	} {
		for _, kind := range realEngines {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				const grace = 20 * time.Second
				r, registry, busybox := newRealRigWith(t, grace)
				executor, step := inTheMiddle(t, r, registry, busybox, kind)
				require.NotEmpty(t, leftovers(t, executor.Sandbox, step))
				began := time.Now()
				tt.end(r, executor.PID)
				o := r.outcome("b-1", mesos.TASK_KILLED)
				require.Empty(t, leftovers(t, executor.Sandbox, step), "killed means that nothing of it runs any more")
				require.Equal(t, "cancelled", o.Failure.Class)
				r.gone("b-1")
				require.Zero(t, r.status("b-1"), "it ended by itself")
				t.Logf("killed and clean in %v", time.Since(began).Round(time.Millisecond))
				require.Less(t, time.Since(began), grace)
			})
		}
	}
}

// swept checks that another executor removes what is left of one, however little it has
// to do itself.
func swept(t *testing.T, r *rig, executor testmesos.RunningExecutor, step, registry, busybox, kind string) {
	t.Helper()
	r.launchBuild("b-2", realBuild(t, registry, "FROM "+busybox+"\n", wire.Engine{Kind: kind}))
	r.outcome("b-2", mesos.TASK_FINISHED)
	r.gone("b-2")
	// Other tests' executors sweep, too, and one leaves to another what that has begun with.
	require.Eventually(t, func() bool { return len(leftovers(t, executor.Sandbox, step)) == 0 }, 10*time.Second, 10*time.Millisecond)
}

// TestGraceIsTooShort: what an executor has not removed when its agent loses patience,
// the next one removes.
func TestGraceIsTooShort(t *testing.T) {
	for _, kind := range realEngines {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r, registry, busybox := newRealRigWith(t, time.Millisecond)
			executor, step := inTheMiddle(t, r, registry, busybox, kind)
			r.shutdown("b-1")
			r.gone("b-1")
			require.Equal(t, syscall.SIGKILL, r.status("b-1").Signal())
			t.Logf("left: %d", len(leftovers(t, executor.Sandbox, step)))
			swept(t, r, executor, step, registry, busybox, kind)
		})
	}
}

func TestExecutorOfAKilledProcessIsSweptByTheNext(t *testing.T) {
	r, registry, busybox := newRealRig(t)
	executor, step := inTheMiddle(t, r, registry, busybox, "dockerd")
	require.NoError(t, syscall.Kill(executor.PID, syscall.SIGKILL))
	r.waitFor("b-1", mesos.TASK_FAILED)
	swept(t, r, executor, step, registry, busybox, "dockerd")
}

func TestVersionFlag(t *testing.T) {
	bin, err := realExecutor()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), bin, "-version").Output()
	require.NoError(t, err)
	require.Regexp(t, `^portainer \S+( revision [0-9a-f]{12}\+?)? \(wire 1, go1\.\S+ `+runtime.GOOS+"/"+runtime.GOARCH+`\)\n$`, string(out))
	out, err = exec.CommandContext(t.Context(), bin, "-nonsense").CombinedOutput()
	require.ErrorContains(t, err, "exit status 2")
	require.Contains(t, string(out), "-nonsense")
}

func TestExecutorLinksOnlyWhatItUses(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../../executor").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	for _, driver := range []string{"azureblob", "fileblob", "gcsblob", "s3blob"} {
		require.Contains(t, deps, "gocloud.dev/blob/"+driver)
	}
	for _, dep := range deps {
		for _, never := range []string{
			"testing", "github.com/stretchr/testify", "github.com/spf13/", "github.com/org/portainer/internal/testmesos", "github.com/org/portainer/internal/local",
			"github.com/distribution/distribution/", "k8s.io/",
		} {
			require.False(t, dep == never || strings.HasPrefix(dep, strings.TrimSuffix(never, "/")+"/"), "the executor links %s", dep)
		}
	}
}
