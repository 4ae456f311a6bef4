// Embed builds every directory below a root that holds a Dockerfile, a few at a
// time, from inside a program of its own: what a continuous integration service
// would do with the library.
//
//	embed -master 127.0.0.1:5050 -registry 127.0.0.1:5000 -staging file:///mnt/shared \
//	  -executor-uri http://files.example/portainer-executor.tar.gz examples/tree
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob"

	"github.com/org/portainer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("embed", flag.ContinueOnError)
	var cfg portainer.Config
	flags.StringVar(&cfg.Master, "master", "", "the Mesos master")
	flags.StringVar(&cfg.Registry, "registry", "", "the registry to push to")
	flags.StringVar(&cfg.From, "from", "", "the registry of base images")
	flags.StringVar(&cfg.StagingURL, "staging", "", "the staging bucket, which agents can read")
	flags.StringVar(&cfg.ExecutorURI, "executor-uri", "", "the executor archive, which agents can fetch")
	atOnce := flags.Int("at-once", 4, "builds at the same time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("give one directory")
	}

	if cfg.Staging, err = blob.OpenBucket(ctx, cfg.StagingURL); err != nil {
		return fmt.Errorf("open staging bucket: %w", err)
	}
	defer func() { err = errors.Join(err, cfg.Staging.Close()) }()
	cfg.Logs = portainer.NewWriterSink(stderr).WithPrefix(func(ev portainer.Event) string { return ev.Image + ": " })
	framework, err := portainer.New(cfg)
	if err != nil {
		return err
	}

	// Run owns everything that goes on in the background and ends with its
	// context: give it one that outlives the builds.
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(runCtx) }()
	defer func() {
		stop()
		if runErr := <-ran; !errors.Is(runErr, context.Canceled) {
			err = errors.Join(err, runErr)
		}
	}()
	return buildAll(ctx, framework, flags.Arg(0), *atOnce, stdout)
}

// buildAll builds every Dockerfile below root and writes what was pushed to out.
// It takes a Builder, so that its test needs no cluster.
func buildAll(ctx context.Context, builder portainer.Builder, root string, atOnce int, out io.Writer) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "Dockerfile" {
			dirs = append(dirs, filepath.Dir(path))
		}
		return err
	})
	if err != nil {
		return err
	}

	results := make([]*portainer.Result, len(dirs))
	errs := make([]error, len(dirs))
	slots := make(chan struct{}, atOnce)
	var builds sync.WaitGroup
	for i, dir := range dirs {
		builds.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i], errs[i] = builder.Build(ctx, portainer.Request{Dir: dir})
		})
	}
	builds.Wait()
	for _, result := range results {
		if result == nil {
			continue
		}
		for _, ref := range result.Refs {
			fmt.Fprintln(out, ref)
		}
	}
	return errors.Join(errs...)
}
