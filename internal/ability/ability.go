// Package ability knows what each builder can do, so that a build that nothing can
// do is refused before its context is sent, and what an engine has to say for
// itself is the same.
package ability

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/org/portainer/internal/script"
	"github.com/org/portainer/internal/wire"
)

// A Builder is what runs a Dockerfile. They differ in what they can do.
type Builder int

// The builders.
const (
	Classic        Builder = iota // of any Docker daemon
	OldBuildKit                   // of a Docker daemon before 23
	DockerBuildKit                // of a Docker daemon since 23
	Standalone                    // buildkitd
	Builders
)

func (b Builder) String() string {
	return [Builders]string{"docker: classic builder", "docker before 23: BuildKit", "docker 23 and later: BuildKit",
		"buildkitd"}[b]
}

// Of returns the builders that an engine can turn out to have, none if there is no
// such engine, and how messages call it.
func Of(e wire.Engine) (builders []Builder, name string) {
	docker := []Builder{Classic, OldBuildKit, DockerBuildKit}
	kind := cmp.Or(e.Kind, "auto")
	if kind == "auto" && e.Host != "" {
		kind = "docker"
	}
	switch kind {
	case "docker":
		return docker, "the docker daemon at " + e.Host
	case "dockerd":
		return docker, "engine dockerd"
	case "buildkitd":
		return []Builder{Standalone}, "engine buildkitd"
	case "auto":
		return append(docker, Standalone), "engine auto"
	}
	return nil, fmt.Sprintf("engine %q", e.Kind)
}

// A Build is what is asked of a builder, as far as builders differ.
type Build struct {
	Script  *script.Script
	Options wire.Options
	// Staged is how many further contexts there are that are not in Options.
	Staged int
	// Remote is the URL of a context that the builder fetches by itself, "" if there
	// is none. OwnText tells that the Dockerfile is not in it.
	Remote  string
	OwnText bool
	// Mirrored are the registries that have mirrors.
	Mirrored []string
	// SSH are the ids of ssh agents.
	SSH     []string
	Outputs []wire.Output
}

// Asked is what task asks of a builder.
func Asked(task *wire.Task) *Build {
	b := &Build{
		Script: script.Read(task.Dockerfile), Options: task.Options, Staged: len(task.Contexts), Remote: task.Remote, OwnText: len(task.Dockerfile) > 0,
		SSH: task.SSH, Outputs: task.Outputs,
	}
	for _, r := range task.Registries {
		if len(r.Mirrors) > 0 {
			b.Mirrored = append(b.Mirrored, r.Host)
		}
	}
	return b
}

// An Ability is something that not every builder can do.
type Ability struct {
	Name  string
	By    []Builder
	asked func(b *Build) bool
}

// Table has all of them. What Docker's BuildKits can do is from moby
// daemon/internal/builder-next and api/types/build.
var Table = []Ability{
	{"instructions of BuildKit (RUN --mount, COPY --chmod, …)", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Script.BuildKit != "" }},
	{"here-documents, COPY --link", []Builder{DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Script.Newer != "" }},
	{"several platforms", []Builder{Standalone},
		func(b *Build) bool { return len(b.Options.Platforms) > 1 }},
	{"one platform", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.Platforms) == 1 }},
	{"no-cache-filter", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.NoCacheFilter) > 0 }},
	{"cache-from image", []Builder{Classic, OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.CacheFrom) > 0 }},
	{"cache-from with attributes", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return slices.ContainsFunc(b.Options.CacheFrom, isAttributes) }},
	{"cache-to type=inline", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.CacheTo) > 0 }},
	{"cache-to of a type other than inline", []Builder{Standalone},
		func(b *Build) bool { return slices.ContainsFunc(b.Options.CacheTo, notInline) }},
	{"build-context", []Builder{DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.BuildContexts)+b.Staged > 0 }},
	{"remote context", []Builder{Classic, OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Remote != "" }},
	{"remote context in a directory of a git repository", []Builder{Classic, DockerBuildKit, Standalone},
		func(b *Build) bool { return inDirectory(b.Remote) }},
	{"remote context, with a Dockerfile from here", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Remote != "" && b.OwnText }},
	{"annotation", []Builder{Standalone},
		func(b *Build) bool { return len(b.Options.Annotations) > 0 }},
	{"ulimit", []Builder{Classic, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.Options.Ulimits) > 0 }},
	{"shm-size", []Builder{Classic, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Options.ShmSize > 0 }},
	{"cgroup-parent (a given daemon)", []Builder{Classic, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.Options.CgroupParent != "" }},
	{"compression", []Builder{Standalone},
		func(b *Build) bool { return b.Options.Compression != "" || b.Options.CompressionLevel != 0 }},
	{"source-date-epoch", []Builder{Standalone},
		func(b *Build) bool { return b.Options.SourceDateEpoch != "" }},
	{"provenance", []Builder{Standalone},
		func(b *Build) bool { return b.Options.Provenance != "" }},
	{"sbom", []Builder{Standalone},
		func(b *Build) bool { return b.Options.SBOM != "" }},
	{"ssh", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return len(b.SSH) > 0 }},
	{"mirrors of registries other than docker.io", []Builder{Standalone},
		func(b *Build) bool {
			return slices.ContainsFunc(b.Mirrored, func(host string) bool { return host != "docker.io" })
		}},
	{"output type=docker", []Builder{Classic, OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.writes("docker") }},
	{"output type=tar, type=local", []Builder{OldBuildKit, DockerBuildKit, Standalone},
		func(b *Build) bool { return b.writes("tar") }},
	{"output type=oci", []Builder{Standalone},
		func(b *Build) bool { return b.writes("oci") }},
	{"attributes of an output", []Builder{Standalone},
		func(b *Build) bool {
			return slices.ContainsFunc(b.Outputs, func(o wire.Output) bool { return len(o.Attrs) > 0 })
		}},
	{"squash (a daemon in experimental mode)", []Builder{Classic},
		func(b *Build) bool { return b.Options.Squash }},
}

// inDirectory reports whether the URL of a context names a directory in a git
// repository, as "#ref:directory" or "?subdir=directory".
func inDirectory(remote string) bool {
	url, fragment, _ := strings.Cut(remote, "#")
	_, dir, _ := strings.Cut(fragment, ":")
	_, query, _ := strings.Cut(url, "?")
	return dir != "" || slices.ContainsFunc(strings.Split(query, "&"), func(s string) bool { return strings.HasPrefix(s, "subdir=") })
}

// writes reports whether one of the outputs is of that type.
func (b *Build) writes(what string) bool {
	return slices.ContainsFunc(b.Outputs, func(o wire.Output) bool { return o.Type == what })
}

// notInline reports whether a place of cache is another than the image itself.
func notInline(s string) bool { return s != "inline" && s != "type=inline" }

// Lacks are the names of what builder cannot do of b.
func (b *Build) Lacks(builder Builder) []string {
	var lacks []string
	for _, a := range Table {
		if a.asked(b) && !slices.Contains(a.By, builder) {
			lacks = append(lacks, a.Name)
		}
	}
	return lacks
}

// Choose returns the first of those builders that can do all that is asked for.
// The error says what engine, which has these builders, cannot do, and what can.
func (b *Build) Choose(from []Builder, engine string) (Builder, error) {
	if len(from) == 0 {
		return 0, fmt.Errorf("%s has no builder", engine)
	}
	var lacking []string
	for i, builder := range from {
		lacks := b.Lacks(builder)
		if len(lacks) == 0 {
			return builder, nil
		}
		if i == 0 || len(lacks) < len(lacking) {
			lacking = lacks
		}
	}
	return 0, fmt.Errorf("%s cannot do this: %s; %s", engine, strings.Join(lacking, ", "), b.whoCan())
}

// whoCan says what builder could do all that b asks for.
func (b *Build) whoCan() string {
	var can []string
	for builder := range Builders {
		if len(b.Lacks(builder)) == 0 {
			can = append(can, builder.String())
		}
	}
	if len(can) == 0 {
		return "no engine can do all that is asked for"
	}
	return "these can: " + strings.Join(can, "; ")
}
