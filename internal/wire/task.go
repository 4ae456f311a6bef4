// Package wire holds what travels between the framework and its executors: the
// Task in TaskInfo.data, the Outcome in the data of the terminal status update, the
// frames of build.log in the executor's sandbox, and in framework messages the Hint
// that there are more of them and the PushAsk and PushGrant of the right to push.
// What goes there sealed is package seal's.
//
// Each is JSON with a version, except for the payload of frames. A reader
// refuses a version it does not know by name; fields it does not know it
// ignores.
package wire

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Version is the version of everything in this package. It grows when an older
// executor or framework would misread what a newer one writes.
const Version = 1

// LogFile is the name of the framed log in the executor's sandbox.
const LogFile = "build.log"

// A Task is all that an executor needs to build one image. It holds no secret:
// Mesos shows it to anyone who may see the task.
type Task struct {
	Version int    `json:"version"`
	Build   string `json:"build"`
	Attempt int    `json:"attempt"`

	Registry   string   `json:"registry"`
	Repository string   `json:"repository"`
	Tags       []string `json:"tags"`

	// Dockerfile is the text to build, ready for the engine: metadata
	// instructions blanked out line by line, FROM rewritten. Name is what
	// messages call it. It is empty if the Dockerfile is in Remote.
	Dockerfile []byte `json:"dockerfile"`
	Name       string `json:"name"`

	// Context is nil when the Dockerfile uses no local source, or Remote is set.
	Context *Context `json:"context,omitempty"`
	// Contexts are the further contexts that were staged, by their names. What an
	// engine gets from elsewhere is in Options.BuildContexts.
	Contexts map[string]*Context `json:"contexts,omitempty"`
	// Remote is the URL of a build context that the engine fetches by itself.
	// Without Dockerfile, the file called Name in it is built.
	Remote string `json:"remote,omitempty"`

	Engine Engine `json:"engine"`

	Insecure []string `json:"insecure,omitempty"` // registries to speak to without verified TLS
	// Registries are those of the build that are to be spoken to in a way of
	// their own.
	Registries []Registry `json:"registries,omitempty"`

	Target   string            `json:"target,omitempty"`
	Args     map[string]string `json:"args,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Network  string            `json:"network,omitempty"`
	AddHosts []string          `json:"add_hosts,omitempty"`
	NoCache  bool              `json:"no_cache,omitempty"`
	Pull     bool              `json:"pull,omitempty"`

	Options Options `json:"options,omitzero"`

	// Outputs are what the image is written to; none means the registry alone.
	// Delivery is where those go that are no registry.
	Outputs  []Output  `json:"outputs,omitempty"`
	Delivery *Delivery `json:"delivery,omitempty"`

	// Secrets says that the build needs credentials, build secrets or signed URLs: the
	// executor builds when it has them from the framework, sealed to its key
	// (package seal).
	Secrets bool `json:"secrets,omitempty"`
	// SSH names the ssh agents at the framework that steps may use (package
	// sshforward).
	SSH []string `json:"ssh,omitempty"`

	// LogRoute says that the framework tells how it reads the log: from the agent's
	// files, or by asking for it (package logrelay). Until it has, the executor waits
	// with its end, for a while.
	LogRoute bool `json:"log_route,omitempty"`

	// What Mesos allocated to the task and its executor.
	CPUs   float64 `json:"cpus"`
	MemMB  float64 `json:"mem_mb"`
	DiskMB float64 `json:"disk_mb,omitempty"`
}

// A Registry says how a registry is spoken to.
type Registry struct {
	Host string `json:"host"`
	CA   []byte `json:"ca,omitempty"` // PEM
	// ClientCert says that it wants a client certificate, which comes with the
	// secrets.
	ClientCert bool     `json:"client_cert,omitempty"`
	Mirrors    []string `json:"mirrors,omitempty"`
}

// Options is portainer.Options, field by field.
type Options struct {
	Platforms        []string          `json:"platforms,omitempty"`
	NoCacheFilter    []string          `json:"no_cache_filter,omitempty"`
	CacheFrom        []string          `json:"cache_from,omitempty"`
	CacheTo          []string          `json:"cache_to,omitempty"`
	BuildContexts    map[string]string `json:"build_contexts,omitempty"`
	Annotations      map[string]string `json:"annotations,omitempty"`
	Ulimits          []string          `json:"ulimits,omitempty"`
	ShmSize          int64             `json:"shm_size,omitempty"`
	CgroupParent     string            `json:"cgroup_parent,omitempty"`
	Compression      string            `json:"compression,omitempty"`
	CompressionLevel int               `json:"compression_level,omitempty"`
	SourceDateEpoch  string            `json:"source_date_epoch,omitempty"`
	Provenance       string            `json:"provenance,omitempty"`
	SBOM             string            `json:"sbom,omitempty"`
	Squash           bool              `json:"squash,omitempty"`
}

// Staged returns all staged contexts of the task.
func (t *Task) Staged() []*Context {
	var all []*Context
	if t.Context != nil {
		all = append(all, t.Context)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Contexts)) {
		all = append(all, t.Contexts[name])
	}
	return all
}

// An Output is a form in which an image is written: "registry", "oci", "docker" or
// "tar".
type Output struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"` // of BuildKit's exporter
}

// A Delivery says where outputs are put that travel back.
type Delivery struct {
	BucketURL string `json:"bucket_url"` // for gocloud's blob.OpenBucket, as seen from an agent
	Prefix    string `json:"prefix"`     // of the keys, with a slash at its end
}

// A Delivered output is in the staging bucket.
type Delivered struct {
	Output int    `json:"output"` // its index in Task.Outputs
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"` // "sha256:<hex>"
}

// A Descriptor is that of a manifest, as the image specification of OCI has it.
type Descriptor struct {
	MediaType   string            `json:"media_type,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Size        int64             `json:"size,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A Context says where a staged build context is and how to know it is whole.
type Context struct {
	BucketURL string `json:"bucket_url"` // for gocloud's blob.OpenBucket, as seen from an agent
	Key       string `json:"key"`        // of the object that tells what the context consists of
	Size      int64  `json:"size"`       // of the object
	Digest    string `json:"digest"`     // of the context, "sha256:<hex>"

	// Signed says that the context is read at URLs that come with the secrets, and
	// not by opening the bucket.
	Signed bool `json:"signed,omitempty"`
}

// An Engine says what builds.
type Engine struct {
	Kind string `json:"kind"`           // "auto", "docker", "dockerd" or "buildkitd"
	Host string `json:"host,omitempty"` // of a given daemon, as DOCKER_HOST spells it
	// TLS says that the daemon is spoken to over TLS, and CA, as PEM, what vouches
	// for it besides the certificates that the agent trusts. ClientCert says that
	// it wants a client certificate, which comes with the secrets.
	TLS        bool   `json:"tls,omitempty"`
	CA         []byte `json:"ca,omitempty"`
	ClientCert bool   `json:"client_cert,omitempty"`

	AllowVFS bool `json:"allow_vfs,omitempty"` // one of its own may copy images instead of laying over
}

// An Outcome is how an attempt ended, as the executor saw it.
type Outcome struct {
	Version int      `json:"version"`
	Digest  string   `json:"digest,omitempty"` // of the manifest; "" if the build failed, or made none
	Refs    []string `json:"refs,omitempty"`   // "<registry>/<repository>:<tag>@<digest>"
	Engine  string   `json:"engine,omitempty"`

	ConfigDigest string      `json:"config_digest,omitempty"`
	Descriptor   Descriptor  `json:"descriptor,omitzero"`
	Outputs      []Delivered `json:"outputs,omitempty"`

	LogSize int64     `json:"log_size"` // of build.log in bytes: the log is complete at this offset
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	Failure *Failure  `json:"failure,omitempty"`
}

// A Failure says why an attempt made no image.
type Failure struct {
	Class   string `json:"class"` // portainer.Class
	Phase   string `json:"phase"` // portainer.Phase
	Step    string `json:"step,omitempty"`
	Line    int    `json:"line,omitempty"`
	Message string `json:"message"`
}

// maxMessage bounds a failure's message, so that an Outcome stays at a few KiB:
// agents keep every status update on disk and resend it until it is
// acknowledged.
const maxMessage = 4 << 10

// Encode returns t as JSON with the present version.
func (t *Task) Encode() ([]byte, error) {
	t.Version = Version
	return json.Marshal(t)
}

// DecodeTask reads what Task.Encode wrote.
func DecodeTask(data []byte) (*Task, error) {
	var t Task
	if err := decode(data, &t.Version, &t, "task", "executor"); err != nil {
		return nil, err
	}
	return &t, nil
}

// Encode returns o as JSON with the present version. An overlong message is cut
// in the middle.
func (o *Outcome) Encode() ([]byte, error) {
	o.Version = Version
	if f := o.Failure; f != nil && len(f.Message) > maxMessage {
		cut := *f
		cut.Message = strings.ToValidUTF8(f.Message[:maxMessage/2], "") + " […] " +
			strings.ToValidUTF8(f.Message[len(f.Message)-maxMessage/2:], "")
		short := *o
		short.Failure = &cut
		return json.Marshal(&short)
	}
	return json.Marshal(o)
}

// DecodeOutcome reads what Outcome.Encode wrote.
func DecodeOutcome(data []byte) (*Outcome, error) {
	var o Outcome
	if err := decode(data, &o.Version, &o, "outcome", "framework"); err != nil {
		return nil, err
	}
	return &o, nil
}

// decode fills v from data; version must point into v.
func decode(data []byte, version *int, v any, what, reader string) error {
	// The version first: the rest may have another shape in another version.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if head.Version != Version {
		return fmt.Errorf("%s has version %d, but this %s understands version %d: framework and executor must be of the same release",
			what, head.Version, reader, Version)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	*version = head.Version
	return nil
}

// A Hint is the data of the framework messages that executors send when
// build.log has grown after a pause. Mesos may drop any of them: they only
// shorten the wait until the log is read again.
type Hint struct {
	Version int   `json:"version"`
	LogSize int64 `json:"log_size"`
	// Waiting says that the log is complete, and the executor about to end as soon
	// as it knows that the framework can read it (package logrelay).
	Waiting bool `json:"waiting,omitempty"`
}

// Encode returns h as JSON with the present version.
func (h *Hint) Encode() ([]byte, error) {
	h.Version = Version
	return json.Marshal(h)
}

// DecodeHint reads what Hint.Encode wrote.
func DecodeHint(data []byte) (*Hint, error) {
	var h Hint
	if err := decode(data, &h.Version, &h, "hint", "framework"); err != nil {
		return nil, err
	}
	return &h, nil
}
