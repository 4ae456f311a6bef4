package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/portainer"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1   // a build failed
	exitUsage       = 2   // bad flags, or bad input
	exitTrouble     = 3   // the cluster or staging
	exitInterrupted = 130 // as shells report SIGINT
)

// An invocation is everything that a run of the program takes from outside.
type invocation struct {
	args           []string
	env            func(string) (string, bool)
	stdin          io.Reader
	stdout, stderr io.Writer
	abort          <-chan struct{} // closed when the user will not wait for tidying up

	console *console // what run makes of stderr
}

// globals are the flags that every command takes, before or after its name.
type globals struct {
	invocation

	master      string
	role        string
	frameworkID string
	principal   string
	secretFile  string
	tls         tlsFlags
	executorURI string
	cached      bool // agents may keep what executorURI names
	dockerHost  string
	verbose     bool

	logger *slog.Logger
}

// run carries out one command line and returns the exit code.
func run(ctx context.Context, inv invocation) int {
	inv.console = newConsole(inv.stderr)
	inv.stdout, inv.stderr = inv.console.beside(inv.stdout), inv.console
	args, err := expandArgs(inv.args)
	if err == nil {
		root := newRoot(inv)
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	var told *toldError
	if err != nil && !errors.As(err, &told) {
		complain(inv.stderr, err)
	}
	return exitCode(err)
}

// complain writes err for a person, one problem a line.
func complain(w io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "portainer: %s\n", strings.TrimRight(line, "\n"))
	}
}

// A usageError is a mistake in the command line or environment.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// A toldError was shown to the user already.
type toldError struct{ err error }

func (e *toldError) Error() string { return e.err.Error() }
func (e *toldError) Unwrap() error { return e.err }

// exitCode maps the errors of a run to its exit code. Of several, the one tells
// that most needs a person: an interrupt, then the cluster, then bad input, then
// a failed build.
func exitCode(err error) int {
	codes := codesOf(err)
	for _, code := range []int{exitInterrupted, exitTrouble, exitUsage, exitFailed} {
		if codes[code] {
			return code
		}
	}
	return exitOK
}

func codesOf(err error) map[int]bool {
	codes := map[int]bool{}
	var all *buildsError
	if errors.As(err, &all) {
		for _, one := range all.errs {
			codes[codeOf(one)] = true
		}
		return codes
	}
	codes[codeOf(err)] = true
	return codes
}

func codeOf(err error) int {
	var usage *usageError
	var build *portainer.BuildError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case ofFramework(err):
		return exitTrouble // its end cancels builds, but nobody asked for that
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, portainer.ErrInvalid):
		return exitUsage
	case errors.Is(err, portainer.ErrFailed):
		return exitFailed
	case errors.As(err, &build) && build.Class == portainer.ClassTimeout && (build.Phase == portainer.PhaseBuild || build.Phase == portainer.PhasePush):
		return exitFailed
	default: // ErrLost, ErrStaging, ErrRejected, ErrStopped, and trouble on this machine
		return exitTrouble
	}
}

func newRoot(inv invocation) *cobra.Command {
	g := &globals{invocation: inv}
	root := &cobra.Command{
		Use:   "portainer",
		Short: "Build container images on an Apache Mesos cluster",
		Long: `portainer builds container images from Dockerfiles on the agents of an Apache Mesos
cluster and pushes them to a registry. Without a cluster it brings up one of its
own on this machine.

Every flag can be given as an environment variable too: PORTAINER_ and the flag's
name in capitals with _ for -, such as PORTAINER_MESOS_MASTER. Flags that may be
repeated take one value a line there. A flag on the command line wins over a
Dockerfile's own metadata, and that over the environment.

An argument @FILE stands for the arguments in FILE, one a line; empty lines and
lines that begin with # are left out.

Exit codes: 0, 1 a build failed, 2 wrong usage or bad input, 3 trouble with the
cluster or with staging, 130 interrupted.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              commandNeeded,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return g.prepare(cmd) },
	}
	root.SetIn(inv.stdin)
	root.SetOut(inv.stdout)
	root.SetErr(inv.stderr)
	root.SetFlagErrorFunc(flagError)

	f := root.PersistentFlags()
	f.StringVar(&g.master, "mesos-master", "local", "the Mesos master: host:port, a comma-separated list of them, a URL, zk://host:port,…/path,\n"+
		"or local, local:N for a cluster of N agents on this machine")
	f.StringVar(&g.role, "framework-role", "", "the Mesos `ROLE` to take offers for (default \"*\")")
	f.StringVar(&g.frameworkID, "framework-id", "", "register again as the framework with this `ID`")
	f.StringVar(&g.principal, "mesos-principal", "", "the `NAME` to authenticate as to Mesos")
	f.StringVar(&g.secretFile, "mesos-secret-file", "", "the `FILE` that holds its secret")
	g.tls.addFlags(f)
	f.StringVar(&g.executorURI, "executor-uri", "", "where agents fetch the executor archive made by \"make executor\" (default: this program is staged)")
	f.BoolVar(&g.cached, "executor-cache", false, "have each agent keep what it fetched from --executor-uri, whose content must never change then")
	f.StringVar(&g.dockerHost, "docker-host", "", "build with the Docker daemon at this `ADDRESS` on each agent, such as unix:///var/run/docker.sock")
	f.BoolVar(&g.verbose, "verbose", false, "log what the framework does")

	root.AddCommand(newBuild(g), newAttach(g), newLocal(g), newContext(g), newStaging(g), newVersion(g), newExecutor())
	return root
}

// flagError says what is wrong with a flag of cmd.
func flagError(cmd *cobra.Command, err error) error {
	foreign, invalid := (*foreignError)(nil), (*pflag.InvalidValueError)(nil)
	if errors.As(err, &foreign) && errors.As(err, &invalid) {
		return usagef("--%s: %w", invalid.GetFlag().Name, foreign)
	}
	return usagef("%w: see %s --help", err, cmd.CommandPath())
}

// commandNeeded is the RunE of a command that does nothing without another below it.
func commandNeeded(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("there is no command %q: see %s --help", args[0], cmd.CommandPath())
	}
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return &toldError{usagef("no command given")}
}

// secret reads --mesos-secret-file.
func (g *globals) secret() (string, error) {
	if g.secretFile == "" {
		return "", nil
	}
	if g.principal == "" {
		return "", usagef("--mesos-secret-file needs --mesos-principal, whose secret it is")
	}
	text, err := os.ReadFile(g.secretFile)
	if err != nil {
		return "", usagef("--mesos-secret-file: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// prepare takes flags from the environment and sets up what all commands use.
func (g *globals) prepare(cmd *cobra.Command) error {
	if err := flagsFromEnv(cmd.Flags(), g.env); err != nil {
		return err
	}
	// What a person must know comes as a build's events or as an error.
	level := slog.LevelError
	if g.verbose {
		level = slog.LevelDebug
	}
	g.logger = slog.New(slog.NewTextHandler(g.stderr, &slog.HandlerOptions{Level: level}))
	return nil
}
