package ability

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// Check finds values that no builder takes.
func Check(o wire.Options) error {
	switch o.Compression {
	case "", "gzip", "zstd", "estargz", "uncompressed":
	default:
		return fmt.Errorf("compression %q: it must be gzip, zstd, estargz or uncompressed", o.Compression)
	}
	if s := o.SourceDateEpoch; s != "" {
		if n, err := strconv.ParseInt(s, 10, 64); err != nil || n < 0 {
			return fmt.Errorf("source-date-epoch %q: it must be a number of seconds since 1970", s)
		}
	}
	switch o.Provenance {
	case "", "min", "max":
	default:
		return fmt.Errorf("provenance %q: it must be min or max", o.Provenance)
	}
	for _, s := range slices.Concat(o.CacheFrom, o.CacheTo) {
		if _, err := ParseCache(s); err != nil {
			return err
		}
	}
	for _, s := range o.Ulimits {
		if _, err := units.ParseUlimit(s); err != nil {
			return fmt.Errorf("ulimit %q: %w", s, err)
		}
	}
	return nil
}

// CheckCgroup finds a parent of cgroups that an engine of the executor's own, which is
// one without a host, cannot allow.
func CheckCgroup(o wire.Options, host string) error {
	if o.CgroupParent == "" || host != "" {
		return nil
	}
	return fmt.Errorf("cgroup-parent %q: the steps of an engine that the executor starts stay in the cgroup of their task, which bounds them: "+
		"give a daemon (--docker-host, --buildkit-addr)", o.CgroupParent)
}

// CheckRun finds values for RUN that no builder takes.
func CheckRun(network string, addHosts []string) error {
	switch network {
	case "", "default", "none", "host":
	default:
		return fmt.Errorf("unknown network %q: it must be default, none or host", network)
	}
	for _, h := range addHosts {
		if _, _, ok := strings.Cut(h, ":"); !ok {
			return fmt.Errorf("add-host %q: it must be name:address", h)
		}
	}
	return nil
}

// CheckOutputs finds outputs that no builder writes.
func CheckOutputs(t *wire.Task) error {
	for _, o := range t.Outputs {
		if o.Type == "docker" && len(t.Options.Platforms) > 1 {
			return errors.New("output type=docker: docker load takes an image for one platform: use type=oci for several platforms")
		}
		if o.Type == "docker" && (t.Options.Provenance != "" || t.Options.SBOM != "") {
			return errors.New("output type=docker: docker load takes no attestations: use type=oci with provenance and sbom")
		}
	}
	return nil
}

// A Cache is a place where a build's cache comes from or goes to.
type Cache struct {
	Type  string
	Attrs map[string]string
}

// ParseCache reads one: an image reference, "inline", or attributes as docker
// buildx has them. Its errors quote no secrets, nor what may be a piece of one.
func ParseCache(s string) (Cache, error) {
	if s == "inline" {
		return Cache{Type: s, Attrs: map[string]string{}}, nil
	}
	if !isAttributes(s) {
		return Cache{Type: "registry", Attrs: map[string]string{"ref": s}}, nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Cache{}, fmt.Errorf("cache: read its attributes: %w", err) // which says where, but not what
	}
	place := Cache{Attrs: map[string]string{}}
	for i, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return Cache{}, fmt.Errorf("cache: part %d of %d is no attribute: it must be name=value, and quoted if it has a comma", i+1, len(fields))
		}
		if k == "type" {
			place.Type = v
		} else {
			place.Attrs[k] = v
		}
	}
	// An engine that does not know a type says so only after seconds, and a
	// local one would be on an agent where nobody looks.
	switch place.Type {
	case "registry", "inline", "s3", "azblob", "gha":
		return place, nil
	}
	shown, _ := seal.RedactCache(s)
	return Cache{}, fmt.Errorf("cache %q: its type must be registry, inline, s3, azblob or gha", shown)
}

// isAttributes reports whether a place of cache is given by attributes.
func isAttributes(s string) bool { return strings.Contains(s, "=") }
