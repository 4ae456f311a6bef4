package staging

import "sync/atomic"

// A Meter tells how far the staging of a context is. Its zero value is ready to
// use, for one Put; it may be read at any time. A nil Meter measures nothing.
type Meter struct {
	size, read, lacking, done, sent atomic.Int64
}

// A Reading is what a Meter shows.
type Reading struct {
	Size    int64 // of all contents; 0 while it is not known
	Read    int64 // of Size: read, or known without reading
	Lacking int64 // of Size: not in the bucket yet; 0 while that is not known
	Done    int64 // of Lacking: sent
	Sent    int64 // bytes written to the bucket, compressed
}

// Reading returns what m shows now.
func (m *Meter) Reading() Reading {
	return Reading{Size: m.size.Load(), Read: m.read.Load(), Lacking: m.lacking.Load(), Done: m.done.Load(), Sent: m.sent.Load()}
}

// restart forgets an attempt that was in vain, but not what it sent.
func (m *Meter) restart() {
	if m != nil {
		m.size.Store(0)
		m.read.Store(0)
		m.lacking.Store(0)
		m.done.Store(0)
	}
}

// expect notes the size of all contents.
func (m *Meter) expect(n int64) {
	if m != nil {
		m.size.Store(n)
	}
}

func (m *Meter) addRead(n int64) {
	if m != nil {
		m.read.Add(n)
	}
}

// lack notes that n bytes of content are to be sent.
func (m *Meter) lack(n int64) {
	if m != nil {
		m.lacking.Store(n)
	}
}

func (m *Meter) addSent(n int64) {
	if m != nil {
		m.sent.Add(n)
	}
}

// A sending measures one object on its way to the bucket, which holds size bytes
// of content in length bytes.
type sending struct {
	m            *Meter
	size, length int64
	n            int64
}

// Write implements io.Writer: it counts b as sent.
func (s *sending) Write(b []byte) (int, error) {
	if s.m == nil {
		return len(b), nil
	}
	s.m.sent.Add(int64(len(b)))
	before := s.share()
	s.n += int64(len(b))
	s.m.done.Add(s.share() - before)
	return len(b), nil
}

// skip notes that the object is there already.
func (s *sending) skip() {
	if s.m != nil {
		s.m.done.Add(s.size)
	}
}

// undo takes back that the content has arrived.
func (s *sending) undo() {
	if s.m != nil {
		s.m.done.Add(-s.share())
		s.n = 0
	}
}

// share is how much content what was sent stands for.
func (s *sending) share() int64 { return s.size * s.n / max(s.length, 1) }
