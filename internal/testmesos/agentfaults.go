package testmesos

import "net/http"

// isRegistered tells whether the leading master knows the agent.
func (a *Agent) isRegistered() bool {
	registered := false
	return a.call(func() { registered = a.registered }) && registered
}

// shutDown ends all executors because the master told the agent to go.
func (a *Agent) shutDown() {
	for _, f := range a.frameworks {
		a.onShutdownFramework(f.id)
	}
}

// checkDrained marks a drained agent gone if that was asked for.
func (a *Agent) checkDrained() {
	if a.drain == nil || a.drain.done == nil || len(a.updates) > 0 {
		return
	}
	for _, f := range a.frameworks {
		for _, x := range f.executors {
			if x.incomplete() {
				return
			}
		}
	}
	done := a.drain.done
	a.drain.done = nil
	done()
}

// RefuseFiles makes every request for files of the agent fail with an HTTP
// status, such as 403; 0 ends that.
func (a *Agent) RefuseFiles(status int) {
	if status == 0 {
		a.files.refuse(nil)
		return
	}
	a.files.refuse(&reply{status: status, text: http.StatusText(status)})
}
