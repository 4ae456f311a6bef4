package sshforward

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// askAgainMin is the pause before the first repetition of an Ask, and
	// askAgainMax the longest one. An answer takes milliseconds, unless a message
	// was lost or a person is asked to agree.
	askAgainMin = time.Second
	askAgainMax = 15 * time.Second
	// patience bounds how long one request may take. A person may have to touch a
	// key.
	patience = 2 * time.Minute
)

// ErrUnanswered reports that the framework did not answer in time.
var ErrUnanswered = errors.New("the framework does not answer for the ssh agent")

// A Remote is the executor's end. It is safe for concurrent use.
type Remote struct {
	// Task and Attempt are what is being built.
	Task    string
	Attempt int
	// Send sends a framework message; it may lose it, and must not block.
	Send func(data []byte)
	// Open opens what was sealed for the task.
	Open func(sealed []byte) ([]byte, error)
	// Log tells of requests that failed.
	Log *slog.Logger

	mu      sync.Mutex
	serial  int
	waiting map[int]chan<- answered
}

type answered struct {
	response []byte
	err      error
}

// Handle takes a framework message, and reports whether it was one for a Remote.
func (r *Remote) Handle(data []byte) bool {
	a, err := DecodeAnswer(data)
	if errors.Is(err, ErrOtherMessage) {
		return false
	}
	var got answered
	switch {
	case err != nil:
		r.Log.Warn("answer for the ssh agent not understood", "err", err)
		return true
	case a.Failure != "":
		got.err = errors.New(a.Failure)
	default:
		plain, err := r.Open(a.Sealed)
		var said Response
		if err == nil {
			err = json.Unmarshal(plain, &said)
		}
		if err != nil || said.Serial != a.Serial || len(said.Response) == 0 {
			// Perhaps not of the framework: the true answer may still come.
			r.Log.Warn("answer for the ssh agent passed over", "serial", a.Serial, "err", err)
			return true
		}
		got.response = said.Response
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if to := r.waiting[a.Serial]; to != nil {
		to <- got // there is room for one
		delete(r.waiting, a.Serial)
	}
	return true
}

// Do puts a request to an agent and waits for its response. Both are without their
// length.
func (r *Remote) Do(ctx context.Context, agent string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%w within %v", ErrUnanswered, patience))
	defer cancel()
	come := make(chan answered, 1)
	r.mu.Lock()
	r.serial++
	ask := Ask{Task: r.Task, Attempt: r.Attempt, Agent: agent, Serial: r.serial, Request: request}
	if r.waiting == nil {
		r.waiting = make(map[int]chan<- answered)
	}
	r.waiting[ask.Serial] = come
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, ask.Serial)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := askAgainMin; ; {
		select {
		case got := <-come:
			return got.response, got.err
		case <-timer.C:
			r.Send(ask.Encode())
			timer.Reset(pause)
			pause = min(2*pause, askAgainMax)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Serve answers the requests that come over conn, one after the other, as the ssh
// agent of that name would, until there are no more, conn fails or ctx is done.
// The caller closes conn, which ends a read that waits.
func (r *Remote) Serve(ctx context.Context, agent string, conn io.ReadWriter) error {
	for {
		request, err := readMessage(conn)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("ssh agent %s: %w", agent, err)
		}
		response := []byte{failure}
		if forwards(request) {
			if said, err := r.Do(ctx, agent, request); err == nil {
				response = said
			} else {
				r.Log.Warn("ssh agent does not answer", "agent", agent, "err", err)
			}
		}
		if err := writeMessage(conn, response); err != nil {
			return fmt.Errorf("ssh agent %s: %w", agent, err)
		}
	}
}
