package testmesos

import (
	"net/http"
	"strconv"
	"sync"
)

const (
	typeJSON     = "application/json"
	typeProtobuf = "application/x-protobuf"
	typeRecordIO = "application/recordio"
)

// A stream is the event stream of one subscription. Events are queued without
// bound, as in Mesos, and written by the goroutine of the HTTP request.
type stream struct {
	contentType string

	mu     sync.Mutex
	queue  []record
	wake   chan struct{} // capacity 1
	closed bool          // no event is taken any more
	frozen bool          // nothing is written any more, the connection stays
}

// A record is one event on its way out.
type record struct {
	data []byte
	cut  bool // write half of it and break the connection
}

func newStream(contentType string) *stream {
	return &stream{contentType: contentType, wake: make(chan struct{}, 1)}
}

// encode returns an event in the type of the stream, framed as RecordIO.
func (s *stream) encode(m message) []byte {
	var body []byte
	if s.contentType == typeJSON {
		body = appendJSON(nil, m)
	} else {
		var err error
		if body, err = m.Marshal(); err != nil {
			panic("testmesos: encode event: " + err.Error())
		}
	}
	framed := append(strconv.AppendInt(make([]byte, 0, len(body)+8), int64(len(body)), 10), '\n')
	return append(framed, body...)
}

func (s *stream) send(m message) { s.put(record{data: s.encode(m)}) }

func (s *stream) put(r record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.queue = append(s.queue, r)
	s.signal()
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the stream after what is queued.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.signal()
}

// sever breaks the connection at once, without the end that HTTP wants.
func (s *stream) sever() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.frozen = true, false
	s.queue = []record{{cut: true}}
	s.signal()
}

// freeze lets the stream fall silent while its connection stays open.
func (s *stream) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = true
}

// serve writes events until the stream is closed or the client has gone; done
// is closed when the server shuts down.
func (s *stream) serve(w http.ResponseWriter, r *http.Request, done <-chan struct{}) {
	control := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return
	}
	for {
		select {
		case <-s.wake:
		case <-r.Context().Done():
			return
		case <-done:
			panic(http.ErrAbortHandler)
		}
		s.mu.Lock()
		queue, closed, frozen := s.queue, s.closed, s.frozen
		s.queue = nil
		s.mu.Unlock()
		if frozen {
			continue
		}
		for _, rec := range queue {
			if rec.cut {
				_, _ = w.Write(rec.data[:len(rec.data)/2])
				_ = control.Flush()
				panic(http.ErrAbortHandler)
			}
			if _, err := w.Write(rec.data); err != nil {
				return
			}
		}
		if len(queue) > 0 {
			if err := control.Flush(); err != nil {
				return
			}
		}
		if closed {
			return
		}
	}
}
