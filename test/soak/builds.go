//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/org/portainer"
)

// maxBuild is how long a build may take, however often it is killed.
const maxBuild = 5 * time.Minute

// tags are what each image gets. A build that is killed between two of them has
// to set all again.
var tags = []string{"a", "b", "c"}

// lines is how much a build with a RUN writes.
const lines = 20

// A tally is what became of the builds.
type tally struct {
	mu           sync.Mutex
	ended, built int
	attempts     int
	mostAttempts int
	slowest      time.Duration
	end          footprint // of this process, after the framework's end
	problems     []string
}

func (t *tally) problem(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
	fmt.Fprintln(os.Stderr, "problem:", t.problems[len(t.problems)-1])
}

// verdict is an error if anything went wrong.
func (t *tally) verdict() error {
	var errs []error
	for _, p := range t.problems {
		errs = append(errs, errors.New(p))
	}
	return errors.Join(errs...)
}

// count adds a build.
func (t *tally) count(of int, result *portainer.Result, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended++
	t.slowest = max(t.slowest, took)
	if result != nil {
		t.built++
		t.attempts += result.Attempts
		t.mostAttempts = max(t.mostAttempts, result.Attempts)
	}
	if step := max(of/10, 1); t.ended%step == 0 {
		fmt.Fprintf(os.Stderr, "%d of %d builds\n", t.ended, of)
	}
}

// buildAll has all builds done, s.atOnce at the same time, and checks each.
func buildAll(ctx context.Context, builder portainer.Builder, logs *logs, s settings, m *machine) *tally {
	t := &tally{}
	slots := make(chan struct{}, s.atOnce)
	var builds sync.WaitGroup
	for n := range s.builds {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		builds.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			result, err := buildOne(ctx, builder, logs, m, n)
			if err != nil && ctx.Err() == nil {
				t.problem("build %d: %v", n, err)
			}
			t.count(s.builds, result, time.Since(began))
		})
	}
	builds.Wait()
	return t
}

// buildOne has one image built and looks at it and at its log.
func buildOne(ctx context.Context, builder portainer.Builder, logs *logs, m *machine, n int) (_ *portainer.Result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxBuild, fmt.Errorf("it did not end within %v", maxBuild))
	defer cancel()
	dir := filepath.Join(m.dir, "contexts", fmt.Sprint(n))
	runs := n%3 == 0
	if err := writeContext(dir, n, runs); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	id := portainer.BuildID(fmt.Sprintf("soak-%d", n))
	result, err := builder.Build(ctx, portainer.Request{ID: id, Dir: dir, Repository: fmt.Sprintf("soak/%d", n), Tags: tags, NoCache: runs})
	log := logs.take(id)
	if err != nil {
		return nil, err
	}
	if runs {
		err = log.check(result.Attempts)
	}
	return result, errors.Join(err, checkImage(ctx, result))
}

// writeContext writes a build context like no other. A third of the builds run a
// command, in which they can be killed; the rest copy a file.
func writeContext(dir string, n int, runs bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := "FROM scratch\nCOPY number /\n"
	if runs {
		text = fmt.Sprintf("FROM busybox\nCOPY number /\nRUN for i in $(seq 1 %d); do echo line $i; sleep 0.02; done\n", lines)
	}
	err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644)
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "number"), fmt.Appendln(nil, n), 0o644))
}

// checkImage compares what the registry has under each tag with what the build
// says that it pushed.
func checkImage(ctx context.Context, result *portainer.Result) error {
	var errs []error
	if len(result.Refs) != len(tags) {
		errs = append(errs, fmt.Errorf("references: %v", result.Refs))
	}
	for _, tag := range tags {
		ref, err := name.NewTag(result.Image+":"+tag, name.StrictValidation)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		got, err := remote.Head(ref, remote.WithContext(ctx))
		switch {
		case err != nil:
			errs = append(errs, err)
		case got.Digest.String() != result.Digest:
			errs = append(errs, fmt.Errorf("%s is %s, but the build says %s", ref, got.Digest, result.Digest))
		}
	}
	return errors.Join(errs...)
}

// logs is the LogSink: what the builds wrote that are under way.
type logs struct {
	mu     sync.Mutex
	builds map[portainer.BuildID]*buildLog
}

// A buildLog is what one build wrote.
type buildLog struct {
	attempts map[int][]string
	ends     int
	gaps     []string
}

func newLogs() *logs { return &logs{builds: map[portainer.BuildID]*buildLog{}} }

// HandleEvent implements portainer.LogSink.
func (l *logs) HandleEvent(_ context.Context, ev portainer.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.builds[ev.Build]
	if b == nil {
		b = &buildLog{attempts: map[int][]string{}}
		l.builds[ev.Build] = b
	}
	switch ev.Kind {
	case portainer.EventLog:
		if strings.HasPrefix(ev.Text, "line ") {
			b.attempts[ev.Attempt] = append(b.attempts[ev.Attempt], ev.Text)
		}
	case portainer.EventGap:
		b.gaps = append(b.gaps, fmt.Sprintf("attempt %d: %s", ev.Attempt, ev.Text))
	case portainer.EventSucceeded, portainer.EventFailed:
		b.ends++
	}
}

// take returns what a build wrote that has ended, and forgets it.
func (l *logs) take(id portainer.BuildID) *buildLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.builds[id]
	delete(l.builds, id)
	if b == nil {
		b = &buildLog{}
	}
	return b
}

// check wants every line of the last attempt, once and in order, and of those
// that were killed the first ones.
func (b *buildLog) check(last int) error {
	var errs []error
	if b.ends != 1 {
		errs = append(errs, fmt.Errorf("its end was told %d times", b.ends))
	}
	for _, gap := range b.gaps {
		errs = append(errs, fmt.Errorf("log: %s", gap))
	}
	var want []string
	for i := 1; i <= lines; i++ {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	for attempt, got := range b.attempts {
		whole := attempt == last
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) || whole && len(got) < len(want) {
			errs = append(errs, fmt.Errorf("log of attempt %d of %d: %q", attempt, last, got))
		}
	}
	if len(b.attempts[last]) == 0 {
		errs = append(errs, fmt.Errorf("no log of attempt %d, the last", last))
	}
	return errors.Join(errs...)
}
