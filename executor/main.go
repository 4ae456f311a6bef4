// Command executor is what portainer runs on agents: a Mesos executor that builds
// one container image and pushes it. Agents start it; it takes everything from the
// environment they give.
//
//	executor -version
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/org/portainer/internal/agentrun"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("executor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	version := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "executor: unexpected argument %q\n", flags.Arg(0))
		return 2
	case *version:
		fmt.Fprintln(stdout, agentrun.Version())
		return 0
	}
	// A reader of our output that goes away must not take the build with it.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := agentrun.Run(ctx); err != nil {
		fmt.Fprintln(stderr, "executor:", err)
		return 1
	}
	return 0
}
