package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// firstPatience bounds how long an executor waits at the end of its log for the
	// first word of the framework about it: a framework that has to find out that it
	// cannot read the agent's files needs a connection to time out.
	firstPatience = 15 * time.Second
	// patience bounds how long it waits for the next Ask once there was one.
	patience = 30 * time.Second
	// nudgeEvery is how often it says meanwhile that it waits.
	nudgeEvery = time.Second
)

// ErrUnread reports that a framework did not ask for the end of a log in time.
var ErrUnread = errors.New("the framework did not ask for the end of the log")

// A Log is what a Desk reads: it only ever grows.
type Log interface {
	io.ReaderAt
	// Size is how long it is, whole frames only.
	Size() int64
}

// A Desk is the executor's end, for one attempt. Its methods are safe for concurrent
// use.
type Desk struct {
	log       Log
	send      func(data []byte)
	announced bool
	logger    *slog.Logger
	wake      chan struct{} // holds a token while an Ask is pending

	mu        sync.Mutex
	pending   *Ask          // the latest, not yet answered
	asked     time.Time     // when the latest came; zero before
	reached   int64         // where the framework has got to, as far as it has said
	elsewhere bool          // it reads the agent's files
	heard     chan struct{} // closed and replaced at each Ask
}

// NewDesk returns a Desk that answers by send, which may lose messages and must not
// block. announced says that the framework tells, unasked, when it reads the agent's
// files. What cannot be answered is logged.
func NewDesk(log Log, announced bool, send func(data []byte), logger *slog.Logger) *Desk {
	return &Desk{log: log, send: send, announced: announced, logger: logger, wake: make(chan struct{}, 1), heard: make(chan struct{})}
}

// Handle takes a framework message, and reports whether it was one for a Desk. It
// does not block.
func (d *Desk) Handle(data []byte) bool {
	ask, err := DecodeAsk(data)
	if errors.Is(err, ErrOtherMessage) {
		return false
	}
	if err != nil {
		d.logger.Warn("question about the log not understood", "err", err)
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.elsewhere = ask.Elsewhere; !d.elsewhere {
		d.asked, d.reached, d.pending = time.Now(), max(d.reached, ask.Offset), &ask
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
	close(d.heard)
	d.heard = make(chan struct{})
	return true
}

// Serve answers what Handle takes until ctx is done. Of questions that come while
// one is being answered, only the latest is: the framework has given up the others.
func (d *Desk) Serve(ctx context.Context) {
	var e encoder
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		}
		d.mu.Lock()
		ask := d.pending
		d.pending = nil
		d.mu.Unlock()
		if ask == nil {
			continue
		}
		chunk, err := d.answer(*ask, &e)
		if err != nil {
			d.logger.Warn("question about the log not answered", "offset", ask.Offset, "err", err)
			continue
		}
		d.send(chunk.Encode())
	}
}

// answer makes the answer to ask.
func (d *Desk) answer(ask Ask, e *encoder) (Chunk, error) {
	c := Chunk{Serial: ask.Serial, Offset: ask.Offset, Size: d.log.Size()}
	if ask.Offset < 0 || ask.Offset > c.Size {
		return Chunk{}, fmt.Errorf("the log has %d bytes", c.Size)
	}
	plain := make([]byte, min(c.Size-ask.Offset, maxPlain))
	if _, err := io.ReadFull(io.NewSectionReader(d.log, ask.Offset, int64(len(plain))), plain); err != nil {
		return Chunk{}, err
	}
	return c, e.fit(&c, plain)
}

// AwaitEnd waits until the framework has all of the log, which is complete, or does
// not need it from here: a log that is asked for over messages goes when the executor
// goes. It calls nudge now and then, which should tell the framework that this waits.
//
// It returns ErrUnread when the framework says nothing for too long, and the cause of
// ctx's end when that comes first.
func (d *Desk) AwaitEnd(ctx context.Context, nudge func()) error {
	size, began := d.log.Size(), time.Now()
	ticker := time.NewTicker(nudgeEvery)
	defer ticker.Stop()
	for nudged := false; ; {
		d.mu.Lock()
		asked, reached, elsewhere, heard := d.asked, d.reached, d.elsewhere, d.heard
		d.mu.Unlock()
		limit := firstPatience
		switch {
		case elsewhere, !asked.IsZero() && reached >= size:
			return nil
		case !asked.IsZero():
			limit = patience
			if asked.Before(began) {
				asked = began
			}
		case !d.announced:
			return nil
		default:
			asked = began
		}
		if silent := time.Since(asked); silent >= limit {
			return fmt.Errorf("%w: nothing heard for %v, %d of %d bytes asked for", ErrUnread, silent.Round(time.Second), reached, size)
		}
		if !nudged {
			nudged = true
			nudge()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-heard:
		case <-ticker.C:
			nudged = false
		}
	}
}
