package portainer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/docker/go-units"

	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/dockerfile"
	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// An input is one build context that must be staged.
type input struct {
	name string // of a further context; "" is the main one
	put  func(ctx context.Context, store *staging.Store, meter *staging.Meter) (staging.Ref, staging.PutStats, error)
}

// inputs returns what must be staged for the build of spec, and takes out of its task
// what the engine cannot fetch by itself.
func (f *Framework) inputs(req Request, spec *buildSpec, file *dockerfile.File) ([]input, error) {
	var list []input
	if req.Remote == "" && file.UsesContext() {
		list = append(list, f.mainInput(req))
	}
	if req.Remote == "" && len(list) == 0 && f.stager != nil {
		spec.onDemand, spec.late = true, f.lateContext(req)
	}
	dirs := directories(req.Options.BuildContexts)
	if len(dirs) > 0 {
		spec.task.Options.BuildContexts = maps.Clone(req.Options.BuildContexts)
		spec.task.Contexts = make(map[string]*wire.Context, len(dirs))
	}
	for _, name := range dirs {
		delete(spec.task.Options.BuildContexts, name)
		list = append(list, f.directoryInput(name, req))
	}
	if len(list) > 0 && f.stager == nil {
		return nil, fmt.Errorf("%s: it uses local sources, but no staging bucket is configured", spec.file)
	}
	return list, nil
}

// bundler is what makes the context of req.
func (f *Framework) bundler(req Request) ContextBundler {
	if req.Bundler != nil {
		return req.Bundler
	}
	return f.cfg.Bundler
}

// mainInput is the build context of req.
func (f *Framework) mainInput(req Request) input {
	bundler := f.bundler(req)
	return input{put: func(ctx context.Context, store *staging.Store, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
		return f.desk.putContext(ctx, store, bundler, req, meter)
	}}
}

// directoryInput is the directory that req gives as a further context. No Dockerfile
// is looked for in it, and of ignore files only its own .dockerignore counts
// (buildkit frontend/dockerui, NamedContext.load).
func (f *Framework) directoryInput(name string, req Request) input {
	dir, _ := f.cfg.Bundler.(DirBundler) // else its zero value
	opt := buildctx.Options{Dir: req.Options.BuildContexts[name], CacheDir: dir.CacheDir, Limit: dir.Limit, AllowOutside: dir.AllowOutside}
	return input{name: name, put: func(ctx context.Context, store *staging.Store, meter *staging.Meter) (staging.Ref, staging.PutStats, error) {
		ref, stats, err := f.desk.putDir(ctx, store, dir, opt, meter)
		if bundling := (*bundleError)(nil); errors.As(err, &bundling) {
			err = &bundleError{fmt.Errorf("build-context %s: %w", name, bundling.err)}
		}
		return ref, stats, err
	}}
}

// stage puts the contexts of a build into the staging bucket and notes in spec where
// they are. When it fails, none of them stays.
func (f *Framework) stage(ctx context.Context, spec *buildSpec, inputs []input) error {
	for _, in := range inputs {
		if err := f.stageOne(ctx, spec, in); err != nil {
			failure := stageFailure(ctx, spec, err)
			f.unstage(&spec.task)
			f.sweepStaging(context.WithoutCancel(ctx), spec.id) // a put may have kept another's sweep away
			return failure
		}
	}
	return nil
}

func (f *Framework) stageOne(ctx context.Context, spec *buildSpec, in input) error {
	began := time.Now()
	meter := &staging.Meter{}
	stop := f.watchStaging(ctx, spec, meter)
	ref, stats, err := f.stager.put(ctx, func(store *staging.Store) (staging.Ref, staging.PutStats, error) { return in.put(ctx, store, meter) })
	stop()
	if err != nil {
		return err
	}
	staged, what := &wire.Context{BucketURL: f.cfg.StagingURL, Key: ref.Key, Size: ref.Size, Digest: ref.Digest}, "context"
	if in.name == "" {
		spec.task.Context = staged
	} else {
		spec.task.Contexts[in.name] = staged
		what = "build-context " + in.name
	}
	// A bucket may have been quicker than the end of ctx.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if staged.Signed, err = f.signs(ctx, ref); err != nil {
		return err
	}
	spec.task.Secrets = spec.task.Secrets || staged.Signed
	ev := Event{Build: spec.id, Image: spec.image, Kind: EventStaged, Time: time.Now()}
	ev.Text = what + " " + describeStaging(stats, time.Since(began))
	f.cfg.Logs.HandleEvent(ctx, ev)
	return nil
}

func describeStaging(stats staging.PutStats, took time.Duration) string {
	if !stats.Uploaded {
		return fmt.Sprintf("of %s is staged already (%v)", units.BytesSize(float64(stats.TarSize)), took.Round(time.Millisecond))
	}
	return fmt.Sprintf("of %s staged, %s sent (%v)",
		units.BytesSize(float64(stats.TarSize)), units.BytesSize(float64(stats.Sent)), took.Round(time.Millisecond))
}

// bundleError marks an error of the bundler, as against one of the bucket.
type bundleError struct{ err error }

func (e *bundleError) Error() string { return e.err.Error() }
func (e *bundleError) Unwrap() error { return e.err }

// stageFailure tells whose fault err is.
func stageFailure(ctx context.Context, spec *buildSpec, err error) *BuildError {
	failure := &BuildError{ID: spec.id, Image: spec.image, File: spec.file, Phase: PhaseStage, Class: ClassStaging, Err: err}
	var bundling *bundleError
	switch {
	case ctx.Err() != nil:
		failure.Class, failure.Err = classOfEnd(ctx), context.Cause(ctx)
	case errors.As(err, &bundling):
		failure.Phase, failure.Class, failure.Err = PhaseBundle, ClassInvalid, bundling.err
	}
	return failure
}

// unstage lets go of the staged contexts of a task. Objects go when nobody uses them.
func (f *Framework) unstage(task *wire.Task) {
	if f.stager == nil {
		return
	}
	for _, c := range task.Staged() {
		f.stager.release(staging.Ref{Key: c.Key, Size: c.Size, Digest: c.Digest})
	}
}

// directories returns the names of those further contexts that are directories here.
func directories(contexts map[string]string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(contexts)) {
		if !fetchable(contexts[name]) {
			names = append(names, name)
		}
	}
	return names
}
