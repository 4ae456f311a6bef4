package testmesos

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// An address is where a master or an agent listens.
type address struct {
	ip   string
	port int
}

func (a address) String() string { return net.JoinHostPort(a.ip, strconv.Itoa(a.port)) }

// networkOrder returns the IPv4 address as MasterInfo.ip has it.
func (a address) networkOrder() uint32 {
	if v4 := net.ParseIP(a.ip).To4(); v4 != nil {
		return binary.LittleEndian.Uint32(v4)
	}
	return 0
}

// A server serves HTTP on one address. It can be stopped, which breaks all
// connections as the end of a process does, and started again there.
type server struct {
	bind    string // host to listen on
	address address
	tls     *tls.Config
	handler http.Handler
	log     *slog.Logger

	mu       sync.Mutex
	http     *http.Server
	done     chan struct{} // closed by stop
	requests sync.WaitGroup
}

// newServer listens on an address; the handler is called after start.
func newServer(listen string, tlsConfig *tls.Config, log *slog.Logger, handler http.Handler) (*server, error) {
	s := &server{tls: tlsConfig, handler: handler, log: log}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	tcp := l.Addr().(*net.TCPAddr)
	s.address = address{tcp.IP.String(), tcp.Port}
	s.bind = s.address.ip
	if tcp.IP.IsUnspecified() {
		s.address.ip = "127.0.0.1"
	}
	s.serve(l)
	return s, nil
}

// serve serves on a listener until stop.
func (s *server) serve(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			if s.done != done {
				s.mu.Unlock()
				panic(http.ErrAbortHandler)
			}
			s.requests.Add(1)
			s.mu.Unlock()
			defer s.requests.Done()
			s.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), doneKey{}, (<-chan struct{})(done))))
		}),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: time.Minute,
		// Mesos speaks HTTP/1.1 only.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	if s.tls != nil {
		config := s.tls.Clone()
		config.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, config)
	}
	s.http, s.done = h, done
	s.requests.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("server ended", "address", s.address.String(), "err", err)
		}
	})
}

// doneKey finds the channel that is closed when the server stops.
type doneKey struct{}

func serverDone(r *http.Request) <-chan struct{} {
	done, _ := r.Context().Value(doneKey{}).(<-chan struct{})
	return done
}

// stop breaks all connections and refuses new ones.
func (s *server) stop() {
	s.mu.Lock()
	h := s.http
	if h != nil {
		s.http = nil
		close(s.done)
		s.done = nil
	}
	s.mu.Unlock()
	if h != nil {
		_ = h.Close()
	}
}

// stopAndWait is stop, and waits for the handlers.
func (s *server) stopAndWait() {
	s.stop()
	s.requests.Wait()
}

// rebindTimeout is how long restart waits for its port: longer than the minute
// for which Linux keeps that of a connection that was closed (tcp(7), TIME_WAIT).
const rebindTimeout = 90 * time.Second

// restart listens again where stop has stopped. The system may have given the
// port to somebody's connection meanwhile, which then has to end first.
func (s *server) restart() error {
	deadline := time.NewTimer(rebindTimeout)
	defer deadline.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		l, err := net.Listen("tcp", net.JoinHostPort(s.bind, strconv.Itoa(s.address.port)))
		if err == nil {
			s.serve(l)
			return nil
		}
		err = fmt.Errorf("listen again: %w", err)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return err
		}
	}
}

// url returns the base URL.
func (s *server) url() string {
	if s.tls != nil {
		return "https://" + s.address.String()
	}
	return "http://" + s.address.String()
}
