package logrelay

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// askAgainMin is the pause before the first repetition of an Ask, and
	// askAgainMax the longest one. An answer takes milliseconds, unless a message
	// was lost.
	askAgainMin = 500 * time.Millisecond
	askAgainMax = 4 * time.Second
)

// ErrAwaited reports that the executor was asked and has not answered yet.
var ErrAwaited = errors.New("the executor has not sent it yet")

// A Reader is the framework's end, for one attempt. Read belongs to one goroutine;
// the other methods are safe for concurrent use.
type Reader struct {
	send    func(Ask)
	arrived chan struct{}
	decoder decoder

	mu     sync.Mutex
	last   Ask       // that was sent
	first  int       // serial of the first one for the same piece; 0 when none is out
	sent   time.Time // when last was
	pause  time.Duration
	answer *Chunk // that came
}

// NewReader returns a Reader that asks by send, which may lose messages.
func NewReader(send func(Ask)) *Reader {
	return &Reader{send: send, arrived: make(chan struct{}, 1)}
}

// Arrived has a token when there may be an answer to be read.
func (r *Reader) Arrived() <-chan struct{} { return r.arrived }

// Handle takes the answer of the executor. What was not asked for, or has been
// answered, is passed over.
func (r *Reader) Handle(c Chunk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == 0 || c.Serial < r.first || c.Serial > r.last.Serial || c.Offset != r.last.Offset {
		return
	}
	r.answer = &c
	select {
	case r.arrived <- struct{}{}:
	default:
	}
}

// Read returns what follows in the log from offset on, some of it, and how long the
// log was at that moment; at its end data is empty. It does not wait: as long as
// there is no answer the error is ErrAwaited, and Read is to be called again when
// Arrived says so and every now and then, for it is Read that asks again.
func (r *Reader) Read(offset int64) (data []byte, size int64, err error) {
	r.mu.Lock()
	answer, ask := r.answer, Ask{}
	r.answer = nil
	switch now := time.Now(); {
	case answer != nil && answer.Offset == offset:
		r.first = 0
	case r.first == 0 || r.last.Offset != offset:
		answer = nil
		ask = Ask{Serial: r.last.Serial + 1, Offset: offset}
		r.first, r.last, r.sent, r.pause = ask.Serial, ask, now, askAgainMin
	case now.Sub(r.sent) >= r.pause:
		ask = Ask{Serial: r.last.Serial + 1, Offset: offset}
		r.last, r.sent, r.pause = ask, now, min(2*r.pause, askAgainMax)
	}
	r.mu.Unlock()
	if ask.Serial > 0 {
		r.send(ask)
	}
	if answer == nil {
		return nil, 0, ErrAwaited
	}
	if data, err = r.decoder.open(*answer); err != nil {
		return nil, 0, err
	}
	if answer.Size < offset+int64(len(data)) {
		return nil, 0, fmt.Errorf("the executor sends %d bytes at %d of a log of %d", len(data), offset, answer.Size)
	}
	return data, answer.Size, nil
}

// Forget gives up what was asked: what comes next is about another log.
func (r *Reader) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first, r.answer = 0, nil
}

// Leave tells the executor that its files are read: it need not wait to be asked.
func (r *Reader) Leave() {
	r.Forget()
	r.send(Ask{Elsewhere: true})
}
