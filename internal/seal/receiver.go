package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// askAgainMin is the pause before the first repetition of an Ask, and
	// askAgainMax the longest one. An answer takes milliseconds unless a message
	// was lost or the framework is away.
	askAgainMin = time.Second
	askAgainMax = 15 * time.Second
	// renewWait is how long fresh credentials are waited for when there are
	// older ones.
	renewWait = 10 * time.Second
	// renewPause is how long older ones are used without more ado after that
	// was in vain: a build may need them for many requests.
	renewPause = time.Minute
)

// Errors of Receiver.Credentials.
var (
	// ErrRefused reports that the framework has no secrets for this task.
	ErrRefused = errors.New("the framework refuses the secrets of the task")
	// ErrUnanswered reports that the framework did not answer in time.
	ErrUnanswered = errors.New("the framework does not answer when asked for the secrets of the task")
)

// A Receiver is the executor's end: it gets the secrets of its task over
// messages that may be lost, repeated, late or forged. It is safe for concurrent
// use.
type Receiver struct {
	key  *Key
	own  Binding
	send func(data []byte)

	mu     sync.Mutex
	serial int           // of the last Ask
	gotFor int           // the serial of the newest answer; 0 before any
	gotAt  time.Time     // when it came
	gaveUp time.Time     // when newer ones were last waited for in vain
	got    Credentials   // in it
	plain  []byte        // their encoding
	failed error         // final
	bad    error         // of the last answer that could not be opened
	news   chan struct{} // closed and replaced when any of these changes
	seen   []Credentials // all there were, for masker
	masker *Masker
}

// NewReceiver makes a key for the task. send sends a framework message; it may
// lose it, and must not block.
func NewReceiver(own Binding, send func(data []byte)) (*Receiver, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	return &Receiver{key: key, own: own, send: send, serial: 1, news: make(chan struct{})}, nil
}

// First is the first Ask, for the data of the first status update.
func (r *Receiver) First() []byte { return r.ask(1) }

func (r *Receiver) ask(serial int) []byte {
	return Ask{Binding: r.own, Key: r.key.Public(), Serial: serial}.Encode()
}

// Handle takes a framework message, and reports whether it was one about
// secrets.
func (r *Receiver) Handle(data []byte) bool {
	answer, err := DecodeAnswer(data)
	if errors.Is(err, ErrNotOurs) {
		return false
	}
	var c Credentials
	var plain []byte
	if err == nil && answer.Refusal == "" {
		if plain, err = r.key.Open(r.own, answer.Sealed); err == nil {
			c, err = DecodeCredentials(plain)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case answer.Serial > r.serial || err == nil && answer.Serial <= r.gotFor:
		return true // never asked for, or late
	case errors.Is(err, ErrVersion):
		r.failed = err
	case err != nil:
		// Perhaps not of the framework: the true answer may still come.
		r.bad = err
		return true
	case answer.Refusal != "":
		if r.gotFor > 0 {
			return true // to a renewal: what there is may still be good
		}
		r.failed = fmt.Errorf("%w: %s", ErrRefused, answer.Refusal)
	default:
		if r.gotFor == 0 || !bytes.Equal(plain, r.plain) {
			r.got, r.plain = c, plain
			masked := c
			masked.URLs = nil // others each time, and never in a log
			r.seen = append(r.seen, masked)
			r.masker = NewMasker(r.seen...)
		}
		r.gotFor, r.gotAt = answer.Serial, time.Now()
	}
	close(r.news)
	r.news = make(chan struct{})
	return true
}

// Credentials waits for the secrets and asks for them again and again. The error
// wraps ErrRefused, ErrVersion, or ErrUnanswered and that of ctx.
func (r *Receiver) Credentials(ctx context.Context) (Credentials, error) {
	return r.wait(ctx, 1)
}

// Fresh returns secrets that came within maxAge. If there are only older ones and
// no new ones come in a while, it returns these: they may still be good. It
// waits for the first ones as Credentials does.
func (r *Receiver) Fresh(ctx context.Context, maxAge time.Duration) (Credentials, error) {
	old, err := r.Credentials(ctx)
	if err != nil {
		return Credentials{}, err
	}
	r.mu.Lock()
	if time.Since(r.gotAt) <= maxAge || time.Since(r.gaveUp) < renewPause {
		old = r.got
		r.mu.Unlock()
		return old, nil
	}
	asking := r.serial > r.gotFor
	if !asking {
		r.serial++
	}
	want := r.serial
	r.mu.Unlock()
	if !asking {
		r.send(r.ask(want))
	}
	limited, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	fresh, err := r.wait(limited, want)
	if err == nil {
		return fresh, nil
	}
	if ctx.Err() == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gaveUp = time.Now()
	}
	return old, nil
}

// wait returns the newest secrets once there are some that were asked for with
// serial or later, which has been done once.
func (r *Receiver) wait(ctx context.Context, serial int) (Credentials, error) {
	timer := time.NewTimer(askAgainMin)
	defer timer.Stop()
	for pause := askAgainMin; ; {
		r.mu.Lock()
		got, gotFor, failed, bad, news := r.got, r.gotFor, r.failed, r.bad, r.news
		r.mu.Unlock()
		switch {
		case gotFor >= serial:
			return got, nil
		case failed != nil:
			return Credentials{}, failed
		}
		select {
		case <-news:
		case <-timer.C:
			r.send(r.ask(serial))
			pause = min(2*pause, askAgainMax)
			timer.Reset(pause/2 + rand.N(pause/2))
		case <-ctx.Done():
			return Credentials{}, unanswered(ctx, bad)
		}
	}
}

// unanswered is the error of a wait that ended with ctx; bad is what was wrong
// with the last answer, if there was one.
func unanswered(ctx context.Context, bad error) error {
	err := fmt.Errorf("%w: %w", ErrUnanswered, ctx.Err())
	if cause := context.Cause(ctx); !errors.Is(ctx.Err(), cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if bad != nil {
		err = fmt.Errorf("%w; the last answer: %w", err, bad)
	}
	return err
}

// Open opens what was sealed for the task with Seal, and is not Credentials.
func (r *Receiver) Open(sealed []byte) ([]byte, error) { return r.key.Open(r.own, sealed) }

// Format says whose Receiver it is, whatever the verb: others would print what it
// has received.
func (r *Receiver) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "receiver of task %s", r.own.Task) }

// LogValue is what Format prints.
func (r *Receiver) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// Mask masks all secrets that have come, as Masker.Mask does.
func (r *Receiver) Mask(line []byte) []byte {
	r.mu.Lock()
	m := r.masker
	r.mu.Unlock()
	return m.Mask(line)
}
