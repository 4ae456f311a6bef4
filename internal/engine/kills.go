package engine

import (
	"context"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// maxKillDelay is how long the news of a kill may take when its container has
// failed already.
const maxKillDelay = 300 * time.Millisecond

// watchKills listens until ctx is done for containers in which the kernel kills
// processes for want of memory. killed reports whether a container is one; it
// is always false when memory is not bounded.
func (d *docker) watchKills(ctx context.Context, memory int64) (killed func(container string) bool) {
	if memory <= 0 {
		return func(string) bool { return false }
	}
	msgs, errs := d.cli.Events(ctx, events.ListOptions{
		Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("event", "oom")),
	})
	var (
		mu    sync.Mutex
		ids   []string
		fresh = make(chan struct{}, 1)
	)
	go func() {
		for {
			select {
			case m := <-msgs:
				mu.Lock()
				ids = append(ids, m.Actor.ID)
				mu.Unlock()
				select {
				case fresh <- struct{}{}:
				default:
				}
			case <-errs:
				return // ctx is done, or the daemon is
			}
		}
	}()
	known := func(container string) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range ids {
			if sameContainer(id, container) {
				return true
			}
		}
		return false
	}
	return func(container string) bool {
		if container == "" {
			return false
		}
		t := time.NewTimer(maxKillDelay)
		defer t.Stop()
		for !known(container) {
			select {
			case <-fresh:
			case <-ctx.Done():
				return false
			case <-t.C:
				return known(container)
			}
		}
		return true
	}
}
