package portainer_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/org/portainer"
)

func TestResources(t *testing.T) {
	r := portainer.Resources{CPUs: 0.3, MemMB: 100, DiskMB: 10, GPUs: 1}
	require.True(t, r.Fits(r))
	require.True(t, r.Fits(portainer.Resources{}))
	require.True(t, r.Sub(portainer.Resources{CPUs: 0.1}).Fits(portainer.Resources{CPUs: 0.2}), "0.3-0.1 is less than 0.2 in float64")
	require.False(t, r.Fits(portainer.Resources{CPUs: 0.301}))
	require.True(t, r.Fits(portainer.Resources{CPUs: 0.3004}), "Mesos rounds to thousandths")
	require.False(t, r.Fits(portainer.Resources{MemMB: 101}))
	require.False(t, r.Fits(portainer.Resources{DiskMB: 11}))
	require.False(t, r.Fits(portainer.Resources{GPUs: 2}))
	require.Equal(t, r, r.Add(r).Sub(r))
	require.Equal(t, portainer.Resources{CPUs: 0.3}, portainer.Resources{CPUs: 0.1}.Add(portainer.Resources{CPUs: 0.2}))
	require.Equal(t, "cpus:0.3 mem:100 disk:10 gpus:1", r.String())
	require.Equal(t, "cpus:0.3 mem:0", portainer.Resources{CPUs: 0.1 + 0.2}.String())
}

var matchers = map[string]portainer.OfferMatcher{"spread": portainer.Spread{}, "first fit": portainer.FirstFit{}}

func offer(id string, cpus, mem float64) portainer.Offer {
	return portainer.Offer{
		ID: portainer.OfferID(id), Agent: portainer.AgentID("agent-" + id), Resources: portainer.Resources{CPUs: cpus, MemMB: mem},
	}
}

func pending(id string, cpus, mem float64, avoid ...portainer.AgentID) portainer.Pending {
	return portainer.Pending{ID: portainer.BuildID(id), Resources: portainer.Resources{CPUs: cpus, MemMB: mem}, Attempt: 1, Avoid: avoid}
}

func TestMatchers(t *testing.T) {
	soon := offer("soon", 8, 8000)
	soon.Unavailable = time.Now().Add(30 * time.Minute)
	later := offer("later", 8, 8000)
	later.Unavailable = time.Now().Add(2 * time.Hour)
	past := offer("past", 8, 8000)
	past.Unavailable = time.Now().Add(-time.Minute)
	tests := []struct {
		name     string
		offers   []portainer.Offer
		builds   []portainer.Pending
		spread   string
		firstFit string
	}{
		{name: "nothing offered", builds: []portainer.Pending{pending("b1", 1, 1)}},
		{name: "nothing waits", offers: []portainer.Offer{offer("o1", 1, 1)}},
		{
			name:   "several builds and offers",
			offers: []portainer.Offer{offer("o1", 2, 4000), offer("o2", 4.5, 4000)},
			builds: []portainer.Pending{pending("b1", 1, 1000), pending("b2", 1, 1000), pending("b3", 1, 1000), pending("b4", 1, 1000)},
			spread: "b1@o2 b2@o2 b3@o2 b4@o1", firstFit: "b1@o1 b2@o1 b3@o2 b4@o2",
		},
		{
			name:   "the oldest first",
			offers: []portainer.Offer{offer("o1", 1, 4000)},
			builds: []portainer.Pending{pending("b1", 1, 1000), pending("b2", 1, 1000)},
			spread: "b1@o1", firstFit: "b1@o1",
		},
		{
			name:   "a small build passes a large one",
			offers: []portainer.Offer{offer("o1", 2, 4000)},
			builds: []portainer.Pending{pending("b1", 4, 1000), pending("b2", 1, 9000), pending("b3", 1, 1000)},
			spread: "b3@o1", firstFit: "b3@o1",
		},
		{
			name:   "cpus where there is no memory",
			offers: []portainer.Offer{offer("o1", 8, 100), offer("o2", 2, 4000)},
			builds: []portainer.Pending{pending("b1", 1, 1000), pending("b2", 1, 50)},
			spread: "b1@o2 b2@o1", firstFit: "b1@o2 b2@o1",
		},
		{
			name:   "thousandths",
			offers: []portainer.Offer{offer("o1", 0.6, 4000)},
			builds: []portainer.Pending{pending("b1", 0.1, 1), pending("b2", 0.2, 1), pending("b3", 0.3, 1), pending("b4", 0.001, 1)},
			spread: "b1@o1 b2@o1 b3@o1", firstFit: "b1@o1 b2@o1 b3@o1",
		},
		{
			name:   "an agent to avoid",
			offers: []portainer.Offer{offer("o1", 8, 4000), offer("o2", 2, 4000)},
			builds: []portainer.Pending{pending("b1", 1, 1, "agent-o1"), pending("b2", 1, 1, "agent-o1", "agent-o2"), pending("b3", 1, 1)},
			spread: "b1@o2 b3@o1", firstFit: "b1@o2 b3@o1",
		},
		{
			name:   "maintenance",
			offers: []portainer.Offer{soon, past, later},
			builds: []portainer.Pending{pending("b1", 1, 1)},
			spread: "b1@later", firstFit: "b1@later",
		},
	}
	for _, tt := range tests {
		for matcher, want := range map[string]string{"spread": tt.spread, "first fit": tt.firstFit} {
			t.Run(matcher+"/"+tt.name, func(t *testing.T) {
				placements := matchers[matcher].MatchOffers(tt.offers, tt.builds)
				var got string
				for _, p := range placements {
					got += fmt.Sprintf(" %s@%s", p.Build, p.Offer)
				}
				if want != "" {
					want = " " + want
				}
				require.Equal(t, want, got)
				require.NoError(t, checkPlacements(tt.offers, tt.builds, placements))
			})
		}
	}
}

// checkPlacements checks what must hold for the placements of any matcher that
// ships with the package: no more is used than offered, every build and offer is
// one that was given, a build is placed once, none where it should not be, and
// none is left out that would still fit.
func checkPlacements(offers []portainer.Offer, builds []portainer.Pending, placements []portainer.Placement) error {
	left := make(map[portainer.OfferID]portainer.Resources)
	byID := make(map[portainer.OfferID]portainer.Offer)
	for _, o := range offers {
		left[o.ID], byID[o.ID] = o.Resources, o
	}
	waiting := make(map[portainer.BuildID]portainer.Pending)
	for _, b := range builds {
		waiting[b.ID] = b
	}
	may := func(b portainer.Pending, o portainer.Offer) bool {
		return !slices.Contains(b.Avoid, o.Agent) && (o.Unavailable.IsZero() || time.Until(o.Unavailable) > time.Hour)
	}
	for _, p := range placements {
		b, ok := waiting[p.Build]
		if !ok {
			return fmt.Errorf("%v: no such build waits", p)
		}
		delete(waiting, p.Build)
		o, ok := byID[p.Offer]
		switch {
		case !ok:
			return fmt.Errorf("%v: no such offer", p)
		case !may(b, o):
			return fmt.Errorf("%v: agent is to be avoided", p)
		case !left[o.ID].Fits(b.Resources):
			return fmt.Errorf("%v: needs %v of %v left", p, b.Resources, left[o.ID])
		}
		left[o.ID] = left[o.ID].Sub(b.Resources)
	}
	for _, b := range waiting {
		for _, o := range offers {
			if may(b, o) && left[o.ID].Fits(b.Resources) {
				return fmt.Errorf("%s (%v) was left out, but fits on %s (%v left)", b.ID, b.Resources, o.ID, left[o.ID])
			}
		}
	}
	return nil
}

// randomRound makes offers and builds of many kinds.
func randomRound(random *rand.Rand) ([]portainer.Offer, []portainer.Pending) {
	offers := make([]portainer.Offer, random.IntN(12))
	for i := range offers {
		offers[i] = offer(fmt.Sprintf("o%d", i), float64(random.IntN(8000))/1000, float64(random.IntN(8000)))
		offers[i].Agent = portainer.AgentID(fmt.Sprintf("a%d", random.IntN(10)))
		offers[i].Resources.DiskMB = float64(random.IntN(3) * 1000)
		offers[i].Resources.GPUs = float64(random.IntN(3))
		if random.IntN(8) == 0 {
			offers[i].Unavailable = time.Now().Add(time.Duration(random.IntN(4)) * 40 * time.Minute)
		}
	}
	builds := make([]portainer.Pending, random.IntN(60))
	for i := range builds {
		builds[i] = pending(fmt.Sprintf("b%d", i), float64(random.IntN(3000))/1000, float64(random.IntN(3000)))
		if random.IntN(2) == 0 {
			builds[i].Resources = portainer.Resources{CPUs: 1, MemMB: 1000} // many are alike
		}
		builds[i].Resources.DiskMB = float64(random.IntN(2) * 500)
		builds[i].Resources.GPUs = float64(random.IntN(12) / 11)
		for range random.IntN(4) / 2 {
			builds[i].Avoid = append(builds[i].Avoid, portainer.AgentID(fmt.Sprintf("a%d", random.IntN(10))))
		}
	}
	return offers, builds
}

func TestMatchersAtRandom(t *testing.T) {
	for name, matcher := range matchers {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(300) {
				offers, builds := randomRound(rand.New(rand.NewPCG(seed, 1)))
				offersBefore, buildsBefore := slices.Clone(offers), slices.Clone(builds)
				placements := matcher.MatchOffers(offers, builds)
				require.NoError(t, checkPlacements(offers, builds, placements), "seed %d", seed)
				require.Equal(t, offersBefore, offers, "seed %d: arguments changed", seed)
				require.Equal(t, buildsBefore, builds, "seed %d: arguments changed", seed)
			}
		})
	}
}

// TestSpreadTakesTheRoomiest compares Spread with the plainest way to do the same.
func TestSpreadTakesTheRoomiest(t *testing.T) {
	for seed := range uint64(300) {
		offers, builds := randomRound(rand.New(rand.NewPCG(seed, 2)))
		placedOn := make(map[portainer.BuildID]portainer.OfferID)
		for _, p := range (portainer.Spread{}).MatchOffers(offers, builds) {
			placedOn[p.Build] = p.Offer
		}
		left := make(map[portainer.OfferID]portainer.Resources)
		for _, o := range offers {
			left[o.ID] = o.Resources
		}
		for _, b := range builds {
			most := -1.0
			for _, o := range offers {
				away := !o.Unavailable.IsZero() && time.Until(o.Unavailable) < time.Hour
				if !away && !slices.Contains(b.Avoid, o.Agent) && left[o.ID].Fits(b.Resources) {
					most = max(most, left[o.ID].CPUs)
				}
			}
			id, placed := placedOn[b.ID]
			require.Equal(t, most >= 0, placed, "seed %d: %s", seed, b.ID)
			if placed {
				require.Equal(t, most, left[id].CPUs, "seed %d: %s", seed, b.ID)
				left[id] = left[id].Sub(b.Resources)
			}
		}
	}
}

func FuzzMatchOffers(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		offers, builds := randomRound(rand.New(rand.NewPCG(a, b)))
		for name, matcher := range matchers {
			require.NoError(t, checkPlacements(offers, builds, matcher.MatchOffers(offers, builds)), name)
		}
	})
}

func BenchmarkSpread(b *testing.B)   { benchmarkMatcher(b, portainer.Spread{}) }
func BenchmarkFirstFit(b *testing.B) { benchmarkMatcher(b, portainer.FirstFit{}) }

func benchmarkMatcher(b *testing.B, matcher portainer.OfferMatcher) {
	for _, kinds := range []struct {
		name  string
		build func(i int) portainer.Pending
		cpus  float64 // of an offer
	}{
		{"equal", func(i int) portainer.Pending { return pending(fmt.Sprint(i), 1.1, 1088) }, 8},
		{"kinds=100", func(i int) portainer.Pending {
			return pending(fmt.Sprint(i), 0.5+float64(i%10)/4, float64(512+i%100/10*256))
		}, 8},
		{"avoiding", func(i int) portainer.Pending {
			return pending(fmt.Sprint(i), 1.1, 1088, portainer.AgentID(fmt.Sprintf("agent-o%d", i%1000)))
		}, 8},
		{"short-of-mem", func(i int) portainer.Pending {
			return pending(fmt.Sprint(i), 1.1, 2000+float64(i%100), portainer.AgentID(fmt.Sprintf("agent-o%d", i%1000)))
		}, 64},
	} {
		offers := make([]portainer.Offer, 1000)
		for i := range offers {
			offers[i] = offer(fmt.Sprintf("o%d", i), kinds.cpus, 16384)
		}
		builds := make([]portainer.Pending, 10000)
		for i := range builds {
			builds[i] = kinds.build(i)
		}
		b.Run(fmt.Sprintf("offers=%d/builds=%d/%s", len(offers), len(builds), kinds.name), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if len(matcher.MatchOffers(offers, builds)) == 0 {
					b.Fatal("nothing placed")
				}
			}
		})
	}
}
