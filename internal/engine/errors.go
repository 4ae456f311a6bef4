package engine

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/org/portainer"
)

// failure makes the error of one phase.
func failure(phase portainer.Phase, class portainer.Class, err error) *portainer.BuildError {
	return &portainer.BuildError{Phase: phase, Class: class, Err: err}
}

// invalid is a failure of what we were asked to do.
func invalid(err error) *portainer.BuildError {
	return failure(portainer.PhaseBuild, portainer.ClassInvalid, err)
}

// launchError is the error of Open.
func launchError(ctx context.Context, kind string, err error) error {
	var be *portainer.BuildError
	if errors.As(err, &be) {
		return be
	}
	class := portainer.ClassLaunch
	if c, done := ended(ctx); done {
		class, err = c, withCause(ctx, err)
	}
	return failure(portainer.PhaseLaunch, class, fmt.Errorf("start engine %s: %w", kind, err))
}

// ended tells the class of a build whose context is done.
func ended(ctx context.Context) (portainer.Class, bool) {
	switch {
	case ctx.Err() == nil:
		return "", false
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return portainer.ClassTimeout, true
	}
	return portainer.ClassCancelled, true
}

// withCause adds to err what errors.Is should find when ctx is done.
func withCause(ctx context.Context, err error) error {
	for _, also := range []error{ctx.Err(), context.Cause(ctx)} {
		if also != nil && !errors.Is(err, also) {
			err = fmt.Errorf("%w: %w", also, err)
		}
	}
	return err
}

// error makes err, which may be a *portainer.BuildError already, the error of
// this build.
func (j *job) error(ctx context.Context, err error) error {
	var be *portainer.BuildError
	if !errors.As(err, &be) {
		be = failure(portainer.PhaseBuild, classOf(err.Error(), portainer.ClassLost), err)
	}
	out := *be
	out.ID, out.Image, out.File = j.req.ID, j.image, j.file
	if class, done := ended(ctx); done {
		// A broken connection says nothing when it was us who broke it.
		out.Class, out.Err = class, withCause(ctx, be.Err)
		out.Step, out.Line = "", 0
	}
	if out.Line > 0 && out.Step == "" {
		out.Step = j.script.TextAt(out.Line)
	}
	return &out
}

// Sentences of daemons and registries by which a failure is told. They are
// looked for only in what an engine or a registry says about its own doing,
// never in the text of a Dockerfile's command.
var (
	diskWords = regexp.MustCompile(`no space left on device|disk quota exceeded`)
	authWords = regexp.MustCompile(`(?i)unauthorized|authentication required|no basic auth credentials|access (to the resource is )?denied|` +
		`\bdenied\b|insufficient_scope|authorization failed|\b403 forbidden`)
	netWords = regexp.MustCompile(`(?i)connection refused|no such host|i/o timeout|tls: |tls handshake|x509: |server gave http response to https client|` +
		`connection reset|broken pipe|network is unreachable|no route to host|unexpected eof|: eof\b|^eof$|context deadline exceeded|` +
		`unexpected http status|unexpected status|parsing http (?:429|5\d\d) response|\b429 too many|\b5\d\d (?:internal|not|bad|service|gateway)|server misbehaving|client\.timeout`)
)

// classOf tells the class of what a daemon says about a pull, a push or itself.
func classOf(msg string, other portainer.Class) portainer.Class {
	switch {
	case diskWords.MatchString(msg):
		return portainer.ClassDisk
	case authWords.MatchString(msg):
		return portainer.ClassAuth
	case netWords.MatchString(msg):
		return portainer.ClassRegistry
	}
	return other
}

// preambles are what daemons and their clients say before they say what is wrong.
var preambles = regexp.MustCompile(`^(?:Error response from daemon: |failed to solve: |failed to solve with frontend \S+: |failed to create LLB definition: |` +
	`rpc error: code = \w+ desc = |failed to compute cache key: )+`)

// A tidied is an error without its preamble.
type tidied struct {
	msg string
	error
}

func (e tidied) Error() string { return e.msg }
func (e tidied) Unwrap() error { return e.error }

// tidy takes the preamble off err.
func tidy(err error) error {
	msg := err.Error()
	if short := preambles.ReplaceAllString(msg, ""); short != "" && short != msg {
		return tidied{msg: short, error: err}
	}
	return err
}

// exitCodes finds the exit code in the sentences in which the classic builder,
// old and new BuildKit say that a command failed.
var exitCodes = regexp.MustCompile(`returned a non-zero code: (\d+)|did not complete successfully: exit code: (\d+)|executor failed running .*: exit code: (\d+)`)

// exitCode returns the exit code that msg speaks of.
func exitCode(msg string) (code int, ok bool) {
	m := exitCodes.FindStringSubmatch(msg)
	if m == nil {
		return 0, false
	}
	for _, s := range m[1:] {
		if s != "" {
			code, err := strconv.Atoi(s)
			return code, err == nil
		}
	}
	return 0, false
}

// errSIGKILL is how shells tell that what they ran was killed.
var errSIGKILL = errors.New("exit code 137, which means SIGKILL: sent by the step itself, by somebody on the agent, or by its kernel for want of memory")

// exitError says that a command of a step failed.
func exitError(code int) error {
	if code == 128+9 {
		return errSIGKILL
	}
	return fmt.Errorf("exit code %d", code)
}

// parseErrors finds the line of an error in the Dockerfile itself.
var parseErrors = regexp.MustCompile(`(?i)dockerfile parse error(?: on)? line (\d+): (.*)`)

// noTarget is how builders say that there is no stage of the wanted name.
var noTarget = regexp.MustCompile(`target stage .* (?:could not be found|not found)`)

// errVanished is that another build has removed an image that this one was about to go on
// from, or to push, or has taken its name: of builds of the same steps at once, one makes
// an image, the others take it from the cache, and whoever has pushed it removes it.
var errVanished = errors.New("another build on the same daemon came in between")

// vanished is how a daemon says so of an image of the classic builder's cache (docker
// image/cache/cache.go, image/store.go, image/fs.go, layer/layer.go).
var vanished = regexp.MustCompile(`(?:^|: )(?:unable to find image "sha256:[0-9a-f]{64}"|No such image: sha256:[0-9a-f]{64}|` +
	`unknown parent image ID sha256:[0-9a-f]{64}|failed to get digest sha256:[0-9a-f]{64}: .*no such file or directory|layer does not exist)$`)

// isVanished reports whether err, of a call that names an image, says that there is none.
// A daemon that is just removing it does not always have the status for that.
func isVanished(err error) bool {
	return cerrdefs.IsNotFound(err) || vanished.MatchString(err.Error())
}

// untagged is how it says so of one that is to be pushed (docker distribution/push.go,
// daemon/images/image.go).
var untagged = regexp.MustCompile(`^An image does not exist locally with the tag: |^tag does not exist: |^No such image: `)

// stepError tells what msg, the words in which a builder gave up, means. step
// and line are the instruction it was at; "" and 0 if unknown.
func (j *job) stepError(msg string, cause error, step string, line int) *portainer.BuildError {
	if cause == nil {
		cause = errors.New(msg)
	}
	cause = tidy(cause)
	be := failure(portainer.PhaseBuild, portainer.ClassUser, cause)
	be.Step, be.Line = step, line
	if m := parseErrors.FindStringSubmatch(msg); m != nil {
		be.Class, be.Step = portainer.ClassInvalid, ""
		be.Line, _ = strconv.Atoi(m[1])
		be.Err = errors.New(strings.TrimSpace(m[2]))
		return be
	}
	if noTarget.MatchString(msg) {
		be.Class, be.Step, be.Line = portainer.ClassInvalid, "", 0
		return be
	}
	if code, ok := exitCode(msg); ok {
		be.Err = exitError(code)
		return be
	}
	word, _, _ := strings.Cut(step, " ")
	if vanished.MatchString(cause.Error()) && !strings.EqualFold(word, "FROM") {
		be.Class, be.Err = portainer.ClassLost, fmt.Errorf("%w: %w", errVanished, cause)
		return be
	}
	switch strings.ToUpper(word) {
	case "FROM", "":
		be.Class = classOf(msg, portainer.ClassUser)
	default:
		if diskWords.MatchString(msg) {
			be.Class = portainer.ClassDisk
		}
	}
	return be
}
