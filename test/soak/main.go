//go:build linux

// Soak builds a thousand small images on a cluster where something is always
// being killed: executors, agents, masters, the connection between framework and
// master. Each build must end with its image, whole, and nothing may be left when
// all have ended. It prints what it did and what it saw.
//
//	make soak
//	make soak SOAK_BUILDS=100 SOAK_SEED=7
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // the staging bucket
	"golang.org/x/sys/unix"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/dockertest"
	"github.com/org/portainer/internal/testmesos"
)

// Settings are taken from the environment.
type settings struct {
	builds int           // SOAK_BUILDS: how many
	atOnce int           // SOAK_AT_ONCE: how many of them at the same time
	every  time.Duration // SOAK_KILL_EVERY: between two kills, on average; 0 for none
	seed   uint64        // SOAK_SEED: of what is killed when
	log    string        // SOAK_LOG: a file for the logs of framework and cluster
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := soak(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func readSettings(env func(string) string) (settings, error) {
	s := settings{log: env("SOAK_LOG")}
	var errs [4]error // all of them are told
	s.builds, errs[0] = strconv.Atoi(cmp.Or(env("SOAK_BUILDS"), "1000"))
	s.atOnce, errs[1] = strconv.Atoi(cmp.Or(env("SOAK_AT_ONCE"), "8"))
	s.every, errs[2] = time.ParseDuration(cmp.Or(env("SOAK_KILL_EVERY"), "700ms"))
	s.seed, errs[3] = strconv.ParseUint(cmp.Or(env("SOAK_SEED"), strconv.FormatUint(rand.Uint64(), 10)), 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return s, err
	}
	if s.builds < 1 || s.atOnce < 1 || s.every < 0 {
		return s, fmt.Errorf("%d builds, %d at once, kills every %v: all of these must be positive", s.builds, s.atOnce, s.every)
	}
	return s, nil
}

func soak(ctx context.Context) (err error) {
	s, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the Docker daemon that builds needs root: run it as root")
	}
	// Processes that lose their parents become children of this one, where they
	// can be seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nwhat it worked on is in %s", err, dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	logger, closeLog, err := openLog(s.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeLog()) }()
	m, err := startMachine(ctx, dir, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	fmt.Fprintf(os.Stdout, "seed %d, %d builds, %d at once, on %d agents, something killed every %v\n", s.seed, s.builds, s.atOnce, agents, s.every)
	return run(ctx, s, m, logger)
}

// openLog opens a file for logs; without a name there are none.
func openLog(name string) (*slog.Logger, func() error, error) {
	if name == "" {
		return slog.New(slog.DiscardHandler), func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})), f.Close, nil
}

// agents is how many there are.
const agents = 4

// A machine is everything that builds need and that stays while they come and go.
type machine struct {
	dir      string
	temp     string // TMPDIR of the executors
	staging  string
	registry *dockertest.Registry
	daemon   *dockertest.Daemon
	mesos    *testmesos.Cluster
	executor string

	before sight // of processes and mounts, before the first build
}

func startMachine(ctx context.Context, dir string, logger *slog.Logger) (_ *machine, err error) {
	m := &machine{dir: dir, temp: filepath.Join(dir, "tmp"), staging: filepath.Join(dir, "staging"), executor: filepath.Join(dir, "executor")}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop())
		}
	}()
	for _, name := range []string{m.temp, m.staging} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return nil, err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", m.executor, "./executor")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("go build ./executor, in the top directory of the repository: %w", err)
	}
	if m.registry, err = dockertest.StartRegistry(ctx, filepath.Join(dir, "registry")); err != nil {
		return nil, err
	}
	if _, err := dockertest.PushBusybox(ctx, m.registry.Addr); err != nil {
		return nil, err
	}
	if m.daemon, err = dockertest.StartDaemon(ctx, dir); err != nil {
		return nil, err
	}
	if m.before, err = look(); err != nil {
		return nil, err
	}
	cfg := testmesos.Config{
		Masters:              2,
		MasterAddr:           lowAddr(),
		WorkDir:              filepath.Join(dir, "mesos"),
		AllocationInterval:   100 * time.Millisecond,
		StatusUpdateRetryMin: time.Second,
		ExecutorEnvironment:  map[string]string{"PATH": os.Getenv("PATH"), "HOME": os.Getenv("HOME"), "TMPDIR": m.temp},
		Logger:               logger,
	}
	for range agents {
		cfg.Agents = append(cfg.Agents, testmesos.AgentConfig{Addr: lowAddr(), Resources: "cpus:2;mem:2048;disk:20000"})
	}
	m.mesos, err = testmesos.Start(cfg)
	return m, err
}

// lowAddr is an address that is free, and whose port Linux gives to nobody's
// connection while its owner is dead (ip(7), ip_local_port_range).
func lowAddr() string {
	for range 1000 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(20000))))
		if err == nil {
			_ = l.Close() // it was not used
			return l.Addr().String()
		}
	}
	return "127.0.0.1:0"
}

// stop ends what was started. It may have been stopped in part.
func (m *machine) stop() error {
	var errs []error
	if m.mesos != nil {
		errs = append(errs, m.mesos.Close())
	}
	if m.daemon != nil {
		errs = append(errs, m.daemon.Stop())
	}
	if m.registry != nil {
		errs = append(errs, m.registry.Stop())
	}
	return errors.Join(errs...)
}

// masters is where the framework looks for the leading master.
func (m *machine) masters() string {
	var urls []string
	for _, master := range m.mesos.Masters() {
		urls = append(urls, strings.TrimPrefix(master.URL(), "http://"))
	}
	return strings.Join(urls, ",")
}

// attempts is how often a build may be killed. More, and the soak is too hard.
const attempts = 50

// run builds, kills, and looks at what is left.
func run(ctx context.Context, s settings, m *machine, logger *slog.Logger) (err error) {
	url := "file://" + m.staging + "?no_tmp_dir=true&metadata=skip"
	bucket, err := blob.OpenBucket(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	logs := newLogs()
	framework, err := portainer.New(portainer.Config{
		Master:          m.masters(),
		Staging:         bucket,
		StagingURL:      url,
		ExecutorCommand: m.executor,
		Engine:          portainer.Engine{Kind: "docker", Host: m.daemon.Host},
		Registry:        m.registry.Addr,
		From:            m.registry.Addr,
		Resources:       portainer.Resources{CPUs: 0.5, MemMB: 128},
		MaxAttempts:     attempts,
		Logs:            logs,
		Logger:          logger,
	})
	if err != nil {
		return err
	}
	runCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	ran := make(chan error, 1)
	go func() { ran <- framework.Run(runCtx) }()

	kills := startKiller(ctx, m.mesos, s)
	began := time.Now()
	t := buildAll(ctx, framework, logs, s, m)
	took := time.Since(began)
	killErr := kills.stop()
	idle := m.awaitNoExecutors()
	stop(errDone)
	if runErr := <-ran; !errors.Is(runErr, errDone) {
		t.problem("the framework: %v", runErr)
	}
	if closeErr := m.mesos.Close(); closeErr != nil {
		t.problem("the cluster: %v", closeErr)
	}
	t.end = own()
	for _, left := range append(idle, m.residue()...) {
		t.problem("left behind: %s", left)
	}
	t.print(os.Stdout, took, kills)
	return errors.Join(killErr, context.Cause(ctx), t.verdict())
}

// errDone ends the framework when there is nothing left to build.
var errDone = errors.New("all builds have ended")

// print writes the figures.
func (t *tally) print(w io.Writer, took time.Duration, k *killer) {
	fmt.Fprintf(w, "builds    %d, %d of them with their image\n", t.ended, t.built)
	fmt.Fprintf(w, "attempts  %d, of one build at most %d\n", t.attempts, t.mostAttempts)
	fmt.Fprintf(w, "kills     %s\n", k)
	fmt.Fprintf(w, "time      %v, %.0f builds a minute, the slowest build %v\n",
		took.Round(time.Second), float64(t.ended)/took.Minutes(), t.slowest.Round(100*time.Millisecond))
	fmt.Fprintf(w, "this end  %v\n", t.end)
	fmt.Fprintf(w, "problems  %d\n", len(t.problems))
}
