package portainer

import (
	"fmt"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
)

// TestClassOf goes through every reason that Mesos knows, so that one that is new
// there is noticed here.
func TestClassOf(t *testing.T) {
	classes := map[mesos.TaskStatus_Reason]Class{
		mesos.REASON_AGENT_DISCONNECTED:               ClassLost,
		mesos.REASON_AGENT_DRAINING:                   ClassPreempted,
		mesos.REASON_AGENT_REMOVED:                    ClassLost,
		mesos.REASON_AGENT_REMOVED_BY_OPERATOR:        ClassLost,
		mesos.REASON_AGENT_REREGISTERED:               ClassLost,
		mesos.REASON_AGENT_RESTARTED:                  ClassLost,
		mesos.REASON_AGENT_UNKNOWN:                    ClassLost,
		mesos.REASON_COMMAND_EXECUTOR_FAILED:          ClassLost,
		mesos.REASON_CONTAINER_LAUNCH_FAILED:          ClassLaunch,
		mesos.REASON_CONTAINER_LIMITATION:             ClassLost,
		mesos.REASON_CONTAINER_LIMITATION_DISK:        ClassDisk,
		mesos.REASON_CONTAINER_LIMITATION_MEMORY:      ClassOOM,
		mesos.REASON_CONTAINER_PREEMPTED:              ClassPreempted,
		mesos.REASON_CONTAINER_UPDATE_FAILED:          ClassLost,
		mesos.REASON_EXECUTOR_REGISTRATION_TIMEOUT:    ClassLaunch,
		mesos.REASON_EXECUTOR_REREGISTRATION_TIMEOUT:  ClassLost,
		mesos.REASON_EXECUTOR_TERMINATED:              ClassLost,
		mesos.REASON_EXECUTOR_UNREGISTERED:            ClassLost,
		mesos.REASON_FRAMEWORK_REMOVED:                ClassLost,
		mesos.REASON_GC_ERROR:                         ClassLost,
		mesos.REASON_INVALID_FRAMEWORKID:              ClassLost,
		mesos.REASON_INVALID_OFFERS:                   ClassLost,
		mesos.REASON_IO_SWITCHBOARD_EXITED:            ClassLost,
		mesos.REASON_MASTER_DISCONNECTED:              ClassLost,
		mesos.REASON_MAX_COMPLETION_TIME_REACHED:      ClassTimeout,
		mesos.REASON_RECONCILIATION:                   ClassLost,
		mesos.REASON_RESOURCES_UNKNOWN:                ClassLost,
		mesos.REASON_TASK_CHECK_STATUS_UPDATED:        ClassLost,
		mesos.REASON_TASK_GROUP_INVALID:               ClassInvalid,
		mesos.REASON_TASK_GROUP_UNAUTHORIZED:          ClassInvalid,
		mesos.REASON_TASK_HEALTH_CHECK_STATUS_UPDATED: ClassLost,
		mesos.REASON_TASK_INVALID:                     ClassInvalid,
		mesos.REASON_TASK_KILLED_DURING_LAUNCH:        ClassLost,
		mesos.REASON_TASK_UNAUTHORIZED:                ClassInvalid,
		mesos.REASON_TASK_UNKNOWN:                     ClassLost,
	}
	for number, name := range mesos.TaskStatus_Reason_name {
		want, known := classes[mesos.TaskStatus_Reason(number)]
		require.True(t, known, "reason %s is not in the table", name)
		// The state says less than the reason; TASK_FAILED is what most come with.
		require.Equal(t, want, classOf(update{state: "TASK_FAILED", source: "SOURCE_AGENT", reason: name}), name)
	}
}

// TestClassOfState goes through every terminal state that comes without a reason.
func TestClassOfState(t *testing.T) {
	classes := map[string]Class{
		"TASK_DROPPED":          ClassLost,
		"TASK_ERROR":            ClassInvalid,
		"TASK_FAILED":           ClassLost,
		"TASK_FINISHED":         ClassInvalid,
		"TASK_GONE":             ClassLost,
		"TASK_GONE_BY_OPERATOR": ClassLost,
		"TASK_KILLED":           ClassPreempted,
		"TASK_LOST":             ClassLost,
	}
	for _, state := range mesos.TaskState_name {
		want, ends := classes[state]
		require.Equal(t, ends, terminal(state), state)
		if ends {
			require.Equal(t, want, classOf(update{state: state, source: "SOURCE_AGENT"}), state)
		}
	}
	require.Equal(t, ClassInvalid, classOf(update{state: "TASK_FAILED", source: "SOURCE_EXECUTOR"}), "an executor without an outcome")
}

func TestClassify(t *testing.T) {
	at := &attempt{build: &build{}}
	for _, tt := range []struct {
		name  string
		state string
		data  string
		class Class // of the failure; "" for success
	}{
		{"success", "TASK_FINISHED", `{"version":1,"digest":"sha256:1","log_size":3}`, ""},
		{"failure", "TASK_FAILED", `{"version":1,"failure":{"class":"registry","phase":"push","message":"503"}}`, ClassRegistry},
		{"failure in spite of its state", "TASK_FINISHED", `{"version":1,"failure":{"class":"user","phase":"build","message":"1"}}`, ClassUser},
		{"killed by an operator", "TASK_KILLED", `{"version":1,"failure":{"class":"cancelled","phase":"build","message":"killed"}}`, ClassPreempted},
		{"killed when it was done", "TASK_KILLED", `{"version":1,"digest":"sha256:1"}`, ClassPreempted},
		{"another release", "TASK_FAILED", `{"version":99}`, ClassInvalid},
		{"no JSON", "TASK_FINISHED", `pushed`, ClassInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outcome, failure := classify(at, update{state: tt.state, source: "SOURCE_EXECUTOR", data: []byte(tt.data)})
			if tt.class == "" {
				require.Nil(t, failure)
				require.Equal(t, "sha256:1", outcome.Digest)
				return
			}
			require.Equal(t, tt.class, failure.Class)
			require.NotEmpty(t, failure.Err.Error())
		})
	}
	// Data counts only if the executor itself sent it.
	_, failure := classify(at, update{state: "TASK_FINISHED", source: "SOURCE_MASTER", data: []byte(`{"version":1,"digest":"sha256:1"}`)})
	require.Equal(t, ClassInvalid, failure.Class, fmt.Sprint(failure))
}
