package portainer

import (
	"fmt"
	"slices"
	"time"

	"github.com/org/portainer/internal/wire"
)

// An update is a task status update without Mesos's types. States, reasons and
// sources are spelled as in mesos.proto.
type update struct {
	task    string
	agent   AgentID
	state   string
	reason  string
	source  string
	message string
	data    []byte
	uuid    []byte // empty if it must not be acknowledged
}

// update applies a status update and then has it acknowledged.
func (l *ledger) update(now time.Time, u update) {
	if at := l.tasks[u.task]; at != nil {
		l.apply(now, at, u)
		if !at.build.done {
			l.do(actSave{at.build})
		}
	} else if !terminal(u.state) && u.state != "TASK_UNREACHABLE" && u.state != "TASK_UNKNOWN" {
		// A task that was given up and has come back, or one of an earlier life.
		l.do(actKill{u.task, u.agent})
	}
	if len(u.uuid) > 0 {
		l.do(actAcknowledge{u})
	}
	l.settle(now)
}

// asked is called when the executor of a task asks whether it may push. Only the
// attempt that its build waits for may, and only when no other can still do so.
func (l *ledger) asked(now time.Time, task string, ask wire.PushAsk) {
	at := l.tasks[task]
	if at == nil || at.abandoned {
		return
	}
	b := at.build
	if b.lease.Attempt != at.n && b.lease.Until.After(now) {
		if !at.withheld {
			at.withheld = true
			l.notice(b, notice{event: infoEvent(now, at, fmt.Sprintf(
				"attempt %d cannot be reached and may still push; waiting up to %v for its right to end",
				b.lease.Attempt, b.lease.Until.Sub(now).Round(time.Second)))})
		}
		return
	}
	b.lease = lease{at.n, now.Add(l.policy.pushLease)}
	l.do(actSave{b})
	l.do(actGrant{task, at.agent, wire.PushGrant{Serial: ask.Serial, Lease: l.policy.pushLease}})
}

// terminal reports whether a task in this state never changes again.
func terminal(state string) bool {
	switch state {
	case "TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_LOST", "TASK_ERROR",
		"TASK_DROPPED", "TASK_GONE", "TASK_GONE_BY_OPERATOR":
		return true
	}
	return false
}

// apply changes the state of at as u says.
func (l *ledger) apply(now time.Time, at *attempt, u update) {
	reconciled := u.reason == "REASON_RECONCILIATION"
	switch {
	case u.state == "TASK_UNREACHABLE":
		if !at.unreachable.IsZero() {
			return
		}
		at.unreachable = now
		// Nobody promises to tell of its return: the update is lost if it comes
		// while there is no subscription.
		at.nextReconcile, at.reconcileWait = now.Add(reconcileMax), reconcileMax
		if !at.abandoned {
			l.notice(at.build, notice{event: infoEvent(now, at, fmt.Sprintf(
				"agent %s cannot be reached; waiting %v for it to return", at.hostname, l.policy.unreachableWait))})
		}
		return
	case u.state == "TASK_UNKNOWN" || u.state == "TASK_LOST" || u.state == "TASK_GONE":
		if reconciled && !at.heard && now.Sub(at.launched) < youngTask {
			at.nextReconcile = now.Add(youngTask / 2)
			return
		}
		l.end(now, at, u)
		return
	case reconciled && terminal(u.state) && u.state != "TASK_GONE_BY_OPERATOR" && !at.abandoned:
		// The master knows the end but keeps no data; the agent will send the
		// update itself, with the outcome in it, again and again.
		if at.ended.IsZero() {
			at.ended = now
		}
		return
	case terminal(u.state):
		l.end(now, at, u)
		return
	}
	returned := !at.unreachable.IsZero()
	began := u.state == "TASK_RUNNING" && !at.running
	at.heard = true
	at.unreachable = time.Time{}
	at.nextReconcile = now.Add(reconcilePeriod)
	at.reconcileWait = reconcileMin
	at.running = at.running || began
	switch {
	case at.abandoned && (returned || began):
		at.killWait = killMin // what was sent before did not reach it
		l.kill(now, at)
	case began && !at.abandoned:
		l.notice(at.build, notice{event: event(now, at.build, at, EventRunning)})
	}
}

func infoEvent(now time.Time, at *attempt, text string) Event {
	ev := event(now, at.build, at, EventInfo)
	ev.Text = text
	return ev
}

// end takes the terminal update of at.
func (l *ledger) end(now time.Time, at *attempt, u update) {
	if u.source != "SOURCE_MASTER" && u.source != "" && at.build.lease.Attempt == at.n {
		at.build.lease = lease{} // it is known to be dead, not only out of sight
	}
	l.untrack(at)
	if at.abandoned {
		return
	}
	outcome, failure := classify(at, u)
	logSize := int64(-1)
	if outcome != nil {
		logSize = outcome.LogSize
	}
	l.notice(at.build, notice{logEnd: &logEnd{size: logSize}})
	if failure == nil {
		l.succeed(now, at, outcome)
		return
	}
	switch b := at.build; {
	case u.reason == "REASON_INVALID_OFFERS":
		b.counted-- // the offer was gone before the task began: nobody's fault
	case u.reason == "REASON_RECONCILIATION" && !at.heard && b.unheard < maxUnheard:
		b.unheard++
		b.counted-- // the launch was lost on its way: the build was not tried
	}
	l.retryOrFail(now, at, failure, u.reason)
}

// untrack forgets a task that has ended.
func (l *ledger) untrack(at *attempt) {
	delete(l.tasks, at.task)
	l.placed.remove(at.build.rules, at.held)
	at.build.live = slices.DeleteFunc(at.build.live, func(other *attempt) bool { return other == at })
	l.wanting = true // what it used is free now
	l.release(at.build)
}

func (l *ledger) succeed(now time.Time, at *attempt, o *wire.Outcome) {
	b := at.build
	b.result = &Result{
		ID: b.id, Image: b.image, Digest: o.Digest, Refs: o.Refs, Engine: o.Engine,
		Agent: at.agent, Hostname: at.hostname, Attempts: at.n, Started: o.Started, Finished: o.Ended,
		ConfigDigest: o.ConfigDigest, Descriptor: Descriptor(o.Descriptor),
	}
	b.delivered = o.Outputs
	l.finish(b)
	l.notice(b, notice{event: event(now, b, at, EventSucceeded), result: b.result, delivery: b.delivery()})
	l.release(b)
}

// retryOrFail decides what follows the failed attempt at.
func (l *ledger) retryOrFail(now time.Time, at *attempt, failure *BuildError, reason string) {
	b := at.build
	switch {
	case failure.Class == ClassOOM && b.oomRetryMB > b.task.MemMB && !b.oomRaised:
		b.oomRaised = true
		b.resources.MemMB += b.oomRetryMB - b.task.MemMB
		b.task.MemMB = b.oomRetryMB
		l.retry(now, at, failure, 0)
	case failure.Class == ClassContext && b.onDemand && !l.draining:
		l.askContext(now, at, failure)
	case !failure.Retriable() || l.draining:
		l.fail(now, b, at, failure)
	case reason == "REASON_INVALID_OFFERS":
		l.retry(now, at, failure, 0)
	case b.counted >= b.maxAttempts:
		failure.Err = fmt.Errorf("%w; given up after %s", failure.Err, plural(b.counted, "attempt"))
		l.fail(now, b, at, failure)
	default:
		b.avoid[at.agent] = now.Add(l.policy.avoidFor)
		wait := min(retryMax, retryMin<<min(b.counted+b.unheard-1, 10))
		l.retry(now, at, failure, time.Duration(float64(wait)*(0.5+l.jitter()/2)))
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// retry queues the build of the failed attempt at again.
func (l *ledger) retry(now time.Time, at *attempt, failure *BuildError, wait time.Duration) {
	b := at.build
	ev := event(now, b, at, EventRetrying)
	ev.Err = l.complete(failure, b, at)
	l.notice(b, notice{event: ev})
	l.enqueue(now, b, now.Add(wait))
}

// askContext has the caller of the build of the failed attempt at stage the context,
// which a base image has turned out to need. Until it comes the build does not wait for
// an offer. After a restart that is asked of whoever attaches to the build.
func (l *ledger) askContext(now time.Time, at *attempt, failure *BuildError) {
	b := at.build
	b.onDemand, b.current = false, nil
	ev := event(now, b, at, EventRetrying)
	ev.Err = l.complete(failure, b, at)
	l.notice(b, notice{event: ev, stage: true})
}

// provide queues a build again whose context has been staged. It reports whether there
// still is such a build: else nobody needs the context.
func (l *ledger) provide(now time.Time, id BuildID, context *wire.Context) bool {
	b := l.builds[id]
	if b == nil || b.done {
		return false
	}
	b.task.Context = context
	b.task.Secrets = b.task.Secrets || context.Signed
	l.do(actSave{b})
	l.enqueue(now, b, now)
	l.settle(now)
	return true
}

// giveUp ends a build whose context could not be staged.
func (l *ledger) giveUp(now time.Time, id BuildID, failure *BuildError) {
	if b := l.builds[id]; b != nil {
		l.fail(now, b, nil, failure)
		l.settle(now)
	}
}

// abandon has a task killed that its build no longer waits for. It does nothing
// to one that has ended.
func (l *ledger) abandon(now time.Time, at *attempt) {
	at.abandoned = true
	if l.tasks[at.task] == nil || !at.nextKill.IsZero() {
		return
	}
	at.killWait = killMin
	l.kill(now, at)
}

// kill sends a KILL, and says when to send another: neither the master nor the
// agent promises to deliver one.
func (l *ledger) kill(now time.Time, at *attempt) {
	l.do(actKill{at.task, at.agent})
	at.nextKill = now.Add(at.killWait)
	at.killWait = min(killMax, 2*at.killWait)
}

// replace gives an attempt up that may still be alive.
func (l *ledger) replace(now time.Time, at *attempt, class Class, cause error) {
	l.abandon(now, at)
	l.notice(at.build, notice{logEnd: &logEnd{size: -1}})
	l.retryOrFail(now, at, &BuildError{Phase: at.build.phase(), Class: class, Err: cause}, "")
	if !at.build.done {
		l.do(actSave{at.build})
	}
}
