package portainer

import (
	"context"
	"sync"

	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/schedapi"
)

// A logReader reads the logs of attempts.
type logReader interface {
	// read returns what follows in the log of s from offset on, some of it, and how
	// long the log is at that moment. At its end data is empty.
	read(ctx context.Context, s *logSource, offset int64) (data []byte, size int64, err error)
}

// agentFiles reads logs in the sandboxes, from the agents. It is safe for concurrent
// use.
type agentFiles struct{ files *schedapi.Files }

func (a agentFiles) read(ctx context.Context, s *logSource, offset int64) ([]byte, int64, error) {
	return a.files.ReadFile(ctx, s.agentURL, s.path(), offset, schedapi.MaxRead)
}

// executorLog asks executors for their logs. Its read does not wait for an answer:
// the error is then logrelay.ErrAwaited. What asks belongs to one goroutine.
type executorLog struct {
	reader *logrelay.Reader
	tell   func(s *logSource, ask logrelay.Ask) // may lose it

	mu      sync.Mutex
	source  *logSource // being read
	waiting string     // the task that has ended, but for its log
}

func newExecutorLog(tell func(s *logSource, ask logrelay.Ask)) *executorLog {
	e := &executorLog{tell: tell}
	e.reader = logrelay.NewReader(func(ask logrelay.Ask) { e.tell(e.source, ask) })
	return e
}

func (e *executorLog) read(_ context.Context, s *logSource, offset int64) ([]byte, int64, error) {
	e.of(s)
	return e.reader.Read(offset)
}

// leave tells the executor that its log is not asked for.
func (e *executorLog) leave(s *logSource) {
	e.of(s)
	e.reader.Leave()
}

// of turns to the log of s.
func (e *executorLog) of(s *logSource) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.source != s {
		e.source = s
		e.reader.Forget()
	}
}

// handle takes the answer of a task's executor. Any goroutine may call it, as it may
// awaits.
func (e *executorLog) handle(task string, c logrelay.Chunk) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.source != nil && e.source.task == task {
		e.reader.Handle(c)
	}
}

// awaits notes that a task waits for its log to be read.
func (e *executorLog) awaits(task string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiting = task
}

// awaited reports whether the task of s waits for its log to be read.
func (e *executorLog) awaited(s *logSource) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waiting == s.task
}
