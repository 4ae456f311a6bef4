package portainer

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"

	"github.com/org/portainer/internal/dockerfile"
	"github.com/org/portainer/internal/wire"
)

// maxDockerfile bounds the text of a Dockerfile: it travels in the task, which
// masters and agents keep in memory.
const maxDockerfile = 512 << 10

// prepare reads and checks all that req names, stages its context, and returns
// what the ledger needs. Errors are *BuildError.
func (f *Framework) prepare(ctx context.Context, req Request) (*buildSpec, error) {
	if req.ID == "" {
		req.ID = newBuildID()
	}
	failure := &BuildError{ID: req.ID, Phase: PhaseRead, Class: ClassInvalid}
	spec, file, err := f.read(&req)
	failure.Image = spec.image
	if err != nil {
		failure.Err = err
		return nil, failure
	}
	if failure := f.needSecrets(ctx, req, spec); failure != nil {
		return nil, failure
	}
	inputs, err := f.inputs(req, spec, file)
	if err != nil {
		failure.Err = err
		return nil, failure
	}
	if err := f.stage(ctx, spec, inputs); err != nil {
		return nil, err
	}
	return spec, nil
}

// newBuildID returns an id that no other build of any framework has. Its
// characters are those that Mesos allows in a task id and docker in a volume.
func newBuildID() BuildID {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return BuildID("b" + hex.EncodeToString(b[:]))
}

// validID is what a BuildID may consist of: it becomes part of a path and of the
// name of a container.
func validID(id BuildID) bool {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '.' || r == '-'
	}
	return id != "" && len(id) <= 128 && id[0] != '.' && strings.IndexFunc(string(id), func(r rune) bool { return !ok(r) }) < 0
}

// read reads the Dockerfile and joins req, its metadata and the config. It fills
// in req's paths. With an error, the spec has the name of the image if that is good.
func (f *Framework) read(req *Request) (*buildSpec, *dockerfile.File, error) {
	spec := &buildSpec{id: req.ID, maxAttempts: f.cfg.MaxAttempts, oomRetryMB: f.cfg.OOMRetryMemMB}
	file, err := readDockerfile(req)
	if err != nil {
		return spec, nil, err
	}
	spec.file = req.Dockerfile
	if elsewhere(req) {
		spec.file = req.Remote
	}
	if err := f.plan(spec, req, file.Metadata()); err != nil {
		return spec, nil, err
	}
	if err := f.render(spec, req, file); err != nil {
		return spec, nil, err
	}
	return spec, file, nil
}

// readDockerfile reads the Dockerfile of req, and fills in what req leaves to it or to
// where it lies.
func readDockerfile(req *Request) (*dockerfile.File, error) {
	if !validID(req.ID) {
		return nil, fmt.Errorf("build id %q: letters, digits, '_', '.' and '-' only, 128 at most", req.ID)
	}
	if err := locate(req); err != nil {
		return nil, err
	}
	var err error
	if req.Options.BuildContexts, err = namedContexts(req.Options.BuildContexts); err != nil {
		return nil, err
	}
	return parse(req)
}

// plan notes in spec what the build needs of the cluster, and what becomes of its image.
func (f *Framework) plan(spec *buildSpec, req *Request, meta dockerfile.Metadata) error {
	for _, c := range req.Constraints {
		if _, err := newRule(c); err != nil {
			return err
		}
	}
	spec.constraints = slices.Concat(f.cfg.Constraints, req.Constraints)
	f.fill(&spec.task, req, meta)
	if err := f.planOutputs(&spec.task, req.Outputs); err != nil {
		return err
	}
	spec.outputs = cloneOutputs(req.Outputs)
	if err := checkNames(&spec.task, spec.file, req.Pushes()); err != nil {
		return err
	}
	if spec.task.Repository != "" {
		spec.image = strings.TrimPrefix(spec.task.Registry+"/"+spec.task.Repository, "/")
	}
	wanted := Resources{
		CPUs: spec.task.CPUs, MemMB: spec.task.MemMB, DiskMB: spec.task.DiskMB, GPUs: cmp.Or(req.Resources.GPUs, meta.GPUs, f.cfg.Resources.GPUs),
	}
	if err := checkAmounts(wanted); err != nil {
		return fmt.Errorf("%s: %w", spec.file, err)
	}
	if wanted.GPUs > 0 && !f.cfg.GPUs {
		return fmt.Errorf("%s: it needs %v GPUs, but without Config.GPUs this framework is offered no agent that has any", spec.file, wanted.GPUs)
	}
	spec.resources = wanted.Add(executorShare)
	return nil
}

// render notes in spec the Dockerfile as the engine is to have it, and how the registries
// that it names are spoken to, and checks that there is an engine for it.
func (f *Framework) render(spec *buildSpec, req *Request, file *dockerfile.File) error {
	from := cmp.Or(req.From, f.cfg.From)
	if err := checkFrom(req, from); err != nil {
		return err
	}
	text, err := file.Render(from)
	if err != nil {
		return err
	}
	if len(text) > maxDockerfile {
		return fmt.Errorf("%s: %s is too long for a Dockerfile; the limit is %s",
			spec.file, units.BytesSize(float64(len(text))), units.BytesSize(maxDockerfile))
	}
	spec.task.Dockerfile = text
	spec.registries = f.cfg.withMirrors(registriesOf(spec.task.Registry, from, file, req))
	if req.Insecure || f.cfg.Insecure {
		spec.task.Insecure = insecure(spec.task.Registry, from)
	}
	f.cfg.tellRegistries(&spec.task, spec.registries)
	if err := able(&spec.task); err != nil {
		return fmt.Errorf("%s: %w", spec.file, err)
	}
	return nil
}

// parse reads the text of the Dockerfile, if it is here, and writes into req which options
// its metadata has where req is silent.
func parse(req *Request) (*dockerfile.File, error) {
	if elsewhere(req) {
		return dockerfile.Unknown(req.Dockerfile), nil
	}
	file, err := dockerfile.Parse(req.Dockerfile, req.Source)
	if err == nil {
		file, err = file.With(dockerfileOptions(*req))
	}
	if err != nil {
		return nil, err
	}
	req.Target = cmp.Or(req.Target, file.Metadata().Target)
	if len(req.Options.Platforms) == 0 {
		req.Options.Platforms = slices.Clone(file.Metadata().Platforms)
	}
	_, err = file.Target(req.Target)
	return file, err
}

// dockerfileOptions are what a request says about its Dockerfile. The names of
// contexts that cannot be names match nothing.
func dockerfileOptions(req Request) dockerfile.Options {
	opt := dockerfile.Options{Args: req.Args}
	for name := range req.Options.BuildContexts {
		if name, err := dockerfile.ContextName(name); err == nil {
			opt.Contexts = append(opt.Contexts, name)
		}
	}
	return opt
}

// locate fills in the paths and the text of the Dockerfile.
func locate(req *Request) error {
	if req.Remote != "" {
		return locateRemote(req)
	}
	switch {
	case req.Dockerfile == "" && req.Dir == "" && req.Source == nil:
		return errors.New("no Dockerfile: give Dir, Dockerfile or Source")
	case req.Dockerfile == "":
		req.Dockerfile = filepath.Join(req.Dir, "Dockerfile")
	case req.Dir == "":
		req.Dir = filepath.Dir(req.Dockerfile)
	}
	if req.Source != nil {
		return nil
	}
	text, err := os.ReadFile(req.Dockerfile)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return fmt.Errorf("%s: %w", req.Dockerfile, err)
	}
	req.Source = text
	return nil
}

// fill writes into task what req asks for, what the Dockerfile says where req is
// silent, and what the config says where both are.
func (f *Framework) fill(task *wire.Task, req *Request, meta dockerfile.Metadata) {
	cfg := &f.cfg
	*task = wire.Task{
		Build:      string(req.ID),
		Registry:   strings.TrimSuffix(cmp.Or(req.Registry, meta.Registry, cfg.Registry), "/"),
		Repository: strings.Trim(cmp.Or(req.Repository, meta.Repository), "/"),
		Tags:       slices.Clone(req.Tags),
		Name:       req.Dockerfile,
		Engine:     cfg.Engine.wire(),
		Target:     req.Target,
		Args:       maps.Clone(req.Args),
		Labels:     maps.Clone(req.Labels),
		Network:    req.Network,
		AddHosts:   slices.Clone(req.AddHosts),
		NoCache:    req.NoCache,
		Pull:       req.Pull,
		Remote:     req.Remote,
		Options:    wire.Options(req.Options),
		SSH:        slices.Sorted(maps.Keys(req.SSH)),
		LogRoute:   true,
		CPUs:       cmp.Or(req.Resources.CPUs, meta.CPUs, cfg.Resources.CPUs),
		MemMB:      cmp.Or(req.Resources.MemMB, meta.MemMB, cfg.Resources.MemMB),
		DiskMB:     cmp.Or(req.Resources.DiskMB, cfg.Resources.DiskMB),
	}
	if task.Repository == "" && !req.Pushes() {
		task.Registry = "" // the image has no name
		return
	}
	if len(task.Tags) == 0 {
		task.Tags = []string{"latest"}
	}
}

// checkAmounts checks that r can be asked for.
func checkAmounts(r Resources) error {
	for _, want := range []struct {
		name   string
		amount float64
	}{{resourceCPUs, r.CPUs}, {resourceMem, r.MemMB}, {resourceDisk, r.DiskMB}, {resourceGPUs, r.GPUs}} {
		if !validAmount(want.amount) {
			return fmt.Errorf("%s: %v is no amount", want.name, want.amount)
		}
	}
	return nil
}

// validAmount reports whether v is a number that is not negative.
func validAmount(v float64) bool { return v >= 0 && !math.IsInf(v, 0) }

// checkNames checks what becomes a reference. An image that is not pushed need not have
// one.
func checkNames(task *wire.Task, file string, pushes bool) error {
	if task.Repository == "" && !pushes {
		if len(task.Tags) > 0 {
			return fmt.Errorf("%s: a tag needs a repository: give one with the request (--repository)", file)
		}
		return nil
	}
	if task.Repository == "" {
		return fmt.Errorf("%s: no repository to push to: add \"# portainer: repository=team/app\" or a REPOSITORY instruction, or give one with the request (--repository)", file)
	}
	if task.Registry == "" && pushes {
		return fmt.Errorf("%s: no registry to push to: add \"# portainer: registry=host:port\" or a REGISTRY instruction, or give one with the request (--to)", file)
	}
	if strings.Contains(task.Registry, "://") {
		return fmt.Errorf("%s: registry %q: it must be host or host:port, without a scheme; whether it speaks TLS is said with the request (--insecure)", file, task.Registry)
	}
	name := strings.TrimPrefix(task.Registry+"/"+task.Repository, "/")
	if task.Registry == "" {
		return checkLocalName(task, file, name)
	}
	named, err := reference.ParseNamed(name)
	if err != nil {
		return fmt.Errorf("%s: %q cannot be pushed to: %w", file, name, err)
	}
	if reference.Domain(named) != task.Registry || !reference.IsNameOnly(named) {
		return fmt.Errorf("%s: %q cannot be pushed to: registry must be host:port, repository a path without tag or digest", file, name)
	}
	return checkTags(task, file, named)
}

// checkLocalName checks the name of an image that is not pushed.
func checkLocalName(task *wire.Task, file, name string) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil || !reference.IsNameOnly(named) {
		return fmt.Errorf("%s: %q is no name of an image: it must be a path without tag or digest", file, name)
	}
	return checkTags(task, file, named)
}

// checkTags checks the tags of an image.
func checkTags(task *wire.Task, file string, image reference.Named) error {
	for _, tag := range task.Tags {
		if _, err := reference.WithTag(image, tag); err != nil {
			return fmt.Errorf("%s: tag %q: %w: letters, digits, '_', '.' and '-' only, 128 at most", file, tag, err)
		}
	}
	return nil
}

// insecure lists the registries of a build.
func insecure(registry, from string) []string {
	host, _, _ := strings.Cut(from, "/")
	list := slices.Compact([]string{registry, host})
	return slices.DeleteFunc(list, func(r string) bool { return r == "" })
}

// sweepTimeout bounds how long the removal of staged contexts is waited for.
const sweepTimeout = 30 * time.Second

// sweepStaging removes what no build uses any more, id's context above all.
func (f *Framework) sweepStaging(ctx context.Context, id BuildID) {
	if f.stager == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	if err := f.stager.sweep(ctx); err != nil {
		f.cfg.Logger.Warn("staged context could not be removed", "build", id, "err", err)
	}
}

// announceFailure tells the sink of a build that never got to the loop.
func (f *Framework) announceFailure(ctx context.Context, err error) {
	ev := Event{Kind: EventFailed, Time: time.Now(), Err: err}
	var failure *BuildError
	if errors.As(err, &failure) {
		ev.Build, ev.Image = failure.ID, failure.Image
	}
	f.cfg.Logs.HandleEvent(ctx, ev)
}
