package portainer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/dockerfile"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// A RegistryAuth is what a registry, or the token server it names, wants to see.
// The zero value is anonymous. However it is printed or logged, no secret shows.
type RegistryAuth struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token; Username is "" or the one it was
	// given to.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
}

// String shows what kind of credentials they are.
func (a RegistryAuth) String() string { return seal.RegistryAuth(a).String() }

// GoString is String.
func (a RegistryAuth) GoString() string { return a.String() }

// Format is String whatever the verb: others would print the fields.
func (a RegistryAuth) Format(s fmt.State, _ rune) { fmt.Fprint(s, a.String()) }

// LogValue implements slog.LogValuer.
func (a RegistryAuth) LogValue() slog.Value { return slog.StringValue(a.String()) }

// Secrets are build secrets by id. However they are printed, logged or encoded, only
// the ids show.
type Secrets map[string][]byte

// String lists the ids.
func (s Secrets) String() string { return "secrets " + fmt.Sprint(slices.Sorted(maps.Keys(s))) }

// GoString is String.
func (s Secrets) GoString() string { return s.String() }

// Format is String whatever the verb: others would print the values.
func (s Secrets) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue implements slog.LogValuer.
func (s Secrets) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String, so that no encoder finds more in what holds s.
func (s Secrets) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A CredentialsFunc finds what registries want, by their names as references
// spell them ("host", "host:port", "docker.io"). Registries that it knows nothing
// of are not in the result. It is called when a build is submitted, and again
// whenever its executor needs fresh ones; it may be called from many goroutines.
type CredentialsFunc func(ctx context.Context, registries ...string) (map[string]RegistryAuth, error)

// credentialsTimeout bounds one call of a CredentialsFunc: helpers ask keychains
// and cloud services.
const credentialsTimeout = 30 * time.Second

// registriesOf lists the registries that a build speaks to: the one it pushes to,
// if it does, and those of its base images, its cache, its further contexts and its
// tools. Of a Dockerfile that cannot be read here it is only known that what names no
// registry comes from docker.io.
func registriesOf(registry, from string, file *dockerfile.File, req *Request) []string {
	var registries []string
	if registry != "" {
		registries = append(registries, registry)
	}
	if host, _, _ := strings.Cut(from, "/"); host != "" {
		registries = append(registries, host)
	}
	if elsewhere(req) {
		registries = append(registries, "docker.io")
	}
	add := func(image string) {
		if named, err := reference.ParseNormalizedNamed(image); err == nil {
			registries = append(registries, reference.Domain(named))
		}
	}
	for _, base := range file.Bases() {
		add(base.Ref)
	}
	add(file.Syntax())
	o := &req.Options
	for _, from := range o.BuildContexts {
		if image, ok := strings.CutPrefix(from, imageScheme); ok {
			add(image)
		}
	}
	for _, place := range slices.Concat(o.CacheFrom, o.CacheTo) {
		if cache, err := ability.ParseCache(place); err == nil && cache.Type == "registry" {
			add(cache.Attrs["ref"])
		}
	}
	if o.SBOM != "default" {
		add(o.SBOM)
	}
	slices.Sort(registries)
	return slices.Compact(registries)
}

// credentials asks for what registries want.
func (f *Framework) credentials(ctx context.Context, registries []string) (map[string]seal.RegistryAuth, error) {
	if f.cfg.Credentials == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	found, err := f.cfg.Credentials(ctx, registries...)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", strings.Join(registries, ", "), err)
	}
	sealed := make(map[string]seal.RegistryAuth, len(found))
	for registry, auth := range found {
		sealed[registry] = seal.RegistryAuth(auth)
	}
	return sealed, nil
}

// needSecrets notes in spec what secrets its executor will ask for. Wrong ones are
// found out now and not on an agent.
func (f *Framework) needSecrets(ctx context.Context, req Request, spec *buildSpec) *BuildError {
	found, err := f.credentials(ctx, spec.registries)
	if err != nil {
		failure := &BuildError{ID: spec.id, Image: spec.image, File: spec.file, Phase: PhaseRead, Class: ClassAuth, Err: err}
		if ctx.Err() != nil {
			failure.Class, failure.Err = classOfEnd(ctx), context.Cause(ctx)
		}
		return failure
	}
	if _, err := f.cfg.clientCerts(&spec.task); err != nil {
		return &BuildError{ID: spec.id, Image: spec.image, File: spec.file, Phase: PhaseRead, Class: ClassInvalid, Err: err}
	}
	spec.secrets = maps.Clone(req.Secrets)
	spec.task.Options.CacheFrom, spec.cacheFrom = redactCaches(req.Options.CacheFrom)
	spec.task.Options.CacheTo, spec.cacheTo = redactCaches(req.Options.CacheTo)
	spec.ssh = maps.Clone(req.SSH)
	spec.ownSecrets = len(spec.secrets)+len(spec.cacheFrom)+len(spec.cacheTo)+len(spec.ssh) > 0
	spec.task.Secrets = len(found) > 0 || spec.ownSecrets || spec.task.Engine.ClientCert ||
		slices.ContainsFunc(spec.task.Registries, func(r wire.Registry) bool { return r.ClientCert })
	return nil
}

// redactCaches returns what everybody may see of places of cache, and, if that is
// not all, the whole of them.
func redactCaches(places []string) (shown, whole []string) {
	for _, place := range places {
		redacted, secrets := seal.RedactCache(place)
		shown = append(shown, redacted)
		if len(secrets) > 0 {
			whole = slices.Clone(places)
		}
	}
	return shown, whole
}

// asking returns the attempt whose executor, that of task on agent, asks for something
// secret in the name of who; nil if it must not be answered.
func (l *loop) asking(task string, agent AgentID, who seal.Binding) *attempt {
	at := l.ledger.tasks[task]
	if at == nil || at.abandoned || at.agent != agent || who != (seal.Binding{Task: at.task, Attempt: at.n}) {
		return nil
	}
	return at
}

// answerSecrets gives an executor the secrets of its build, sealed to its key. It
// does so as often as it is asked: answers may be lost, and tokens grow old.
func (l *loop) answerSecrets(ask seal.Ask, task string, agent AgentID) {
	at := l.asking(task, agent, ask.Binding)
	if at == nil {
		return
	}
	if at.sealKey == "" {
		at.sealKey = ask.Key
	}
	if at.sealKey != ask.Key {
		l.f.cfg.Logger.Warn("another key asks for the secrets of a task", "task", task)
		return
	}
	b, client, ctx := at.build, l.client, l.answerCtx
	spec, restarted := b.buildSpec, b.restored
	l.cleanup.Go(func() {
		answer, err := l.f.secretsFor(ctx, ask, &spec, restarted)
		if err != nil { // the executor asks again
			l.f.cfg.Logger.Warn("secrets not sent", "task", task, "err", err)
			return
		}
		client.Send(calls.Message(string(agent), task, answer.Encode()))
	})
}

// secretsFor makes the answer to ask, from an executor of the build of spec.
func (f *Framework) secretsFor(ctx context.Context, ask seal.Ask, spec *buildSpec, restarted bool) (seal.Answer, error) {
	found, err := f.credentials(ctx, spec.registries)
	if err != nil {
		return seal.Answer{}, err
	}
	certs, err := f.cfg.clientCerts(&spec.task)
	if err != nil {
		return ask.Refuse(err.Error()), nil
	}
	c := seal.Credentials{Registries: found, Secrets: spec.secrets, ClientCerts: certs, CacheFrom: spec.cacheFrom, CacheTo: spec.cacheTo}
	if spec.task.Engine.ClientCert {
		if c.Daemon = f.cfg.Engine.clientCert(); c.Daemon == nil {
			return ask.Refuse("the framework no longer has the client certificate for the engine at " + spec.task.Engine.Host), nil
		}
	}
	if c.URLs, err = f.signedURLs(ctx, &spec.task); err != nil {
		return seal.Answer{}, err
	}
	if restarted && (spec.ownSecrets || c.Empty()) {
		// Build secrets are never written down, so another life does not know
		// them. An executor that has them already goes on with what it has.
		return ask.Refuse("the framework was restarted and no longer has the secrets of this build"), nil
	}
	return ask.Answer(c)
}
