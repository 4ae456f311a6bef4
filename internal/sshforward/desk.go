package sshforward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// ErrBusy reports an Ask that is being answered already.
var ErrBusy = errors.New("the request was put to the ssh agent already")

// kept is how many responses a Desk remembers: an Ask that is repeated after that
// many others has long been given up.
const kept = 64

// A Desk is the framework's end for one attempt. The zero value is ready to use; it
// is safe for concurrent use.
type Desk struct {
	mu    sync.Mutex
	said  map[int][]byte // by serial; nil while the agent is asked
	order []int
}

// Answer puts a request to the ssh agent that dial connects to, and returns what it
// says. Asked again, it returns the same without asking the agent; the error is
// ErrBusy as long as that has not answered, and then nothing need be sent.
func (d *Desk) Answer(ctx context.Context, ask Ask, dial func(context.Context) (net.Conn, error)) (Response, error) {
	if !forwards(ask.Request) || len(ask.Request) > maxMessage {
		return Response{}, errors.New("only the list of keys and signatures can be had from the ssh agent")
	}
	d.mu.Lock()
	said, known := d.said[ask.Serial]
	if !known {
		d.note(ask.Serial)
	}
	d.mu.Unlock()
	switch {
	case known && said == nil:
		return Response{}, ErrBusy
	case known:
		return Response{Serial: ask.Serial, Response: said}, nil
	}
	said, err := exchange(ctx, ask.Request, dial)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.said, ask.Serial) // another try may do better
		return Response{}, fmt.Errorf("ssh agent %s: %w", ask.Agent, err)
	}
	if _, remembered := d.said[ask.Serial]; remembered {
		d.said[ask.Serial] = said
	}
	return Response{Serial: ask.Serial, Response: said}, nil
}

// note remembers that a request is being answered. The caller holds mu.
func (d *Desk) note(serial int) {
	if d.said == nil {
		d.said = make(map[int][]byte)
	}
	d.said[serial] = nil
	if d.order = append(d.order, serial); len(d.order) > kept {
		delete(d.said, d.order[0])
		d.order = d.order[1:]
	}
}

// exchange puts one request to an agent.
func exchange(ctx context.Context, request []byte, dial func(context.Context) (net.Conn, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %v", patience))
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = writeMessage(conn, request)
	var said []byte
	if err == nil {
		said, err = readMessage(conn)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return said, err
}
