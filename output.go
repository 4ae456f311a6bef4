package portainer

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The types of outputs.
const (
	OutputRegistry = "registry" // the registry of the Request
	OutputOCI      = "oci"      // an archive in the layout of OCI
	OutputDocker   = "docker"   // an archive for docker load
	OutputTar      = "tar"      // an archive of the image's files
	OutputLocal    = "local"    // the image's files, in a directory
)

// An Output is what an image is written to. Not every engine can do every type
// (docs/engines.md has the table).
type Output struct {
	// Type is one of the types of outputs.
	Type string
	// Dest is a path on the machine of the Framework: a directory for OutputLocal,
	// and for archives with the attribute tar=false, whose files go there beside
	// what else is in it; else a file, which appears when it is whole. "-" means
	// Config.Stdout, for archives. The directory that is to hold the file must be
	// there. OutputRegistry has no Dest.
	Dest string
	// Attrs are attributes of BuildKit's exporter, such as "compression" or
	// "oci-mediatypes", as docker buildx build --output has them.
	Attrs map[string]string
}

// ParseOutput reads an Output as docker buildx build --output spells it: attributes
// such as "type=oci,dest=image.tar", a directory alone for OutputLocal, or "-" for
// OutputTar to the standard output. The error wraps ErrInvalid.
func ParseOutput(text string) (Output, error) {
	bad := func(format string, args ...any) (Output, error) {
		return Output{}, fmt.Errorf("%w output %q: %w", ErrInvalid, text, fmt.Errorf(format, args...))
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return bad("%w", err)
	}
	if len(fields) == 1 && !strings.Contains(text, "=") {
		if text == "-" {
			return Output{Type: OutputTar, Dest: "-"}, nil
		}
		return Output{Type: OutputLocal, Dest: text}, nil
	}
	var o Output
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return bad("%q is no attribute: it must be name=value", f)
		}
		switch k = strings.ToLower(strings.TrimSpace(k)); k {
		case "type":
			o.Type = v
		case "dest":
			o.Dest = v
		default:
			if o.Attrs == nil {
				o.Attrs = map[string]string{}
			}
			o.Attrs[k] = v
		}
	}
	if o.Type == "image" {
		if o.Attrs["push"] != "true" {
			return bad("an image stays nowhere but in a registry: type=registry pushes it")
		}
		o.Type = OutputRegistry
	}
	if o.Type == OutputRegistry {
		if push, ok := o.Attrs["push"]; ok && push != "true" {
			return bad("push=%s: type=registry is a push", push)
		}
		delete(o.Attrs, "push")
	}
	if err := o.check(); err != nil {
		return bad("%w", err)
	}
	return o, nil
}

// exporterAttrs are the attributes of BuildKit's exporters that an Output may have.
// That of the name is left out: it is the Request's.
var exporterAttrs = []string{
	"attestation-prefix", "compression", "compression-level", "force-compression", "oci-artifact", "oci-mediatypes",
	"platform-split", "prefer-nondist-layers", "rewrite-timestamp", "tar",
}

// check finds what is wrong with o by itself.
func (o *Output) check() error {
	switch o.Type {
	case OutputRegistry:
		if o.Dest != "" {
			return errors.New("type=registry has no dest: the image goes to the registry, repository and tags of the build")
		}
	case OutputLocal:
		if o.Dest == "" || o.Dest == "-" {
			return errors.New("type=local needs dest=DIRECTORY")
		}
	case OutputOCI, OutputTar, OutputDocker:
		if o.Dest == "" {
			return fmt.Errorf(`type=%s needs dest=FILE, or dest=- for the standard output: the image is built elsewhere, and loaded into no docker here`, o.Type)
		}
		if o.Dest == "-" && o.directory() {
			return errors.New("a directory cannot go to the standard output")
		}
	case "cacheonly":
		return errors.New("type=cacheonly keeps nothing: what an agent has built goes with it; use --cache-to")
	default:
		return fmt.Errorf("type %q: it must be registry, oci, docker, tar or local", o.Type)
	}
	for k := range o.Attrs {
		switch {
		case k == "name":
			return errors.New("name: the image has the name of its registry, repository and tags")
		case !slices.Contains(exporterAttrs, k) && !strings.HasPrefix(k, "annotation"):
			return fmt.Errorf("%s: no attribute of an output here", k)
		}
	}
	if t, ok := o.Attrs["tar"]; ok && (t != "true" && t != "false" || o.Type != OutputOCI && o.Type != OutputDocker) {
		return errors.New("tar is true or false, for oci and docker")
	}
	return nil
}

// directory reports whether o is written as a directory.
func (o *Output) directory() bool { return o.Type == OutputLocal || o.Attrs["tar"] == "false" }

// String is o as ParseOutput reads it, without its attributes.
func (o Output) String() string {
	if o.Dest == "" {
		return "type=" + o.Type
	}
	return "type=" + o.Type + ",dest=" + o.Dest
}

// A Written output is one that is on the machine of the Framework.
type Written struct {
	Type string // of the Output
	Dest string // likewise
	Size int64  // of the archive, or of that of a directory, in bytes
	// Digest is that of these bytes, "sha256:<64 hex digits>".
	Digest string
}

// A Descriptor is that of a manifest, as the image specification of OCI has it.
// Fields that the engine does not tell are zero.
type Descriptor struct {
	MediaType   string
	Digest      string
	Size        int64
	Annotations map[string]string
}

// Pushes reports whether the image goes to a registry: one of its outputs is, or it
// has none.
func (r *Request) Pushes() bool {
	return len(r.Outputs) == 0 || slices.ContainsFunc(r.Outputs, func(o Output) bool { return o.Type == OutputRegistry })
}
