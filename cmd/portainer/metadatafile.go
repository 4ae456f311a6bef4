package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/org/portainer"
)

// A metadataFile is the content of --metadata-file. Its first two fields are what
// docker buildx writes for one image.
type metadataFile struct {
	Digest string          `json:"containerimage.digest,omitempty"`
	Name   string          `json:"image.name,omitempty"`
	Builds []buildMetadata `json:"builds"`
}

// buildMetadata is what became of one Dockerfile.
type buildMetadata struct {
	Dockerfile string     `json:"dockerfile,omitempty"` // not known to attach
	Image      string     `json:"image"`
	Digest     string     `json:"containerimage.digest,omitempty"`
	Name       string     `json:"image.name,omitempty"` // pushed tags, separated by commas
	Refs       []string   `json:"refs,omitempty"`
	Engine     string     `json:"engine,omitempty"`
	Agent      string     `json:"agent,omitempty"`
	Hostname   string     `json:"hostname,omitempty"`
	Attempts   int        `json:"attempts"`
	Started    *time.Time `json:"started,omitempty"`
	Finished   *time.Time `json:"finished,omitempty"`

	// Of a build that made no image.
	Class string `json:"class,omitempty"`
	Phase string `json:"phase,omitempty"`
	Step  string `json:"step,omitempty"`
	Line  int    `json:"line,omitempty"`
	Error string `json:"error,omitempty"`
}

func metadataOf(j *job) buildMetadata {
	m := buildMetadata{Dockerfile: j.file, Image: j.image}
	if r := j.result; j.err == nil && r != nil {
		m.Image, m.Digest, m.Refs, m.Engine = r.Image, r.Digest, r.Refs, r.Engine
		m.Agent, m.Hostname, m.Attempts = string(r.Agent), r.Hostname, r.Attempts
		m.Started, m.Finished = &r.Started, &r.Finished
		for i, ref := range r.Refs {
			if i > 0 {
				m.Name += ","
			}
			m.Name += ref[:len(ref)-len("@"+r.Digest)]
		}
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
	var content metadataFile
	for _, j := range list {
		content.Builds = append(content.Builds, metadataOf(j))
	}
	if len(list) == 1 {
		content.Digest, content.Name = content.Builds[0].Digest, content.Builds[0].Name
	}
	data, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("metadata file: %w", err)
	}
	if err := replaceFile(c.metadataFile, append(data, '\n')); err != nil {
		var onPath *fs.PathError
		if errors.As(err, &onPath) {
			err = onPath.Err // of a temporary file that nobody knows
		}
		return fmt.Errorf("metadata file %s: %w", c.metadataFile, err)
	}
	return nil
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
