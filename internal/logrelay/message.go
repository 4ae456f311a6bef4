// Package logrelay brings the log of an attempt to a framework that reaches the
// master but not the agent: over framework messages instead of the agent's files.
//
// A Reader in the framework asks for the log from an offset on, and a Desk in the
// executor answers with what follows there. Mesos may drop any message, so a Reader
// asks again until it is answered. Since it asks for one piece at a time, no more
// than one is on its way, and a slow reader slows nobody down.
package logrelay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// version is that of all messages here. It grows when an older reader would misread
// a newer writer.
const version = 1

const (
	// MaxPayload bounds how much of a log one message carries, compressed or not.
	// Mesos itself has no bound, but the master holds each message in memory and
	// parses it as protobuf, which gives up at 64 MiB (MESOS-4210) and is not meant
	// for more than one (protobuf docs, "Large Data Sets").
	MaxPayload = 128 << 10
	// maxPlain bounds it before it is compressed.
	maxPlain = 4 * MaxPayload
)

// An Ask is the framework's for the log of an attempt.
type Ask struct {
	Serial int   `json:"serial"` // grows from 1; the Chunk repeats it
	Offset int64 `json:"offset"` // from which on the log is wanted: all before it is there
	// Elsewhere says instead that the framework reads the agent's files: the executor
	// need not wait to be asked.
	Elsewhere bool `json:"elsewhere,omitempty"`
}

// A Chunk is the executor's answer to an Ask.
type Chunk struct {
	Serial int    `json:"serial"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`             // of the log at that moment
	Coding string `json:"coding,omitempty"` // "zstd", or "" if the payload is as it is

	payload []byte
}

// The forms on the wire: each has one field besides the version, by which the
// messages between framework and executor are told apart. That of a chunk is
// followed by a newline, which the other messages do not have, and the payload.
type (
	askMessage struct {
		Version int  `json:"version"`
		Ask     *Ask `json:"log_ask"`
	}
	chunkMessage struct {
		Version int    `json:"version"`
		Chunk   *Chunk `json:"log_chunk"`
	}
)

// ErrOtherMessage reports data that is another message.
var ErrOtherMessage = errors.New("not about a log")

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
		return Ask{}, fmt.Errorf("framework asks for the log in version %d, this executor understands %d", m.Version, version)
	}
	return *m.Ask, nil
}

// Encode returns c with the present version.
func (c Chunk) Encode() []byte {
	return append(append(encode(chunkMessage{version, &c}), '\n'), c.payload...)
}

// DecodeChunk reads what Chunk.Encode wrote. The error is ErrOtherMessage for other
// messages. The chunk aliases data.
func DecodeChunk(data []byte) (Chunk, error) {
	head, payload, found := bytes.Cut(data, []byte{'\n'})
	var m chunkMessage
	if !found || json.Unmarshal(head, &m) != nil || m.Chunk == nil {
		return Chunk{}, ErrOtherMessage
	}
	if m.Version != version {
		return Chunk{}, fmt.Errorf("executor sends its log in version %d, this framework understands %d", m.Version, version)
	}
	m.Chunk.payload = payload
	return *m.Chunk, nil
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of strings and numbers always encodes
	}
	return data
}
