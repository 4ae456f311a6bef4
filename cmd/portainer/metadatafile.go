package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/portainer"
)

// imageMetadata is what docker buildx writes of an image: at the top for one, and for
// several under a name each, as docker buildx bake does.
type imageMetadata struct {
	Ref          string      `json:"buildx.build.ref,omitempty"` // "portainer/<agent>/<build>"
	ConfigDigest string      `json:"containerimage.config.digest,omitempty"`
	Descriptor   *descriptor `json:"containerimage.descriptor,omitempty"`
	Digest       string      `json:"containerimage.digest,omitempty"`
	Name         string      `json:"image.name,omitempty"` // pushed tags, separated by commas
}

// A descriptor is that of a manifest as the image specification of OCI spells it.
type descriptor struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// imageOf is what buildx would write of a build; its fields are zero if that failed.
func imageOf(j *job) imageMetadata {
	r := j.result
	if j.err != nil || r == nil {
		return imageMetadata{}
	}
	m := imageMetadata{Ref: "portainer/" + string(r.Agent) + "/" + string(r.ID), ConfigDigest: r.ConfigDigest, Digest: r.Digest}
	if d := r.Descriptor; d.Digest != "" {
		m.Descriptor = &descriptor{d.MediaType, d.Digest, d.Size, d.Annotations}
	}
	var names []string
	for _, ref := range r.Refs {
		names = append(names, strings.TrimSuffix(ref, "@"+r.Digest))
	}
	m.Name = strings.Join(names, ",")
	return m
}

// buildMetadata is what became of one Dockerfile.
type buildMetadata struct {
	Dockerfile string `json:"dockerfile,omitempty"` // not known to attach
	Image      string `json:"image"`
	imageMetadata
	Outputs  []outputMetadata `json:"outputs,omitempty"`
	Refs     []string         `json:"refs,omitempty"`
	Engine   string           `json:"engine,omitempty"`
	Agent    string           `json:"agent,omitempty"`
	Hostname string           `json:"hostname,omitempty"`
	Attempts int              `json:"attempts"`
	Started  *time.Time       `json:"started,omitempty"`
	Finished *time.Time       `json:"finished,omitempty"`

	// Of a build that made no image.
	Class string `json:"class,omitempty"`
	Phase string `json:"phase,omitempty"`
	Step  string `json:"step,omitempty"`
	Line  int    `json:"line,omitempty"`
	Error string `json:"error,omitempty"`
}

// outputMetadata is what an --output wrote.
type outputMetadata struct {
	Type   string `json:"type"`
	Dest   string `json:"dest"`
	Size   int64  `json:"size"` // of the archive, or of that of a directory, in bytes
	Digest string `json:"digest"`
}

func metadataOf(j *job) buildMetadata {
	m := buildMetadata{Dockerfile: j.file, Image: j.image, imageMetadata: imageOf(j)}
	if r := j.result; j.err == nil && r != nil {
		m.Image, m.Refs, m.Engine = r.Image, r.Refs, r.Engine
		for _, w := range r.Outputs {
			m.Outputs = append(m.Outputs, outputMetadata(w))
		}
		m.Agent, m.Hostname, m.Attempts = string(r.Agent), r.Hostname, r.Attempts
		m.Started, m.Finished = &r.Started, &r.Finished
		return m
	}
	if j.err == nil {
		return m
	}
	m.Error = j.err.Error()
	var build *portainer.BuildError
	if errors.As(j.err, &build) {
		m.Class, m.Phase, m.Step, m.Line = string(build.Class), string(build.Phase), build.Step, build.Line
		m.Agent, m.Hostname, m.Attempts = string(build.Agent), build.Hostname, build.Attempt
		if m.Image == "" {
			m.Image = build.Image
		}
	}
	return m
}

// writeMetadata writes --metadata-file, whole or not at all.
func (c *frameworkCommand) writeMetadata(list []*job) error {
	if c.metadataFile == "" {
		return nil
	}
	builds := []buildMetadata{}
	content := map[string]any{}
	for _, j := range list {
		m := metadataOf(j)
		builds = append(builds, m)
		if j.file != "" && len(list) > 1 {
			content[j.file] = m.imageMetadata
		}
	}
	content["builds"] = builds
	var top any = content
	if len(list) == 1 {
		top = struct {
			imageMetadata
			Builds []buildMetadata `json:"builds"`
		}{builds[0].imageMetadata, builds}
	}
	data, err := json.MarshalIndent(top, "", "  ")
	if err != nil {
		return fmt.Errorf("metadata file: %w", err)
	}
	return putFile("metadata file", c.metadataFile, append(data, '\n'))
}

// writeIID writes --iidfile: the ID of the image, as docker buildx has it.
func (c *frameworkCommand) writeIID(list []*job) error {
	if c.iidFile == "" || len(list) != 1 || list[0].err != nil || list[0].result == nil {
		return nil
	}
	id := cmp.Or(list[0].result.ConfigDigest, list[0].result.Digest)
	return putFile("iidfile", c.iidFile, []byte(id))
}

// putFile writes a file, whole or not at all; what is what messages call it.
func putFile(what, name string, data []byte) error {
	err := replaceFile(name, data)
	if err == nil {
		return nil
	}
	if onPath := (*fs.PathError)(nil); errors.As(err, &onPath) {
		err = onPath.Err // of a temporary file that nobody knows
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// replaceFile writes data to a new file and puts it in the place of name.
func replaceFile(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
