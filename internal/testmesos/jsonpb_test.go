package testmesos

import (
	"encoding/json"
	"testing"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/mesos/mesos-go/api/v1/lib/executor"
	"github.com/mesos/mesos-go/api/v1/lib/scheduler"
	"github.com/stretchr/testify/require"
)

// decodeCall is what a handler does with a JSON body.
func decodeCall(text string) (*scheduler.Call, bool, error) {
	value, err := parseJSON([]byte(text))
	if err != nil {
		return nil, false, err
	}
	call := &scheduler.Call{}
	typed, err := unmarshalJSON(value, call, "type")
	return call, typed, err
}

func TestUnmarshalJSONErrors(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", ``, "syntax error at line 1 near: "},
		{"cut off", `{"type":`, "syntax error at line 1 near: "},
		{"second line", "{\n\"type\": x}", "syntax error at line 2 near: x}"},
		{"trailing text", `{} {}`, "Parsed JSON included non-whitespace trailing characters: {}"},
		{"array", `[]`, "Expecting a JSON object"},
		{"number for an enum", `{"type":1}`, "Not expecting a JSON number for field 'type'"},
		{"boolean for a string", `{"framework_id":{"value":true}}`, "Not expecting a JSON boolean for field 'value'"},
		{"object for a string", `{"framework_id":{"value":{}}}`, "Not expecting a JSON object for field 'value'"},
		{"array for a message", `{"framework_id":[]}`, "Not expecting a JSON array for field 'framework_id'"},
		{"string for a message", `{"framework_id":"x"}`, "Not expecting a JSON string for field 'framework_id'"},
		{"null for a required field", `{"framework_id":{"value":null}}`, "Missing required fields: framework_id.value"},
		{"several missing", `{"acknowledge":{}}`, "Missing required fields: acknowledge.agent_id, acknowledge.task_id, acknowledge.uuid"},
		{"missing in a list", `{"decline":{"offer_ids":[{"value":"a"},{}]}}`, "Missing required fields: decline.offer_ids[1].value"},
		{"unknown name of a required enum", `{"accept":{"operations":[{"launch":{"task_infos":[{"name":"","task_id":{"value":""},` +
			`"agent_id":{"value":""},"resources":[{"name":"cpus","type":"NUMBER"}]}]}}]}}`, "Failed to find enum for 'NUMBER'"},
		{"no base64", `{"acknowledge":{"agent_id":{"value":""},"task_id":{"value":""},"uuid":"!"}}`, "Failed to base64 decode bytes field 'uuid'"},
		{"no number", `{"decline":{"filters":{"refuse_seconds":"many"}}}`, "Failed to parse 'many' as a JSON number for field 'refuse_seconds'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := decodeCall(tt.text)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestUnmarshalJSON(t *testing.T) {
	call, typed, err := decodeCall(`{"type":"DECLINE","no_such_field":{},"framework_id":null,
		"decline":{"offer_ids":[{"value":"a"},null,{"value":"b"}],"filters":{"refuse_seconds":"2.5"}}}`)
	require.NoError(t, err)
	require.True(t, typed)
	require.Nil(t, call.FrameworkID)
	require.Equal(t, []mesos.OfferID{{Value: "a"}, {Value: "b"}}, call.Decline.OfferIDs)
	require.Equal(t, 2.5, *call.Decline.Filters.RefuseSeconds)

	_, typed, err = decodeCall(`{"type":"NO_SUCH_CALL"}`)
	require.NoError(t, err)
	require.False(t, typed)
	_, typed, err = decodeCall(`{"type":"UNKNOWN"}`)
	require.NoError(t, err)
	require.True(t, typed)

	x := &executor.Call{}
	value, err := parseJSON([]byte(`{"type":"HEARTBEAT","executor_id":{"value":"e"},"framework_id":{"value":"f"}}`))
	require.NoError(t, err)
	typed, err = unmarshalJSON(value, x, "type")
	require.NoError(t, err)
	require.True(t, typed)
	require.EqualValues(t, executorHeartbeat, x.Type)
}

func TestAppendJSON(t *testing.T) {
	heartbeat := appendJSON(nil, &scheduler.Event{Type: scheduler.Event_HEARTBEAT})
	require.Len(t, heartbeat, 20, "%s", heartbeat) // as short as Mesos's own
	require.JSONEq(t, `{"type":"HEARTBEAT"}`, string(heartbeat))
	got := appendJSON(nil, &mesos.TaskInfo{
		Name:    "a <name> \xff",
		TaskID:  mesos.TaskID{Value: "t"},
		Command: &mesos.CommandInfo{URIs: []mesos.CommandInfo_URI{{Value: "u"}}},
		Data:    []byte{0, 255},
		Resources: []mesos.Resource{
			{Name: "cpus", Type: new(mesos.SCALAR), Scalar: &mesos.Value_Scalar{Value: 1.5}},
			{Name: "ports", Type: new(mesos.RANGES), Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 1, End: 2}}}},
		},
		Limits: map[string]mesos.Value_Scalar{"mem": {Value: 64}, "cpus": {Value: 2}},
	})
	require.JSONEq(t, `{
		"name": "a <name> \ufffd", "task_id": {"value": "t"}, "agent_id": {"value": ""},
		"command": {"uris": [{"value": "u", "extract": true}], "shell": true},
		"data": "AP8=",
		"resources": [
			{"name": "cpus", "type": "SCALAR", "scalar": {"value": 1.5}},
			{"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 1, "end": 2}]}}
		],
		"limits": {"cpus": {"value": 2}, "mem": {"value": 64}}
	}`, string(got))
}

func TestUnmarshalProtobufType(t *testing.T) {
	for _, tt := range []struct {
		name string
		body []byte
		want bool
	}{
		{"none", nil, false},
		{"UNKNOWN", []byte{2 << 3, 0}, true},
		{"SUBSCRIBE", []byte{2 << 3, 1}, true},
		{"a number that is no call", []byte{2 << 3, 99}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			typed, err := unmarshalProtobuf(tt.body, &scheduler.Call{}, "type")
			require.NoError(t, err)
			require.Equal(t, tt.want, typed)
		})
	}
}

// FuzzSchedulerCall: a body that is taken as JSON is a message in every way.
func FuzzSchedulerCall(f *testing.F) {
	for _, seed := range []string{
		`{"type":"SUBSCRIBE","subscribe":{"framework_info":{"user":"u","name":"n","offer_filters":{"r":{}},"labels":{"labels":[{"key":"k"}]}}}}`,
		`{"type":"ACCEPT","framework_id":{"value":"f"},"accept":{"offer_ids":[{"value":"o"}],"operations":[{"type":"LAUNCH","launch":{"task_infos":[` +
			`{"name":"t","task_id":{"value":"t"},"agent_id":{"value":"a"},"limits":{"cpus":{"value":1e300}},` +
			`"resources":[{"name":"ports","type":"RANGES","ranges":{"range":[{"begin":-1,"end":18446744073709551615}]}}]}]}}]}}`,
		`{"type":"ACKNOWLEDGE","acknowledge":{"uuid":"AAAA"}}`,
		`[[[[`, `{"type":"\ud800"}`, `{"decline":{"filters":{"refuse_seconds":"Infinity"}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		value, err := parseJSON(text)
		if err != nil {
			return
		}
		call := &scheduler.Call{}
		typed, err := unmarshalJSON(value, call, "type")
		if err != nil {
			return
		}
		_ = validateCall(call, typed, "")
		b, err := call.Marshal()
		require.NoError(t, err)
		again := &scheduler.Call{}
		require.NoError(t, again.Unmarshal(b))
		require.True(t, json.Valid(appendJSON(nil, again)))
		if call.Accept != nil {
			for i := range call.Accept.Operations {
				op := clone(&call.Accept.Operations[i])
				if upgradeOperation(op) != nil {
					continue
				}
				for _, task := range operationTasks(op) {
					_ = newResources(task.Resources).String()
				}
			}
		}
	})
}
