// Matcher builds images with a placement policy of its own: builds are packed on
// as few agents as possible, so that the others can be switched off, and images
// below "gpu/" run only on agents with the attribute kind:gpu.
//
//	matcher -master 127.0.0.1:5050 -registry 127.0.0.1:5000 -staging file:///mnt/shared \
//	  -executor-uri http://files.example/portainer-executor.tar.gz examples/tree/a examples/tree/b
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer"
)

// pack is the policy. It only decides: the framework checks every placement
// against the offers and does the rest.
func pack(offers []portainer.Offer, builds []portainer.Pending) []portainer.Placement {
	type room struct {
		offer portainer.Offer
		left  portainer.Resources
	}
	rooms := make([]room, 0, len(offers))
	for _, offer := range offers {
		rooms = append(rooms, room{offer, offer.Resources})
	}
	// The fullest agent first.
	slices.SortStableFunc(rooms, func(a, b room) int {
		switch {
		case a.left.CPUs < b.left.CPUs:
			return -1
		case a.left.CPUs > b.left.CPUs:
			return 1
		}
		return strings.Compare(string(a.offer.Agent), string(b.offer.Agent))
	})

	var placements []portainer.Placement
	for _, build := range builds {
		for i := range rooms {
			r := &rooms[i]
			if wantsGPU(build.Image) != (r.offer.Attributes["kind"] == "gpu") ||
				slices.Contains(build.Avoid, r.offer.Agent) || !build.Allows(&r.offer) || !r.left.Fits(build.Resources) {
				continue
			}
			r.left = r.left.Sub(build.Resources)
			placements = append(placements, portainer.Placement{Build: build.ID, Offer: r.offer.ID})
			break
		}
	}
	return placements
}

// wantsGPU reports whether the repository of image lies below "gpu/".
func wantsGPU(image string) bool {
	_, repository, _ := strings.Cut(image, "/")
	return strings.HasPrefix(repository, "gpu/")
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "matcher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("matcher", flag.ContinueOnError)
	cfg := portainer.Config{
		Name:    "portainer-packed",
		Matcher: portainer.MatcherFunc(pack),
		Logs:    portainer.NewWriterSink(stderr),
	}
	flags.StringVar(&cfg.Master, "master", "", "the Mesos master")
	flags.StringVar(&cfg.Registry, "registry", "", "the registry to push to")
	flags.StringVar(&cfg.From, "from", "", "the registry of base images")
	flags.StringVar(&cfg.StagingURL, "staging", "", "the staging bucket, which agents can read")
	flags.StringVar(&cfg.ExecutorURI, "executor-uri", "", "the executor archive, which agents can fetch")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if cfg.Staging, err = blob.OpenBucket(ctx, cfg.StagingURL); err != nil {
		return fmt.Errorf("open staging bucket: %w", err)
	}
	defer func() { err = errors.Join(err, cfg.Staging.Close()) }()
	framework, err := portainer.New(cfg)
	if err != nil {
		return err
	}

	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(runCtx) }()
	defer func() {
		stop()
		if runErr := <-ran; !errors.Is(runErr, context.Canceled) {
			err = errors.Join(err, runErr)
		}
	}()

	errs := make([]error, flags.NArg())
	var builds sync.WaitGroup
	var mu sync.Mutex // guards stdout
	for i, dir := range flags.Args() {
		builds.Go(func() {
			result, err := framework.Build(ctx, portainer.Request{Dir: dir})
			if errs[i] = err; err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(stdout, "%s built on %s\n", result.Image, result.Hostname)
		})
	}
	builds.Wait()
	return errors.Join(errs...)
}
