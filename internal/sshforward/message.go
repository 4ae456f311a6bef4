// Package sshforward lets ssh clients in build steps use the ssh agent of whoever
// submitted the build: the keys stay where they are, and only what is to be signed
// comes to them.
//
// A step speaks the protocol of ssh agents (draft-ietf-sshm-ssh-agent) with a
// Remote in the executor, which asks the framework in a framework message. There a
// Desk puts the request to the agent and answers, sealed to the executor's key.
// Mesos may drop any message, so a Remote asks again until it is answered, and a
// Desk puts each request to the agent once.
package sshforward

import (
	"encoding/json"
	"errors"
	"fmt"
)

// version is that of all messages here. It grows when an older reader would misread
// a newer writer.
const version = 1

// An Ask is one request to an ssh agent, of a step in the build of a task.
type Ask struct {
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
	Agent   string `json:"agent"`   // which, as RUN --mount=type=ssh,id=… names it
	Serial  int    `json:"serial"`  // grows from 1 with each request; the Answer repeats it
	Request []byte `json:"request"` // without its length
}

// An Answer is the framework's to an Ask.
type Answer struct {
	Serial int    `json:"serial"`
	Sealed []byte `json:"sealed,omitempty"` // a Response, encoded, for the executor's key
	// Failure says why there is no response, instead of Sealed.
	Failure string `json:"failure,omitempty"`
}

// A Response is what the ssh agent said. The serial ties it to one Ask: nothing else
// that was sealed for the executor can be passed off as the answer to it.
type Response struct {
	Serial   int    `json:"ssh_serial"`
	Response []byte `json:"ssh_response"` // without its length
}

// The forms on the wire: each has one field besides the version, by which the
// messages between framework and executor are told apart.
type (
	askMessage struct {
		Version int  `json:"version"`
		Ask     *Ask `json:"ssh_ask"`
	}
	answerMessage struct {
		Version int     `json:"version"`
		Answer  *Answer `json:"ssh_answer"`
	}
)

// ErrOtherMessage reports data that is another message.
var ErrOtherMessage = errors.New("not about ssh agents")

// Encode returns a as JSON with the present version.
func (a Ask) Encode() []byte { return encode(askMessage{version, &a}) }

// DecodeAsk reads what Ask.Encode wrote. The error is ErrOtherMessage for other
// messages.
func DecodeAsk(data []byte) (Ask, error) {
	var m askMessage
	if json.Unmarshal(data, &m) != nil || m.Ask == nil {
		return Ask{}, ErrOtherMessage
	}
	if m.Version != version {
		return Ask{}, fmt.Errorf("executor asks the ssh agent in version %d, this framework understands %d", m.Version, version)
	}
	return *m.Ask, nil
}

// Encode returns a as JSON with the present version.
func (a Answer) Encode() []byte { return encode(answerMessage{version, &a}) }

// DecodeAnswer reads what Answer.Encode wrote. The error is ErrOtherMessage for other
// messages.
func DecodeAnswer(data []byte) (Answer, error) {
	var m answerMessage
	if json.Unmarshal(data, &m) != nil || m.Answer == nil {
		return Answer{}, ErrOtherMessage
	}
	if m.Version != version {
		return Answer{}, fmt.Errorf("framework answers for the ssh agent in version %d, this executor understands %d", m.Version, version)
	}
	return *m.Answer, nil
}

// Encode returns r as JSON, to be sealed.
func (r Response) Encode() []byte { return encode(r) }

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of strings, numbers and bytes always encodes
	}
	return data
}
