package portainer

import (
	"context"
	"time"

	"github.com/org/portainer/internal/staging"
)

// expireTimeout bounds the removal of what has expired in the staging bucket. What is
// left is for the next one to remove.
const expireTimeout = 20 * time.Second

// keepStaging looks after the staging bucket until ctx is done: what has expired there,
// whoever staged it, is removed, and what this framework's builds rely on does not expire.
func (f *Framework) keepStaging(ctx context.Context) {
	tick := time.NewTicker(staging.RenewEvery)
	defer tick.Stop()
	for {
		if f.stager.store.TTL > 0 { // otherwise removals do it
			f.expireStaging(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := f.stager.renew(ctx); err != nil && ctx.Err() == nil {
			f.cfg.Logger.Warn("leases on staged contexts not renewed", "err", err)
		}
	}
}

func (f *Framework) expireStaging(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, expireTimeout)
	defer cancel()
	removed, err := f.stager.store.Expire(limited)
	if err != nil && ctx.Err() == nil {
		f.cfg.Logger.Warn("not all that has expired in the staging bucket was removed", "err", err)
	}
	for _, o := range removed {
		f.cfg.Logger.Debug("expired in the staging bucket", "key", o.Key, "used", o.Used)
	}
}
