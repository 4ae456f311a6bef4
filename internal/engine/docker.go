package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	dockerclient "github.com/docker/docker/client"
	bk "github.com/moby/buildkit/client"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
	"github.com/org/portainer/internal/script"
)

// Every call of the daemon's API that must not hang is bounded by callTimeout.
const callTimeout = 10 * time.Second

// losslessSince is the first major release of Docker whose BuildKit can be told
// to keep all output of a step. Older ones drop what exceeds 200 KiB a second
// (buildkit util/progress/logs), the classic builder drops nothing.
const losslessSince = 23

// A docker is a Docker daemon, given or of our own.
type docker struct {
	cfg     Config
	host    string
	given   bool // somebody else's: leave nothing behind
	cli     *dockerclient.Client
	version string
	major   int
	bridge  bool // it has a network of its own for containers
	// notesPushes tells that an image knows the digests by which it was pushed, as those
	// of Docker do unless containerd keeps them.
	notesPushes bool
	bk          *bk.Client                      // its BuildKit; nil if it has none that we can reach
	stop        func(ctx context.Context) error // nil if the daemon is not ours
	guards      guard
	guest       *guest       // nil if the daemon is ours, or is not on this machine
	running     atomic.Int64 // builds by the classic builder whose containers may be there

	tagging sync.Mutex // one build at a time borrows names of images
}

// openDocker opens the daemon at cfg.Host.
func openDocker(ctx context.Context, cfg Config) (*docker, error) {
	d, err := dialDocker(ctx, cfg, cfg.Host)
	if err != nil {
		return nil, err
	}
	d.given = true
	info, err := d.cli.Info(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("docker daemon at %s: %w", cfg.Host, err), d.close(ctx))
	}
	// With the systemd driver a parent is a slice, which only systemd can make.
	d.notesPushes = d.notesPushes && !slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
	d.guest, err = openGuest(ctx, cfg, cfg.Host, info.DockerRootDir, info.CgroupDriver == "cgroupfs")
	if err != nil && d.guest == nil {
		return nil, errors.Join(err, d.close(ctx))
	}
	if err != nil {
		cfg.Logger.Info("a limit for each container must do", "host", cfg.Host, "err", err)
	}
	if d.guest != nil {
		d.guards = d.guest.guards
	}
	return d, nil
}

// dialDocker connects to the daemon at host and learns what it can do.
func dialDocker(ctx context.Context, cfg Config, host string) (*docker, error) {
	var opts []dockerclient.Opt
	if cfg.TLS != nil {
		// WithHost completes its transport.
		opts = append(opts, dockerclient.WithHTTPClient(&http.Client{
			Transport: &http.Transport{TLSClientConfig: cfg.TLS.Clone()}, CheckRedirect: dockerclient.CheckRedirect,
		}))
	}
	opts = append(opts, dockerclient.WithHost(host), dockerclient.WithAPIVersionNegotiation())
	cli, err := dockerclient.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker daemon at %s: %w", host, err)
	}
	d := &docker{cfg: cfg, host: host, cli: cli}
	if err := d.probe(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("docker daemon at %s: %w", host, err), cli.Close())
	}
	return d, nil
}

// probe asks the daemon for its version, networks and builders.
func (d *docker) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %s", callTimeout))
	defer cancel()
	v, err := d.cli.ServerVersion(ctx)
	if err != nil {
		return withCause(ctx, err)
	}
	d.version = v.Version
	d.notesPushes = slices.ContainsFunc(v.Components, func(c types.ComponentVersion) bool { return c.Name == "Engine" })
	major, _, _ := strings.Cut(v.Version, ".")
	d.major = script.Number(major)

	_, err = d.cli.NetworkInspect(ctx, "bridge", network.InspectOptions{})
	switch {
	case err == nil:
		d.bridge = true
	case !cerrdefs.IsNotFound(err):
		return fmt.Errorf("look for its bridge network: %w", err)
	}
	d.bk, err = d.dialBuildKit(ctx)
	if err != nil {
		d.cfg.Logger.Info("the daemon has no BuildKit that can be used", "host", d.host, "err", err)
	}
	return nil
}

// dialBuildKit connects to the daemon's own BuildKit. Since Docker 29 the socket
// speaks gRPC itself; before, POST /grpc turns a connection into one.
func (d *docker) dialBuildKit(ctx context.Context) (*bk.Client, error) {
	opts := []bk.ClientOpt{
		bk.WithContextDialer(hijackDialer(d.cli, "/grpc", "h2c")),
		bk.WithSessionDialer(sessionDialer(d.cli)),
	}
	if d.major >= 29 {
		dial := d.cli.Dialer()
		opts = []bk.ClientOpt{bk.WithContextDialer(plainDialer(dial))}
	}
	c, err := bk.New(ctx, "", opts...)
	if err != nil {
		return nil, err
	}
	if _, err := c.ListWorkers(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (d *docker) name() string {
	if d.bk != nil && d.major >= losslessSince {
		return d.called("buildkit")
	}
	return d.called("classic")
}

func (d *docker) called(builder string) string { return "dockerd " + d.version + " (" + builder + ")" }

// network returns the network of RUN for what a Request asks for.
func (d *docker) network(want string) string {
	if want == "" || want == "default" {
		if !d.bridge {
			return "host"
		}
		return "default"
	}
	return want
}

func (d *docker) guard() guard { return d.guards }

// build implements backend.
func (d *docker) build(ctx context.Context, j *job) (*built, error) {
	builder, err := j.choose(d.builders(j), fmt.Sprintf("the docker daemon at %s, version %s,", d.host, d.version))
	if err != nil {
		return nil, err
	}
	// Some of the BuildKits that are in Docker change the times of a tree's directories.
	j.archives = true
	b := &built{by: d.called("buildkit")}
	if builder == ability.Classic {
		b.by = d.called("classic")
	}
	if err := d.checkRegistries(ctx, j); err != nil {
		return nil, err
	}
	if builder == ability.OldBuildKit {
		why := "the classic builder cannot do it"
		if j.remoteDockerfile() {
			why = "its Dockerfile, which is elsewhere, may need it"
		}
		j.report.info("built by BuildKit because %s; this daemon's BuildKit drops output beyond 200 KiB a second", why)
	}
	// A parent for its cgroups would be part of the key of each step's cache.
	j.unbounded = d.given && builder != ability.Classic
	if d.given {
		defer func() {
			if ctx.Err() != nil {
				d.discard(ctx, j)
			}
		}()
	}
	exports := j.exported(true)
	if len(exports) > 0 && len(exports) == len(j.req.Outputs) { // no image in the daemon is needed
		return b, j.export(ctx, d.bk, d.network(j.req.Network), exports, b)
	}
	for try := 1; ; try++ {
		err := d.buildImage(ctx, j, builder, exports, b)
		if !d.given || !errors.Is(err, errVanished) || ctx.Err() != nil || try == maxVanished {
			return b, err
		}
		j.report.info("%v: once more from what is left", rootCause(err))
	}
}

// maxVanished is how often an image is made that others remove under our hands. A build
// can meet each of those that do the same at once, and each time only its last step is
// done again: of the others the images stay.
const maxVanished = 20

// buildImage makes the image in the daemon, writes and pushes it, and has the daemon
// forget it again. exports are the outputs that BuildKit writes by itself.
func (d *docker) buildImage(ctx context.Context, j *job, builder ability.Builder, exports []int, b *built) error {
	var image string
	var err error
	if builder == ability.Classic {
		image, err = d.classic(ctx, j)
		b.config = image
	} else {
		image, err = d.solve(ctx, j, b)
	}
	if err != nil {
		return err
	}
	before := d.namesOf(ctx, image)
	defer d.dismiss(ctx, j, image, before)
	if err := j.export(ctx, d.bk, d.network(j.req.Network), exports, b); err != nil {
		return err
	}
	// An image that loses its only name is gone, so it keeps them to the end.
	restore, err := d.nameImage(ctx, j, image)
	if err != nil {
		return err
	}
	defer restore()
	if err := d.saveImages(ctx, j, image); err != nil {
		return err
	}
	if j.req.Pushes() {
		b.digest, err = d.push(ctx, j, image)
	}
	return err
}

// discard removes from a daemon that is another's the images that the steps of a
// cancelled build have made there: those of one that failed are the cache of the next
// try. What somebody uses meanwhile stays.
func (d *docker) discard(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	for _, id := range slices.Backward(j.made) {
		had, err := d.cli.ImageInspect(ctx, id)
		if err != nil || len(had.RepoTags) > 0 {
			continue
		}
		_, err = d.cli.ImageRemove(ctx, id, imagetypes.RemoveOptions{PruneChildren: false})
		if err != nil && !cerrdefs.IsNotFound(err) && !cerrdefs.IsConflict(err) {
			d.cfg.Logger.Warn("image of a cancelled build not removed", "image", id, "err", err)
		}
	}
}

// builders returns what the daemon builds j with, the preferred first.
func (d *docker) builders(j *job) []ability.Builder {
	switch {
	case d.bk == nil:
		return []ability.Builder{ability.Classic}
	case d.major < losslessSince && j.remoteDockerfile():
		return []ability.Builder{ability.OldBuildKit, ability.Classic} // nobody knows what is in it
	case d.major < losslessSince:
		return []ability.Builder{ability.Classic, ability.OldBuildKit}
	}
	return []ability.Builder{ability.DockerBuildKit, ability.Classic}
}

// solve builds j with the daemon's BuildKit and returns the image's ID.
func (d *docker) solve(ctx context.Context, j *job, b *built) (image string, err error) {
	resp, err := j.solve(ctx, d.bk, d.network(j.req.Network), []bk.ExportEntry{{Type: "moby", Attrs: map[string]string{}}}, j.solved)
	if err != nil {
		return "", err
	}
	// Images that containerd stores are known by the digest of their manifest.
	b.config = cmp.Or(resp["containerimage.config.digest"], resp["containerimage.digest"])
	for _, key := range []string{"containerimage.digest", "containerimage.config.digest"} {
		if id := resp[key]; id != "" {
			return id, nil
		}
	}
	return "", failure(portainer.PhaseBuild, portainer.ClassLost, fmt.Errorf("the docker daemon at %s did not say what it has built", d.host))
}

// close implements backend.
func (d *docker) close(ctx context.Context) error {
	var errs []error
	if d.bk != nil {
		errs = append(errs, d.bk.Close())
	}
	errs = append(errs, d.cli.Close())
	if d.stop != nil {
		errs = append(errs, d.stop(ctx))
	}
	if d.guest != nil && d.guest.leave != nil {
		errs = append(errs, d.guest.leave(ctx, d.running.Load() == 0))
	}
	return errors.Join(errs...)
}
