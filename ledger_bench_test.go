package portainer

import (
	"fmt"
	"testing"
	"time"

	"github.com/org/portainer/internal/wire"
)

// benchmarkLedger has ten thousand builds wait and returns an OFFERS event of a
// thousand agents, each with cpus.
func benchmarkLedger(now time.Time, cpus float64) (*ledger, []Offer) {
	l := newLedger(policy{
		queueTimeout: time.Hour, buildTimeout: 2 * time.Hour, launchTimeout: time.Hour, unreachableWait: time.Hour, explainEvery: 30 * time.Second,
	}, Spread{}, func() float64 { return 0 })
	l.subscribed(now)
	for i := range 10000 {
		l.submit(now, buildSpec{
			id: BuildID(fmt.Sprintf("b%05d", i)), image: "registry.example/team/app", maxAttempts: 3,
			resources: Resources{CPUs: 1.1, MemMB: 1088}, task: wire.Task{MemMB: 1024},
		})
	}
	l.take()
	offers := make([]Offer, 1000)
	for i := range offers {
		offers[i] = Offer{
			ID: OfferID(fmt.Sprintf("o%d", i)), Agent: AgentID(fmt.Sprintf("a%d", i)), Hostname: fmt.Sprintf("host%d", i),
			Resources: Resources{CPUs: cpus, MemMB: 65536},
		}
	}
	return l, offers
}

// BenchmarkLedgerOffers is a whole OFFERS event: matching, checking, launching and
// declining, and what the ledger notes of it.
func BenchmarkLedgerOffers(b *testing.B) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.Run("offers=1000/builds=10000/launched=7000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			l, offers := benchmarkLedger(now, 8)
			b.StartTimer()
			l.offers(now, offers)
			if len(l.tasks) != 7000 {
				b.Fatal(len(l.tasks), "launched")
			}
		}
	})
	b.Run("offers=1000/builds=10000/launched=0", func(b *testing.B) {
		l, offers := benchmarkLedger(now, 1)
		b.ReportAllocs()
		for b.Loop() {
			l.offers(now, offers)
			l.take()
		}
	})
}

// BenchmarkLedgerTick is what the clock costs ten times a second.
func BenchmarkLedgerTick(b *testing.B) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.Run("builds=10000", func(b *testing.B) {
		l, offers := benchmarkLedger(now, 4)
		l.offers(now, offers)
		b.ReportAllocs()
		for b.Loop() {
			l.tick(now)
			l.take()
		}
	})
	b.Run("builds=10000/explaining", func(b *testing.B) {
		l, offers := benchmarkLedger(now, 1)
		l.offers(now, offers)
		b.ReportAllocs()
		at := now
		for b.Loop() {
			at = at.Add(l.policy.explainEvery)
			for _, build := range l.queue {
				build.since = at
			}
			l.tick(at)
			l.take()
		}
	})
}
