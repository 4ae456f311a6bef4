package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockerfile"
)

// A buildCommand is one run of "portainer build".
type buildCommand struct {
	frameworkCommand

	to, repository string
	tags           []string
	from           string
	insecure       bool
	cpus           float64
	mem, disk      memFlag
	gpus           int
	constraints    []string
	secretFlags    []string
	sshFlags       []string

	file     string
	options  optionFlags
	outputs  outputFlags
	target   string
	args     []string
	labels   []string
	network  string
	addHosts []string
	noCache  bool
	pull     bool

	explicit func(flag string) bool // given on the command line, not by the environment
}

func newBuild(g *globals) *cobra.Command {
	cmd, _ := newBuildCommand(g)
	return cmd
}

func newBuildCommand(g *globals) (*cobra.Command, *buildCommand) {
	b := &buildCommand{frameworkCommand: frameworkCommand{globals: g}}
	cmd := &cobra.Command{
		Use:   "build [flags] DOCKERFILE|DIRECTORY|URL|-...",
		Short: "Build an image from each Dockerfile and push it",
		Long: `build builds an image from each Dockerfile on an agent of the cluster and pushes
it. A directory stands for the Dockerfile in it, a URL for a git repository or an
archive that the engine fetches by itself, and - for standard input: a Dockerfile,
or an archive of a whole context. With --file the argument is the context, as in
docker build.

The references that were pushed go to standard output, one a line:
host:port/repository:tag@digest. Everything else goes to standard error; so do
the references when an --output takes the standard output.

A Dockerfile can say where its image goes and what its build needs, in a comment:

	# portainer: registry=registry.example.com repository=team/app cpus=2 mem=1g

or in instructions that are taken out before the build: REGISTRY, REPOSITORY,
CPUS or BUILD_CPU, MEM or BUILD_MEM.`,
		Example: `  portainer build --to 127.0.0.1:5000 --repository team/app --tag v1 --tag latest Dockerfile
  portainer build --mesos-master zk://zk1,zk2,zk3/mesos --staging-uri s3://bucket a/Dockerfile b/Dockerfile`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && b.file == "" {
				return usagef("no Dockerfile given: see portainer build --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			b.explicit = cmd.Flags().Changed
			return b.build(cmd.Context(), args)
		},
	}
	b.addBuildFlags(cmd)
	return cmd, b
}

// addBuildFlags gives cmd its flags.
func (b *buildCommand) addBuildFlags(cmd *cobra.Command) {
	groups := flagGroups{}
	f := groups.of(whatIsBuilt)
	f.StringVarP(&b.file, "file", "f", "", "the Dockerfile of the context that the argument then is: a directory, a URL or - (an archive);\n"+
		"- is standard input")
	b.content.addFlags(f)
	f.StringVar(&b.target, "target", "", "the `STAGE` to build (default: the last)")
	f.StringArrayVar(&b.args, "build-arg", nil, "a build argument, `NAME=VALUE`, or NAME for its value here; may be repeated")
	f.StringArrayVar(&b.secretFlags, "secret", nil, "a secret for RUN --mount=type=secret, `id=NAME[,src=FILE|,env=VARIABLE]`; may be repeated")
	f.StringArrayVar(&b.sshFlags, "ssh", nil, "an ssh agent for RUN --mount=type=ssh, default or `ID[=SOCKET|KEY]`; may be repeated")

	f = groups.of(whereItGoes)
	f.StringVar(&b.to, "to", "", "the registry to push to, `HOST[:PORT]`")
	f.StringVar(&b.repository, "repository", "", "the repository to push to, a `PATH` such as team/app (one Dockerfile only)")
	f.StringSliceVarP(&b.tags, "tag", "t", nil, "a `TAG` to push; may be repeated (default \"latest\")")
	b.outputs.addFlags(f)
	f.StringVar(&b.iidFile, "iidfile", "", "write the image's ID to this `FILE` (one Dockerfile only)")

	f = groups.of(whatTheImage)
	f.StringArrayVar(&b.labels, "label", nil, "a label of the image, `NAME=VALUE`; may be repeated")

	f = groups.of(howStepsRun)
	f.StringVar(&b.network, "network", "", "the network of RUN: default, none or host")
	f.StringArrayVar(&b.addHosts, "add-host", nil, "a line of /etc/hosts in RUN, `NAME:ADDRESS`; may be repeated")

	f = groups.of(whatIsCached)
	f.BoolVar(&b.noCache, "no-cache", false, "build every step anew")

	f = groups.of(whatItNeeds)
	f.Float64Var(&b.cpus, "build-cpu", 0, "CPUs of a build")
	f.Var(&b.mem, "build-mem", "memory of a build, in MB or as 512m, 2g")
	f.Var(&b.disk, "build-disk", "disk of a build, likewise")
	f.IntVar(&b.gpus, "build-gpu", 0, "GPUs of a build, whole ones; only then are agents with GPUs asked for")
	f.StringArrayVar(&b.constraints, "constraint", nil, "which agents to build on, `ATTRIBUTE:OPERATOR[:VALUE]`, the operators being\n"+
		"CLUSTER, GROUP_BY, IS, LIKE, MAX_PER, UNIQUE and UNLIKE; may be repeated")

	f = groups.of(whichRegistries)
	f.StringVar(&b.from, "from", "", "the registry to pull base images from that name none, `HOST[:PORT]`")
	f.BoolVar(&b.pull, "pull", false, "ask the registry for base images even when the engine has them")
	f.BoolVar(&b.insecure, "insecure", false, "speak to the registries over HTTP or with unverified certificates")

	b.options.addFlags(groups)
	b.addFlags(groups)
	groups.addTo(cmd, b.console.columns)
	addForeignFlags(cmd.Flags())
	cmd.Flags().SetNormalizeFunc(normalizeFlag)
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

func (b *buildCommand) build(ctx context.Context, files []string) error {
	if b.explicit("repository") && len(files) > 1 {
		return usagef("--repository names one repository, but there are %d Dockerfiles: give each its own with a line \"# portainer: repository=…\"", len(files))
	}
	if b.iidFile != "" && len(files) > 1 {
		return usagef("--iidfile is for one image, but there are %d Dockerfiles: use --metadata-file", len(files))
	}
	if b.gpus < 0 {
		return usagef("--build-gpu is a whole number from 0, not %d", b.gpus)
	}
	if b.cpus < 0 {
		return usagef("--build-cpu is a number above 0, not %g", b.cpus)
	}
	if err := b.check(); err != nil {
		return err
	}
	if b.file != "" && len(files) > 1 {
		return usagef("--file names the Dockerfile of one context, but there are %d", len(files))
	}
	if len(files) == 0 {
		files = []string{b.file}
	}
	in := &inputs{stdin: b.stdin, limit: int64(b.content.limit), context: b.content.dir, file: b.file}
	jobs, err := b.jobs(ctx, in, files)
	if err == nil {
		b.name = frameworkName(jobs)
		err = b.run(ctx, func(*portainer.Framework) []*job { return jobs })
	}
	if closeErr := in.close(); err == nil {
		err = closeErr
	}
	return err
}

// jobs reads the Dockerfiles and makes a job of each. Every bad one is reported.
func (b *buildCommand) jobs(ctx context.Context, in *inputs, files []string) ([]*job, error) {
	common, err := b.common(len(files))
	if err != nil {
		return nil, err
	}
	var jobs []*job
	var problems []error
	taken := map[string]string{} // image → file
	for _, file := range files {
		j, err := b.job(ctx, in, file, common, taken)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		jobs = append(jobs, j)
	}
	if len(problems) > 0 {
		return nil, &usageError{errors.Join(problems...)}
	}
	return jobs, nil
}

// common is what the flags say of each of so many Dockerfiles alike.
func (b *buildCommand) common(files int) (req portainer.Request, err error) {
	req = portainer.Request{
		Tags:     b.tags,
		From:     b.from,
		Insecure: b.insecure,
		Target:   b.target,
		Network:  b.network,
		AddHosts: b.addHosts,
		NoCache:  b.noCache,
		Pull:     b.pull,
	}
	if req.Outputs, err = b.outputs.list(files); err != nil {
		return req, err
	}
	if req.Args, err = b.buildArgs(); err != nil {
		return req, err
	}
	if req.Labels, err = pairs("label", b.labels); err != nil {
		return req, err
	}
	if req.Options, err = b.options.options(); err != nil {
		return req, err
	}
	if req.Secrets, err = b.buildSecrets(b.secretFlags); err != nil {
		return req, err
	}
	if req.SSH, err = b.sshAgents(b.sshFlags); err != nil {
		return req, err
	}
	for _, text := range b.constraints {
		c, err := portainer.ParseConstraint(text)
		if err != nil {
			return req, usagef("--constraint: %w", err)
		}
		req.Constraints = append(req.Constraints, c)
	}
	return req, nil
}

// job makes the job of one argument, and notes in taken which file its image is of.
func (b *buildCommand) job(ctx context.Context, in *inputs, arg string, common portainer.Request, taken map[string]string) (*job, error) {
	given, err := in.input(ctx, arg)
	if err != nil {
		return nil, err
	}
	req, err := b.request(common, given)
	if err != nil {
		return nil, err
	}
	if err := b.settings.engine.Check(req); err != nil {
		return nil, err
	}
	name := ""
	if req.Repository != "" {
		name = strings.TrimPrefix(req.Registry+"/"+req.Repository, "/")
	}
	if other, twice := taken[name]; twice && req.Pushes() {
		return nil, usagef("%s and %s would both be pushed to %s: give them different repositories", other, given.name, name)
	}
	taken[name] = given.name
	return &job{file: given.name, image: name, build: func(ctx context.Context, f *portainer.Framework) (*portainer.Result, error) {
		if req.Pushes() {
			if err := b.checkPush(ctx, req); err != nil {
				return nil, err
			}
		}
		return f.Build(ctx, req)
	}}, nil
}

// request adds to req what one Dockerfile says. What a flag says explicitly wins over
// the Dockerfile's metadata, and that over the environment.
func (b *buildCommand) request(req portainer.Request, in input) (portainer.Request, error) {
	var meta dockerfile.Metadata
	if in.source != nil {
		parsed, err := dockerfile.Parse(in.name, in.source)
		if err != nil {
			return req, err
		}
		meta = parsed.Metadata()
	}
	req.Registry = b.text("to", b.to, meta.Registry)
	req.Repository = b.text("repository", b.repository, meta.Repository)
	req.Dir, req.Dockerfile, req.Source, req.Bundler, req.Remote = in.dir, in.dockerfile, in.source, in.bundler, in.remote
	if b.explicit("build-cpu") || meta.CPUs == 0 {
		req.Resources.CPUs = b.cpus
	}
	req.Resources.DiskMB = float64(b.disk)
	if b.explicit("build-gpu") || meta.GPUs == 0 {
		req.Resources.GPUs = float64(b.gpus)
	}
	b.wantGPUs = b.wantGPUs || meta.GPUs > 0 || b.gpus > 0
	if b.explicit("build-mem") || meta.MemMB == 0 {
		req.Resources.MemMB = float64(b.mem)
	}
	if !req.Pushes() {
		return req, nil
	}
	if req.Registry == "" {
		return req, fmt.Errorf("%s: no registry to push to: give --to HOST[:PORT]%s", in.name, in.hint("registry", "HOST"))
	}
	if req.Repository == "" {
		return req, fmt.Errorf("%s: no repository to push to: give --repository PATH%s", in.name, in.hint("repository", "PATH"))
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
