package seal

import (
	"encoding/json"
	"errors"
	"fmt"
)

// exchangeVersion is that of Ask and Answer. It grows when an older reader would
// misread a newer writer.
const exchangeVersion = 1

// An Ask is what an executor says to get the secrets of its task: first in the
// data of its first status update, which Mesos delivers in the end, and then in
// framework messages, of which any may be lost.
type Ask struct {
	Binding
	Key    string // Key.Public
	Serial int    // grows from 1; the Answer repeats it
}

// An Answer is what the framework says to every Ask, in a framework message.
type Answer struct {
	Serial int
	Sealed []byte // Credentials.Encode, sealed to Ask.Key and Ask.Binding
	// Refusal says why there are no secrets and will be none, instead of Sealed.
	Refusal string
}

// The forms of both on the wire. Each has one field besides the version, so that
// the other messages between framework and executor are told apart from them.
type (
	askMessage struct {
		Version int      `json:"version"`
		Ask     *askJSON `json:"seal_ask"`
	}
	askJSON struct {
		Task    string `json:"task"`
		Attempt int    `json:"attempt"`
		Key     string `json:"key"`
		Serial  int    `json:"serial"`
	}
	answerMessage struct {
		Version int         `json:"version"`
		Answer  *answerJSON `json:"seal_answer"`
	}
	answerJSON struct {
		Serial  int    `json:"serial"`
		Sealed  []byte `json:"sealed,omitempty"`
		Refusal string `json:"refusal,omitempty"`
	}
)

// ErrNotOurs reports data that is no Ask or no Answer, but may be another message.
var ErrNotOurs = errors.New("not about secrets")

// Encode returns a as JSON with the present version.
func (a Ask) Encode() []byte {
	return encode(askMessage{exchangeVersion, &askJSON{a.Task, a.Attempt, a.Key, a.Serial}})
}

// DecodeAsk reads what Ask.Encode wrote. The error is ErrNotOurs for other data.
func DecodeAsk(data []byte) (Ask, error) {
	var m askMessage
	if json.Unmarshal(data, &m) != nil || m.Ask == nil {
		return Ask{}, ErrNotOurs
	}
	if m.Version != exchangeVersion {
		return Ask{}, fmt.Errorf("executor asks for secrets in version %d, this framework understands %d: %w", m.Version, exchangeVersion, ErrVersion)
	}
	return Ask{Binding: Binding{Task: m.Ask.Task, Attempt: m.Ask.Attempt}, Key: m.Ask.Key, Serial: m.Ask.Serial}, nil
}

// Answer seals c for who asked.
func (a Ask) Answer(c Credentials) (Answer, error) {
	plain, err := c.Encode()
	if err != nil {
		return Answer{}, err
	}
	sealed, err := Seal(a.Key, a.Binding, plain)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Serial: a.Serial, Sealed: sealed}, nil
}

// Refuse is the answer that there are no secrets. The text says why, and is no
// secret.
func (a Ask) Refuse(why string) Answer { return Answer{Serial: a.Serial, Refusal: why} }

// Encode returns a as JSON with the present version.
func (a Answer) Encode() []byte {
	return encode(answerMessage{exchangeVersion, &answerJSON{a.Serial, a.Sealed, a.Refusal}})
}

// DecodeAnswer reads what Answer.Encode wrote. The error is ErrNotOurs for other
// data.
func DecodeAnswer(data []byte) (Answer, error) {
	var m answerMessage
	if json.Unmarshal(data, &m) != nil || m.Answer == nil {
		return Answer{}, ErrNotOurs
	}
	if m.Version != exchangeVersion {
		return Answer{}, fmt.Errorf("framework answers about secrets in version %d, this executor understands %d: %w", m.Version, exchangeVersion, ErrVersion)
	}
	return Answer{Serial: m.Answer.Serial, Sealed: m.Answer.Sealed, Refusal: m.Answer.Refusal}, nil
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of strings, numbers and bytes always encodes
	}
	return data
}
