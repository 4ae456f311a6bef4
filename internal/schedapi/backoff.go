package schedapi

import (
	"math/rand/v2"
	"time"
)

// backoff yields pauses that double from min to max, each cut by up to a half at
// random.
type backoff struct {
	min, max, last time.Duration
}

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.min), b.max)
	return b.last/2 + rand.N(b.last/2+1)
}

func (b *backoff) reset() { b.last = 0 }
