// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For returns nil after d, or the cause of ctx's end as soon as ctx is done, if
// that comes first.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
