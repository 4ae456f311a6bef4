package engine_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/engine"
)

// A rig is what the tests of this package share: starting it takes a second.
type rig struct {
	dir      string
	registry *dockertest.Registry
	daemon   *dockertest.Daemon
	busybox  string
}

var shared struct {
	once sync.Once
	rig  rig
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.rig.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func theRig(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.rig.start(context.Background()) })
	require.NoError(t, shared.err)
	return &shared.rig
}

func (r *rig) start(ctx context.Context) (err error) {
	tools, err := dockertest.Tools(ctx)
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", tools+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	if r.dir, err = os.MkdirTemp("", "engine-test-"); err != nil {
		return err
	}
	if r.registry, err = dockertest.StartRegistry(ctx, filepath.Join(r.dir, "registry")); err != nil {
		return err
	}
	if r.busybox, err = dockertest.PushBusybox(ctx, r.registry.Addr); err != nil {
		return err
	}
	r.daemon, err = dockertest.StartDaemon(ctx, r.dir)
	return err
}

func (r *rig) stop() error {
	var errs []error
	if r.daemon != nil {
		errs = append(errs, r.daemon.Stop())
	}
	if r.registry != nil {
		errs = append(errs, r.registry.Stop())
	}
	if r.dir != "" {
		errs = append(errs, os.RemoveAll(r.dir))
	}
	return errors.Join(errs...)
}

// context returns a context that ends before the test's deadline does.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// given returns a Config for the shared daemon.
func (r *rig) given(logs portainer.LogSink) engine.Config {
	return engine.Config{Kind: engine.KindDocker, Host: r.daemon.Host, Logs: logs, Insecure: []string{r.registry.Addr}}
}

// own returns a Config for an engine of that kind that is our own, below a
// sandbox whose path is as long as those of Mesos.
func (r *rig) own(t *testing.T, kind string, logs portainer.LogSink) engine.Config {
	t.Helper()
	sandbox := filepath.Join(t.TempDir(), strings.Repeat("slaves-0123456789/", 8))
	require.NoError(t, os.MkdirAll(sandbox, 0o755))
	return engine.Config{Kind: kind, Sandbox: sandbox, Logs: logs, Insecure: []string{r.registry.Addr}}
}

// shortTemp returns a directory that is short enough for sockets.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "et-") //nolint:usetesting // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// ownKinds are the kinds of engines that can be our own here.
func ownKinds(t *testing.T) []string {
	t.Helper()
	return []string{engine.KindDockerd, engine.KindBuildkitd}
}

// open opens an engine that is closed when the test ends.
func open(t *testing.T, cfg engine.Config) *engine.Engine {
	t.Helper()
	e, err := engine.Open(testContext(t), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// request returns a Request to build source and push it under the test's name.
func (r *rig) request(t *testing.T, source string) portainer.Request {
	t.Helper()
	return portainer.Request{
		ID:         "b1",
		Registry:   r.registry.Addr,
		Repository: strings.ToLower(strings.NewReplacer("/", "-", "#", "-", "=", "-").Replace(t.Name())),
		Tags:       []string{"v1"},
		Dockerfile: "app/Dockerfile",
		Source:     []byte(strings.ReplaceAll(source, "BUSYBOX", r.busybox)),
	}
}

// A recorder is a LogSink that keeps everything.
type recorder struct {
	mu     sync.Mutex
	events []portainer.Event
	hook   func(portainer.Event)
}

func (r *recorder) HandleEvent(_ context.Context, ev portainer.Event) {
	r.mu.Lock()
	r.events = append(r.events, ev)
	r.mu.Unlock()
	if r.hook != nil {
		r.hook(ev)
	}
}

func (r *recorder) all() []portainer.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// forget forgets all events.
func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

// lines returns the output of steps whose name contains s.
func (r *recorder) lines(s string) []string {
	ids := map[int]bool{}
	var lines []string
	for _, ev := range r.all() {
		if ev.Kind == portainer.EventStep && strings.Contains(ev.Step.Name, s) {
			ids[ev.Step.ID] = true
		}
		if ev.Kind == portainer.EventLog && ids[ev.Step.ID] {
			lines = append(lines, ev.Text)
		}
	}
	return lines
}

// done returns the end of the step whose name contains s.
func (r *recorder) done(t *testing.T, s string) portainer.Step {
	t.Helper()
	for _, ev := range r.all() {
		if ev.Kind == portainer.EventStepDone && strings.Contains(ev.Step.Name, s) {
			return ev.Step
		}
	}
	require.Fail(t, "no such step has ended", "%s in %v", s, r.all())
	return portainer.Step{}
}

// files is a build context.
type files map[string]string

// Bundle implements portainer.ContextBundler.
func (f files) Bundle(_ context.Context, _ portainer.Request, w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(f[name]))}); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, f[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}

// pull returns the image that the registry has under ref.
func pull(t *testing.T, ref string) v1.Image {
	t.Helper()
	image, err := find(testContext(t), ref)
	require.NoError(t, err)
	return image
}

// find is pull for goroutines other than the test's.
func find(ctx context.Context, ref string) (v1.Image, error) {
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(tag, remote.WithContext(ctx))
}

// fileSystem returns the regular files of an image.
func fileSystem(t *testing.T, image v1.Image) files {
	t.Helper()
	r := mutate.Extract(image)
	defer r.Close()
	fs := files{}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fs
		}
		require.NoError(t, err)
		if hdr.Typeflag == tar.TypeReg && hdr.Name != "bin/busybox" {
			data, err := io.ReadAll(tr)
			require.NoError(t, err)
			fs[hdr.Name] = string(data)
		}
	}
}
