package agentrun_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/agentrun"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/execapi"
)

// executorVariable makes this test binary an executor with a scripted engine.
const executorVariable = "AGENTRUN_TEST_EXECUTOR"

// binDir is where tests put what they build.
var binDir string

func TestMain(m *testing.M) {
	if os.Getenv(executorVariable) == "" {
		os.Exit(runTests(m))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := agentrun.Serve(ctx, agentrun.Config{
		OpenEngine: openScripted,
		Sweep:      func(context.Context, *slog.Logger) error { return nil },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "executor:", err)
		os.Exit(1)
	}
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "agentrun-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	return m.Run()
}

// A scripted engine does what the lines of the Dockerfile say. When it is closed it
// leaves a file "closed" in its sandbox.
type scripted struct{ cfg engine.Config }

func openScripted(_ context.Context, cfg engine.Config) (agentrun.Engine, error) {
	if cfg.Kind == "none" {
		return nil, &portainer.BuildError{Phase: portainer.PhaseLaunch, Class: portainer.ClassLaunch, Err: fmt.Errorf("no engine here")}
	}
	return &scripted{cfg}, nil
}

func (s *scripted) Name() string { return "scripted" }

func (s *scripted) Why() string { return "asked for" }

func (s *scripted) Close(context.Context) error {
	return os.WriteFile(filepath.Join(s.cfg.Sandbox, "closed"), nil, 0o600)
}

func (s *scripted) Build(ctx context.Context, req portainer.Request) (*portainer.Result, error) {
	step := portainer.Step{ID: 1, Name: "script"}
	say := func(format string, args ...any) {
		s.cfg.Logs.HandleEvent(ctx, portainer.Event{Kind: portainer.EventLog, Time: time.Now(), Step: step, Text: fmt.Sprintf(format, args...)})
	}
	fail := func(phase portainer.Phase, class portainer.Class, err error) (*portainer.Result, error) {
		return nil, &portainer.BuildError{ID: req.ID, Phase: phase, Class: class, Step: "script", Line: 7, Err: err}
	}
	s.cfg.Logs.HandleEvent(ctx, portainer.Event{Kind: portainer.EventStep, Time: time.Now(), Step: step})
	lines := 0 // said
	for text := range strings.Lines(string(req.Source)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
		switch word {
		case "say":
			n, err := strconv.Atoi(rest)
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassInvalid, err)
			}
			for range n {
				say("line %d", lines)
				lines++
			}
		case "linger":
			d, err := time.ParseDuration(rest)
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassInvalid, err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		case "stamp": // says the time, every now and then
			n, err := strconv.Atoi(rest)
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassInvalid, err)
			}
			tick := time.NewTicker(37 * time.Millisecond)
			for range n {
				<-tick.C
				say("%d", time.Now().UnixNano())
			}
			tick.Stop()
		case "token":
			say("token %q", os.Getenv(execapi.TokenVariable))
		case "context":
			var size counter
			if err := s.cfg.Bundler.Bundle(ctx, req, &size); err != nil {
				say("context broken off after %d", size)
				return nil, err
			}
			say("context %d", size)
		case "save":
			if err := s.cfg.Save(ctx, 0, strings.NewReader(rest)); err != nil {
				return nil, err
			}
		case "show":
			auth, err := s.cfg.Auth(ctx, rest)
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassAuth, err)
			}
			secret, err := s.cfg.Secrets(ctx, "npmrc")
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassAuth, err)
			}
			say("user %s, password %s, secret %s", auth.Username, auth.Password, secret)
			if auth.Password != "hunter2-the-first" || string(secret) != "npm-token" {
				return fail(portainer.PhaseBuild, portainer.ClassAuth, fmt.Errorf("wrong password %q or secret", auth.Password))
			}
		case "wait":
			for { // until the file is there
				if _, err := os.Stat(filepath.Join(s.cfg.Sandbox, rest)); err == nil {
					break
				}
				select {
				case <-ctx.Done():
					return fail(portainer.PhaseBuild, portainer.ClassCancelled, ctx.Err())
				case <-time.After(5 * time.Millisecond):
				}
			}
		case "crash":
			os.Exit(3)
		case "fail":
			return fail(portainer.PhaseBuild, portainer.ClassUser, fmt.Errorf("exit code %s", rest))
		case "betray":
			secret, err := s.cfg.Secrets(ctx, "npmrc")
			if err != nil {
				return fail(portainer.PhaseBuild, portainer.ClassAuth, err)
			}
			step.Name = string(secret)
			s.cfg.Logs.HandleEvent(ctx, portainer.Event{Kind: portainer.EventStepDone, Time: time.Now(), Step: step})
			return nil, &portainer.BuildError{Phase: portainer.PhaseBuild, Class: portainer.ClassUser, Step: "RUN echo " + string(secret),
				Err: fmt.Errorf("said %s", secret)}
		}
	}
	image := req.Registry + "/" + req.Repository
	return &portainer.Result{Image: image, Digest: "sha256:0", Refs: []string{image + ":" + req.Tags[0] + "@sha256:0"}, Engine: "scripted 1"}, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

var _ io.Writer = (*counter)(nil)

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }
