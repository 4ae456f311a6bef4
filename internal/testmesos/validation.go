package testmesos

import (
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// validateTask checks a task of a LAUNCH against what is left of the offers.
func (m *master) validateTask(f *framework, a *agentRecord, t *mesos.TaskInfo, left resources) error {
	if err := m.validateTaskInfo(f, a, t); err != nil {
		return err
	}
	if (t.Executor != nil) == (t.Command != nil) {
		return says("Task should have at least one (but not both) of CommandInfo or ExecutorInfo present")
	}
	need := newResources(t.Resources)
	if ex := t.Executor; ex != nil {
		if err := m.validateExecutor(f, a, ex); err != nil {
			return err
		}
		if ex.Type != mesos.ExecutorInfo_UNKNOWN && ex.Type != mesos.ExecutorInfo_CUSTOM {
			return says("'ExecutorInfo.type' must be 'CUSTOM'")
		}
		if ex.Command == nil {
			return says("'ExecutorInfo.command' must be set")
		}
		own := newResources(ex.Resources)
		if need.overlaps(own) {
			return says("There are overlapping resources in the task resources %s and executor resources %s", need, own)
		}
		if a.executors[f.id][ex.ExecutorID.Value] == nil {
			need = need.plus(own)
		}
	}
	if !left.contains(need) {
		return says("Total resources %s required by task and its executor is more than available %s", need, left)
	}
	return nil
}

// validateTaskInfo makes the checks that do not depend on the executor.
func (m *master) validateTaskInfo(f *framework, a *agentRecord, t *mesos.TaskInfo) error {
	id := t.TaskID.Value
	if err := validateID(id); err != nil {
		return err
	}
	if f.tasks[id] != nil {
		return says("Task has duplicate ID: %s", id)
	}
	if f.unreachable[id] != nil {
		return says("Task reuses the ID of an unreachable task: %s", id)
	}
	if t.AgentID.Value != a.id {
		return says("Task uses invalid agent %s while agent %s is expected", t.AgentID.Value, a.id)
	}
	if p := t.KillPolicy; p != nil && p.GracePeriod != nil && p.GracePeriod.Nanoseconds < 0 {
		return says("Task's 'kill_policy.grace_period' must be non-negative")
	}
	if d := t.MaxCompletionTime; d != nil && d.Nanoseconds < 0 {
		return says("Task's `max_completion_time` must be non-negative")
	}
	if len(t.Resources) == 0 {
		return says("Task uses no resources")
	}
	rs := newResources(t.Resources)
	if err := validateOneRole(rs); err != nil {
		return says("Invalid task resources: %w", err)
	}
	if err := validateRevocable(rs); err != nil {
		return says("Task mixes revocable and non-revocable resources: %w", err)
	}
	if err := validateCommand(t.Command); err != nil {
		return says("Task's `CommandInfo` is invalid: %w", err)
	}
	return validateLimits(t, rs)
}

func validateOneRole(rs resources) error {
	for i, r := range rs {
		if i > 0 && r.meta.AllocationInfo.GetRole() != rs[0].meta.AllocationInfo.GetRole() {
			return says("The resources have multiple allocation roles ('%s' and '%s') but only one allocation role is allowed",
				r.meta.AllocationInfo.GetRole(), rs[0].meta.AllocationInfo.GetRole())
		}
	}
	return nil
}

func validateRevocable(rs resources) error {
	for i, r := range rs {
		for _, s := range rs[:i] {
			if s.meta.Name == r.meta.Name && (s.meta.Revocable == nil) != (r.meta.Revocable == nil) {
				return says("Cannot use both revocable and non-revocable '%s' at the same time", r.meta.Name)
			}
		}
	}
	return nil
}

func validateCommand(c *mesos.CommandInfo) error {
	if c == nil || c.Environment == nil {
		return nil
	}
	for _, v := range c.Environment.Variables {
		switch v.GetType() {
		case mesos.Environment_Variable_SECRET:
			if v.Secret == nil {
				return says("Environment variable '%s' of type 'SECRET' must have a secret set", v.Name)
			}
			if v.Value != nil {
				return says("Environment variable '%s' of type 'SECRET' must not have a value set", v.Name)
			}
		case mesos.Environment_Variable_VALUE:
			if v.Value == nil {
				return says("Environment variable '%s' of type 'VALUE' must have a value set", v.Name)
			}
			if v.Secret != nil {
				return says("Environment variable '%s' of type 'VALUE' must not have a secret set", v.Name)
			}
		default:
			return says("Environment variable of type 'UNKNOWN' is not allowed")
		}
	}
	return nil
}

func validateLimits(t *mesos.TaskInfo, rs resources) error {
	for name, limit := range t.Limits {
		if name != "cpus" && name != "mem" {
			return says("Only cpus and mem may be included in a task's resource limits")
		}
		word, unit := "CPU", "cpu"
		if name == "mem" {
			word, unit = "memory", "memory"
		}
		if !rs.has(name) {
			return says("When a %s limit is specified, a %s request must also be specified", word, word)
		}
		if milli(min(limit.Value, 1e12)) < rs.scalar(name) {
			return says("The %s limit must be greater than or equal to the %s request", unit, unit)
		}
	}
	return nil
}

// validateExecutor checks an ExecutorInfo.
func (m *master) validateExecutor(f *framework, a *agentRecord, ex *mesos.ExecutorInfo) error {
	switch ex.Type {
	case mesos.ExecutorInfo_DEFAULT:
		if ex.Command != nil {
			return says("'ExecutorInfo.command' must not be set for 'DEFAULT' executor")
		}
		if ex.Container != nil && ex.Container.GetType() != mesos.ContainerInfo_MESOS {
			return says("'ExecutorInfo.container.type' must be 'MESOS' for 'DEFAULT' executor")
		}
	case mesos.ExecutorInfo_CUSTOM:
		if ex.Command == nil {
			return says("'ExecutorInfo.command' must be set for 'CUSTOM' executor")
		}
	}
	if err := validateID(ex.ExecutorID.Value); err != nil {
		return err
	}
	if p := ex.ShutdownGracePeriod; p != nil && p.Nanoseconds < 0 {
		return says("ExecutorInfo's 'shutdown_grace_period' must be non-negative")
	}
	if err := validateCommand(ex.Command); err != nil {
		return says("Executor's `CommandInfo` is invalid: %w", err)
	}
	if ex.FrameworkID == nil {
		return says("'ExecutorInfo.framework_id' must be set")
	}
	if ex.FrameworkID.Value != f.id {
		return says("ExecutorInfo has an invalid FrameworkID (Actual: %s vs Expected: %s)", ex.FrameworkID.Value, f.id)
	}
	rs := newResources(ex.Resources)
	if err := validateOneRole(rs); err != nil {
		return says("Invalid executor resources: %w", err)
	}
	if err := validateRevocable(rs); err != nil {
		return says("Executor mixes revocable and non-revocable resources: %w", err)
	}
	if old := a.executors[f.id][ex.ExecutorID.Value]; old != nil && !sameExecutor(old, ex) {
		const line = "------------------------------------------------------------\n"
		return says("ExecutorInfo is not compatible with existing ExecutorInfo with same ExecutorID.\n"+
			line+"Existing ExecutorInfo:\n%s\n"+line+"ExecutorInfo:\n%s\n"+line, old, ex)
	}
	return nil
}

// sameExecutor compares two ExecutorInfos; the order of resources does not
// count.
func sameExecutor(a, b *mesos.ExecutorInfo) bool {
	ra, rb := newResources(a.Resources), newResources(b.Resources)
	ca, cb := clone(a), clone(b)
	ca.Resources, cb.Resources = nil, nil
	return ca.Equal(cb) && ra.contains(rb) && rb.contains(ra)
}

// validateGroup checks a LAUNCH_GROUP.
func (m *master) validateGroup(f *framework, a *agentRecord, group *mesos.Offer_Operation_LaunchGroup, left resources) error {
	ids := map[string]bool{}
	need := newResources(group.Executor.Resources)
	var claimed resources
	for i := range group.TaskGroup.Tasks {
		t := &group.TaskGroup.Tasks[i]
		err := m.validateTaskInfo(f, a, t)
		switch {
		case err != nil:
		case ids[t.TaskID.Value]:
			err = says("Task has duplicate ID: %s", t.TaskID.Value)
		case t.Container != nil && t.Container.GetType() == mesos.ContainerInfo_DOCKER:
			err = says("Docker ContainerInfo is not supported on the task")
		}
		if err != nil {
			return says("Task '%s' is invalid: %w", t.TaskID.Value, err)
		}
		ids[t.TaskID.Value] = true
	}
	ex := &group.Executor
	if err := m.validateExecutor(f, a, ex); err != nil {
		return err
	}
	if ex.Type == mesos.ExecutorInfo_UNKNOWN {
		return says("'ExecutorInfo.type' must be set")
	}
	if ex.Container != nil && ex.Container.GetType() == mesos.ContainerInfo_DOCKER {
		return says("Docker ContainerInfo is not supported on the executor")
	}
	for _, t := range group.TaskGroup.Tasks {
		if !sameExecutor(t.Executor, ex) {
			return says("The `ExecutorInfo` of task '%s' is different from executor '%s'", t.TaskID.Value, ex.ExecutorID.Value)
		}
	}
	id := ex.ExecutorID.Value
	if n := need.scalar("cpus"); n < minCPUs {
		return says("Executor '%s' uses less CPUs (%s) than the minimum required (0.01)", id, amount(need, "cpus", ""))
	}
	if n := need.scalar("mem"); n < minMem {
		return says("Executor '%s' uses less memory (%s) than the minimum required (32MB)", id, amount(need, "mem", "MB"))
	}
	if !need.has("disk") {
		return says("Executor '%s' uses no disk", id)
	}
	claimed = need
	if a.executors[f.id][id] != nil {
		need = nil
	}
	for _, t := range group.TaskGroup.Tasks {
		rs := newResources(t.Resources)
		if claimed.overlaps(rs) {
			return says("There are overlapping resources in the task group's task resources %s and/or executor resources %s",
				rs, newResources(ex.Resources))
		}
		claimed = claimed.plus(rs)
		need = need.plus(rs)
	}
	if !left.contains(need) {
		return says("Total resources %s required by task group and its executor are more than available %s", need, left)
	}
	return nil
}

// amount prints the sum of a scalar, or None.
func amount(rs resources, name, unit string) string {
	if !rs.has(name) {
		return "None"
	}
	return formatMilli(rs.scalar(name)) + unit
}

// validateCall checks a scheduler call as it came; typed tells whether its
// type was set (mesos src/master/validation.cpp, scheduler::call::validate).
func validateCall(call *scheduler.Call, typed bool, principal string) error {
	if !typed {
		return says("Expecting 'type' to be present")
	}
	present := func(name string, ok bool) error {
		if !ok {
			return says("Expecting '%s' to be present", name)
		}
		return nil
	}
	if call.Type == scheduler.Call_SUBSCRIBE {
		if call.Subscribe == nil {
			return present("subscribe", false)
		}
		info := call.Subscribe.FrameworkInfo
		if call.FrameworkID.GetValue() != info.GetID().GetValue() {
			return says("'framework_id' differs from 'subscribe.framework_info.id'")
		}
		return validatePrincipal(info, principal)
	}
	if call.FrameworkID == nil {
		return present("framework_id", false)
	}
	switch call.Type {
	case scheduler.Call_UPDATE_FRAMEWORK:
		if call.UpdateFramework == nil {
			return present("update_framework", false)
		}
		if call.FrameworkID.Value != call.UpdateFramework.FrameworkInfo.GetID().GetValue() {
			return says("'framework_id' differs from 'update_framework.framework_info.id'")
		}
		return validatePrincipal(&call.UpdateFramework.FrameworkInfo, principal)
	case scheduler.Call_ACKNOWLEDGE:
		if call.Acknowledge == nil {
			return present("acknowledge", false)
		}
		if !validUUID(call.Acknowledge.UUID) {
			return says("Not a valid UUID")
		}
	case scheduler.Call_ACKNOWLEDGE_OPERATION_STATUS:
		return present("acknowledge_operation_status", call.AcknowledgeOperationStatus != nil)
	case scheduler.Call_ACCEPT:
		return present("accept", call.Accept != nil)
	case scheduler.Call_DECLINE:
		return present("decline", call.Decline != nil)
	case scheduler.Call_ACCEPT_INVERSE_OFFERS:
		return present("accept_inverse_offers", call.AcceptInverseOffers != nil)
	case scheduler.Call_DECLINE_INVERSE_OFFERS:
		return present("decline_inverse_offers", call.DeclineInverseOffers != nil)
	case scheduler.Call_KILL:
		return present("kill", call.Kill != nil)
	case scheduler.Call_SHUTDOWN:
		return present("shutdown", call.Shutdown != nil)
	case scheduler.Call_RECONCILE:
		return present("reconcile", call.Reconcile != nil)
	case scheduler.Call_RECONCILE_OPERATIONS:
		return present("reconcile_operations", call.ReconcileOperations != nil)
	case scheduler.Call_MESSAGE:
		return present("message", call.Message != nil)
	case scheduler.Call_REQUEST:
		return present("request", call.Request != nil)
	}
	return nil
}

func validatePrincipal(info *mesos.FrameworkInfo, principal string) error {
	if principal != "" && info.Principal != nil && *info.Principal != principal {
		return says("Authenticated principal '%s' does not match principal '%s' set in `FrameworkInfo`", principal, *info.Principal)
	}
	return nil
}

// nanos converts a DurationInfo; nil gives the default.
func nanos(d *mesos.DurationInfo, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return time.Duration(d.Nanoseconds)
}

// taskIDs joins the ids of tasks for a log line.
func taskIDs(tasks []*mesos.TaskInfo) string {
	ids := make([]string, len(tasks))
	for i, t := range tasks {
		ids[i] = t.TaskID.Value
	}
	return strings.Join(ids, " ")
}
