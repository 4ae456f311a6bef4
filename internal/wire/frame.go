package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// FrameKind says what a Frame holds.
type FrameKind byte

// The kinds of frames. A reader passes over kinds it does not know.
const (
	FrameOut      FrameKind = 'o' // a line that a step wrote to its standard output
	FrameErr      FrameKind = 'e' // a line that a step wrote to its standard error
	FrameInfo     FrameKind = 'i' // a line of the executor or engine itself
	FrameStep     FrameKind = 's' // a step has begun; Data is a Step
	FrameStepDone FrameKind = 'd' // a step has ended; Data is a Step
	FrameGap      FrameKind = 'g' // output was lost here; Data says how much and why
)

// A Frame is one record of build.log. On disk it is a line
//
//	<kind> <unix time in ms> <step> <length of data>
//
// then the data and a newline, so that the file can be read by people as well as
// by offset. A frame is the unit of resumption: an offset behind a whole frame
// is where reading can begin again.
type Frame struct {
	Kind FrameKind
	Time time.Time // to the millisecond
	Step int       // the step the line belongs to; 0 for none
	Data []byte
}

// A Step is the data of FrameStep and FrameStepDone, as JSON.
type Step struct {
	Name   string        `json:"name"`
	Line   int           `json:"line,omitempty"`
	Cached bool          `json:"cached,omitempty"`
	Took   time.Duration `json:"took,omitempty"` // in nanoseconds
	Error  string        `json:"error,omitempty"`
}

// Encode returns s as the data of a frame.
func (s Step) Encode() []byte {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // a struct of strings and numbers always encodes
	}
	return data
}

// DecodeStep reads what Step.Encode wrote.
func DecodeStep(data []byte) (Step, error) {
	var s Step
	if err := json.Unmarshal(data, &s); err != nil {
		return Step{}, fmt.Errorf("step: %w", err)
	}
	return s, nil
}

// MaxFrameData bounds the data of one frame. Longer lines are split by the
// writer.
const MaxFrameData = 1 << 20

// maxFrameHead is more than a frame's first line can be long.
const maxFrameHead = 64

// AppendFrame appends the encoding of f to b. Data longer than MaxFrameData is a
// mistake of the caller and panics.
func AppendFrame(b []byte, f Frame) []byte {
	if len(f.Data) > MaxFrameData {
		panic("wire: frame data too long")
	}
	b = append(b, byte(f.Kind), ' ')
	b = strconv.AppendInt(b, f.Time.UnixMilli(), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(f.Step), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(f.Data)), 10)
	b = append(b, '\n')
	b = append(b, f.Data...)
	return append(b, '\n')
}

// ErrFrame reports bytes that are no frame.
var ErrFrame = errors.New("malformed log frame")

// DecodeFrame reads the frame at the start of b and returns its length. The
// length is 0 when b ends within the frame. Data aliases b.
func DecodeFrame(b []byte) (f Frame, n int, err error) {
	head, _, whole := bytes.Cut(b[:min(len(b), maxFrameHead)], []byte{'\n'})
	if !whole {
		if len(b) >= maxFrameHead {
			return Frame{}, 0, ErrFrame
		}
		return Frame{}, 0, nil
	}
	fields := bytes.Split(head, []byte{' '})
	if len(fields) != 4 || len(fields[0]) != 1 {
		return Frame{}, 0, ErrFrame
	}
	ms, err1 := strconv.ParseInt(string(fields[1]), 10, 64)
	step, err2 := strconv.Atoi(string(fields[2]))
	size, err3 := strconv.Atoi(string(fields[3]))
	if err1 != nil || err2 != nil || err3 != nil || step < 0 || size < 0 || size > MaxFrameData {
		return Frame{}, 0, ErrFrame
	}
	start := len(head) + 1
	end := start + size
	if len(b) < end+1 {
		return Frame{}, 0, nil
	}
	if b[end] != '\n' {
		return Frame{}, 0, ErrFrame
	}
	return Frame{Kind: FrameKind(fields[0][0]), Time: time.UnixMilli(ms), Step: step, Data: b[start:end:end]}, end + 1, nil
}
