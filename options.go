package portainer

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/wire"
)

// Options are what few builds ask for. The zero value asks for nothing. No engine
// can do everything: one that cannot do what is asked for refuses the build and
// says which can (docs/engines.md has the table).
type Options struct {
	// Platforms are what the image is for, such as "linux/arm64". Several make
	// an index. None means that of the agent, whose engine must be able to run
	// the commands of a foreign one.
	Platforms []string
	// NoCacheFilter names Dockerfile stages that are built anew.
	NoCacheFilter []string
	// CacheFrom and CacheTo are where a build's cache comes from and goes to: an
	// image reference, or a list of attributes such as
	// "type=registry,ref=host/team/app:cache,mode=max", as docker buildx has it.
	CacheFrom, CacheTo []string
	// BuildContexts are further contexts by the name that FROM and COPY --from
	// use: "docker-image://<reference>", the URL of a git repository or of a file,
	// or a directory on this machine, which is bundled as DirBundler does it, with
	// the .dockerignore in its root, and staged. A context that has the name of a
	// stage or an image takes its place.
	BuildContexts map[string]string
	// Annotations are added to the image's manifest.
	Annotations map[string]string
	// Ulimits bound the processes of RUN, as "nofile=1024:2048".
	Ulimits []string
	// ShmSize is the size of /dev/shm for RUN in bytes. 0 means the engine's own.
	ShmSize int64
	// CgroupParent is the cgroup that those of RUN are made below, as a path, or a
	// slice of systemd's, that the given daemon finds on its machine. The steps of an
	// engine that the executor starts stay in the task's own cgroup: it refuses
	// another. "" leaves it to the engine.
	CgroupParent string
	// Compression of the layers: "gzip", "zstd", "estargz" or "uncompressed". ""
	// means gzip. CompressionLevel is that of the algorithm; 0 means its default.
	Compression      string
	CompressionLevel int
	// SourceDateEpoch, in seconds since 1970, takes the place of every time in
	// the image. "" leaves them.
	SourceDateEpoch string
	// Provenance attests how the image was built, "min" or "max". "" attests
	// nothing.
	Provenance string
	// SBOM attests what is in the image. It is the reference of the image that
	// finds it out, or "default" for BuildKit's own choice.
	SBOM string
	// Squash makes one layer of all that the Dockerfile adds.
	Squash bool
}

// Check tells, in an error that wraps ErrInvalid, what req, or the metadata of its
// Dockerfile, asks for that none of the builders can do that e may have, and which
// builders can. Framework.Build does so too, before it sends anything. What an agent
// alone can know, such as whether its daemon is in experimental mode, shows when the
// build is there.
func (e Engine) Check(req Request) error {
	if err := locate(&req); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	_, err := namedContexts(req.Options.BuildContexts)
	if err := errors.Join(err, checkFrom(&req, req.From)); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := parse(&req); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	err = able(&wire.Task{
		Engine:     wire.Engine{Kind: e.Kind, Host: e.Host},
		Dockerfile: req.Source,
		Remote:     req.Remote,
		Network:    req.Network,
		AddHosts:   req.AddHosts,
		Options:    wire.Options(req.Options),
		SSH:        slices.Sorted(maps.Keys(req.SSH)),
		Outputs:    wireOutputs(req.Outputs),
	})
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, req.Dockerfile, err)
	}
	return nil
}

// able reports what no builder that task may get can do.
func able(task *wire.Task) error {
	if err := errors.Join(ability.CheckRun(task.Network, task.AddHosts), ability.Check(task.Options), ability.CheckCgroup(task.Options, task.Engine.Host), ability.CheckOutputs(task)); err != nil {
		return err
	}
	builders, name := ability.Of(task.Engine)
	_, err := ability.Asked(task).Choose(builders, name)
	return err
}
