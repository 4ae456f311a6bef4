package storagetest

import (
	"net"
	"sync"
)

// A Relay passes connections on to a server, until told otherwise. Its address stays
// when the server behind it dies and comes back elsewhere.
type Relay struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu              sync.Mutex
	network, target string
	conns           map[net.Conn]bool
	serving         int // connections of clients
	served          int // in all
	alarms          [2]alarm
	closed          bool
}

// Directions of a relay.
const (
	Up   = 0 // To the server
	Down = 1 // To the client
)

// An alarm calls a function, once, when so many bytes more have passed.
type alarm struct {
	left int64
	ring func()
}

// NewRelay returns a Relay that leads nowhere yet. The caller closes it.
func NewRelay() (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{listener: l, conns: map[net.Conn]bool{}}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.serving++
			r.served++
			r.mu.Unlock()
			r.wg.Go(func() {
				r.serve(c)
				c.Close()
				r.mu.Lock()
				r.serving--
				r.mu.Unlock()
			})
		}
	})
	return r, nil
}

// Close breaks all connections and takes no more.
func (r *Relay) Close() {
	r.listener.Close()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.Cut()
	r.wg.Wait()
}

// Served returns how many connections there were.
func (r *Relay) Served() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served
}

// Addr is where it listens.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// To makes a server the one that new connections lead to.
func (r *Relay) To(network, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.network, r.target = network, target
}

// Cut breaks all connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0) // a reset, not an end
		}
		c.Close()
	}
}

// Idle cuts what there is and tells whether no client is connected any more.
func (r *Relay) Idle() bool {
	r.Cut()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.serving == 0
}

// After has ring called when so many bytes more have passed in a direction.
func (r *Relay) After(direction int, n int64, ring func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alarms[direction] = alarm{n, ring}
}

// passed counts bytes.
func (r *Relay) passed(direction int, n int) {
	r.mu.Lock()
	a := &r.alarms[direction]
	a.left -= int64(n)
	ring := a.ring
	if a.left > 0 || ring == nil {
		r.mu.Unlock()
		return
	}
	a.ring = nil
	r.mu.Unlock()
	ring()
}

// add remembers connections to be cut, and returns false if it is too late.
func (r *Relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		r.conns[c] = true
	}
	return !r.closed
}

func (r *Relay) serve(client net.Conn) {
	r.mu.Lock()
	network, target := r.network, r.target
	r.mu.Unlock()
	server, err := net.Dial(network, target)
	if err != nil {
		return
	}
	defer server.Close()
	ok := r.add(client, server)
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, client)
		delete(r.conns, server)
	}()
	if !ok {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.copy(Up, server, client) })
	wg.Go(func() { r.copy(Down, client, server) })
	wg.Wait()
}

func (r *Relay) copy(direction int, to, from net.Conn) {
	// Either end that goes takes the other with it.
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		r.passed(direction, n)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}
