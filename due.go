package portainer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// tick does what is due by the clock.
func (l *ledger) tick(now time.Time) {
	due := make(map[string]AgentID)
	for _, at := range l.dueAttempts(now) {
		l.tickAttempt(now, at)
		if l.tasks[at.task] != nil && !at.nextReconcile.After(now) {
			due[at.task] = at.agent
			at.nextReconcile = now.Add(at.reconcileWait)
			at.reconcileWait = min(reconcileMax, 2*at.reconcileWait)
		}
	}
	if len(due) > 0 && l.connected {
		l.do(actReconcile{due})
	}
	if l.connected && l.busy() && !l.nextImplicit.After(now) {
		l.nextImplicit = now.Add(reconcilePeriod)
		l.do(actReconcile{})
	}
	l.explanations = explainAtOnce
	for _, b := range slices.Clone(l.queue) {
		l.tickQueued(now, b)
	}
	for _, b := range l.dueBuilds(now) {
		l.fail(now, b, b.current, &BuildError{Phase: b.phase(), Class: ClassTimeout, Err: fmt.Errorf(
			"not done after %v, the limit of a build; it was in phase %s", l.policy.buildTimeout, b.phase())})
	}
	l.settle(now)
}

// dueAttempts returns the attempts for which something may be due: few of many.
func (l *ledger) dueAttempts(now time.Time) []*attempt {
	due := make(map[string]*attempt)
	for id, at := range l.tasks {
		if !at.nextReconcile.After(now) || !at.nextKill.IsZero() && !at.nextKill.After(now) ||
			!at.unreachable.IsZero() || !at.ended.IsZero() || !at.running && now.Sub(at.launched) >= l.policy.launchTimeout {
			due[id] = at
		}
	}
	return sortedAttempts(due)
}

// dueBuilds returns the builds that have taken too long.
func (l *ledger) dueBuilds(now time.Time) []*build {
	if l.policy.buildTimeout == 0 {
		return nil
	}
	var due []*build
	for _, b := range l.builds {
		if !b.done && now.Sub(b.submitted) >= l.policy.buildTimeout {
			due = append(due, b)
		}
	}
	slices.SortFunc(due, func(a, b *build) int { return cmp.Compare(a.id, b.id) })
	return due
}

// tickAttempt does what is due for one task.
func (l *ledger) tickAttempt(now time.Time, at *attempt) {
	if !at.nextKill.IsZero() && !at.nextKill.After(now) && l.connected {
		l.kill(now, at)
	}
	if at.abandoned || !l.connected || now.Sub(l.since) < answerTime {
		return // what became of it meanwhile is not known yet
	}
	switch {
	case !at.unreachable.IsZero() && now.Sub(at.unreachable) >= l.policy.unreachableWait:
		l.replace(now, at, ClassLost, fmt.Errorf("agent could not be reached for %v", l.policy.unreachableWait))
	case !at.ended.IsZero() && now.Sub(at.ended) >= terminalDataLimit:
		l.replace(now, at, ClassLost, errors.New("the task ended, but its result never came"))
	case !at.running && at.unreachable.IsZero() && at.ended.IsZero() && now.Sub(at.launched) >= l.policy.launchTimeout:
		l.replace(now, at, ClassLaunch, fmt.Errorf("executor did not run within %v of its launch", l.policy.launchTimeout))
	}
}

// tickQueued does what is due for a build that waits.
func (l *ledger) tickQueued(now time.Time, b *build) {
	if !b.notBefore.After(now) && b.notBefore.After(l.lastRevive) {
		l.wanting = true // its backoff ended since offers were last asked for
	}
	waited := now.Sub(b.since)
	overdue := l.policy.queueTimeout > 0 && waited >= l.policy.queueTimeout
	if !overdue && now.Sub(b.explained) < l.policy.explainEvery || l.explanations == 0 {
		return
	}
	l.explanations--
	if overdue {
		l.fail(now, b, nil, &BuildError{Phase: PhaseQueue, Class: ClassTimeout, Err: fmt.Errorf(
			"no offer fitted within %v: %s", l.policy.queueTimeout, l.explain(b, now))})
		return
	}
	b.explained = now
	ev := event(now, b, nil, EventWaiting)
	ev.Text = fmt.Sprintf("waiting for %v: %s", waited.Round(time.Second), l.explain(b, now))
	l.notice(b, notice{event: ev})
}
