package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	bk "github.com/moby/buildkit/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/ability"
)

// A buildKit is a BuildKit daemon, given or of our own. It pushes by itself.
type buildKit struct {
	cfg     Config
	addr    string
	c       *bk.Client
	version string
	stop    func(ctx context.Context) error // nil if the daemon is not ours
	guards  guard
}

// openBuildKit opens the daemon at cfg.Host.
func openBuildKit(ctx context.Context, cfg Config) (*buildKit, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %s", callTimeout))
	defer cancel()
	b, err := dialBuildKit(ctx, cfg, cfg.Host)
	if err != nil {
		return nil, withCause(ctx, err)
	}
	if b.guards, err = guestDisk(cfg, cfg.Host); err != nil {
		return nil, errors.Join(err, b.c.Close())
	}
	return b, nil
}

// dialBuildKit connects to the daemon at addr. An error says that the daemon is
// not there, or not ready yet.
func dialBuildKit(ctx context.Context, cfg Config, addr string) (*buildKit, error) {
	var opts []bk.ClientOpt
	if cfg.TLS != nil {
		u, err := url.Parse(addr)
		if err != nil {
			return nil, fmt.Errorf("buildkit daemon at %s: %w", addr, err)
		}
		own := cfg.TLS.Clone()
		own.ServerName = cmp.Or(own.ServerName, u.Hostname())
		opts = append(opts, bk.WithGRPCDialOption(grpc.WithTransportCredentials(credentials.NewTLS(own))),
			bk.WithGRPCDialOption(grpc.WithAuthority(own.ServerName)))
	}
	c, err := bk.New(ctx, addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("buildkit daemon at %s: %w", addr, err)
	}
	b := &buildKit{cfg: cfg, addr: addr, c: c, version: "(unknown version)"}
	if _, err := c.ListWorkers(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("buildkit daemon at %s: %w", addr, err), c.Close())
	}
	// Old ones cannot tell their version.
	if info, err := c.Info(ctx); err == nil {
		b.version = info.BuildkitVersion.Version
	}
	return b, nil
}

func (b *buildKit) name() string { return "buildkitd " + b.version }

func (b *buildKit) guard() guard { return b.guards }

// build implements backend.
func (b *buildKit) build(ctx context.Context, j *job) (*built, error) {
	if _, err := j.choose([]ability.Builder{ability.Standalone}, b.name()); err != nil {
		return nil, err
	}
	if err := b.checkRegistries(); err != nil {
		return nil, err
	}
	j.archives = !takesTrees(b.version)
	made := &built{by: b.name()}
	if err := j.export(ctx, b.c, j.req.Network, j.exported(false), made); err != nil {
		return nil, err
	}
	if !j.req.Pushes() {
		return made, nil
	}
	export := bk.ExportEntry{Type: bk.ExporterImage, Attrs: map[string]string{
		"name":   strings.Join(j.refs, ","),
		"push":   "true",
		"unpack": "false",
		"store":  "false",
	}}
	if b.stop == nil {
		j.unbounded = true
		// A daemon of our own has it in its configuration, for bases too.
		for _, r := range j.cfg.Insecure {
			if r == j.req.Registry {
				export.Attrs["registry.insecure"] = "true"
			}
		}
	}
	exportOptions(j.req.Options, export.Attrs)
	maps.Copy(export.Attrs, j.registryAttrs())
	// It pushes as part of the build, so it must be allowed to before it begins.
	ctx, release, err := j.cfg.permit(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var resp map[string]string
	err = j.persist(ctx, func(again bool) (err error) {
		resp, err = j.solve(ctx, b.c, j.req.Network, []bk.ExportEntry{export}, again || j.solved)
		return err
	})
	if err != nil {
		return nil, unpermitted(ctx, b.explain(err))
	}
	made.learn(resp)
	if made.digest == "" {
		return nil, failure(portainer.PhasePush, portainer.ClassLost, fmt.Errorf("the buildkit daemon at %s did not say what it has pushed", b.addr))
	}
	done := j.report.begin("pushed "+j.image, 0, time.Time{})
	done.write([]byte(made.digest+"\n"), false, time.Time{})
	done.done("", time.Time{})
	return made, nil
}

// treesSince is the first minor release of BuildKit 0 that leaves the times of a
// tree's directories as they are (fsutil, "receiver: re-apply directory timestamps",
// November 2022).
const treesSince = 12

// releaseWords finds the release in a version such as "v0.33.1".
var releaseWords = regexp.MustCompile(`^v?(\d+)\.(\d+)\.`)

// takesTrees reports whether a context can be given to a daemon of that version file by
// file, and arrives as it is.
func takesTrees(version string) bool {
	m := releaseWords.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	return err1 == nil && err2 == nil && (major > 0 || minor >= treesSince)
}

// close implements backend.
func (b *buildKit) close(ctx context.Context) error {
	errs := []error{b.c.Close()}
	if b.stop != nil {
		errs = append(errs, b.stop(ctx))
	}
	return errors.Join(errs...)
}
