package portainer

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/org/portainer/internal/wire"
)

// A lateContext says where the context of a build is that was submitted without, so that
// a later life of the framework can stage it, too. What else that takes is in the task.
type lateContext struct {
	Dir          string `json:"dir"`        // absolute, as the next is
	Dockerfile   string `json:"dockerfile"` // "" if there is none but the text
	Limit        int64  `json:"limit,omitempty"`
	AllowOutside bool   `json:"allow_outside,omitempty"`
}

// lateContext returns nil if the context of req is in no directory, or its bundler is of
// a kind that a later life may not have.
func (f *Framework) lateContext(req Request) *lateContext {
	bundler, ok := f.bundler(req).(DirBundler)
	if !ok {
		return nil
	}
	opt := bundler.options(req)
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil
	}
	file, err := filepath.Abs(opt.Dockerfile)
	if err != nil {
		return nil
	}
	return &lateContext{Dir: dir, Dockerfile: file, Limit: bundler.Limit, AllowOutside: bundler.AllowOutside}
}

// request is what there was to say of the context of task, whose context it is.
func (c *lateContext) request(task *wire.Task, cacheDir string) Request {
	req := Request{
		Dir: c.Dir, Dockerfile: c.Dockerfile, Source: task.Dockerfile, Target: task.Target, Args: task.Args,
		Bundler: DirBundler{CacheDir: cacheDir, Limit: c.Limit, AllowOutside: c.AllowOutside},
		Options: Options{BuildContexts: make(map[string]string, len(task.Options.BuildContexts)+len(task.Contexts))},
	}
	for name := range task.Options.BuildContexts {
		req.Options.BuildContexts[name] = ""
	}
	for name := range task.Contexts {
		req.Options.BuildContexts[name] = ""
	}
	return req
}

// stageLate stages the context of a build that was submitted without, because its base
// image has turned out to need it, and has the build go on.
func (f *Framework) stageLate(ctx context.Context, req Request, spec buildSpec) {
	req.ID, spec.task = spec.id, wire.Task{}
	err := f.stage(ctx, &spec, []input{f.mainInput(req)})
	needed := false
	// When the loop has ended, so has the build.
	_ = f.ask(context.WithoutCancel(ctx), func(l *loop) {
		if failure := (*BuildError)(nil); errors.As(err, &failure) {
			l.ledger.giveUp(time.Now(), spec.id, failure)
			return
		}
		needed = l.ledger.provide(time.Now(), spec.id, spec.task.Context)
	})
	if err == nil && !needed {
		f.unstage(&spec.task)
		f.sweepStaging(context.WithoutCancel(ctx), spec.id)
	}
}

// stageRestored is stageLate for a build of an earlier life.
func (f *Framework) stageRestored(ctx context.Context, r *record) {
	dir, _ := f.cfg.Bundler.(DirBundler) // else its zero value
	f.stageLate(ctx, r.Late.request(&r.Task, dir.CacheDir), buildSpec{id: r.ID, image: r.Image, file: r.File})
}
