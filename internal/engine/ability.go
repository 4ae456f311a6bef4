package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/org/portainer"
)

// A builder is what runs a Dockerfile. They differ in what they can do.
type builder int

const (
	classicBuilder builder = iota // of any Docker daemon
	oldBuildKit                   // of a Docker daemon before 23
	dockerBuildKit                // of a Docker daemon since 23
	standalone                    // buildkitd
	builders
)

func (b builder) String() string {
	return [builders]string{"docker: classic builder", "docker before 23: BuildKit", "docker 23 and later: BuildKit",
		"buildkitd"}[b]
}

// An ability is something that not every builder can do.
type ability struct {
	name  string
	asked func(j *job) bool
	by    []builder
}

// abilities are all of them. What Docker's BuildKits can do is from moby
// daemon/internal/builder-next and api/types/build.
var abilities = []ability{
	{"instructions of BuildKit (RUN --mount, COPY --chmod, …)", func(j *job) bool { return j.script.buildKit != "" },
		[]builder{oldBuildKit, dockerBuildKit, standalone}},
	{"here-documents, COPY --link", func(j *job) bool { return j.script.newer != "" },
		[]builder{dockerBuildKit, standalone}},
	{"several platforms", func(j *job) bool { return len(j.req.Options.Platforms) > 1 }, []builder{standalone}},
	{"one platform", func(j *job) bool { return len(j.req.Options.Platforms) == 1 },
		[]builder{oldBuildKit, dockerBuildKit, standalone}},
	{"no-cache-filter", func(j *job) bool { return len(j.req.Options.NoCacheFilter) > 0 },
		[]builder{oldBuildKit, dockerBuildKit, standalone}},
	{"cache-from image", func(j *job) bool { return len(j.req.Options.CacheFrom) > 0 },
		[]builder{classicBuilder, oldBuildKit, dockerBuildKit, standalone}},
	{"cache-from with attributes", func(j *job) bool { return slices.ContainsFunc(j.req.Options.CacheFrom, isAttributes) },
		[]builder{oldBuildKit, dockerBuildKit, standalone}},
	{"cache-to type=inline", func(j *job) bool { return len(j.req.Options.CacheTo) > 0 },
		[]builder{oldBuildKit, dockerBuildKit, standalone}},
	{"cache-to other types", func(j *job) bool { return slices.ContainsFunc(j.req.Options.CacheTo, notInline) }, []builder{standalone}},
	{"build-context", func(j *job) bool { return len(j.req.Options.BuildContexts) > 0 }, []builder{dockerBuildKit, standalone}},
	{"annotation", func(j *job) bool { return len(j.req.Options.Annotations) > 0 }, []builder{standalone}},
	{"ulimit", func(j *job) bool { return len(j.req.Options.Ulimits) > 0 },
		[]builder{classicBuilder, dockerBuildKit, standalone}},
	{"shm-size", func(j *job) bool { return j.req.Options.ShmSize > 0 }, []builder{classicBuilder, dockerBuildKit, standalone}},
	{"compression", func(j *job) bool { return j.req.Options.Compression != "" || j.req.Options.CompressionLevel != 0 },
		[]builder{standalone}},
	{"source-date-epoch", func(j *job) bool { return j.req.Options.SourceDateEpoch != "" }, []builder{standalone}},
	{"provenance", func(j *job) bool { return j.req.Options.Provenance != "" }, []builder{standalone}},
	{"sbom", func(j *job) bool { return j.req.Options.SBOM != "" }, []builder{standalone}},
	{"squash (a daemon in experimental mode)", func(j *job) bool { return j.req.Options.Squash }, []builder{classicBuilder}},
}

// isAttributes reports whether a place of cache is given by attributes.
func isAttributes(s string) bool { return strings.Contains(s, "=") }

func notInline(s string) bool { return s != "inline" && s != "type=inline" }

// choose returns the first of those builders that can do everything that j asks
// for.
func (j *job) choose(from []builder, engine string) (builder, error) {
	var lacking []string
	for i, b := range from {
		var lacks []string
		for _, a := range abilities {
			if a.asked(j) && !slices.Contains(a.by, b) {
				lacks = append(lacks, a.name)
			}
		}
		if len(lacks) == 0 {
			return b, nil
		}
		if i == 0 || len(lacks) < len(lacking) {
			lacking = lacks
		}
	}
	return 0, invalid(fmt.Errorf("%s cannot do this: %s; %s", engine, strings.Join(lacking, ", "), j.whoCan()))
}

// whoCan says what builder could do all that j asks for.
func (j *job) whoCan() string {
	var can []string
	for b := range builders {
		all := true
		for _, a := range abilities {
			all = all && (!a.asked(j) || slices.Contains(a.by, b))
		}
		if all {
			can = append(can, b.String())
		}
	}
	if len(can) == 0 {
		return "no engine can do all that is asked for"
	}
	return "these can: " + strings.Join(can, "; ")
}

// checkOptions finds values of Options that no builder takes.
func checkOptions(o portainer.Options) error {
	switch o.Compression {
	case "", "gzip", "zstd", "estargz", "uncompressed":
	default:
		return fmt.Errorf("compression %q: it must be gzip, zstd, estargz or uncompressed", o.Compression)
	}
	if o.SourceDateEpoch != "" && number(o.SourceDateEpoch) < 0 {
		return fmt.Errorf("source-date-epoch %q: it must be a number of seconds since 1970", o.SourceDateEpoch)
	}
	switch o.Provenance {
	case "", "min", "max":
	default:
		return fmt.Errorf("provenance %q: it must be min or max", o.Provenance)
	}
	for _, s := range append(slices.Clone(o.CacheFrom), o.CacheTo...) {
		if _, err := cachePlace(s); err != nil {
			return err
		}
	}
	for name, from := range o.BuildContexts {
		if !strings.Contains(from, "://") {
			return fmt.Errorf("build-context %s=%s: only docker-image:// and URLs can be used, as directories are not sent", name, from)
		}
	}
	return nil
}
