package portainer

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gocloud.dev/blob/memblob"

	"github.com/org/portainer/internal/staging"
)

// newTestFramework returns a framework that does not run.
func newTestFramework(t *testing.T, change func(*Config)) *Framework {
	cfg := Config{Master: "127.0.0.1:5050", Registry: "config.example", Resources: Resources{CPUs: 3, MemMB: 300, DiskMB: 30, GPUs: 3}}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(f.files.Close)
	return f
}

// source is a Dockerfile that needs no context, with lines before FROM.
func source(lines ...string) []byte {
	return []byte(strings.Join(append(lines, "FROM scratch\n"), "\n"))
}

// TestPreparePrecedence checks that what a request says goes before what its
// Dockerfile says, and that before the config.
func TestPreparePrecedence(t *testing.T) {
	f := newTestFramework(t, nil)
	metadata := source("REGISTRY metadata.example", "REPOSITORY metadata/app", "CPUS 2", "MEM 200")
	request := Request{
		Registry: "request.example", Repository: "request/app", Resources: Resources{CPUs: 1, MemMB: 100, DiskMB: 10, GPUs: 1},
	}
	for _, tt := range []struct {
		name      string
		req       Request
		source    []byte
		image     string
		resources Resources
	}{
		{"config", Request{Repository: "request/app"}, source(), "config.example/request/app", Resources{CPUs: 3, MemMB: 300, DiskMB: 30, GPUs: 3}},
		{"metadata", Request{}, metadata, "metadata.example/metadata/app", Resources{CPUs: 2, MemMB: 200, DiskMB: 30, GPUs: 3}},
		{"request", request, metadata, "request.example/request/app", Resources{CPUs: 1, MemMB: 100, DiskMB: 10, GPUs: 1}},
		{
			"field by field", Request{Repository: "request/app", Resources: Resources{MemMB: 100}}, metadata,
			"metadata.example/request/app", Resources{CPUs: 2, MemMB: 100, DiskMB: 30, GPUs: 3},
		},
		{
			"comments", Request{}, source("# portainer: registry=metadata.example:5000 repository=metadata/app cpus=0.5 mem=1g"),
			"metadata.example:5000/metadata/app", Resources{CPUs: 0.5, MemMB: 1024, DiskMB: 30, GPUs: 3},
		},
		{
			"slashes", Request{Registry: "request.example/", Repository: "/request/app/"}, source(),
			"request.example/request/app", Resources{CPUs: 3, MemMB: 300, DiskMB: 30, GPUs: 3},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Source, tt.req.Dockerfile = tt.source, "app/Dockerfile"
			spec, err := f.prepare(t.Context(), tt.req)
			require.NoError(t, err)
			require.Equal(t, tt.image, spec.image)
			require.Equal(t, tt.image, spec.task.Registry+"/"+spec.task.Repository)
			require.Equal(t, tt.resources.Add(executorShare), spec.resources)
			granted := Resources{spec.task.CPUs, spec.task.MemMB, spec.task.DiskMB, tt.resources.GPUs}
			require.Equal(t, tt.resources, granted)
			require.Equal(t, []string{"latest"}, spec.task.Tags)
			require.NotContains(t, string(spec.task.Dockerfile), "REPOSITORY")
			require.Nil(t, spec.task.Context)
		})
	}
}

// TestPrepareMetadataOptions: what the Dockerfile says of the build itself counts where
// the request is silent.
func TestPrepareMetadataOptions(t *testing.T) {
	f := newTestFramework(t, nil)
	text := []byte("# portainer: target=first platform=linux/arm64,linux/amd64\nFROM scratch AS first\nFROM scratch AS second\n")
	spec, err := f.prepare(t.Context(), Request{Repository: "app", Source: text, Dockerfile: "Dockerfile"})
	require.NoError(t, err)
	require.Equal(t, "first", spec.task.Target)
	require.Equal(t, []string{"linux/arm64", "linux/amd64"}, spec.task.Options.Platforms)
	spec, err = f.prepare(t.Context(), Request{
		Repository: "app", Source: text, Dockerfile: "Dockerfile", Target: "second", Options: Options{Platforms: []string{"linux/386"}},
	})
	require.NoError(t, err)
	require.Equal(t, "second", spec.task.Target)
	require.Equal(t, []string{"linux/386"}, spec.task.Options.Platforms)
}

func TestPrepareTask(t *testing.T) {
	f := newTestFramework(t, func(cfg *Config) {
		cfg.Engine = Engine{Kind: "docker", Host: "unix:///var/run/docker.sock"}
		cfg.From, cfg.MaxAttempts, cfg.OOMRetryMemMB = "mirror.example/team", 5, 4096
	})
	req := Request{
		ID: "b1", Repository: "app", Tags: []string{"v1", "v2"}, Source: []byte("FROM busybox AS base\nFROM base\n"), Dockerfile: "x/Dockerfile",
		Target: "base", Args: map[string]string{"A": "1"}, Labels: map[string]string{"l": "2"}, Network: "host",
		AddHosts: []string{"db:10.0.0.1"}, NoCache: true, Pull: true, Insecure: true,
	}
	spec, err := f.prepare(t.Context(), req)
	require.NoError(t, err)
	// The caller may do with its request what it likes.
	req.Tags[0], req.Args["A"], req.Labels["l"], req.AddHosts[0], req.Source[0] = "changed", "changed", "changed", "changed", '!'

	task := spec.task
	require.Equal(t, BuildID("b1"), spec.id)
	require.Equal(t, "x/Dockerfile", spec.file)
	require.Equal(t, 5, spec.maxAttempts)
	require.Equal(t, 4096.0, spec.oomRetryMB)
	require.Equal(t, "b1", task.Build)
	require.Equal(t, "x/Dockerfile", task.Name)
	require.Equal(t, []string{"v1", "v2"}, task.Tags)
	require.Equal(t, "docker", task.Engine.Kind)
	require.Equal(t, "unix:///var/run/docker.sock", task.Engine.Host)
	require.Equal(t, []string{"config.example", "mirror.example"}, task.Insecure)
	require.Equal(t, "base", task.Target)
	require.Equal(t, map[string]string{"A": "1"}, task.Args)
	require.Equal(t, map[string]string{"l": "2"}, task.Labels)
	require.Equal(t, "host", task.Network)
	require.Equal(t, []string{"db:10.0.0.1"}, task.AddHosts)
	require.True(t, task.NoCache)
	require.True(t, task.Pull)
	require.True(t, strings.HasPrefix(string(task.Dockerfile), "FROM mirror.example/team/"), string(task.Dockerfile))
}

func TestPrepareRefuses(t *testing.T) {
	f := newTestFramework(t, nil)
	bare := newTestFramework(t, func(cfg *Config) { cfg.Registry = "" })
	for _, tt := range []struct {
		name string
		on   *Framework
		req  Request
		want string
	}{
		{"nothing", f, Request{Repository: "app"}, "no Dockerfile: give Dir, Dockerfile or Source"},
		{"no such file", f, Request{Repository: "app", Dockerfile: "testdata/none/Dockerfile"}, "testdata/none/Dockerfile: no such file"},
		{"no repository", f, Request{Source: source()}, "no repository to push to"},
		{"no registry", bare, Request{Repository: "app", Source: source()}, "no registry to push to"},
		{"bad tag", f, Request{Repository: "app", Source: source(), Tags: []string{"ok", "not ok"}}, `tag "not ok"`},
		{"tag in the repository", f, Request{Repository: "app:v1", Source: source()}, "without tag or digest"},
		{"upper case", f, Request{Repository: "App", Source: source()}, `"config.example/App" cannot be pushed to`},
		{"registry with a path", f, Request{Registry: "r.example/team", Repository: "app", Source: source()}, "registry must be host:port"},
		{"registry with a scheme", f, Request{Registry: "http://r.example", Repository: "app", Source: source()}, "without a scheme"},
		{"base images of no registry", f, Request{From: "team", Repository: "app", Source: source()}, `from "team"`},
		{"base images with a scheme", f, Request{From: "https://r.example", Repository: "app", Source: source()}, "without a scheme"},
		{"build id", f, Request{ID: "a:b", Repository: "app", Source: source()}, `build id "a:b"`},
		{"build id of a path", f, Request{ID: "../x", Repository: "app", Source: source()}, `build id "../x"`},
		{"build id too long", f, Request{ID: BuildID(strings.Repeat("x", 129)), Repository: "app", Source: source()}, "128 at most"},
		{"target", f, Request{Repository: "app", Source: source(), Target: "none"}, "none"},
		{"syntax", f, Request{Repository: "app", Dockerfile: "x/Dockerfile", Source: []byte("FROM scratch\nNONSENSE x\n")}, "x/Dockerfile:2"},
		{"empty", f, Request{Repository: "app", Dockerfile: "x/Dockerfile", Source: []byte("\n")}, "x/Dockerfile"},
		{"too long", f, Request{Repository: "app", Source: source(strings.Repeat("# x\n", maxDockerfile/4))}, "too long for a Dockerfile"},
		{"no bucket", f, Request{Repository: "app", Dir: "testdata", Source: []byte("FROM scratch\nCOPY ledger /\n")}, "no staging bucket"},
		{"negative cpus", f, Request{Repository: "app", Source: source(), Resources: Resources{CPUs: -0.05}}, "cpus: -0.05"},
		{"cpus that are no number", f, Request{Repository: "app", Source: source(), Resources: Resources{CPUs: math.NaN()}}, "cpus: NaN"},
		{"endless mem", f, Request{Repository: "app", Source: source(), Resources: Resources{MemMB: math.Inf(1)}}, "mem: +Inf"},
		{"negative gpus", f, Request{Repository: "app", Source: source(), Resources: Resources{GPUs: -1}}, "gpus: -1"},
		{"constraint", f, Request{Repository: "app", Source: source(), Constraints: []Constraint{{Attribute: "rack"}}}, "constraint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, err := tt.on.prepare(t.Context(), tt.req)
			require.Nil(t, spec)
			var failure *BuildError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, ClassInvalid, failure.Class)
			require.Equal(t, PhaseRead, failure.Phase)
			require.NotEmpty(t, failure.ID)
			require.Zero(t, failure.Attempt)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, tt.want)
			require.Less(t, len(err.Error()), 1000)
		})
	}
}

// TestPrepareRefusesWhatNoEngineCan checks that it is refused before its context is
// bundled.
func TestPrepareRefusesWhatNoEngineCan(t *testing.T) {
	bundler := BundlerFunc(func(context.Context, Request, io.Writer) error { return errors.New("bundled") })
	f, dir, _ := stagingFramework(t, bundler)
	for _, tt := range []struct {
		engine  Engine
		options Options
		want    string
	}{
		{Engine{Kind: "buildkitd"}, Options{Squash: true}, "engine buildkitd cannot do this: squash (a daemon in experimental mode); these can: docker: classic builder"},
		{Engine{Kind: "dockerd"}, Options{SBOM: "default"}, "engine dockerd cannot do this: sbom; these can: buildkitd"},
		{Engine{Host: "unix:///d"}, Options{Provenance: "min"}, "the docker daemon at unix:///d cannot do this: provenance"},
		{Engine{}, Options{Squash: true, Provenance: "min"}, "no engine can do all that is asked for"},
		{Engine{}, Options{CacheTo: []string{"type=local,dest=/x"}}, "its type must be"},
	} {
		f.cfg.Engine = tt.engine
		req := Request{Repository: "app", Dir: dir, Options: tt.options}
		_, err := f.prepare(t.Context(), req)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, tt.want)
		checked := tt.engine.Check(req)
		require.ErrorIs(t, checked, ErrInvalid)
		require.ErrorContains(t, checked, tt.want)
	}
	_, err := f.cfg.Staging.List(nil).Next(t.Context())
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, Engine{}.Check(Request{Dir: dir, Options: Options{Provenance: "min"}}))
	two := []byte("# portainer: platform=linux/amd64,linux/arm64\nFROM scratch\n")
	require.ErrorContains(t, Engine{Kind: "dockerd"}.Check(Request{Source: two}), "engine dockerd cannot do this: several platforms")
	require.NoError(t, Engine{Kind: "dockerd"}.Check(Request{Source: two, Options: Options{Platforms: []string{"linux/amd64"}}}))
	require.ErrorIs(t, Engine{}.Check(Request{}), ErrInvalid)
}

// TestPrepareChoosesIDs checks that builds without an id get one each.
func TestPrepareChoosesIDs(t *testing.T) {
	f := newTestFramework(t, nil)
	seen := make(map[BuildID]bool)
	for range 100 {
		spec, err := f.prepare(t.Context(), Request{Repository: "app", Source: source()})
		require.NoError(t, err)
		require.True(t, validID(spec.id), spec.id)
		require.False(t, seen[spec.id])
		seen[spec.id] = true
	}
}

// stagingFramework is a framework with a staging bucket, a build context and what
// its sink gets.
func stagingFramework(t *testing.T, bundler ContextBundler) (f *Framework, dir string, events *[]Event) {
	bucket := memblob.OpenBucket(nil)
	t.Cleanup(func() { require.NoError(t, bucket.Close()) })
	dir, events = t.TempDir(), new([]Event)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY file /\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
	f = newTestFramework(t, func(cfg *Config) {
		cfg.Staging, cfg.StagingURL, cfg.Bundler = bucket, "mem://builds", bundler
		cfg.Logs = LogSinkFunc(func(_ context.Context, ev Event) {
			if ev.Kind != EventStaging { // they come when it takes long
				*events = append(*events, ev)
			}
		})
	})
	return f, dir, events
}

func TestPrepareStages(t *testing.T) {
	f, dir, events := stagingFramework(t, nil)
	first, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir})
	require.NoError(t, err)
	c := first.task.Context
	require.Equal(t, "mem://builds", c.BucketURL)
	require.Positive(t, c.Size)
	require.True(t, strings.HasPrefix(c.Digest, "sha256:"), c.Digest)
	there, err := f.cfg.Staging.Exists(t.Context(), c.Key)
	require.NoError(t, err)
	require.True(t, there)

	second, err := f.prepare(t.Context(), Request{Repository: "other", Dir: dir})
	require.NoError(t, err)
	require.Equal(t, c, second.task.Context)
	require.Len(t, *events, 2)
	for _, ev := range *events {
		require.Equal(t, EventStaged, ev.Kind)
		require.NotEmpty(t, ev.Text)
	}
	require.Contains(t, (*events)[1].Text, "staged already")

	for _, spec := range []*buildSpec{first, second} {
		f.unstage(&spec.task)
		f.sweepStaging(t.Context(), spec.id)
	}
	there, err = f.cfg.Staging.Exists(t.Context(), c.Key)
	require.NoError(t, err)
	require.False(t, there)
}

// TestPrepareStagingFails checks whose fault it is said to be, and that nothing is
// left behind.
func TestPrepareStagingFails(t *testing.T) {
	broken := errors.New("file vanished")
	for _, tt := range []struct {
		name    string
		bundler ContextBundler
		breakIt func(*testing.T, *Framework, context.CancelCauseFunc) context.Context
		phase   Phase
		class   Class
		is      []error
	}{
		{
			name: "bundler", bundler: BundlerFunc(func(context.Context, Request, io.Writer) error { return broken }),
			phase: PhaseBundle, class: ClassInvalid, is: []error{broken, ErrInvalid},
		},
		{
			name: "bundler, half-way", bundler: BundlerFunc(func(_ context.Context, _ Request, w io.Writer) error {
				_, err := w.Write(make([]byte, 100))
				return errors.Join(broken, err)
			}),
			phase: PhaseBundle, class: ClassInvalid, is: []error{broken, ErrInvalid},
		},
		{
			name: "cancelled", bundler: BundlerFunc(func(ctx context.Context, _ Request, _ io.Writer) error { <-ctx.Done(); return ctx.Err() }),
			breakIt: func(t *testing.T, _ *Framework, cancel context.CancelCauseFunc) context.Context {
				cancel(broken)
				return nil
			},
			phase: PhaseStage, class: ClassCancelled, is: []error{broken, context.Canceled},
		},
		{
			name: "deadline", bundler: BundlerFunc(func(ctx context.Context, _ Request, _ io.Writer) error { <-ctx.Done(); return ctx.Err() }),
			breakIt: func(t *testing.T, _ *Framework, _ context.CancelCauseFunc) context.Context {
				ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
				t.Cleanup(cancel)
				return ctx
			},
			phase: PhaseStage, class: ClassTimeout, is: []error{context.DeadlineExceeded},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, dir, events := stagingFramework(t, tt.bundler)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var use context.Context = ctx
			if tt.breakIt != nil {
				if other := tt.breakIt(t, f, cancel); other != nil {
					use = other
				}
			}
			spec, err := f.prepare(use, Request{Repository: "app", Dir: dir})
			require.Nil(t, spec)
			var failure *BuildError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, tt.phase, failure.Phase)
			require.Equal(t, tt.class, failure.Class)
			require.Equal(t, "config.example/app", failure.Image)
			require.Equal(t, filepath.Join(dir, "Dockerfile"), failure.File)
			for _, target := range tt.is {
				require.ErrorIs(t, err, target)
			}
			require.Empty(t, *events)
			left := f.cfg.Staging.List(nil)
			_, err = left.Next(t.Context())
			require.ErrorIs(t, err, io.EOF, "something is left in the bucket")
		})
	}
}

// TestPrepareMissingSource checks that a file that the Dockerfile copies and that
// is not there is told with its line before anything is sent.
func TestPrepareMissingSource(t *testing.T) {
	f, dir, _ := stagingFramework(t, nil)
	require.NoError(t, os.Remove(filepath.Join(dir, "file")))
	_, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir})
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "Dockerfile:2")
	_, err = f.cfg.Staging.List(nil).Next(t.Context())
	require.ErrorIs(t, err, io.EOF)
}

// TestBuildIsTold checks that a build that never gets to the cluster is told to
// the sink as well, and that its context goes.
func TestBuildIsTold(t *testing.T) {
	f, dir, events := stagingFramework(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	f.cfg.Logs = LogSinkFunc(func(_ context.Context, ev Event) {
		if ev.Kind == EventStaging {
			return // it comes only when the staging takes its time
		}
		*events = append(*events, ev)
		cancel(errors.New("enough")) // when it is staged, and waits for Run
	})
	result, err := f.Build(ctx, Request{Repository: "app", Dir: dir})
	require.Nil(t, result)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []EventKind{EventStaged, EventFailed}, []EventKind{(*events)[0].Kind, (*events)[1].Kind})
	require.Equal(t, err, (*events)[1].Err)
	require.Equal(t, (*events)[0].Build, (*events)[1].Build)
	_, err = f.cfg.Staging.List(nil).Next(context.WithoutCancel(t.Context()))
	require.ErrorIs(t, err, io.EOF, "the staged context is still there")

	*events = nil
	_, err = f.Build(t.Context(), Request{})
	require.ErrorIs(t, err, ErrInvalid)
	require.Len(t, *events, 1)
	require.Equal(t, EventFailed, (*events)[0].Kind)
}

// TestFailureLeavesWhatOthersStaged checks that a build which fails to be staged, wholly
// or after its main context, takes nothing from another one that shares the context.
func TestFailureLeavesWhatOthersStaged(t *testing.T) {
	f, dir, _ := stagingFramework(t, nil)
	first, err := f.prepare(t.Context(), Request{Repository: "app", Dir: dir})
	require.NoError(t, err)
	ref := staging.RefOf(first.task.Context.Key)
	bad := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bad, ".dockerignore"), []byte("[\n"), 0o644))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, fail := range []func() error{
		func() error {
			_, err := f.prepare(t.Context(), Request{Repository: "other", Dir: dir, Options: Options{BuildContexts: map[string]string{"bad": bad}}})
			return err
		},
		func() error {
			_, err := f.prepare(ctx, Request{Repository: "other", Dir: dir})
			return err
		},
		func() error { // it is staged, but nobody is there to build it
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			bundle := func(ctx context.Context, req Request, w io.Writer) error {
				defer cancel()
				return DirBundler{}.Bundle(ctx, req, w)
			}
			_, err := f.prepare(ctx, Request{Repository: "other", Dir: dir, Bundler: BundlerFunc(bundle)})
			return err
		},
		func() error {
			_, err := f.Build(ctx, Request{Repository: "other", Dir: dir})
			return err
		},
	} {
		require.Error(t, fail())
		// Somebody else lets go of the same context.
		other := newStager(staging.New(f.cfg.Staging))
		_, _, err := other.put(t.Context(), func(s *staging.Store) (staging.Ref, staging.PutStats, error) {
			ref, ok, err := s.Find(t.Context(), ref.Digest)
			require.True(t, ok)
			return ref, staging.PutStats{}, err
		})
		require.NoError(t, err)
		other.release(ref)
		require.NoError(t, other.sweep(t.Context()))
		require.True(t, staged(t, f.cfg.Staging, ref))
	}
	f.unstage(&first.task)
	f.sweepStaging(t.Context(), first.id)
	require.False(t, staged(t, f.cfg.Staging, ref))
}
