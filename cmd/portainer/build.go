package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockerfile"
)

// A buildCommand is one run of "portainer build".
type buildCommand struct {
	*globals

	to, repository string
	tags           []string
	from           string
	insecure       bool
	cpus           float64
	mem, disk      memFlag
	stagingURI     string
	retries        int
	engine         string
	container      portainer.Container
	privileged     bool
	timeout        time.Duration
	queueTimeout   time.Duration
	connectTimeout time.Duration
	oomRetryMem    memFlag
	constraints    []string

	dir      string
	target   string
	args     []string
	labels   []string
	network  string
	addHosts []string
	noCache  bool
	pull     bool

	stream       bool
	progress     string
	metadataFile string

	explicit func(flag string) bool // given on the command line, not by the environment
	results  sync.Mutex             // guards stdout
}

func newBuild(g *globals) *cobra.Command {
	cmd, _ := newBuildCommand(g)
	return cmd
}

func newBuildCommand(g *globals) (*cobra.Command, *buildCommand) {
	b := &buildCommand{globals: g}
	cmd := &cobra.Command{
		Use:   "build [flags] DOCKERFILE...",
		Short: "Build an image from each Dockerfile and push it",
		Long: `build builds an image from each Dockerfile on an agent of the cluster and pushes
it. A directory stands for the Dockerfile in it. The references that were pushed
go to standard output, one a line: host:port/repository:tag@digest. Everything
else goes to standard error.

A Dockerfile can say where its image goes and what its build needs, in a comment:

	# portainer: registry=registry.example.com repository=team/app cpus=2 mem=1g

or in instructions that are taken out before the build: REGISTRY, REPOSITORY,
CPUS or BUILD_CPU, MEM or BUILD_MEM.`,
		Example: `  portainer build --to 127.0.0.1:5000 --repository team/app --tag v1 --tag latest Dockerfile
  portainer build --mesos-master zk://zk1,zk2,zk3/mesos --staging-uri s3://bucket a/Dockerfile b/Dockerfile`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no Dockerfile given: see portainer build --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			b.explicit = cmd.Flags().Changed
			return b.run(cmd.Context(), args)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&b.to, "to", "", "the registry to push to, host or host:port")
	f.StringVar(&b.repository, "repository", "", "the repository to push to, such as team/app (one Dockerfile only)")
	f.StringSliceVarP(&b.tags, "tag", "t", nil, "a tag to push; may be repeated (default \"latest\")")
	f.StringVar(&b.from, "from", "", "the registry to pull base images from that name none")
	f.BoolVar(&b.insecure, "insecure", false, "speak to the registries over HTTP or with unverified certificates")
	f.Float64Var(&b.cpus, "build-cpu", 0, "CPUs of a build")
	f.Var(&b.mem, "build-mem", "memory of a build, in MB or as 512m, 2g")
	f.Var(&b.disk, "build-disk", "disk of a build, likewise")
	f.StringVar(&b.stagingURI, "staging-uri", "", "where build contexts are staged, readable by the agents: a directory, file://, s3://…\n"+
		"(default: a temporary directory if the master is on this machine)")
	f.IntVar(&b.retries, "retries", 3, "how often a build that the cluster lost is launched again")
	f.StringVar(&b.engine, "engine", "auto", "what builds on the agent: auto, docker (needs --docker-host), dockerd or buildkitd")
	f.StringVar(&b.container.Image, "container-image", "", "run the executor, and the engine, in a container of this image (docker containerizer)")
	f.BoolVar(&b.privileged, "container-privileged", true, "run that container with --privileged")
	f.StringArrayVar(&b.container.Parameters, "container-parameter", nil, "a further flag of docker run, KEY=VALUE, such as cap-add=SYS_ADMIN; may be repeated")
	f.StringArrayVar(&b.container.Volumes, "container-volume", nil, "a volume of that container, HOST:CONTAINER[:ro]; may be repeated")
	f.StringVar(&b.container.Network, "container-network", "", "the network of that container (default \"host\")")
	f.StringArrayVar(&b.constraints, "constraint", nil, "which agents to build on, ATTRIBUTE:OPERATOR[:VALUE], the operators being\n"+
		"CLUSTER, GROUP_BY, IS, LIKE, MAX_PER, UNIQUE and UNLIKE; may be repeated")
	f.Var(&b.oomRetryMem, "oom-retry-mem", "memory of one more attempt for a build that ran out of it (default: there is none)")
	f.DurationVar(&b.timeout, "timeout", 0, "how long a build may take in all (default: no limit)")
	f.DurationVar(&b.queueTimeout, "queue-timeout", 0, "how long a build may wait for an offer (default: no limit)")
	f.DurationVar(&b.connectTimeout, "connect-timeout", 15*time.Second, "how long to try to reach a master; 0 means for ever")

	f.StringVar(&b.dir, "context", "", "the directory of the build context (default: the one that holds the Dockerfile)")
	f.StringVar(&b.target, "target", "", "the stage to build (default: the last)")
	f.StringArrayVar(&b.args, "build-arg", nil, "a build argument, NAME=VALUE, or NAME for its value here; may be repeated")
	f.StringArrayVar(&b.labels, "label", nil, "a label of the image, NAME=VALUE; may be repeated")
	f.StringVar(&b.network, "network", "", "the network of RUN: default, none or host")
	f.StringArrayVar(&b.addHosts, "add-host", nil, "a line of /etc/hosts in RUN, NAME:ADDRESS; may be repeated")
	f.BoolVar(&b.noCache, "no-cache", false, "build every step anew")
	f.BoolVar(&b.pull, "pull", false, "ask the registry for base images even when the engine has them")

	f.BoolVar(&b.stream, "stream", false, "show the output of steps exactly as they write it, without step numbers")
	f.StringVar(&b.progress, "progress", "plain", "plain shows each step and its output, quiet only what fails")
	f.StringVar(&b.metadataFile, "metadata-file", "", "write what was built to this file, as JSON")

	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "tags":
			name = "tag"
		case "docker-executor-image":
			name = "container-image"
		}
		return pflag.NormalizedName(name)
	})
	return cmd, b
}

// A memFlag is an amount of memory in MB of 2^20 bytes.
type memFlag float64

func (m *memFlag) Set(s string) error {
	v, err := dockerfile.ParseMem(s)
	*m = memFlag(v)
	return err
}

func (m *memFlag) String() string {
	if *m == 0 {
		return ""
	}
	return fmt.Sprintf("%gm", float64(*m))
}

func (m *memFlag) Type() string { return "size" }

// An image is one Dockerfile of the command line and what became of it.
type image struct {
	file   string // as messages call it
	req    portainer.Request
	result *portainer.Result
	err    error
}

func (b *buildCommand) run(ctx context.Context, files []string) error {
	if err := b.check(files); err != nil {
		return err
	}
	images, err := b.images(files)
	if err != nil {
		return err
	}
	site, err := b.openSite(ctx)
	if err != nil {
		return err
	}
	err = b.buildOn(ctx, site, images)
	return errors.Join(err, site.close())
}

// check refuses flags that cannot be meant together.
func (b *buildCommand) check(files []string) error {
	if b.explicit("repository") && len(files) > 1 {
		return usagef("--repository names one repository, but there are %d Dockerfiles: give each its own with a line \"# portainer: repository=…\"", len(files))
	}
	if b.progress != "plain" && b.progress != "quiet" {
		return usagef("--progress is plain or quiet, not %q", b.progress)
	}
	if b.stream && b.progress == "quiet" {
		return usagef("--stream shows the output that --progress quiet hides: give one of them")
	}
	if b.retries < 0 {
		return usagef("--retries is a number from 0, not %d", b.retries)
	}
	if b.cpus < 0 {
		return usagef("--build-cpu is a number above 0, not %g", b.cpus)
	}
	if b.container.Image != "" && b.dockerHost != "" {
		return usagef("--container-image brings an engine and --docker-host names one: give one of them")
	}
	_, err := b.engineConfig()
	return err
}

// engineConfig is what --engine and --docker-host say together.
func (b *buildCommand) engineConfig() (portainer.Engine, error) {
	switch {
	case b.engine != "auto" && b.engine != "docker" && b.engine != "dockerd" && b.engine != "buildkitd":
		return portainer.Engine{}, usagef("--engine is auto, docker, dockerd or buildkitd, not %q", b.engine)
	case b.engine == "docker" && b.dockerHost == "":
		return portainer.Engine{}, usagef("--engine docker needs the daemon's address in --docker-host")
	case b.dockerHost != "" && b.engine != "auto" && b.engine != "docker":
		return portainer.Engine{}, usagef("--docker-host gives a daemon, but --engine %s starts one: give one of them", b.engine)
	case b.dockerHost != "":
		return portainer.Engine{Kind: "docker", Host: b.dockerHost}, nil
	}
	return portainer.Engine{Kind: b.engine}, nil
}

// images reads the Dockerfiles and makes a request of each. Every bad one is
// reported.
func (b *buildCommand) images(files []string) ([]*image, error) {
	args, err := b.buildArgs()
	if err != nil {
		return nil, err
	}
	labels, err := pairs("label", b.labels)
	if err != nil {
		return nil, err
	}
	var constraints []portainer.Constraint
	for _, text := range b.constraints {
		c, err := portainer.ParseConstraint(text)
		if err != nil {
			return nil, usagef("--constraint: %w", err)
		}
		constraints = append(constraints, c)
	}
	var images []*image
	var problems []error
	taken := map[string]string{} // image → file
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			file = filepath.Join(file, "Dockerfile")
		}
		req, err := b.request(file)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		req.Args, req.Labels, req.Constraints = args, labels, constraints
		name := req.Registry + "/" + req.Repository
		if other, twice := taken[name]; twice {
			problems = append(problems, usagef("%s and %s would both be pushed to %s: give them different repositories", other, file, name))
			continue
		}
		taken[name] = file
		images = append(images, &image{file: file, req: req})
	}
	if len(problems) > 0 {
		return nil, &usageError{errors.Join(problems...)}
	}
	return images, nil
}

// request makes the request of one Dockerfile. What a flag says explicitly wins
// over the Dockerfile's metadata, and that over the environment.
func (b *buildCommand) request(file string) (portainer.Request, error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return portainer.Request{}, fmt.Errorf("Dockerfile: %w", err)
	}
	parsed, err := dockerfile.Parse(file, source)
	if err != nil {
		return portainer.Request{}, err
	}
	meta := parsed.Metadata()
	req := portainer.Request{
		Registry:   b.text("to", b.to, meta.Registry),
		Repository: b.text("repository", b.repository, meta.Repository),
		Tags:       slices.Clone(b.tags),
		Dir:        b.dir,
		Dockerfile: file,
		Source:     source,
		From:       b.from,
		Insecure:   b.insecure,
		Target:     b.target,
		Network:    b.network,
		AddHosts:   slices.Clone(b.addHosts),
		NoCache:    b.noCache,
		Pull:       b.pull,
	}
	if b.explicit("build-cpu") || meta.CPUs == 0 {
		req.Resources.CPUs = b.cpus
	}
	req.Resources.DiskMB = float64(b.disk)
	if b.explicit("build-mem") || meta.MemMB == 0 {
		req.Resources.MemMB = float64(b.mem)
	}
	if req.Registry == "" {
		return req, fmt.Errorf("%s: no registry to push to: give --to HOST[:PORT], or add a line \"# portainer: registry=HOST\"", file)
	}
	if req.Repository == "" {
		return req, fmt.Errorf("%s: no repository to push to: give --repository PATH, or add a line \"# portainer: repository=PATH\"", file)
	}
	return req, nil
}

// text is the value of a flag that the metadata of a Dockerfile can set too.
func (b *buildCommand) text(flag, value, meta string) string {
	if meta == "" || b.explicit(flag) {
		return value
	}
	return meta
}

// buildArgs are the build arguments. One without a value takes it from the
// environment, and is left out if it is not there.
func (b *buildCommand) buildArgs() (map[string]string, error) {
	var given []string
	for _, arg := range b.args {
		if !strings.Contains(arg, "=") {
			value, ok := b.env(arg)
			if !ok {
				continue
			}
			arg += "=" + value
		}
		given = append(given, arg)
	}
	return pairs("build-arg", given)
}

// pairs splits the values NAME=VALUE of a flag.
func pairs(flag string, values []string) (map[string]string, error) {
	out := map[string]string{}
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		if name == "" {
			return nil, usagef("--%s takes NAME=VALUE, not %q", flag, v)
		}
		out[name] = value
	}
	return out, nil
}

// A buildErrors holds the errors of the images that were not built.
type buildErrors struct{ errs []error }

func (e *buildErrors) Error() string   { return errors.Join(e.errs...).Error() }
func (e *buildErrors) Unwrap() []error { return e.errs }

// buildOn builds the images, all at once, and tells how each ended.
func (b *buildCommand) buildOn(ctx context.Context, site *site, images []*image) error {
	var logs portainer.LogSink = newPlain(b.stderr, b.stream, len(images) > 1)
	var quiet *quietSink
	if b.progress == "quiet" {
		quiet = newQuiet(logs)
		logs = quiet
	}
	engine, err := b.engineConfig()
	if err != nil {
		return err
	}
	secret, err := b.secret()
	if err != nil {
		return err
	}
	container := b.container
	container.Unprivileged = container.Image != "" && !b.privileged
	framework, err := portainer.New(portainer.Config{
		Master:          site.master,
		Role:            b.role,
		FrameworkID:     b.frameworkID,
		Principal:       b.principal,
		Secret:          secret,
		Staging:         site.bucket,
		StagingURL:      site.bucketURL,
		ExecutorURI:     site.executorURI,
		ExecutorCommand: site.executorCommand,
		Container:       container,
		Engine:          engine,
		MaxAttempts:     b.retries + 1,
		OOMRetryMemMB:   float64(b.oomRetryMem),
		ConnectTimeout:  b.connectTimeout,
		BuildTimeout:    b.timeout,
		QueueTimeout:    b.queueTimeout,
		Logs:            logs,
		Logger:          b.logger,
	})
	if err != nil {
		return err
	}

	// The framework outlives the builds, so that cancelled ones are killed in
	// good order.
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(runCtx) }()

	done := make(chan struct{})
	go func() {
		defer close(done)
		var builds sync.WaitGroup
		for _, im := range images {
			builds.Go(func() {
				im.result, im.err = framework.Build(ctx, im.req)
				if im.err == nil {
					b.tellResult(im.result)
				}
			})
		}
		builds.Wait()
	}()
	select {
	case <-done:
	case <-b.abort:
		return fmt.Errorf("%w twice: did not wait for the cluster to tidy up", errInterrupted)
	}
	stop()
	var runErr error
	select {
	case runErr = <-ran:
	case <-b.abort:
		return fmt.Errorf("%w twice: did not wait for the cluster to tidy up", errInterrupted)
	}
	if errors.Is(runErr, context.Canceled) {
		runErr = nil
	}
	return errors.Join(b.tellErrors(ctx, quiet, images, runErr), b.writeMetadata(images))
}

// tellResult writes what was pushed as soon as it is known: what comes later may
// fail.
func (b *buildCommand) tellResult(r *portainer.Result) {
	b.results.Lock()
	defer b.results.Unlock()
	for _, ref := range r.Refs {
		fmt.Fprintln(b.stdout, ref)
	}
}

// tellErrors shows why images were not built, in the order of the command line.
func (b *buildCommand) tellErrors(ctx context.Context, quiet *quietSink, images []*image, runErr error) error {
	if ctx.Err() != nil {
		complain(b.stderr, errInterrupted)
		return &toldError{errInterrupted}
	}
	var errs []error
	if runErr != nil {
		// It explains every build that it stopped.
		complain(b.stderr, runErr)
		errs = append(errs, runErr)
	}
	for _, im := range images {
		if im.err == nil {
			continue
		}
		if runErr == nil || !errors.Is(im.err, portainer.ErrStopped) {
			if quiet != nil {
				quiet.showTail(ctx, im.err)
			}
			complain(b.stderr, im.err)
		}
		errs = append(errs, im.err)
	}
	if len(errs) == 0 {
		return nil
	}
	return &toldError{&buildErrors{errs}}
}
