package testmesos

import (
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
)

// capabilities are those of a framework that the master heeds.
type capabilities struct {
	revocable, killingState, gpu, shared, partitionAware, multiRole, reservationRefinement, regionAware bool
}

func capabilitiesOf(info *mesos.FrameworkInfo) capabilities {
	var c capabilities
	for _, have := range info.Capabilities {
		switch have.Type {
		case mesos.FrameworkInfo_Capability_REVOCABLE_RESOURCES:
			c.revocable = true
		case mesos.FrameworkInfo_Capability_TASK_KILLING_STATE:
			c.killingState = true
		case mesos.FrameworkInfo_Capability_GPU_RESOURCES:
			c.gpu = true
		case mesos.FrameworkInfo_Capability_SHARED_RESOURCES:
			c.shared = true
		case mesos.FrameworkInfo_Capability_PARTITION_AWARE:
			c.partitionAware = true
		case mesos.FrameworkInfo_Capability_MULTI_ROLE:
			c.multiRole = true
		case mesos.FrameworkInfo_Capability_RESERVATION_REFINEMENT:
			c.reservationRefinement = true
		case mesos.FrameworkInfo_Capability_REGION_AWARE:
			c.regionAware = true
		}
	}
	return c
}

// or returns state for a framework that is PARTITION_AWARE and TASK_LOST for
// any other.
func (c capabilities) or(state mesos.TaskState) mesos.TaskState {
	if c.partitionAware {
		return state
	}
	return mesos.TASK_LOST
}

// A framework is what a master knows of one. Only the master's actor touches it.
type framework struct {
	id         string
	info       *mesos.FrameworkInfo
	caps       capabilities
	roles      []string
	suppressed map[string]bool // by role
	filters    map[filterKey][]filter

	stream    *stream // nil while not subscribed
	streamID  string
	heartbeat *timer
	failover  *timer

	tasks       map[string]*task
	unreachable map[string]*task
	completed   []*task
	offers      map[string]*offer
	allocated   map[string]map[string]int64 // role -> resource name -> thousandths

	registered time.Time
	removed    time.Time // set once completed
}

// A task is what a master knows of one.
type task struct {
	info       *mesos.TaskInfo
	framework  *framework
	agentID    string
	executorID string // "" for a command task
	resources  resources
	state      mesos.TaskState // the latest that the agent knows
	updated    bool            // sent and sentUUID are set
	sent       mesos.TaskState // of the last update that went to the scheduler
	sentUUID   []byte
	last       *mesos.TaskStatus // without data
	released   bool              // its resources were given back
	lost       *mesos.TimeInfo   // when its agent became unreachable
}

func isTerminal(s mesos.TaskState) bool {
	switch s {
	case mesos.TASK_FINISHED, mesos.TASK_FAILED, mesos.TASK_KILLED, mesos.TASK_LOST, mesos.TASK_ERROR,
		mesos.TASK_DROPPED, mesos.TASK_GONE, mesos.TASK_GONE_BY_OPERATOR:
		return true
	}
	return false
}

func rolesOf(info *mesos.FrameworkInfo, c capabilities) []string {
	if c.multiRole {
		return slices.Clone(info.Roles)
	}
	return []string{info.GetRole()}
}

// validateFramework checks a FrameworkInfo; the messages are those of mesos
// src/master/validation.cpp.
func validateFramework(info *mesos.FrameworkInfo) error {
	if capabilitiesOf(info).multiRole {
		if info.Role != nil {
			return says("'FrameworkInfo.role' must not be set when the framework is MULTI_ROLE capable")
		}
		var twice []string
		for i, role := range info.Roles {
			if slices.Contains(info.Roles[:i], role) && !slices.Contains(twice, role) {
				twice = append(twice, role)
			}
		}
		if len(twice) > 0 {
			return says("'FrameworkInfo.roles' contains duplicate items: %s", formatSet(twice))
		}
		for _, role := range info.Roles {
			if err := validateRole(role); err != nil {
				return says("'FrameworkInfo.roles' contains invalid role: %w", err)
			}
		}
	} else {
		if len(info.Roles) > 0 {
			return says("'FrameworkInfo.roles' must not be set when the framework is not MULTI_ROLE capable")
		}
		if err := validateRole(info.GetRole()); err != nil {
			return says("'FrameworkInfo.role' is not a valid role: %w", err)
		}
	}
	if info.ID != nil && info.ID.Value != "" {
		if err := validateID(info.ID.Value); err != nil {
			return err
		}
	}
	if t := info.GetFailoverTimeout(); math.IsNaN(t) || math.Abs(t)*1e9 >= math.MaxInt64 {
		return says("The framework failover_timeout (%s) is invalid", strconv.FormatFloat(t, 'g', 6, 64))
	}
	return nil
}

func validateSuppressed(suppressed, roles []string) error {
	var unknown []string
	for _, role := range suppressed {
		if !slices.Contains(roles, role) && !slices.Contains(unknown, role) {
			unknown = append(unknown, role)
		}
	}
	if len(unknown) > 0 {
		return says("Suppressed roles %s are not contained in the set of roles", formatSet(unknown))
	}
	return nil
}

// formatSet prints a set as stout's stringify does.
func formatSet(items []string) string {
	items = slices.Clone(items)
	sort.Strings(items)
	return "{ " + strings.Join(items, ", ") + " }"
}

// validateUpdate checks what UPDATE_FRAMEWORK may not change.
func validateUpdate(old, info *mesos.FrameworkInfo) error {
	switch {
	case old.GetPrincipal() != info.GetPrincipal():
		return says("Changing framework's principal is not allowed.")
	case old.User != info.User:
		return says("Updating 'FrameworkInfo.user' is unsupported; attempted to update from '%s' to '%s'",
			old.User, info.User)
	case old.GetCheckpoint() != info.GetCheckpoint():
		return says("Updating 'FrameworkInfo.checkpoint' is unsupported; attempted to update from '%t' to '%t'",
			old.GetCheckpoint(), info.GetCheckpoint())
	}
	return nil
}

// configure takes over a FrameworkInfo.
func (f *framework) configure(info *mesos.FrameworkInfo, suppressed []string) {
	info.ID = &mesos.FrameworkID{Value: f.id}
	f.info = info
	f.caps = capabilitiesOf(info)
	f.roles = rolesOf(info, f.caps)
	f.suppressed = map[string]bool{}
	for _, role := range suppressed {
		f.suppressed[role] = true
	}
	clear(f.filters)
}

// internalInfo is the FrameworkInfo as agents and executors see it: checkpoint
// and failover_timeout are spelled out.
func (f *framework) internalInfo() *mesos.FrameworkInfo {
	info := clone(f.info)
	info.Checkpoint = new(info.GetCheckpoint())
	info.FailoverTimeout = new(info.GetFailoverTimeout())
	return info
}

// failoverTimeout returns how long the framework may be away. A negative
// timeout counts as none.
func (f *framework) failoverTimeout() time.Duration {
	return max(time.Duration(f.info.GetFailoverTimeout()*float64(time.Second)), 0)
}

func (f *framework) connected() bool { return f.stream != nil }

// addAllocated keeps the sums that fair sharing compares.
func (f *framework) addAllocated(role string, rs resources, sign int64) {
	sums := f.allocated[role]
	if sums == nil {
		sums = map[string]int64{}
		f.allocated[role] = sums
	}
	for _, r := range rs {
		sums[r.meta.Name] += sign * r.milli
	}
}

// eventType is the name of an event for fault rules.
func eventType(e *scheduler.Event) string { return scheduler.Event_Type_name[int32(e.Type)] }
