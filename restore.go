package portainer

import (
	"slices"
	"time"
)

// restore takes over the builds of an earlier life, before anything else happens.
func (l *ledger) restore(now time.Time, records []record) {
	records = slices.SortedFunc(slices.Values(records), func(a, b record) int { return a.Submitted.Compare(b.Submitted) })
	for i := range records {
		r := &records[i]
		b := &build{
			buildSpec: buildSpec{
				id: r.ID, image: r.Image, file: r.File, resources: r.Resources,
				constraints: r.Constraints, registries: r.Registries,
				maxAttempts: r.MaxAttempts, oomRetryMB: r.OOMRetryMB, ownSecrets: r.OwnSecrets, task: r.Task, outputs: r.Outputs,
				onDemand: r.Late != nil, late: r.Late,
			},
			submitted: r.Submitted, launches: r.Launches, counted: r.Counted, unheard: r.Unheard, oomRaised: r.OOMRaised,
			restored: true, lease: r.Lease, rules: l.compile(r.Constraints), avoid: make(map[AgentID]time.Time), done: r.Done, result: r.Result, delivered: r.Delivered,
		}
		if r.Failure != nil {
			b.failure = r.buildError()
		}
		l.builds[b.id] = b
		for _, a := range r.Attempts {
			l.restoreAttempt(now, b, a)
		}
		switch {
		case b.done:
			l.notice(b, notice{result: b.result, err: asError(b.failure), delivery: b.delivery()})
		case b.current == nil:
			l.enqueue(now, b, now)
		}
		l.release(b)
	}
}

// asError keeps a nil *BuildError from becoming an error that is not nil.
func asError(e *BuildError) error {
	if e == nil {
		return nil
	}
	return e
}

// restoreAttempt takes over a task that may still run.
func (l *ledger) restoreAttempt(now time.Time, b *build, r attemptRecord) {
	at := &attempt{
		build: b, n: r.N, task: taskID(b.id, r.N), agent: r.Agent, hostname: r.Hostname, agentURL: r.AgentURL, held: r.Held,
		launched: r.Launched, heard: r.Heard, running: r.Running, abandoned: r.Abandoned,
		nextReconcile: now.Add(reconcileMin), reconcileWait: reconcileMin,
	}
	l.track(at)
	if at.abandoned {
		at.nextKill, at.killWait = now, killMin
		return
	}
	b.current = at
	l.notice(b, notice{follow: at.log()})
}

// abandonAll treats every task as lost: the master has removed the framework, and
// with it all of them.
func (l *ledger) abandonAll(now time.Time) {
	l.connected, l.unconnected = false, nil
	for _, at := range sortedAttempts(l.tasks) {
		l.end(now, at, update{task: at.task, agent: at.agent, state: "TASK_LOST", message: "the master has removed the framework"})
		if !at.build.done {
			l.do(actSave{at.build})
		}
	}
}

// forsake forgets every task that is to be killed: nothing more will be heard of
// it.
func (l *ledger) forsake() {
	for _, at := range sortedAttempts(l.tasks) {
		if at.abandoned {
			l.untrack(at)
		}
	}
}

// disown forgets, as they are, the builds that have a task or are of an earlier
// life, and returns those that were not over.
func (l *ledger) disown() []*build {
	var builds []*build
	for _, b := range l.sortedBuilds() {
		if len(b.live) == 0 && !b.restored {
			continue
		}
		delete(l.builds, b.id)
		for _, at := range b.live {
			delete(l.tasks, at.task)
		}
		l.queue = slices.DeleteFunc(l.queue, func(q *build) bool { return q == b })
		if !b.done {
			builds = append(builds, b)
		}
	}
	return builds
}
