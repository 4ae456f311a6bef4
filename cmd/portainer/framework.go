package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/org/portainer"
)

// A frameworkCommand is a command that runs a framework: the flags that say how,
// and what is common to all of them.
type frameworkCommand struct {
	*globals

	stagingURI     string
	stagingTTL     time.Duration
	stagingSign    string
	agentURL       string
	stateDir       string
	retries        int
	engine         engineFlags
	registries     registryFlags
	container      portainer.Container
	privileged     bool
	oomRetryMem    memFlag
	timeout        time.Duration
	queueTimeout   time.Duration
	connectTimeout time.Duration

	settings settings     // made of these by check
	wantGPUs bool         // a build needs some
	name     string       // of the framework, for those who look at Mesos
	content  contextFlags // for build alone: attach finds in the state what it needs of them

	stream       bool
	progress     string
	quiet        bool
	metadataFile string
	iidFile      string

	telling sync.Mutex // one build at a time speaks of its end
}

func (c *frameworkCommand) addFlags(groups flagGroups) {
	f := groups.of(whatItNeeds)
	f.Var(&c.oomRetryMem, "oom-retry-mem", "memory of one more attempt for a build that ran out of it (default: there is none)")
	f.IntVar(&c.retries, "retries", 3, "how often a build that the cluster lost is launched again")
	f.DurationVar(&c.timeout, "timeout", 0, "how long a build may take in all (default: no limit)")
	f.DurationVar(&c.queueTimeout, "queue-timeout", 0, "how long a build may wait for an offer (default: no limit)")
	f.DurationVar(&c.connectTimeout, "connect-timeout", 10*time.Second, "how long to try to reach a master; 0 means for ever")

	f = groups.of(whatBuilds)
	c.engine.addFlags(f)
	f.StringVar(&c.container.Image, "container-image", "", "run the executor, and the engine, in a container of this `IMAGE` (docker containerizer)")
	f.BoolVar(&c.privileged, "container-privileged", true, "run that container with --privileged")
	f.StringArrayVar(&c.container.Parameters, "container-parameter", nil, "a further flag of docker run, `KEY=VALUE`, such as cap-add=SYS_ADMIN; may be repeated")
	f.StringArrayVar(&c.container.Volumes, "container-volume", nil, "a volume of that container, `HOST:CONTAINER[:ro]`; may be repeated")
	f.StringVar(&c.container.Network, "container-network", "", "the network of that container (default \"host\")")

	c.registries.addFlags(groups.of(whichRegistries))

	f = groups.of(whatIsStaged)
	f.StringVar(&c.stagingURI, "staging-uri", "", "where build contexts are staged, readable by the agents: a directory, file://, s3://, gs://, azblob:// or hdfs://…\n"+
		"(default: a temporary directory if the master is on this machine)")
	f.DurationVar(&c.stagingTTL, "staging-ttl", stagingTTL, "how long a context stays staged after its last use, for the next build of the same or similar files;\n"+
		"0 removes it at the end")
	f.StringVar(&c.agentURL, "staging-agent-url", "", "what agents open in the place of --staging-uri, if they reach the same bucket by another address")
	f.StringVar(&c.stagingSign, "staging-sign", "auto", "whether agents read contexts at signed URLs and need no credentials: auto (if the bucket can sign), never or always")
	f.StringVar(&c.stateDir, "state-dir", "", "keep in this `DIRECTORY` what \"portainer attach\" needs to take over after a crash or SIGTERM")

	f = groups.of(whatIsShown)
	f.StringVar(&c.progress, "progress", "auto", "plain shows each step and its output, quiet only what fails, tty also a line that tells\n"+
		"how far the staging of contexts is, and is redrawn; auto is tty on a terminal, else plain")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "the same as --progress quiet")
	f.BoolVar(&c.stream, "stream", false, "show the output of steps exactly as they write it, without step numbers")
	f.StringVar(&c.metadataFile, "metadata-file", "", "write what was built to this `FILE`, as JSON")
}

// normalizeFlag knows the names that flags had in the original portainer.
func normalizeFlag(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	switch name {
	case "tags":
		name = "tag"
	case "docker-executor-image":
		name = "container-image"
	}
	return pflag.NormalizedName(name)
}

// check refuses flags that cannot be meant together, and reads the files that they
// name.
func (c *frameworkCommand) check() error {
	if c.quiet {
		c.progress = "quiet"
	}
	switch c.progress {
	case "auto", "plain", "quiet", "tty":
	default:
		return usagef("--progress is auto, plain, quiet or tty, not %q", c.progress)
	}
	if c.stream && c.progress == "quiet" {
		return usagef("--stream shows the output that --progress quiet hides: give one of them")
	}
	if c.stagingSign != "auto" && c.stagingSign != "never" && c.stagingSign != "always" {
		return usagef("--staging-sign is auto, never or always, not %q", c.stagingSign)
	}
	if c.agentURL != "" && c.stagingURI == "" {
		return usagef("--staging-agent-url is another address of what --staging-uri names: give that, too")
	}
	if c.stagingTTL < 0 {
		return usagef("--staging-ttl is a duration from 0, not %v", c.stagingTTL)
	}
	if c.retries < 0 {
		return usagef("--retries is a number from 0, not %d", c.retries)
	}
	if c.cached && c.executorURI == "" {
		return usagef("--executor-cache is about what --executor-uri names: give that, too")
	}
	if c.container.Image != "" && c.dockerHost+c.engine.buildkitAddr != "" {
		return usagef("--container-image brings an engine and --docker-host or --buildkit-addr names one: give one of them")
	}
	for _, file := range []struct{ flag, name string }{{"metadata-file", c.metadataFile}, {"iidfile", c.iidFile}} {
		if info, err := os.Stat(filepath.Dir(file.name)); file.name != "" && (err != nil || !info.IsDir()) {
			return usagef("--%s %s: there is no directory %s", file.flag, file.name, filepath.Dir(file.name))
		}
	}
	_, isLocal, err := localAgents(c.master)
	switch {
	case err != nil:
		return err
	case isLocal && c.stateDir != "":
		return usagef("--state-dir is for a cluster that outlives this program, but --mesos-master %s ends with it", c.master)
	case isLocal && c.tls.given():
		return usagef("--mesos-ca, --mesos-cert and --mesos-key are for a cluster that speaks TLS, but --mesos-master %s does not", c.master)
	}
	c.settings, err = c.readSettings()
	return err
}

// settings are what flags name.
type settings struct {
	secret     string // of the principal
	tls        *tls.Config
	engine     portainer.Engine
	registries []portainer.Registry
	logins     *credentials
}

// readSettings reads and checks what the flags name.
func (c *frameworkCommand) readSettings() (s settings, err error) {
	if s.secret, err = c.secret(); err != nil {
		return s, err
	}
	if s.tls, err = c.tls.config(); err != nil {
		return s, err
	}
	if s.engine, err = c.engine.config(c.dockerHost); err != nil {
		return s, err
	}
	if s.registries, err = c.registries.registries(c.globals); err != nil {
		return s, err
	}
	s.logins, err = c.credentials()
	return s, err
}

// A job is one build and what became of it.
type job struct {
	file   string // the Dockerfile, as messages call it; "" if it is not known
	image  string // "<registry>/<repository>"; likewise
	build  func(context.Context, *portainer.Framework) (*portainer.Result, error)
	result *portainer.Result
	err    error
}

// maxNamed is how many images the framework's name tells.
const maxNamed = 3

// frameworkName says to whom looks at Mesos which images are being built.
func frameworkName(jobs []*job) string {
	var images []string
	for _, j := range jobs {
		images = append(images, cmp.Or(j.image, j.file))
	}
	return "portainer: " + firstOf(images, maxNamed)
}

// id is the build's, once it has ended; "" if it never was one.
func (j *job) id() portainer.BuildID {
	var failure *portainer.BuildError
	switch {
	case j.result != nil:
		return j.result.ID
	case errors.As(j.err, &failure):
		return failure.ID
	}
	return ""
}

// run does jobs, all at once, on the cluster that the flags name, and tells how
// each ended.
//
// When the user will not wait for tidying up, it returns at once. What is then left
// of a cluster on this machine ends by itself, as its agents are gone with this
// process, and what remains of it and of staging the next run removes.
func (c *frameworkCommand) run(ctx context.Context, jobs func(*portainer.Framework) []*job) error {
	ended := make(chan error, 1)
	go func() { ended <- c.runToEnd(ctx, jobs) }()
	select {
	case err := <-ended:
		return err
	case <-c.abort:
		return errInterruptedAgain
	}
}

func (c *frameworkCommand) runToEnd(ctx context.Context, jobs func(*portainer.Framework) []*job) error {
	site, err := c.openSite(ctx)
	if err != nil {
		return err
	}
	return errors.Join(c.runOn(ctx, site, jobs), site.close())
}

func (c *frameworkCommand) runOn(ctx context.Context, site *site, jobs func(*portainer.Framework) []*job) error {
	var status func(string)
	if c.progress == "tty" || c.progress == "auto" && c.console.terminal() {
		status = c.console.show
		defer status("")
	}
	show := newDisplay(c.stderr, c.stream, c.progress == "quiet", status)
	config, err := c.config(site, show)
	if err != nil {
		return err
	}
	framework, err := portainer.New(config)
	if err != nil {
		return err
	}
	list := jobs(framework)
	show.several = len(list) > 1
	err = c.runJobs(ctx, framework, show, list)
	return errors.Join(c.verdict(ctx, list, err), c.writeMetadata(list), c.writeIID(list))
}

// config is that of a framework on site which shows its builds on show.
func (c *frameworkCommand) config(site *site, show *display) (portainer.Config, error) {
	ttl := c.stagingTTL
	if site.ownBucket {
		ttl = 0 // nobody will look there again
	}
	sign := c.stagingSign
	if site.signer == nil {
		if sign == "always" {
			return portainer.Config{}, usagef("--staging-sign always cannot be met: agents read the directory that --staging-agent-url names")
		}
		sign = "never"
	}
	container := c.container
	container.Unprivileged = container.Image != "" && !c.privileged
	return portainer.Config{
		Master:          site.master,
		Name:            c.name,
		Role:            c.role,
		FrameworkID:     c.frameworkID,
		StateDir:        c.stateDir,
		Principal:       c.principal,
		Secret:          c.settings.secret,
		TLS:             c.settings.tls,
		Staging:         site.bucket,
		StagingURL:      site.agentURL,
		StagingSign:     sign,
		StagingSigner:   site.signer,
		StagingTTL:      ttl,
		ExecutorURI:     site.executorURI,
		ExecutorCache:   c.cached,
		ExecutorCommand: site.executorCommand,
		Container:       container,
		GPUs:            c.wantGPUs,
		Engine:          c.settings.engine,
		MaxAttempts:     c.retries + 1,
		OOMRetryMemMB:   float64(c.oomRetryMem),
		BuildTimeout:    c.timeout,
		QueueTimeout:    c.queueTimeout,
		ConnectTimeout:  c.connectTimeout,
		Credentials:     c.settings.logins.find,
		Registries:      c.settings.registries,
		Bundler:         c.content.bundler(c.env),
		Logs:            show,
		Stdout:          c.stdout,
		Logger:          c.logger,
	}, nil
}

// runJobs runs framework until jobs are done on it, and tells how each ended. It returns
// why the framework ended before, which it has told.
func (c *frameworkCommand) runJobs(ctx context.Context, framework *portainer.Framework, show *display, jobs []*job) error {
	// The framework outlives the builds, so that cancelled ones are killed in
	// good order; only when they shall go on without it, it ends first.
	runCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	buildCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		if c.stateDir != "" && errors.Is(context.Cause(ctx), errTerminated) {
			stop(portainer.ErrDetached)
			return
		}
		complain(c.stderr, fmt.Errorf("%w: ending the builds; interrupt again not to wait for that", context.Cause(ctx)))
		cancel(context.Cause(ctx))
	})()
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(runCtx) }()
	var builds sync.WaitGroup
	for _, j := range jobs {
		builds.Go(func() {
			j.result, j.err = j.build(buildCtx, framework)
			c.tell(ctx, framework, show, j)
		})
	}
	builds.Wait()
	stop(nil)
	err := <-ran
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil
	}
	complain(c.stderr, err) // it explains every build that it stopped
	return err
}

// tell shows how a build ended, as soon as it has: a result may be all that
// somebody waits for, and what comes later may fail.
func (c *frameworkCommand) tell(ctx context.Context, framework *portainer.Framework, show *display, j *job) {
	c.telling.Lock()
	defer c.telling.Unlock()
	switch {
	case j.err == nil:
		to := c.stdout
		if toStdout(j.result.Outputs) {
			to = c.stderr
		}
		for _, ref := range j.result.Refs {
			fmt.Fprintln(to, ref)
		}
	case ctx.Err() != nil || ofFramework(j.err):
		return // there is one reason for all of them
	default:
		show.tail(ctx, j.err)
		complain(c.stderr, j.err)
	}
	if err := framework.Forget(context.WithoutCancel(ctx), j.id()); err != nil && !errors.Is(err, portainer.ErrStopped) {
		c.logger.Warn("state directory keeps a build that is over", "build", j.id(), "err", err)
	}
}

// ofFramework reports whether err is why the framework ended, which is told once.
func ofFramework(err error) bool {
	return errors.Is(err, portainer.ErrStopped) || errors.Is(err, portainer.ErrRejected) || errors.Is(err, portainer.ErrUnreachable)
}

// verdict is the error of a run whose builds have all ended and been told.
func (c *frameworkCommand) verdict(ctx context.Context, list []*job, runErr error) error {
	if ctx.Err() != nil {
		err := context.Cause(ctx)
		if c.stateDir != "" && errors.Is(err, errTerminated) {
			err = fmt.Errorf("%w: the builds go on, \"portainer attach --state-dir %s\" takes them over", err, c.stateDir)
			complain(c.stderr, err)
		}
		return &toldError{err}
	}
	var errs []error
	var failed []string
	for _, j := range list {
		if j.err != nil {
			errs = append(errs, j.err)
			failed = append(failed, cmp.Or(j.file, j.image, string(j.id())))
		}
	}
	switch {
	case runErr != nil:
		errs = append(errs, runErr)
	case len(errs) == 0:
		return nil
	case len(list) > 1: // what was told of one may be far above
		complain(c.stderr, fmt.Errorf("%d of %d failed: %s", len(failed), len(list), firstOf(failed, maxFailed)))
	}
	return &toldError{&buildsError{errs}}
}

// maxFailed is how many failed builds the last line names.
const maxFailed = 10

// firstOf lists names, at most so many of them.
func firstOf(names []string, most int) string {
	text := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// A buildsError holds the errors of the images that were not built.
type buildsError struct{ errs []error }

func (e *buildsError) Error() string   { return errors.Join(e.errs...).Error() }
func (e *buildsError) Unwrap() []error { return e.errs }
