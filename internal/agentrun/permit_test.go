package agentrun

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/wire"
)

// A framework answers a permit's questions as a test says.
type framework struct {
	asked  int
	answer func(wire.PushAsk) *wire.PushGrant
}

func (f *framework) permit() *permit {
	var p *permit
	p = newPermit(func(ask wire.PushAsk) {
		f.asked++
		if g := f.answer(ask); g != nil {
			p.answer(*g)
		}
	})
	return p
}

func TestPermitWaitsForTheFirstGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := framework{answer: func(ask wire.PushAsk) *wire.PushGrant {
			if ask.Serial < 5 {
				return nil // lost, or withheld
			}
			return &wire.PushGrant{Serial: ask.Serial, Lease: time.Minute}
		}}
		ctx, release, err := f.permit().acquire(t.Context())
		require.NoError(t, err)
		require.Equal(t, 5, f.asked)
		require.NoError(t, ctx.Err())
		release()
	})
}

func TestPermitIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := framework{answer: func(wire.PushAsk) *wire.PushGrant { return nil }}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, _, err := f.permit().acquire(ctx)
		var failure *portainer.BuildError
		require.ErrorAs(t, err, &failure)
		require.Equal(t, portainer.PhasePush, failure.Phase)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, f.asked, 3700, "asked about once a second")
	})
}

func TestPermitIsProlonged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := framework{answer: func(ask wire.PushAsk) *wire.PushGrant {
			if ask.Serial%3 != 0 { // two of three are lost
				return nil
			}
			return &wire.PushGrant{Serial: ask.Serial, Lease: time.Minute}
		}}
		ctx, release, err := f.permit().acquire(t.Context())
		require.NoError(t, err)
		<-time.After(time.Hour)
		require.NoError(t, ctx.Err())
		release()
		require.Less(t, f.asked, 500, "not more often than it takes")
		require.Equal(t, time.Hour, time.Since(began).Round(time.Minute))
	})
}

func TestPermitIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := framework{}
		f.answer = func(ask wire.PushAsk) *wire.PushGrant {
			if f.asked > 1 {
				return nil
			}
			return &wire.PushGrant{Serial: ask.Serial, Lease: time.Minute}
		}
		began := time.Now()
		ctx, release, err := f.permit().acquire(t.Context())
		require.NoError(t, err)
		<-ctx.Done()
		release()
		require.LessOrEqual(t, time.Since(began), time.Minute, "never later than the framework thinks")
		require.Greater(t, time.Since(began), 59*time.Second)
		var failure *portainer.BuildError
		require.ErrorAs(t, context.Cause(ctx), &failure)
		require.Equal(t, portainer.ClassLost, failure.Class)
		require.ErrorIs(t, failure, errLeaseLost)
	})
}

func TestPermitCountsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPermit(func(wire.PushAsk) {})
		asked := time.Now()
		p.ask()
		<-time.After(10 * time.Second) // the answer is slow
		p.answer(wire.PushGrant{Serial: 1, Lease: time.Minute})
		require.Equal(t, asked.Add(time.Minute), p.end())
		p.answer(wire.PushGrant{Serial: 1, Lease: time.Hour}) // delivered twice
		p.answer(wire.PushGrant{Serial: 9, Lease: time.Hour}) // never asked
		require.Equal(t, asked.Add(time.Minute), p.end())
	})
}
