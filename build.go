package portainer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Builder turns a Request into a pushed image. Build blocks until there is
// one, or an error; it may be called from many goroutines.
//
// *Framework is the Builder that uses a cluster. Code that needs images should
// take a Builder, so that its tests can pass a BuilderFunc.
type Builder interface {
	Build(ctx context.Context, req Request) (*Result, error)
}

// A BuilderFunc is a function that is a Builder.
type BuilderFunc func(ctx context.Context, req Request) (*Result, error)

// Build calls f.
func (f BuilderFunc) Build(ctx context.Context, req Request) (*Result, error) { return f(ctx, req) }

var _ Builder = (*Framework)(nil)

// BuildID names one call of Build. It is unique for the life of a framework;
// the Mesos task and executor ID of attempt n is "<BuildID>-<n>" and is never
// reused.
type BuildID string

// A Request describes one image to build. Zero fields that a Dockerfile's own
// metadata speaks of (registry, repository, cpus, mem) are taken from there,
// then from the Config.
type Request struct {
	// ID names the build: letters, digits, '_', '.' and '-', 128 at most. No two
	// builds of a framework may have the same; one that is under way, or whose
	// result is in the state directory until Forget, is refused. "" lets the
	// Framework choose.
	ID BuildID

	// Registry is the host, or host:port, to push to, and Repository the path
	// below it ("team/app"). They default to the metadata of the Dockerfile;
	// Registry then to Config.Registry. Both are required in the end, unless the
	// image is not pushed.
	Registry, Repository string
	// Tags are the tags to push. None means "latest".
	Tags []string

	// Dir is the root of the build context on this machine. "" means the
	// directory that holds the Dockerfile.
	Dir string
	// Dockerfile is the path of the Dockerfile on this machine. "" means
	// "Dockerfile" below Dir. It need not lie inside Dir.
	Dockerfile string
	// Source is the text of the Dockerfile; nil means that it is read from
	// Dockerfile, which otherwise only serves as a name in messages. Not
	// modified.
	Source []byte
	// Bundler makes the build context. nil means Config.Bundler. It is not used
	// when the Dockerfile takes nothing from the context.
	Bundler ContextBundler
	// Remote is the URL of a build context that the engine fetches by itself, in
	// place of Dir: a git repository, as "https://host/repo.git#ref:directory",
	// "git://…", "ssh://…" or "git@host:…", or an archive or a Dockerfile at an
	// http or https URL. Nothing of it passes through this machine. Unless Source
	// is given, Dockerfile names a file in it, and nothing is known of that file
	// here: its metadata is not read, and From cannot be applied. Access is by the
	// Secrets GIT_AUTH_TOKEN or GIT_AUTH_HEADER, never by a password in the URL.
	Remote string

	// From is the registry that FROM instructions without one of their own are
	// pulled from. "" leaves them alone.
	From string
	// Insecure lets the registries of this build (Registry and From) be spoken
	// to over plain HTTP or with a certificate that cannot be verified.
	Insecure bool

	// Target is the Dockerfile stage to build. "" means the last.
	Target string
	// Args are build arguments (ARG). They are visible in the image history:
	// no secrets.
	Args map[string]string
	// Secrets are build secrets by id (RUN --mount=type=secret). They reach the
	// executor sealed to a key in its memory, and are written down nowhere: after
	// a restart of the framework a new attempt cannot have them. Not modified.
	Secrets Secrets
	// SSH are the ssh agents that steps may use, by id (RUN --mount=type=ssh),
	// "default" being the one of steps that name none. The keys stay where they are: a
	// build can list them and have something signed, for as long as it runs. After a
	// restart of the framework they are gone, as Secrets are.
	SSH map[string]SSHAgent
	// Labels are added to the image's labels.
	Labels map[string]string
	// Network is the network of RUN instructions: "default", "none" or "host".
	// "" means "default", which an engine with no bridge turns into "host".
	Network string
	// AddHosts are further lines of /etc/hosts for RUN, as "name:address".
	AddHosts []string
	// NoCache builds every step anew. Pull asks the registry for base images
	// even when the engine has them.
	NoCache, Pull bool

	// Options are what few builds ask for.
	Options Options

	// Outputs are what the image is written to. None means that it is pushed to
	// its registry; otherwise it is pushed only if one is an OutputRegistry, and
	// else needs no Registry, Repository or Tags. What is no registry travels
	// through the staging bucket, which agents must then be able to write.
	Outputs []Output

	// Constraints say on which agents the build may run.
	Constraints []Constraint

	// Resources is what the task asks for. Zero fields mean the metadata of the
	// Dockerfile, then Config.Resources.
	Resources Resources
}

// A Result describes an image that was built and written to its outputs.
type Result struct {
	ID       BuildID
	Image    string   // "<registry>/<repository>"; "" if it was neither pushed nor named
	Digest   string   // digest of the manifest, "sha256:<64 hex digits>", as the registry reported it if it was pushed; "" if none was made
	Refs     []string // "<registry>/<repository>:<tag>@<digest>", in the order of Request.Tags; none if it was not pushed
	Engine   string   // what built it, such as "dockerd 20.10.24 (buildkit)"
	Agent    AgentID  // where the successful attempt ran; "" if no cluster was involved
	Hostname string   // that agent's
	Attempts int      // launches it took, at least 1
	Started  time.Time
	Finished time.Time // both by the clock of the machine that built it

	// ConfigDigest is the digest of the image's configuration, which docker calls
	// its ID; "" if there are several, or none.
	ConfigDigest string
	// Descriptor is that of the manifest, as far as the engine tells it.
	Descriptor Descriptor
	// Outputs are those that were written here, in the order of Request.Outputs.
	Outputs []Written
}

// A Phase says how far a build had got.
type Phase string

// The phases of a build in the order they happen.
const (
	PhaseRead   Phase = "read"   // reading the Dockerfile
	PhaseBundle Phase = "bundle" // making the context
	PhaseStage  Phase = "stage"  // writing it to the staging bucket
	PhaseQueue  Phase = "queue"  // waiting for an offer
	PhaseLaunch Phase = "launch" // starting the executor and its engine
	PhaseFetch  Phase = "fetch"  // reading the staged context on the agent
	PhaseBuild  Phase = "build"  // running the Dockerfile
	PhasePush   Phase = "push"   // pushing to the registry
	PhaseOutput Phase = "output" // writing outputs: to the staging bucket, and from there
)

// Build reads the Dockerfile, stages the context, waits for an offer, and
// returns when the image is pushed. It waits for Run if Run has not been called
// yet. The events of the build are handed to Config.Logs by the goroutine that
// calls Build.
//
// When ctx is done, Build has the task killed and returns without waiting for
// the agent. The staged context is removed in any case, when no task uses it any
// more and Config.StagingTTL is over. Every error is a *BuildError.
func (f *Framework) Build(ctx context.Context, req Request) (*Result, error) {
	spec, err := f.prepare(ctx, req)
	if err != nil {
		f.announceFailure(ctx, err)
		return nil, err
	}
	box := newMailbox()
	err = f.ask(ctx, func(l *loop) { l.submit(*spec, box) })
	if err != nil {
		// The loop knows nothing of this build, so it cannot clean up after it.
		f.unstage(&spec.task)
		f.sweepStaging(context.WithoutCancel(ctx), spec.id)
		failure := &BuildError{ID: spec.id, Image: spec.image, File: spec.file, Phase: PhaseQueue, Class: classOfEnd(ctx), Err: err}
		f.announceFailure(ctx, failure)
		return nil, failure
	}
	return f.follow(ctx, spec.id, spec.image, box, func() { f.stageLate(ctx, req, *spec) })
}

// follow hands on what happens to a build until it is over. stage stages its context if
// that turns out to be needed.
func (f *Framework) follow(ctx context.Context, id BuildID, image string, box *mailbox, stage func()) (*Result, error) {
	w := &follower{sink: f.cfg.Logs, build: id, image: image, deliver: f.deliver}
	closeLog := f.readLog(ctx, w, box)
	defer closeLog()
	if f.state != nil {
		mark, err := f.state.openMark(id)
		if err != nil {
			return nil, f.unfollowed(ctx, id, image, err)
		}
		defer mark.close()
		w.mark = mark
	}
	result, err := w.run(ctx, box, stage, func() { f.cancel(ctx, id, classOfEnd(ctx), context.Cause(ctx)) })
	var failure *BuildError
	if err != nil && !errors.As(err, &failure) {
		err = f.unfollowed(ctx, id, image, err)
	}
	return result, err
}

// unfollowed gives a build up whose log cannot be kept track of.
func (f *Framework) unfollowed(ctx context.Context, id BuildID, image string, why error) error {
	failure := &BuildError{ID: id, Image: image, Phase: PhaseBuild, Class: ClassLost, Err: fmt.Errorf("state directory: %w", why)}
	f.cancel(ctx, id, failure.Class, failure.Err)
	f.announceFailure(ctx, failure)
	return failure
}
