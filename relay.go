package portainer

import (
	"context"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"

	"github.com/org/portainer/internal/logrelay"
)

// readLog lets w read logs, and what comes to box be part of that. The caller calls
// done when w has ended.
func (f *Framework) readLog(ctx context.Context, w *follower, box *mailbox) (done func()) {
	executor := newExecutorLog(func(s *logSource, ask logrelay.Ask) {
		_ = f.ask(ctx, func(l *loop) { l.askLog(s, ask) }) // it is asked again, or nobody wants the log
	})
	route := &logRoute{files: agentFiles{f.files}, executor: executor, reach: f.reach, say: w.say}
	w.log, w.arrived = route, executor.reader.Arrived()
	box.read(executor)
	return route.close
}

// askLog sends a question about its log to an executor.
func (l *loop) askLog(s *logSource, ask logrelay.Ask) {
	at := l.ledger.tasks[s.task]
	if at == nil {
		return // it has ended
	}
	at.relieved = ask.Elsewhere
	l.client.Send(calls.Message(string(at.agent), at.task, ask.Encode()))
}

// relayed hands a piece of its log, which an executor was asked for, to whoever
// follows the log.
func (l *loop) relayed(c logrelay.Chunk, task string, agent AgentID) {
	at := l.ledger.tasks[task]
	if at == nil || at.agent != agent {
		return
	}
	if box := l.boxes[at.build.id]; box != nil {
		if log := box.reader(); log != nil {
			log.handle(task, c)
		}
	}
}

// logAwaited is called when an executor has ended, but for its log: what it was told
// may have been lost.
func (l *loop) logAwaited(at *attempt) {
	if at.relieved {
		l.client.Send(calls.Message(string(at.agent), at.task, logrelay.Ask{Elsewhere: true}.Encode()))
	}
	if box := l.boxes[at.build.id]; box != nil {
		if log := box.reader(); log != nil {
			log.awaits(at.task)
		}
	}
}
