// Package engine builds images with a real builder: a Docker daemon that is
// there already, or a daemon of its own that lives as long as the Engine.
//
// Nothing is left when an Engine has been closed: no process, mount, container,
// cgroup or file. What an engine leaves whose process was killed, Sweep removes.
package engine

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/script"
	"github.com/org/portainer/internal/wire"
)

// The kinds of engines.
const (
	KindAuto      = "auto"
	KindDocker    = "docker"    // a Docker daemon at Config.Host
	KindDockerd   = "dockerd"   // a dockerd of our own
	KindBuildkitd = "buildkitd" // a buildkitd at Config.Host, or one of our own
)

// A Config says which engine to open and what it may use.
type Config struct {
	// Kind is one of the kinds of engines. "" and "auto" mean "docker" when
	// Host is set, else what is installed that can do what Asked says.
	Kind string
	// Host is the address of a given daemon as DOCKER_HOST spells it:
	// unix:///path or tcp://host:port. Kind "docker" requires it; kind
	// "buildkitd" uses the BuildKit daemon there instead of one of our own.
	Host string
	// TLS has the given daemon, at a tcp:// Host, spoken to over TLS. nil means
	// without. Not modified.
	TLS *tls.Config
	// Sandbox is a directory for the data of an engine of our own. It may be
	// far longer than a socket's path can be. "" means a temporary directory.
	Sandbox string
	// Temp is where a short-named directory for sockets is made. "" means /tmp.
	Temp string
	// Insecure names registries, as host:port, that are spoken to over plain
	// HTTP or with a certificate that is not verified.
	Insecure []string
	// Registries say how registries are spoken to, each at most once; Insecure in
	// them counts for nothing. A given daemon has its own configuration: where it
	// can be seen that this does not fit, the build is refused.
	Registries []portainer.Registry

	// Auth tells credentials for registries. nil means that there are none.
	Auth AuthFunc
	// Secrets tells build secrets. nil means that there are none. They need
	// BuildKit.
	Secrets SecretFunc
	// SSH are ssh agents by id. They need BuildKit.
	SSH map[string]SSHFunc

	// Permit, if not nil, is called before the first tag of a build may be
	// written, and waits until that is allowed. The push is broken off when the
	// context that it returns is done; release is called after the push.
	Permit PermitFunc

	// Save keeps outputs that are no registry. nil means that there are none.
	Save SaveFunc

	// Asked is what the builds will ask for: KindAuto takes an engine that can do it,
	// and a dockerd of our own is in the mode that it needs. nil means nothing
	// special. Not modified.
	Asked *ability.Build

	// Bundler writes the build context. nil means that builds have none: the
	// engine gets the Dockerfile alone.
	Bundler portainer.ContextBundler
	// Contexts write the further build contexts that are not in
	// Request.Options.BuildContexts, by their names. They need BuildKit.
	Contexts map[string]portainer.ContextBundler
	// Logs receives what builds say: EventInfo, EventStep, EventStepDone,
	// EventLog and EventGap. nil drops it. Calls for one build are in order and
	// never at the same time.
	Logs portainer.LogSink
	// Logger is for the engine's own log. nil means none.
	Logger *slog.Logger

	// AllowVFS lets an engine of our own start where overlay file systems do not
	// work, with a storage driver that copies the whole image for every step.
	AllowVFS bool

	// CPUs, MemMB and DiskMB bound what the builds may use; 0 means no bound. An
	// engine is not opened where DiskMB are not free.
	CPUs, MemMB, DiskMB float64
}

// A PermitFunc waits for the right to push. Its error, and the cause of the context
// when the right is lost, are *portainer.BuildError.
type PermitFunc func(ctx context.Context) (_ context.Context, release func(), err error)

// permit waits for the right to push.
func (cfg *Config) permit(ctx context.Context) (context.Context, func(), error) {
	if cfg.Permit == nil {
		return ctx, func() {}, nil
	}
	return cfg.Permit(ctx)
}

// unpermitted returns why the right to push was lost, if it was, instead of what a
// push that was broken off for it says.
func unpermitted(ctx context.Context, err error) error {
	var why *portainer.BuildError
	if ctx.Err() != nil && errors.As(context.Cause(ctx), &why) {
		return why
	}
	return err
}

// An Engine is a portainer.Builder that builds here. Build may be called from
// many goroutines.
type Engine struct {
	cfg     Config
	backend backend
	why     string

	closing sync.Once
	closed  error // what the first Close returned
}

var _ portainer.Builder = (*Engine)(nil)

// A backend is one kind of engine.
type backend interface {
	// name is what built an image: program, version, builder.
	name() string
	// build builds j, writes its outputs, and pushes every tag last.
	build(ctx context.Context, j *job) (*built, error)
	// guard is what watches over the builds; nil if nothing can.
	guard() guard
	// close stops what was started and removes what was made.
	close(ctx context.Context) error
}

// Open finds or starts the engine that cfg names. The caller closes it. An error
// is a *portainer.BuildError of ClassLaunch, or of ClassInvalid for a bad cfg.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Temp == "" {
		cfg.Temp = "/tmp"
	}
	if err := cfg.validateRegistries(); err != nil {
		return nil, misused("%w", err)
	}
	kind, why, err := choose(cfg, thisMachine())
	if err != nil {
		return nil, launchError(ctx, cmp.Or(cfg.Kind, KindAuto), err)
	}
	var b backend
	switch kind {
	case KindDocker:
		b, err = openDocker(ctx, cfg)
	case KindDockerd:
		b, err = startDockerd(ctx, cfg)
	case KindBuildkitd:
		if cfg.Host != "" {
			b, err = openBuildKit(ctx, cfg)
		} else {
			b, err = startBuildkitd(ctx, cfg)
		}
	}
	if err != nil {
		return nil, launchError(ctx, kind, err)
	}
	cfg.Logger.Info("engine ready", "kind", kind, "why", why, "name", b.name())
	return &Engine{cfg: cfg, backend: b, why: why}, nil
}

// Name says what builds, such as "dockerd 20.10.24 (buildkit)".
func (e *Engine) Name() string { return e.backend.name() }

// Why says for what reason it is this kind of engine.
func (e *Engine) Why() string { return e.why }

// Build implements portainer.Builder: it builds the image, gives outputs to
// Config.Save, pushes every tag and returns the digest that the registry knows it by.
// Every error is a *portainer.BuildError.
func (e *Engine) Build(ctx context.Context, req portainer.Request) (*portainer.Result, error) {
	started := time.Now()
	j, err := newJob(ctx, e.cfg, req)
	if err != nil {
		return nil, err
	}
	watch := func() shortage { return shortage{} }
	if g := e.backend.guard(); g != nil {
		watch = g.watch()
	}
	if req.Pushes() {
		j.probe = newProbe(ctx, j)
		defer j.probe.end()
	}
	b, err := e.backend.build(ctx, j)
	short := watch()
	short.suspected = short.suspected && j.unbounded
	if err != nil {
		err = short.explain(err, j.report.lastWords())
		return nil, j.error(ctx, err)
	}
	res := &portainer.Result{
		ID:       req.ID,
		Image:    j.image,
		Digest:   b.digest,
		Engine:   b.by,
		Attempts: 1,
		Started:  started,
		Finished: time.Now(),

		ConfigDigest: b.config,
		Descriptor:   b.descriptor,
	}
	if j.req.Pushes() {
		for _, ref := range j.refs {
			res.Refs = append(res.Refs, ref+"@"+b.digest)
		}
	}
	return res, nil
}

// Close kills an engine of our own and removes everything that belongs to it. A
// given daemon is left as it is. Builds that still run are broken off. Cleaning up
// goes on when ctx is done. Further calls return what the first did.
func (e *Engine) Close(ctx context.Context) error {
	e.closing.Do(func() { e.closed = e.backend.close(ctx) })
	return e.closed
}

// A job is one call of Build.
type job struct {
	cfg    Config
	req    portainer.Request
	image  string         // "<registry>/<repository>"; "" if it has no name
	refs   []string       // "<registry>/<repository>:<tag>", at least one unless it has no name
	file   string         // what messages call the Dockerfile
	source []byte         // its text
	script *script.Script // what it says
	report *reporter
	probe  *probe // of the registry that is pushed to
	solved bool   // BuildKit has built it: what is exported further comes from its cache

	archives  bool              // contexts are sent to BuildKit as archives, see errUnlike
	named     bool              // the classic builder gets the Dockerfile as ownName, see errTaken
	made      []string          // images that the classic builder made, the oldest first
	owners    map[string]string // images by the names that were borrowed from them; "" for nobody's
	unbounded bool              // what its steps use can neither be bounded nor told
}

// remoteDockerfile reports whether the Dockerfile is in a context that only the
// builder fetches.
func (j *job) remoteDockerfile() bool { return j.req.Remote != "" && len(j.req.Source) == 0 }

// newJob checks req and reads its Dockerfile.
func newJob(ctx context.Context, cfg Config, req portainer.Request) (*job, error) {
	j := &job{cfg: cfg, req: req, file: req.Dockerfile, source: req.Source}
	if req.Pushes() && (req.Registry == "" || req.Repository == "") {
		return nil, j.error(ctx, invalid(errors.New("a registry and a repository are needed")))
	}
	if req.Repository != "" {
		j.image = strings.TrimPrefix(req.Registry+"/"+req.Repository, "/")
		tags := req.Tags
		if len(tags) == 0 {
			tags = []string{"latest"}
		}
		for _, tag := range tags {
			j.refs = append(j.refs, j.image+":"+tag)
		}
	}
	if err := errors.Join(ability.CheckRun(req.Network, req.AddHosts), ability.Check(wire.Options(req.Options)),
		ability.CheckCgroup(wire.Options(req.Options), cfg.Host)); err != nil {
		return nil, j.error(ctx, invalid(err))
	}
	if j.file == "" {
		j.file = "Dockerfile"
	}
	if j.source == nil && !j.remoteDockerfile() {
		path := req.Dockerfile
		if path == "" {
			path = filepath.Join(req.Dir, "Dockerfile")
		}
		var err error
		if j.source, err = os.ReadFile(path); err != nil {
			return nil, j.error(ctx, &portainer.BuildError{Phase: portainer.PhaseRead, Class: portainer.ClassInvalid, Err: err})
		}
	}
	j.script = script.Read(j.source)
	j.report = newReporter(ctx, cfg.Logs)
	return j, nil
}

// choose returns the first of those builders that can do everything that j asks
// for.
func (j *job) choose(from []ability.Builder, engine string) (ability.Builder, error) {
	asked := ability.Build{
		Script: j.script, Options: wire.Options(j.req.Options), Staged: len(j.cfg.Contexts), Remote: j.req.Remote, OwnText: !j.remoteDockerfile(),
		SSH: slices.Sorted(maps.Keys(j.cfg.SSH)), Outputs: wireOutputs(&j.req),
	}
	for _, r := range j.cfg.Registries {
		if len(r.Mirrors) > 0 {
			asked.Mirrored = append(asked.Mirrored, r.Host)
		}
	}
	b, err := asked.Choose(from, engine)
	if err != nil {
		return 0, invalid(err)
	}
	return b, nil
}
