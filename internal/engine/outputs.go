package engine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	bk "github.com/moby/buildkit/client"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/wire"
)

// A SaveFunc keeps what an output of a build consists of, that with the given index in
// the Request: all that r yields, or nothing if r ends in an error. Called again, it keeps
// that in its place.
type SaveFunc func(ctx context.Context, index int, r io.Reader) error

// A built is what a backend has built.
type built struct {
	by         string // what built it
	digest     string // of the manifest
	config     string // digest of the configuration
	descriptor portainer.Descriptor
}

// learn takes what an exporter of BuildKit says (buildkit exporter/containerimage/exptypes).
func (b *built) learn(resp map[string]string) {
	if d := resp["containerimage.digest"]; d != "" {
		b.digest, b.config = d, resp["containerimage.config.digest"]
	}
	var d struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations"`
	}
	text, err := base64.StdEncoding.DecodeString(resp["containerimage.descriptor"])
	if err == nil && json.Unmarshal(text, &d) == nil && d.Digest == b.digest {
		b.descriptor = portainer.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations}
	}
}

// wireOutputs are the outputs of req as the abilities of builders are asked for.
func wireOutputs(req *portainer.Request) []wire.Output {
	var outputs []wire.Output
	for _, o := range req.Outputs {
		outputs = append(outputs, wire.Output{Type: o.Type, Attrs: o.Attrs})
	}
	return outputs
}

// registryAttrs are the attributes that the request has for what it pushes.
func (j *job) registryAttrs() map[string]string {
	for _, o := range j.req.Outputs {
		if o.Type == portainer.OutputRegistry {
			return o.Attrs
		}
	}
	return nil
}

// exported are the indices of the outputs that BuildKit writes by itself; those of an
// image of the daemon's are not among them if the daemon has one.
func (j *job) exported(daemon bool) []int {
	var at []int
	for i, o := range j.req.Outputs {
		if o.Type == portainer.OutputRegistry || daemon && o.Type == portainer.OutputDocker {
			continue
		}
		at = append(at, i)
	}
	return at
}

// export has BuildKit write the outputs at those places, one after the other, since
// old daemons can do no more in one go. They are built once.
func (j *job) export(ctx context.Context, c *bk.Client, network string, at []int, b *built) error {
	for _, i := range at {
		o := j.req.Outputs[i]
		entry := bk.ExportEntry{Type: o.Type, Attrs: map[string]string{}}
		if o.Type != portainer.OutputTar {
			exportOptions(j.req.Options, entry.Attrs)
			if len(j.refs) > 0 {
				entry.Attrs["name"] = strings.Join(j.refs, ",")
			}
		}
		maps.Copy(entry.Attrs, o.Attrs)
		err := j.save(ctx, i, func(w io.Writer) error {
			entry.Output = func(map[string]string) (io.WriteCloser, error) { return unclosed{w}, nil }
			resp, err := j.solve(ctx, c, network, []bk.ExportEntry{entry}, j.solved)
			b.learn(resp)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unclosed is closed by BuildKit when it has written all it has, which may be too
// little.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// save keeps what write writes of the output at i, if it returns no error.
func (j *job) save(ctx context.Context, i int, write func(w io.Writer) error) error {
	if j.cfg.Save == nil {
		return invalid(errors.New("there is nowhere to keep an output"))
	}
	r, w := io.Pipe()
	saved := make(chan error, 1)
	go func() {
		err := j.cfg.Save(ctx, i, r)
		r.CloseWithError(errUnsaved)
		saved <- err
	}()
	counted := &countingWriter{w: w}
	err := write(counted)
	w.CloseWithError(err) // nil ends what is kept
	saveErr := <-saved
	var be *portainer.BuildError
	switch {
	case err != nil && errors.As(saveErr, &be) && !errors.Is(saveErr, err):
		return saveErr // it is why nothing could be written
	case err != nil:
		return err
	case saveErr != nil:
		return saveErr
	}
	step := j.report.begin("saved "+j.req.Outputs[i].Type, 0, time.Time{})
	step.write(fmt.Appendf(nil, "%d bytes\n", counted.n), false, time.Time{})
	step.done("", time.Time{})
	return nil
}

// errUnsaved is what is written gets to hear when it cannot be kept.
var errUnsaved = errors.New("the output cannot be kept")

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// saveImages writes the outputs that docker save makes of the image with that ID.
func (d *docker) saveImages(ctx context.Context, j *job, id string) error {
	for i, o := range j.req.Outputs {
		if o.Type != portainer.OutputDocker {
			continue
		}
		err := j.save(ctx, i, func(w io.Writer) error { return d.saveImage(ctx, j, id, w) })
		if err != nil {
			return err
		}
	}
	return nil
}

// saveImage writes the archive of an image with the names of j, which it has.
func (d *docker) saveImage(ctx context.Context, j *job, id string, w io.Writer) (err error) {
	names := j.refs
	if len(names) == 0 {
		names = []string{id}
	}
	archive, err := d.cli.ImageSave(ctx, names)
	if err == nil {
		_, err = io.Copy(w, archive)
		err = errors.Join(err, archive.Close())
	}
	if err != nil && isVanished(err) {
		err = fmt.Errorf("%w: %w", errVanished, err)
	}
	if err != nil {
		return failure(portainer.PhaseBuild, classOf(err.Error(), portainer.ClassLost), fmt.Errorf("save the image: %w", err))
	}
	return nil
}

// namesOf returns the tags and digests under which a daemon that is not ours knows an
// image.
func (d *docker) namesOf(ctx context.Context, id string) []string {
	if !d.given {
		return nil
	}
	had, err := d.cli.ImageInspect(ctx, id)
	if err != nil {
		return nil // whoever needs it next says why
	}
	return slices.Concat(had.RepoTags, had.RepoDigests)
}

// dismiss removes the image that j has made from a daemon that is not ours, unless it has
// names that are not of j's making. before are those that it had.
func (d *docker) dismiss(ctx context.Context, j *job, id string, before []string) {
	if !d.given {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var others []string
	remove := func(name string) {
		_, err := d.cli.ImageRemove(ctx, name, image.RemoveOptions{})
		// Others may remove it, too, or use it.
		if err != nil && !isVanished(err) && !cerrdefs.IsConflict(err) {
			d.cfg.Logger.Warn("remove an image that was built", "image", id, "name", name, "err", err)
		}
	}
	for _, name := range d.namesOf(ctx, id) {
		// A push leaves a digest, and another executor may have given a tag back to
		// it, that had borrowed it from us.
		if slices.Contains(before, name) || !j.names(name) {
			others = append(others, name)
			continue
		}
		remove(name)
	}
	if len(others) == 0 {
		remove(id)
	}
}

// names reports whether a name, as a daemon spells it, is of the repository of j.
func (j *job) names(name string) bool {
	repository, err := reference.ParseNormalizedNamed(j.image)
	if err != nil {
		return false // it has no name
	}
	rest, ok := strings.CutPrefix(name, reference.FamiliarName(repository))
	return ok && (strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, "@"))
}
