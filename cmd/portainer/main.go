// Portainer builds container images on an Apache Mesos cluster.
//
//	portainer build --to registry.example.com --repository team/app Dockerfile
//
// "portainer help" tells the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// The causes of a context that a signal ended.
var (
	errInterrupted = errors.New("interrupted")
	errTerminated  = fmt.Errorf("%w by SIGTERM", errInterrupted)

	errInterruptedAgain = fmt.Errorf("%w again: the cluster may still be tidying up", errInterrupted)
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(runWithSignals(signals))
}

// runWithSignals runs the command line. The first signal cancels it, so that it
// tidies up; the second makes it stop waiting for that.
func runWithSignals(signals <-chan os.Signal) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	abort := make(chan struct{})
	go func() {
		if <-signals == syscall.SIGTERM {
			cancel(errTerminated)
		} else {
			cancel(errInterrupted)
		}
		<-signals
		close(abort)
	}()
	return run(ctx, invocation{
		args:   os.Args[1:],
		env:    os.LookupEnv,
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		abort:  abort,
	})
}
