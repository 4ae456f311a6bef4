package portainer

import (
	"context"
	"sync"
	"time"

	"github.com/org/portainer/internal/staging"
)

// A Progress tells how far the staging of a context is. First its files are read,
// to learn what the staging bucket lacks, and then that is sent.
type Progress struct {
	Size    int64 // bytes of the context's files; 0 if they are not known beforehand
	Read    int64 // of Size: read, or remembered from an earlier build
	Lacking int64 // of Size: what the bucket does not have; 0 until that is known
	Done    int64 // of Lacking: sent
	Sent    int64 // bytes that went to the bucket, compressed
}

// progressTick is the pause between two EventStaging of a build.
const progressTick = 100 * time.Millisecond

// watchStaging tells the sink what meter shows, whenever that has changed, until
// the function that it returns is called, which waits for the sink.
func (f *Framework) watchStaging(ctx context.Context, spec *buildSpec, meter *staging.Meter) (stop func()) {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for told := (Progress{}); ; {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			now := Progress(meter.Reading())
			if now == told {
				continue
			}
			told = now
			f.cfg.Logs.HandleEvent(ctx, Event{Build: spec.id, Image: spec.image, Kind: EventStaging, Time: time.Now(), Progress: now})
		}
	})
	return func() { close(ended); watch.Wait() }
}
