package agentrun

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/org/portainer/internal/logrelay"
	"github.com/org/portainer/internal/wire"
)

// A relay answers a framework that asks for the log, because it cannot read it from
// the agent's files.
type relay struct {
	x    *executor
	desk *logrelay.Desk
	file *os.File
	stop context.CancelFunc
	work sync.WaitGroup
}

// relayedLog is a log that can be read. What it hands out is what others find in the
// sandbox.
type relayedLog struct {
	*buildLog
	file *os.File
}

// ReadAt implements io.ReaderAt.
func (l relayedLog) ReadAt(p []byte, offset int64) (int, error) { return l.file.ReadAt(p, offset) }

// openRelay lets the framework ask for log. The caller closes the relay.
func (x *executor) openRelay(log *buildLog, t *wire.Task) (*relay, error) {
	file, err := os.Open(filepath.Join(x.api.Sandbox, wire.LogFile))
	if err != nil {
		return nil, fmt.Errorf("open the build's log: %w", err)
	}
	r := &relay{
		x: x, file: file,
		desk: logrelay.NewDesk(relayedLog{log, file}, t.LogRoute, x.client.Message, x.log.With("build", t.Build)),
	}
	x.mu.Lock()
	x.relay = r.desk
	x.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.work.Go(func() { r.desk.Serve(ctx) })
	return r, nil
}

// awaitEnd waits until the framework has the log, of that size, or does not need it
// from here.
func (r *relay) awaitEnd(ctx context.Context, size int64) {
	err := r.desk.AwaitEnd(ctx, func() { r.x.sendHint(&wire.Hint{LogSize: size, Waiting: true}) })
	if err != nil {
		r.x.log.Warn("the framework may not have the whole log", "size", size, "err", err)
	}
}

// close stops answering.
func (r *relay) close() {
	r.stop()
	r.work.Wait()
	_ = r.file.Close() // it was only read
}
