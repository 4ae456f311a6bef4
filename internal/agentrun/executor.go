package agentrun

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/execapi"
	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/seal"
	"github.com/org/portainer/internal/sshforward"
	"github.com/org/portainer/internal/wire"
)

// Causes of a task's context.
var (
	errKilled   = errors.New("the task was killed")
	errShutdown = errors.New("the executor was told to shut down")
)

// executor is the execapi.Handler. It builds one image: a second task would share
// its log with the first, and the framework never sends one.
type executor struct {
	cfg    Config
	api    execapi.Config
	client *execapi.Client
	log    *slog.Logger

	permit   *permit
	hurry    func() // breaks off what need not be done before the end
	tasks    sync.WaitGroup
	finished chan struct{} // closed when no task is running and none will

	mu       sync.Mutex
	task     string                  // ID of the one task; "" before it came
	kill     context.CancelCauseFunc // ends it
	killing  bool                    // it was told to end
	ended    bool                    // its last update is on its way
	over     bool                    // finished is closed
	stopping bool                    // told to shut down
	stopBy   time.Time               // when the agent will have lost patience; zero until stopping
	secrets  *seal.Receiver          // of the task; nil if it needs none
	ssh      *sshforward.Remote      // of the task; nil with secrets
	relay    *logrelay.Desk          // of the task's log; nil before there is one
	left     error                   // what was left behind
}

func newExecutor(cfg Config, api execapi.Config, client *execapi.Client) *executor {
	return &executor{
		cfg: cfg, api: api, client: client, log: cfg.Logger, finished: make(chan struct{}),
		permit: newPermit(func(ask wire.PushAsk) { client.Message(ask.Encode()) }),
	}
}

// Launch implements execapi.Handler.
func (x *executor) Launch(task execapi.Task) {
	log := x.log.With("task", task.ID)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.stopping:
		log.Info("task refused: shutting down")
		x.report(task.ID, failed(portainer.PhaseLaunch, portainer.ClassCancelled, errShutdown))
		return
	case x.task != "":
		log.Error("task refused", "present", x.task)
		x.report(task.ID, failed(portainer.PhaseLaunch, portainer.ClassInvalid,
			fmt.Errorf("this executor builds one image, and its task is %s", x.task)))
		return
	}
	log.Info("task launched", "name", task.Name)
	x.task = task.ID
	ctx, kill := context.WithCancelCause(context.Background())
	x.kill = kill
	starting := execapi.Status{Task: task.ID, State: execapi.Starting}
	t, err := wire.DecodeTask(task.Data)
	if err == nil && t.Secrets {
		x.secrets, err = seal.NewReceiver(seal.Binding{Task: task.ID, Attempt: t.Attempt}, x.client.Message)
		if err == nil {
			starting.Data = x.secrets.First()
			x.ssh = &sshforward.Remote{Task: task.ID, Attempt: t.Attempt, Send: x.client.Message, Open: x.secrets.Open, Log: log}
		}
	}
	secrets, agents := x.secrets, x.ssh
	x.client.Update(starting)
	x.tasks.Go(func() {
		defer kill(nil)
		if err != nil {
			x.conclude(task.ID, failed(portainer.PhaseLaunch, portainer.ClassInvalid, err))
		} else {
			x.run(ctx, task.ID, t, secrets, agents)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		x.finish()
	})
}

// finish closes finished. The caller holds mu.
func (x *executor) finish() {
	if !x.over {
		x.over = true
		close(x.finished)
	}
}

// Kill implements execapi.Handler. A build is broken off at once, whatever the
// grace.
func (x *executor) Kill(task string, _ time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if task != x.task || x.ended {
		x.log.Warn("no such task to kill", "task", task)
		return
	}
	x.end(errKilled)
}

// end breaks the task off. The caller holds mu.
func (x *executor) end(why error) {
	if !x.killing && !x.ended {
		x.killing = true
		x.log.Info("task is being killed", "task", x.task, "why", why)
		if x.client.KillingState() {
			x.client.Update(execapi.Status{Task: x.task, State: execapi.Killing, Message: why.Error()})
		}
	}
	x.kill(why)
}

// Message implements execapi.Handler.
func (x *executor) Message(data []byte) {
	x.mu.Lock()
	secrets, agents, relay := x.secrets, x.ssh, x.relay
	x.mu.Unlock()
	if secrets != nil && (secrets.Handle(data) || agents.Handle(data)) || relay != nil && relay.Handle(data) {
		return
	}
	grant, err := wire.DecodePushGrant(data)
	if err != nil {
		x.log.Debug("message ignored", "size", len(data), "err", err)
		return
	}
	x.permit.answer(grant)
}

// Shutdown implements execapi.Handler.
func (x *executor) Shutdown() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.stopping {
		return
	}
	x.stopping = true
	x.stopBy = time.Now().Add(x.api.ShutdownGrace * 9 / 10)
	x.hurry()
	if x.task == "" {
		x.finish()
		return
	}
	x.end(errShutdown)
}

// run runs the task to its end, and ends with nothing of it left.
func (x *executor) run(ctx context.Context, id string, t *wire.Task, secrets *seal.Receiver, agents *sshforward.Remote) {
	log, err := openLog(x.api.Sandbox, x.cfg.Stdout, x.hint)
	if err != nil {
		x.conclude(id, failed(portainer.PhaseLaunch, portainer.ClassLaunch, err))
		return
	}
	relay, err := x.openRelay(log, t)
	if err != nil {
		log.close()
		x.conclude(id, failed(portainer.PhaseLaunch, portainer.ClassLaunch, err))
		return
	}
	defer relay.close()
	x.client.Update(execapi.Status{Task: id, State: execapi.Running})
	a := attempt{cfg: x.cfg, sandbox: x.api.Sandbox, task: t, log: log, permit: x.permit}
	if secrets != nil {
		a.secrets, a.ssh, a.log = secrets, agents, maskedLog{log, secrets.Mask}
	}
	outcome := a.run(ctx)
	if f := outcome.Failure; f != nil && secrets != nil {
		f.Message, f.Step = string(secrets.Mask([]byte(f.Message))), string(secrets.Mask([]byte(f.Step)))
	}
	if ctx.Err() != nil {
		// Killed means that nothing of it runs any more.
		x.leave(a.close())
	}
	// The framework says these in its own words.
	if outcome.Failure != nil {
		log.console.event(portainer.Event{Kind: portainer.EventInfo, Text: "failed: " + summary(outcome)})
	}
	for _, ref := range outcome.Refs {
		log.console.event(portainer.Event{Kind: portainer.EventInfo, Text: "pushed " + ref})
	}
	outcome.LogSize = log.close()
	if ctx.Err() == nil { // whoever kills a task does not wait for its log
		relay.awaitEnd(ctx, outcome.LogSize)
	}
	x.conclude(id, outcome)
	x.leave(a.close())
}

// leave notes what could not be removed.
func (x *executor) leave(err error) {
	if err == nil {
		return
	}
	x.log.Error("engine not closed cleanly", "err", err)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.left = errors.Join(x.left, err)
}

func (x *executor) leftErr() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.left
}

// ran returns the task that came, if one came.
func (x *executor) ran() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.task
}

// conclude sends the last update of the one task. Nothing is said of it after that.
func (x *executor) conclude(task string, outcome *wire.Outcome) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	x.report(task, outcome)
}

// report sends a last update.
func (x *executor) report(task string, outcome *wire.Outcome) {
	data, err := outcome.Encode()
	if err != nil {
		panic(err) // a struct of strings, numbers and times always encodes
	}
	status := execapi.Status{Task: task, State: execapi.Finished, Message: summary(outcome), Data: data}
	if f := outcome.Failure; f != nil {
		status.State = execapi.Failed
		if f.Class == string(portainer.ClassCancelled) {
			status.State = execapi.Killed
		}
	}
	x.log.Info("task ended", "task", task, "state", string(status.State), "outcome", status.Message)
	x.client.Update(status)
}

// hint tells the framework that the log has grown.
func (x *executor) hint(size int64) { x.sendHint(&wire.Hint{LogSize: size}) }

func (x *executor) sendHint(h *wire.Hint) {
	data, err := h.Encode()
	if err != nil {
		panic(err) // a struct of numbers always encodes
	}
	x.client.Message(data)
}
