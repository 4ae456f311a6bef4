package portainer

import (
	"fmt"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler/calls"
)

// perform carries out what the ledger has decided. An error means that the state
// could not be kept; nothing that relies on it was done then, but whoever waits for
// a build that is over has been told.
func (l *loop) perform() error {
	actions := l.ledger.take()
	err := l.fatal
	if err == nil {
		err = l.save(actions)
	}
	if err != nil {
		l.notifyEnded(actions)
		return err
	}
	for _, a := range actions {
		switch a := a.(type) {
		case actRevive:
			l.client.Send(calls.Revive())
		case actSuppress:
			l.client.Send(calls.Suppress())
		case actDecline:
			l.decline(a)
		case actYield:
			l.yield(a)
		case actAccept:
			l.accept(a)
		case actKill:
			l.client.Send(calls.Kill(a.task, string(a.agent)))
		case actReconcile:
			l.reconcile(a)
		case actAcknowledge:
			l.client.Send(calls.Acknowledge(string(a.update.agent), a.update.task, a.update.uuid))
		case actGrant:
			l.client.Send(calls.Message(string(a.agent), a.task, a.grant.Encode()))
		case actNotice:
			l.notify(a)
		case actRelease:
			l.release(a.build)
		case actForget:
			l.drop(a.build.id)
		case actComplain:
			l.f.cfg.Logger.Warn("placement dropped", "why", a.text)
		}
	}
	l.raw = nil
	return nil
}

// save makes what actions say durable, all of it at once.
func (l *loop) save(actions []action) error {
	if l.f.state == nil {
		return nil
	}
	var records []record
	seen := make(map[*build]bool)
	for _, a := range actions {
		if s, ok := a.(actSave); ok && !seen[s.build] {
			seen[s.build] = true
			records = append(records, s.build.record())
		}
	}
	if len(records) == 0 {
		return nil
	}
	if err := l.f.state.put(records); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// accept launches attempts on one offer.
func (l *loop) accept(a actAccept) {
	raw := l.raw[a.offer]
	pool := append([]mesos.Resource(nil), raw.Resources...)
	role := raw.GetAllocationInfo().GetRole()
	var tasks []mesos.TaskInfo
	for _, at := range a.attempts {
		task, err := l.taskInfo(at, pool, role)
		if err != nil {
			// Cannot be: the ledger fits builds to the sum of what carve takes from.
			l.f.cfg.Logger.Error("attempt could not be launched", "task", at.task, "err", err)
			l.ledger.update(time.Now(), update{
				task: at.task, agent: at.agent, state: "TASK_ERROR", reason: "REASON_TASK_INVALID", message: err.Error(),
			})
			continue
		}
		tasks = append(tasks, *task)
	}
	l.client.Send(calls.Accept(
		calls.OfferOperations{calls.OpLaunch(tasks...)}.WithOffers(mesos.OfferID{Value: string(a.offer)}),
	).With(calls.RefuseSeconds(a.refuse)))
}

func (l *loop) decline(a actDecline) {
	l.client.Send(calls.Decline(offerIDs(a.offers)...).With(calls.RefuseSeconds(a.refuse)))
}

func (l *loop) yield(a actYield) {
	l.client.Send(calls.AcceptInverseOffers(offerIDs(a.offers)...).With(calls.RefuseSeconds(a.refuse)))
}

func offerIDs(ids []OfferID) []mesos.OfferID {
	out := make([]mesos.OfferID, len(ids))
	for i, id := range ids {
		out[i] = mesos.OfferID{Value: string(id)}
	}
	return out
}

func (l *loop) reconcile(a actReconcile) {
	tasks := make(map[string]string, len(a.tasks))
	for task, agent := range a.tasks {
		tasks[task] = string(agent)
	}
	l.client.Send(calls.Reconcile(calls.ReconcileTasks(tasks)))
}

func (l *loop) notify(a actNotice) {
	if a.notice.follow != nil {
		a.notice.follow.framework = l.frameworkID
	}
	if box := l.boxes[a.id]; box != nil {
		box.post(a.notice)
	}
}

// notifyEnded tells whoever waits for one of the builds that are over.
func (l *loop) notifyEnded(actions []action) {
	for _, a := range actions {
		n, ok := a.(actNotice)
		if !ok {
			continue
		}
		if b := l.ledger.builds[n.id]; b == nil || b.done {
			l.notify(n)
		}
	}
}

// release removes the staged context of b, if no other build uses it, and what its
// attempts have written, but for what is about to be fetched.
func (l *loop) release(b *build) {
	l.f.unstage(&b.task)
	d := b.delivery()
	l.cleanup.Go(func() {
		l.f.sweepStaging(l.cleanupCtx, b.id)
		if d != nil {
			l.f.removeOutputs(l.cleanupCtx, d, d.keep())
		}
	})
}

// drop forgets a build that the ledger has done with. Its record stays until its
// result was taken.
func (l *loop) drop(id BuildID) {
	delete(l.boxes, id)
	if l.f.state == nil || !l.forgotten[id] {
		return
	}
	delete(l.forgotten, id)
	if err := l.f.state.forget(id); err != nil {
		l.f.cfg.Logger.Warn("build stays in the state directory", "build", id, "err", err)
	}
}
