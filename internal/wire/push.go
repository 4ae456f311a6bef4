package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Two attempts of one build may be alive at once: an agent that the master cannot
// reach goes on building while another agent does the same. So that they never
// leave tags of different images mixed, an attempt writes tags only while it holds
// the lease of its build, which the framework gives to one attempt at a time.
//
// An executor asks in a framework message, again and again, since Mesos may drop
// any of them and their answers; it counts the lease from when it sent the
// question that was answered, the framework from when it answered, so that the
// executor's end never comes after the framework's.

// A PushAsk is what an executor sends to get or to prolong the lease.
type PushAsk struct {
	Serial int `json:"serial"` // grows from 1; the answer repeats it
}

// A PushGrant is the framework's answer. There is none while another attempt holds
// the lease.
type PushGrant struct {
	Serial int           `json:"serial"`
	Lease  time.Duration `json:"lease"` // in nanoseconds
}

// The forms on the wire: each has one field besides the version, by which the
// messages between framework and executor are told apart.
type (
	pushAskMessage struct {
		Version int      `json:"version"`
		Ask     *PushAsk `json:"push_ask"`
	}
	pushGrantMessage struct {
		Version int        `json:"version"`
		Grant   *PushGrant `json:"push_grant"`
	}
)

// ErrOtherMessage reports data that is another message.
var ErrOtherMessage = errors.New("another kind of message")

// Encode returns a as JSON with the present version.
func (a PushAsk) Encode() []byte { return mustEncode(pushAskMessage{Version, &a}) }

// DecodePushAsk reads what PushAsk.Encode wrote. The error is ErrOtherMessage for
// other messages.
func DecodePushAsk(data []byte) (PushAsk, error) {
	var m pushAskMessage
	if json.Unmarshal(data, &m) != nil || m.Ask == nil {
		return PushAsk{}, ErrOtherMessage
	}
	if m.Version != Version {
		return PushAsk{}, fmt.Errorf("push ask has version %d, but this framework understands version %d", m.Version, Version)
	}
	return *m.Ask, nil
}

// Encode returns g as JSON with the present version.
func (g PushGrant) Encode() []byte { return mustEncode(pushGrantMessage{Version, &g}) }

// DecodePushGrant reads what PushGrant.Encode wrote. The error is ErrOtherMessage
// for other messages.
func DecodePushGrant(data []byte) (PushGrant, error) {
	var m pushGrantMessage
	if json.Unmarshal(data, &m) != nil || m.Grant == nil {
		return PushGrant{}, ErrOtherMessage
	}
	if m.Version != Version {
		return PushGrant{}, fmt.Errorf("push grant has version %d, but this executor understands version %d", m.Version, Version)
	}
	return *m.Grant, nil
}

func mustEncode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of numbers always encodes
	}
	return data
}
