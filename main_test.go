package portainer_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/execapi"
	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/wire"
)

// TestMain runs the tests, or, started by an agent, an executor that builds
// nothing: it does what the build argument DO says, so that tests of the framework
// can have every kind of attempt without an engine.
func TestMain(m *testing.M) {
	if os.Getenv("MESOS_EXECUTOR_ID") != "" {
		os.Exit(actorMain())
	}
	code := m.Run()
	if exampleCluster != nil {
		if err := exampleCluster.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "cluster of the examples:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// An actor is such an executor.
type actor struct {
	client *execapi.Client
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	granted sync.Once
	grant   chan struct{} // closed when it may push

	mu      sync.Mutex
	kill    map[string]context.CancelFunc
	secrets *seal.Receiver
	relay   *logrelay.Desk
}

func actorMain() int {
	cfg, err := execapi.FromEnv(os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &actor{client: execapi.New(cfg), ctx: ctx, stop: stop, kill: make(map[string]context.CancelFunc), grant: make(chan struct{})}
	connected, hangUp := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() {
		_ = a.client.Run(connected, a)
		stop()
	})
	<-ctx.Done()
	a.wg.Wait()
	flush, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = a.client.Flush(flush)
	hangUp()
	reader.Wait()
	return 0
}

func (a *actor) Launch(info execapi.Task) {
	ctx, cancel := context.WithCancel(a.ctx)
	a.mu.Lock()
	a.kill[info.ID] = cancel
	a.mu.Unlock()
	a.wg.Go(func() {
		a.act(ctx, info)
		a.stop() // an executor has one task
	})
}

func (a *actor) Kill(task string, _ time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cancel := a.kill[task]; cancel != nil {
		cancel()
	}
}

func (a *actor) Message(data []byte) {
	if grant, err := wire.DecodePushGrant(data); err == nil && grant.Lease > 0 {
		a.granted.Do(func() { close(a.grant) })
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.relay != nil && a.relay.Handle(data) {
		return
	}
	if a.secrets != nil {
		a.secrets.Handle(data)
	}
}

// mayPush asks for the right to push until it is given.
func (a *actor) mayPush(ctx context.Context) error {
	for serial := 1; ; serial++ {
		a.client.Message(wire.PushAsk{Serial: serial}.Encode())
		select {
		case <-a.grant:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (a *actor) Shutdown() { a.stop() }

// act plays one task.
func (a *actor) act(ctx context.Context, info execapi.Task) {
	task, err := wire.DecodeTask(info.Data)
	if err != nil {
		panic(err)
	}
	log := &actorLog{}
	relay := logrelay.NewDesk(log, task.LogRoute, a.client.Message, slog.New(slog.DiscardHandler))
	a.mu.Lock()
	a.relay = relay
	a.mu.Unlock()
	a.wg.Go(func() { relay.Serve(a.ctx) })
	secrets := a.start(info, task)
	log.line(wire.FrameInfo, fmt.Sprintf("attempt %d of %s", task.Attempt, task.Build))
	log.flush()

	outcome := &wire.Outcome{Started: time.Now()}
	state := execapi.Finished
	verb, arg, _ := strings.Cut(task.Args["DO"], ":")
	if verb == "crash-first" {
		verb = map[bool]string{true: "crash", false: "push"}[task.Attempt == 1]
	}
	switch verb {
	case "tell": // who it is to a registry, and a build secret
		got, err := secrets.Credentials(ctx)
		log.line(wire.FrameOut, fmt.Sprintf("user %s, secret %s, %v", got.Registries[task.Registry].Username, got.Secrets[arg], err))
	case "crash":
		os.Exit(7)
	case "fail":
		state = execapi.Failed
		outcome.Failure = &wire.Failure{Class: string(portainer.ClassUser), Phase: string(portainer.PhaseBuild), Step: "RUN false", Line: 3, Message: "exit code: 1"}
	case "lines":
		n, _ := strconv.Atoi(arg)
		for i := range n {
			log.line(wire.FrameOut, fmt.Sprintf("line %d", i))
		}
	case "wait": // until a file is there, or a kill
		for !exists(arg) {
			select {
			case <-ctx.Done():
				log.flush()
				a.update(info, execapi.Killed, nil)
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	case "tick": // a line every few milliseconds until a file is there
		for i := 0; !exists(arg); i++ {
			log.line(wire.FrameOut, fmt.Sprintf("line %d", i))
			log.flush()
			a.hint(wire.Hint{LogSize: log.Size()})
			select {
			case <-ctx.Done():
				a.update(info, execapi.Killed, nil)
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	log.flush()
	if state == execapi.Finished {
		outcome.Digest = "sha256:" + strings.Repeat("0", 64)
		for _, tag := range task.Tags {
			outcome.Refs = append(outcome.Refs, task.Registry+"/"+task.Repository+":"+tag+"@"+outcome.Digest)
		}
		if err := a.mayPush(ctx); err != nil {
			a.update(info, execapi.Killed, nil)
			return
		}
		push(task)
	}
	outcome.Ended, outcome.LogSize = time.Now(), log.Size()
	err = relay.AwaitEnd(ctx, func() { a.hint(wire.Hint{LogSize: log.Size(), Waiting: true}) })
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
	}
	a.update(info, state, outcome)
}

func (a *actor) hint(h wire.Hint) {
	data, _ := h.Encode()
	a.client.Message(data)
}

// start reports that the task runs, and asks for its secrets if it has any.
func (a *actor) start(info execapi.Task, task *wire.Task) *seal.Receiver {
	starting := execapi.Status{Task: info.ID, State: execapi.Starting}
	var secrets *seal.Receiver
	if task.Secrets {
		var err error
		if secrets, err = seal.NewReceiver(seal.Binding{Task: info.ID, Attempt: task.Attempt}, a.client.Message); err != nil {
			panic(err)
		}
		starting.Data = secrets.First()
		a.mu.Lock()
		a.secrets = secrets
		a.mu.Unlock()
	}
	a.client.Update(starting)
	a.update(info, execapi.Running, nil)
	return secrets
}

// push notes in the file PUSHES, if the task has one, that it pushed.
func push(task *wire.Task) {
	file, err := os.OpenFile(task.Args["PUSHES"], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintf(file, "%s-%d\n", task.Build, task.Attempt)
		file.Close()
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (a *actor) update(info execapi.Task, state execapi.State, outcome *wire.Outcome) {
	status := execapi.Status{Task: info.ID, State: state}
	if outcome != nil {
		status.Data, _ = outcome.Encode()
	}
	a.client.Update(status)
}

// actorLog is the executor's build.log.
type actorLog struct {
	buf []byte

	mu   sync.Mutex
	size int64
}

func (l *actorLog) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

func (l *actorLog) ReadAt(p []byte, offset int64) (int, error) {
	file, err := os.Open(wire.LogFile)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.ReadAt(p, offset)
}

func (l *actorLog) line(kind wire.FrameKind, text string) {
	l.buf = wire.AppendFrame(l.buf, wire.Frame{Kind: kind, Time: time.Now(), Data: []byte(text)})
}

func (l *actorLog) flush() {
	file, err := os.OpenFile(wire.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	n, err := file.Write(l.buf)
	if err != nil {
		panic(err)
	}
	file.Close()
	l.mu.Lock()
	l.size += int64(n)
	l.mu.Unlock()
	l.buf = l.buf[:0]
}
