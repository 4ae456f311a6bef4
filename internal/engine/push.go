package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	dockerclient "github.com/docker/docker/client"

	"github.com/org/portainer"
)

// daemonGone reports whether err means that nobody answers at the daemon's
// address any more.
func daemonGone(err error) bool {
	var broken *net.OpError
	return dockerclient.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken)
}

// nameImage gives the image with that ID every reference of j as a name, until restore is
// called: the daemon pushes, and saves, only what has one, and somebody else may use
// it on a daemon that is not ours.
func (d *docker) nameImage(ctx context.Context, j *job, id string) (restore func(), err error) {
	d.tagging.Lock()
	var names []func()
	restore = func() {
		for _, giveBack := range names {
			giveBack()
		}
		d.tagging.Unlock()
	}
	for _, ref := range j.refs {
		giveBack, err := d.borrow(ctx, j, id, ref)
		if err != nil {
			restore()
			if isVanished(err) {
				err = fmt.Errorf("%w: %w", errVanished, err)
			}
			return nil, failure(portainer.PhasePush, portainer.ClassLost, fmt.Errorf("name the image %s: %w", ref, err))
		}
		names = append(names, func() {
			if err := giveBack(); err != nil {
				d.cfg.Logger.Warn("take a name back from an image", "ref", ref, "err", err)
			}
		})
	}
	return restore, nil
}

// push pushes the image with that ID, which has every reference of j as a name, and
// returns its digest. A tag is written after the layers, by the registry protocol's own
// order.
func (d *docker) push(ctx context.Context, j *job, id string) (digest string, err error) {
	ctx, release, err := j.cfg.permit(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	for _, ref := range j.refs {
		step := j.report.begin("pushing "+ref, 0, time.Time{})
		var got string
		err = j.persist(ctx, func(bool) error {
			if got, err = d.pushAs(ctx, j, ref); err != nil {
				return pushError(j.req.Registry, ref, err)
			}
			return d.pushedOurs(ctx, id, ref, got)
		})
		if err != nil {
			step.done(rootCause(err).Error(), time.Time{})
			return "", unpermitted(ctx, err)
		}
		step.write([]byte(got+"\n"), false, time.Time{})
		step.done("", time.Time{})
		if digest != "" && got != digest {
			return "", failure(portainer.PhasePush, portainer.ClassRegistry,
				fmt.Errorf("push %s: the registry has digest %s, but %s for another tag of the same image", ref, got, digest))
		}
		digest = got
	}
	return digest, nil
}

// pushError makes the error of a push.
func pushError(host, ref string, err error) error {
	var be *portainer.BuildError
	if errors.As(err, &be) {
		return err
	}
	err = tidy(err)
	msg := err.Error()
	if untagged.MatchString(msg) || vanished.MatchString(msg) {
		return failure(portainer.PhasePush, portainer.ClassLost, fmt.Errorf("push %s: %w: %w", ref, errVanished, err))
	}
	if daemonGone(err) {
		return failure(portainer.PhasePush, portainer.ClassLost, fmt.Errorf("push %s: %w", ref, err))
	}
	class := classOf(msg, portainer.ClassRegistry)
	if class == portainer.ClassRegistry && !strings.Contains(msg, host) {
		err = fmt.Errorf("registry %s: %w", host, err)
	}
	return failure(portainer.PhasePush, class, fmt.Errorf("push %s: %w", ref, err))
}

// pushAs pushes the image that has the name ref.
func (d *docker) pushAs(ctx context.Context, j *job, ref string) (digest string, err error) {
	creds, err := j.cfg.dockerAuth(ctx, j.req.Registry)
	if err != nil {
		return "", failure(portainer.PhasePush, portainer.ClassAuth, err)
	}
	auth, err := registry.EncodeAuthConfig(creds)
	if err != nil {
		return "", err
	}
	resp, err := d.cli.ImagePush(ctx, ref, image.PushOptions{RegistryAuth: auth})
	if err != nil {
		return "", err
	}
	defer resp.Close()
	digest, err = readPush(resp)
	if err != nil || digest != "" {
		return digest, err
	}
	seen, err := d.cli.DistributionInspect(ctx, ref, auth)
	if err != nil {
		return "", fmt.Errorf("ask for the digest: %w", err)
	}
	return seen.Descriptor.Digest.String(), nil
}

// pushedOurs returns an error if what was pushed as ref is not the image with that ID:
// then another executor has borrowed the name meanwhile.
func (d *docker) pushedOurs(ctx context.Context, id, ref, digest string) error {
	if !d.given {
		return nil
	}
	ours, err := d.cli.ImageInspect(ctx, id)
	if err == nil {
		if ours.ID == digest || slices.ContainsFunc(ours.RepoDigests, func(name string) bool { return strings.HasSuffix(name, "@"+digest) }) {
			return nil
		}
		// One that remembers nothing of the kind is asked whose the name is now.
		var named string
		if named, err = d.imageID(ctx, ref); err == nil && named == ours.ID && !d.notesPushes {
			return nil
		}
	}
	if err == nil || isVanished(err) {
		err = fmt.Errorf("%w: what was pushed is another image", errVanished)
	}
	return failure(portainer.PhasePush, portainer.ClassLost, fmt.Errorf("push %s: %w", ref, err))
}

// imageID returns the ID of the image that has a name or an ID; "" if there is none.
func (d *docker) imageID(ctx context.Context, of string) (string, error) {
	had, err := d.cli.ImageInspect(ctx, of)
	if err != nil && isVanished(err) {
		return "", nil
	}
	return had.ID, err
}

// borrow names the image ref for the time of a push or save. restore gives the name back
// to whom it belonged.
func (d *docker) borrow(ctx context.Context, j *job, id, ref string) (restore func() error, err error) {
	owner, ours := "", ""
	if d.given {
		if owner, err = d.ownerOf(ctx, j, ref); err != nil {
			return nil, fmt.Errorf("look for an image of that name: %w", err)
		}
		// One that is not there now may be again when it is tagged.
		image, err := d.cli.ImageInspect(ctx, id)
		if err != nil {
			return nil, err
		}
		ours = image.ID
	}
	if err := d.cli.ImageTag(ctx, id, ref); err != nil {
		return nil, fmt.Errorf("tag: %w", err)
	}
	return func() error {
		if !d.given || owner == ours {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		// Another executor may have borrowed it meanwhile.
		if named, err := d.imageID(ctx, ref); err != nil || named != ours {
			return err
		}
		if owner != "" {
			// If that was an image of another executor's, it may be gone.
			if err := d.cli.ImageTag(ctx, owner, ref); !cerrdefs.IsNotFound(err) {
				return err
			}
		}
		_, err := d.cli.ImageRemove(ctx, ref, image.RemoveOptions{PruneChildren: false})
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		return err
	}, nil
}

// ownerOf returns the ID of the image that had the name ref before j; "" if there was none.
// A name that j gave to an image which was then removed by another is nobody's, and comes
// back with the image when that is made again.
func (d *docker) ownerOf(ctx context.Context, j *job, ref string) (string, error) {
	if owner, known := j.owners[ref]; known {
		return owner, nil
	}
	owner, err := d.imageID(ctx, ref)
	if err != nil {
		return "", err
	}
	if j.owners == nil {
		j.owners = make(map[string]string)
	}
	j.owners[ref] = owner
	return owner, nil
}

// readPush reads what the daemon says of a push. It returns "" when the daemon
// did not tell the digest.
func readPush(r io.Reader) (digest string, err error) {
	dec := json.NewDecoder(r)
	for {
		var m message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return digest, nil
		case err != nil:
			return "", err
		}
		if m.Error != nil {
			return "", errors.New(m.Error.Message)
		}
		if len(m.Aux) > 0 {
			var aux struct{ Digest string }
			if json.Unmarshal(m.Aux, &aux) == nil && aux.Digest != "" {
				digest = aux.Digest
			}
		}
	}
}
