package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"
	bk "github.com/moby/buildkit/client"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
)

// solveOptions adds what Options ask for to a solve. again is that of solve.
func (j *job) solveOptions(opt *bk.SolveOpt, again bool) error {
	o, attrs := j.req.Options, opt.FrontendAttrs
	if len(o.Platforms) > 0 {
		attrs["platform"] = strings.Join(o.Platforms, ",")
	}
	if len(o.NoCacheFilter) > 0 && !j.req.NoCache && !again {
		attrs["no-cache"] = strings.Join(o.NoCacheFilter, ",")
	}
	for name, from := range o.BuildContexts {
		attrs["context:"+name] = from
	}
	if len(o.BuildContexts)+len(j.cfg.Contexts) > 0 {
		// Another frontend than the daemon's own must say that it knows them.
		attrs["frontend.caps"] = "moby.buildkit.frontend.contexts+forward"
	}
	if len(o.Ulimits) > 0 {
		attrs["ulimit"] = strings.Join(o.Ulimits, ",")
	}
	if o.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(o.ShmSize, 10)
	}
	if o.CgroupParent != "" {
		attrs["cgroup-parent"] = o.CgroupParent
	}
	if o.SourceDateEpoch != "" {
		attrs["build-arg:SOURCE_DATE_EPOCH"] = o.SourceDateEpoch
	}
	if o.Provenance != "" {
		attrs["attest:provenance"] = "mode=" + o.Provenance
	}
	switch o.SBOM {
	case "":
	case "default":
		attrs["attest:sbom"] = ""
	default:
		attrs["attest:sbom"] = "generator=" + o.SBOM
	}
	for _, s := range o.CacheFrom {
		place, err := j.cachePlace(s)
		if err != nil {
			return err
		}
		opt.CacheImports = append(opt.CacheImports, place)
	}
	for _, s := range o.CacheTo {
		place, err := j.cachePlace(s)
		if err != nil {
			return err
		}
		// Once is enough, but for what becomes part of each image.
		if !j.solved || place.Type == "inline" {
			opt.CacheExports = append(opt.CacheExports, place)
		}
	}
	return nil
}

// cachePlace reads where a cache comes from or goes to. That may be an insecure
// registry.
func (j *job) cachePlace(s string) (bk.CacheOptionsEntry, error) {
	place, err := ability.ParseCache(s)
	if err != nil {
		return bk.CacheOptionsEntry{}, err
	}
	for _, r := range j.cfg.Insecure {
		if place.Type == "registry" && registryOf(place.Attrs["ref"]) == r {
			place.Attrs["registry.insecure"] = "true"
		}
	}
	return bk.CacheOptionsEntry(place), nil
}

// exportOptions returns the attributes of an exporter of images that Options ask
// for.
func exportOptions(o portainer.Options, attrs map[string]string) {
	for k, v := range o.Annotations {
		attrs["annotation."+k] = v
	}
	if o.Compression != "" {
		attrs["compression"] = o.Compression
	}
	if o.CompressionLevel != 0 {
		attrs["compression-level"] = strconv.Itoa(o.CompressionLevel)
	}
	if o.Compression != "" || o.CompressionLevel != 0 {
		// Those of the base as well: it is one image.
		attrs["force-compression"] = "true"
	}
	if len(o.Annotations) > 0 || o.Compression == "zstd" || o.Compression == "estargz" {
		attrs["oci-mediatypes"] = "true" // Docker's own have no word for them
	}
	if o.SourceDateEpoch != "" {
		attrs["rewrite-timestamp"] = "true"
	}
}

// classicOptions adds what Options ask for to a build by the classic builder.
func classicOptions(o portainer.Options, opts *build.ImageBuildOptions) error {
	opts.CacheFrom = o.CacheFrom
	opts.ShmSize = o.ShmSize
	opts.Squash = o.Squash
	for _, s := range o.Ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("ulimit %q: %w", s, err)
		}
		opts.Ulimits = append(opts.Ulimits, (*container.Ulimit)(u))
	}
	return nil
}
