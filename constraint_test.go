package portainer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseConstraint(t *testing.T) {
	tests := []struct {
		text string
		want Constraint
	}{
		{"rack:CLUSTER", Constraint{"rack", "CLUSTER", ""}},
		{"rack:CLUSTER:", Constraint{"rack", "CLUSTER", ""}},
		{"rack:CLUSTER:r1", Constraint{"rack", "CLUSTER", "r1"}},
		{"rack:GROUP_BY", Constraint{"rack", "GROUP_BY", ""}},
		{"rack:GROUP_BY:3", Constraint{"rack", "GROUP_BY", "3"}},
		{"rack:IS:a:b", Constraint{"rack", "IS", "a:b"}},
		{"rack:like:r[12]:x", Constraint{"rack", "LIKE", "r[12]:x"}},
		{"rack:UNLIKE: r ", Constraint{"rack", "UNLIKE", " r "}},
		{"rack:MAX_PER:+02", Constraint{"rack", "MAX_PER", "2"}},
		{"hostname:UNIQUE", Constraint{"hostname", "UNIQUE", ""}},
		{"@hostname:UNIQUE", Constraint{"hostname", "UNIQUE", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseConstraint(tt.text)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestParseConstraintRefuses(t *testing.T) {
	tests := []struct{ text, says string }{
		{"", "want attribute:OPERATOR"},
		{"rack", "want attribute:OPERATOR"},
		{":UNIQUE", "no attribute"},
		{"rack:", "no operator; want CLUSTER, GROUP_BY, IS, LIKE, MAX_PER, UNIQUE or UNLIKE"},
		{"rack:NEAR:r1", `unknown operator "NEAR"; want CLUSTER`},
		{"ra ck:UNIQUE", `"ra ck" cannot be the name`},
		{"rack\x00:UNIQUE", "cannot be the name"},
		{"@region:IS:eu", "@region is not supported"},
		{"rack:IS", "IS needs a value"},
		{"rack:UNIQUE:1", "UNIQUE takes no value"},
		{"rack:LIKE:", "LIKE needs a regular expression"},
		{"rack:UNLIKE", "UNLIKE needs a regular expression"},
		{"rack:LIKE:r[", "missing closing ]"},
		{"rack:LIKE:a)(b", "unexpected )"},
		{"rack:LIKE:(?=r)", "RE2 syntax"},
		{"rack:MAX_PER", "MAX_PER needs a whole number"},
		{"rack:MAX_PER:0", `at least 1, not "0"`},
		{"rack:MAX_PER:1.5", `not "1.5"`},
		{"rack:GROUP_BY:many", `not "many"`},
		{"rack:LIKE:" + strings.Repeat("r", maxConstraint), "longer than 1024 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.text[:min(len(tt.text), 20)], func(t *testing.T) {
			_, err := ParseConstraint(tt.text)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, tt.says)
			require.Less(t, len(err.Error()), 300)
		})
	}
}

// on is an offer of an agent: "host", then "name=value" for each attribute.
func on(agent string) *Offer {
	words := strings.Fields(agent)
	o := &Offer{Hostname: words[0], Attributes: map[string]string{}}
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		o.Attributes[name] = value
	}
	return o
}

func mustCompile(t testing.TB, p *placed, texts ...string) *rules {
	t.Helper()
	var list []Constraint
	for _, text := range texts {
		c, err := ParseConstraint(text)
		require.NoError(t, err)
		list = append(list, c)
	}
	rs, err := p.compile(list)
	require.NoError(t, err)
	return rs
}

func TestPlacedCheck(t *testing.T) {
	tests := []struct {
		constraint string
		others     []string // agents on which builds with the same constraint are
		agent      string
		want       string // the reason; "" if the agent is good
	}{
		{"rack:IS:r1", nil, "a rack=r1", ""},
		{"rack:IS:r1", nil, "a rack=r12", "rack IS r1: agent has rack=r12"},
		{"rack:IS:r1", nil, "a", "rack IS r1: agent has no rack"},
		{"cores:IS:4.0", nil, "a cores=4", ""},
		{"cores:IS:1000000", nil, "a cores=1e+06", ""},
		{"cores:IS:4.0001", nil, "a cores=4", ""},
		{"cores:IS:4.001", nil, "a cores=4", "cores IS 4.001: agent has cores=4"},
		{"cores:IS:4", nil, "a cores=four", "cores IS 4: agent has cores=four"},
		{"ports:IS:[1-2]", nil, "a ports=[1-2]", ""},
		{"hostname:IS:a", nil, "a", ""},
		{"hostname:IS:a", nil, "b hostname=a", "hostname IS a: agent has hostname=b"},

		{"rack:LIKE:r[12]", nil, "a rack=r2", ""},
		{"rack:LIKE:r[12]", nil, "a rack=r3", "rack LIKE r[12]: agent has rack=r3"},
		{"rack:LIKE:r[12]", nil, "a rack=r12", "rack LIKE r[12]: agent has rack=r12"},
		{"rack:LIKE:r[12]", nil, "a rack=xr1", "rack LIKE r[12]: agent has rack=xr1"},
		{"rack:LIKE:r1|r10", nil, "a rack=r10", ""}, // not only the first alternative
		{"rack:LIKE:r.*?", nil, "a rack=r10", ""},   // not only what a lazy match takes
		{"rack:LIKE:\\Qr+1", nil, "a rack=r+1", ""}, // an unclosed quotation
		{"rack:LIKE:^r1$", nil, "a rack=r1", ""},    //
		{"rack:LIKE:.*", nil, "a", "rack LIKE .*: agent has no rack"},
		{"hostname:LIKE:build-[0-9]+", nil, "build-17", ""},

		{"rack:UNLIKE:r[12]", nil, "a rack=r3", ""},
		{"rack:UNLIKE:r[12]", nil, "a rack=r12", ""},
		{"rack:UNLIKE:r[12]", nil, "a", ""},
		{"rack:UNLIKE:r[12]", nil, "a rack=r2", "rack UNLIKE r[12]: agent has rack=r2"},
		{"hostname:UNLIKE:a", nil, "a", "hostname UNLIKE a: agent has hostname=a"},

		{"hostname:UNIQUE", nil, "a", ""},
		{"hostname:UNIQUE", []string{"a"}, "b", ""},
		{"hostname:UNIQUE", []string{"a"}, "a", "hostname UNIQUE: hostname=a has 1 build"},
		{"rack:UNIQUE", []string{"a rack=r1"}, "b rack=r1", "rack UNIQUE: rack=r1 has 1 build"},
		{"rack:UNIQUE", nil, "b", "rack UNIQUE: agent has no rack"},

		{"rack:MAX_PER:2", []string{"a rack=r1"}, "a rack=r1", ""},
		{"rack:MAX_PER:2", []string{"a rack=r1", "b rack=r1"}, "c rack=r2", ""},
		{"rack:MAX_PER:2", []string{"a rack=r1", "b rack=r1"}, "c rack=r1", "rack MAX_PER 2: rack=r1 has 2 builds"},
		{"rack:MAX_PER:2", nil, "a", "rack MAX_PER 2: agent has no rack"},

		{"rack:CLUSTER", nil, "a rack=r1", ""},
		{"rack:CLUSTER", []string{"a rack=r1"}, "b rack=r1", ""},
		{"rack:CLUSTER", []string{"a rack=r1"}, "b rack=r2", "rack CLUSTER: agent has rack=r2, other builds have rack=r1"},
		{"rack:CLUSTER", nil, "b", "rack CLUSTER: agent has no rack"},
		{"rack:CLUSTER:r1", []string{"a rack=r1"}, "b rack=r1", ""},
		{"rack:CLUSTER:r1", nil, "b rack=r2", "rack CLUSTER r1: agent has rack=r2"},
		{"hostname:CLUSTER", []string{"a"}, "b", "hostname CLUSTER: agent has hostname=b, other builds have hostname=a"},

		{"rack:GROUP_BY", nil, "a rack=r1", ""},
		{"rack:GROUP_BY", []string{"a rack=r1"}, "a rack=r1", ""}, // no other value is known
		{"rack:GROUP_BY", []string{"a rack=r1"}, "b rack=r2", ""},
		{"rack:GROUP_BY", []string{"a rack=r1", "a rack=r1", "b rack=r2"}, "b rack=r2", ""},
		{"rack:GROUP_BY", []string{"a rack=r1", "a rack=r1", "b rack=r2"}, "a rack=r1",
			"rack GROUP_BY: rack=r1 has 2 builds, another value 1"},
		{"rack:GROUP_BY:2", []string{"a rack=r1"}, "a rack=r1",
			"rack GROUP_BY 2: rack=r1 has 1 build, and only 1 value of rack any"},
		{"rack:GROUP_BY:2", []string{"a rack=r1"}, "b rack=r2", ""},
		{"rack:GROUP_BY:2", []string{"a rack=r1", "b rack=r2"}, "a rack=r1", ""},
		{"rack:GROUP_BY", nil, "a", "rack GROUP_BY: agent has no rack"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s/%d/%s", tt.constraint, len(tt.others), tt.agent), func(t *testing.T) {
			p := newPlaced()
			rs := mustCompile(t, p, tt.constraint)
			for _, other := range tt.others {
				p.add(rs, rs.values(on(other)))
			}
			got := p.check(rs, on(tt.agent))
			require.Equal(t, tt.want, got.String())
			require.Equal(t, tt.want != "", got.refused())
			require.True(t, strings.HasPrefix(tt.want, got.constraint()))
		})
	}
}

func TestPlacedChecksEveryConstraint(t *testing.T) {
	p := newPlaced()
	rs := mustCompile(t, p, "rack:LIKE:r[12]", "hostname:UNIQUE", "ssd:IS:yes")
	p.add(rs, rs.values(on("a rack=r1 ssd=yes")))
	require.Empty(t, p.check(rs, on("b rack=r1 ssd=yes")).String())
	require.Equal(t, "hostname UNIQUE", p.check(rs, on("a rack=r1 ssd=yes")).constraint())
	require.Equal(t, "rack LIKE r[12]", p.check(rs, on("b rack=r3 ssd=yes")).constraint())
	require.Equal(t, "ssd IS yes", p.check(rs, on("b rack=r1 ssd=no")).constraint())
}

func TestPlacedCompile(t *testing.T) {
	p := newPlaced()
	none, err := p.compile(nil)
	require.NoError(t, err)
	require.Nil(t, none)
	require.False(t, p.check(none, on("a")).refused())
	require.Nil(t, none.values(on("a")))
	p.add(none, nil)
	require.Zero(t, p.epoch(none))

	a := mustCompile(t, p, "rack:IS:r1", "@hostname:unique")
	require.Same(t, a, mustCompile(t, p, "hostname:UNIQUE", "rack:IS:r1", "rack:IS:r1"))
	require.NotSame(t, a, mustCompile(t, p, "hostname:UNIQUE"))

	_, err = p.compile([]Constraint{{"rack", "IS", "r1"}, {"rack", "MAX_PER", "x"}})
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, `"rack:MAX_PER:x"`)
	_, err = p.compile([]Constraint{{"ra:ck", "IS", "r1"}})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestPlacedCountsOnlyEqualConstraints(t *testing.T) {
	p := newPlaced()
	unique := mustCompile(t, p, "hostname:UNIQUE")
	p.add(nil, nil) // a build without constraints
	pair := mustCompile(t, p, "hostname:MAX_PER:2")
	p.add(pair, pair.values(on("a")))
	require.False(t, p.check(unique, on("a")).refused())

	both := mustCompile(t, p, "hostname:UNIQUE", "rack:LIKE:r.*")
	p.add(both, both.values(on("a rack=r1")))
	require.True(t, p.check(unique, on("a")).refused(), "the same constraint in another list")
}

func TestPlacedValues(t *testing.T) {
	p := newPlaced()
	rs := mustCompile(t, p, "hostname:UNIQUE", "rack:GROUP_BY", "zone:IS:z", "disk:UNLIKE:hdd", "os:CLUSTER:x")
	offer := on("a rack=r1 zone=z os=x other=1")
	require.Equal(t, map[string]string{"hostname": "a", "rack": "r1"}, rs.values(offer))
	require.Nil(t, mustCompile(t, p, "zone:IS:z").values(offer))
}

func TestPlacedRemovePanicsWithoutAdd(t *testing.T) {
	p := newPlaced()
	rs := mustCompile(t, p, "hostname:UNIQUE")
	p.add(rs, map[string]string{"hostname": "a"})
	p.remove(rs, map[string]string{"hostname": "a"})
	require.Panics(t, func() { p.remove(rs, map[string]string{"hostname": "a"}) })
}

func TestPlacedForgets(t *testing.T) {
	p := newPlaced()
	kept := mustCompile(t, p, "hostname:UNIQUE")
	p.add(kept, map[string]string{"hostname": "a"})
	for i := range maxKnown + 500 {
		rs := mustCompile(t, p, fmt.Sprintf("rack:MAX_PER:%d", i+1))
		p.add(rs, map[string]string{"rack": "r1"})
		p.remove(rs, map[string]string{"rack": "r1"})
	}
	require.LessOrEqual(t, len(p.known), maxKnown)
	require.LessOrEqual(t, len(p.tallies), maxKnown+1)
	again := mustCompile(t, p, "hostname:UNIQUE")
	require.True(t, p.check(again, on("a")).refused())
	require.True(t, p.check(kept, on("a")).refused())
}

func TestRuleBoundsItsMemory(t *testing.T) {
	p := newPlaced()
	rs := mustCompile(t, p, "rack:LIKE:r[0-9]*[02468]")
	for i := range maxLikes + 100 {
		require.Equal(t, i%2 != 0, p.check(rs, on(fmt.Sprintf("a rack=r%d", i))).refused())
	}
	require.Len(t, rs.list[0].likes, maxLikes)
}

// allowedByMarathon is Marathon's rule, written down as its Constraints.scala
// does: over a list of what is placed.
func allowedByMarathon(r *rule, others []string, value string) bool {
	groups := map[string]int{}
	for _, o := range others {
		groups[o]++
	}
	least := 0
	for _, n := range groups {
		if least == 0 || n < least {
			least = n
		}
	}
	switch r.Operator {
	case opUnique:
		return groups[value] == 0
	case opMaxPer:
		return groups[value] < r.number
	case opCluster:
		return len(others) == 0 || others[0] == value
	case opGroupBy:
		return groups[value] == 0 || len(groups) >= r.number && groups[value] == least
	}
	panic(r.Operator)
}

// TestPlacedStories launches and ends builds at random, and compares each answer
// with the naive rule and with what came before.
func TestPlacedStories(t *testing.T) {
	for _, text := range []string{
		"rack:UNIQUE", "rack:MAX_PER:1", "rack:MAX_PER:3", "rack:CLUSTER", "rack:GROUP_BY", "rack:GROUP_BY:3", "rack:GROUP_BY:9",
	} {
		t.Run(text, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			p := newPlaced()
			rs := mustCompile(t, p, text)
			r := rs.list[0]
			var live []string
			var offers []*Offer
			for i := range 5 {
				offers = append(offers, on(fmt.Sprintf("a%d rack=r%d", i, i)))
			}
			refused := func(p *placed) map[*Offer]bool {
				set := map[*Offer]bool{}
				for _, o := range offers {
					if p.check(rs, o).refused() {
						set[o] = true
					}
				}
				return set
			}
			launched := 0
			for range 1000 {
				before, epoch := refused(p), p.epoch(rs)
				if len(live) > 0 && random.IntN(100) < 45 {
					at := random.IntN(len(live))
					p.remove(rs, map[string]string{"rack": live[at]})
					live = append(live[:at], live[at+1:]...)
				} else {
					o := offers[random.IntN(len(offers))]
					value := o.Attributes["rack"]
					got := p.check(rs, o)
					require.Equal(t, allowedByMarathon(r, live, value), !got.refused(), "%v on %v", value, live)
					if got.refused() {
						continue
					}
					trial := p.clone()
					trial.add(rs, rs.values(o))
					require.Equal(t, before, refused(p), "a clone changed its original")
					p.add(rs, rs.values(o))
					require.Equal(t, refused(trial), refused(p))
					live = append(live, value)
					launched++
				}
				if p.epoch(rs) == epoch {
					after := refused(p)
					for o := range before {
						require.True(t, after[o], "%v became good, and the epoch stayed", o.Attributes)
					}
				}
			}
			require.Greater(t, launched, 100)
			for _, value := range live {
				p.remove(rs, map[string]string{"rack": value})
			}
			require.Equal(t, &tally{builds: map[string]int{}, sizes: map[int]int{}, epoch: p.tallies[r.key].epoch}, p.tallies[r.key])
		})
	}
}

func TestPlacedGroupBySpreadsEvenly(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	p := newPlaced()
	rs := mustCompile(t, p, "rack:GROUP_BY:4")
	counts := map[string]int{}
	for range 2000 {
		o := on(fmt.Sprintf("a rack=r%d", random.IntN(4)))
		if !p.check(rs, o).refused() {
			p.add(rs, rs.values(o))
			counts[o.Attributes["rack"]]++
		}
	}
	least, most := 1<<30, 0
	for _, n := range counts {
		least, most = min(least, n), max(most, n)
	}
	require.Len(t, counts, 4)
	require.LessOrEqual(t, most-least, 1)
}

func TestPlacedLeavesItsInputsAlone(t *testing.T) {
	p := newPlaced()
	list := []Constraint{{"rack", "like", "r.*"}, {"@hostname", "UNIQUE", ""}, {"rack", "GROUP_BY", "02"}}
	want := append([]Constraint(nil), list...)
	rs, err := p.compile(list)
	require.NoError(t, err)
	require.Equal(t, want, list)
	o := on("a rack=r1")
	values := rs.values(o)
	kept := maps.Clone(values)
	p.add(rs, values)
	p.check(rs, o)
	p.remove(rs, values)
	require.Equal(t, kept, values)
	require.Equal(t, on("a rack=r1"), o)
}

func FuzzParseConstraint(f *testing.F) {
	for _, seed := range []string{
		"rack:UNIQUE", "rack:LIKE:r[12]", "rack:LIKE:(a|ab)(c|bcd)*", "@hostname:max_per:3", "a:GROUP_BY:", "rack:UNLIKE:\\Q)", "::", "ſ:IS:x", "a:lıke:x",
	} {
		f.Add(seed, "r1")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		c, err := ParseConstraint(text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, c)
			return
		}
		again, err := ParseConstraint(c.String())
		require.NoError(t, err, "%q", c)
		require.Equal(t, c, again)
		p := newPlaced()
		rs, err := p.compile([]Constraint{c})
		require.NoError(t, err)
		o := &Offer{Hostname: value, Attributes: map[string]string{c.Attribute: value}}
		if why := p.check(rs, o); why.refused() {
			require.NotEmpty(t, why.String())
			return
		}
		p.add(rs, rs.values(o))
		_ = p.check(rs, o).String()
		p.remove(rs, rs.values(o))
		require.False(t, p.check(rs, o).refused())
	})
}

// BenchmarkPlacedCheck is a check of one offer for a build with three
// constraints, two of which count.
func BenchmarkPlacedCheck(b *testing.B) {
	p := newPlaced()
	rs := mustCompile(b, p, "hostname:MAX_PER:100", "rack:GROUP_BY", "zone:LIKE:eu-.*")
	offers := make([]*Offer, 1000)
	for i := range offers {
		offers[i] = on(fmt.Sprintf("agent-%d rack=r%d zone=eu-%d", i, i%20, i%3))
		p.add(rs, rs.values(offers[i]))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if p.check(rs, offers[i%len(offers)]).refused() {
			b.Fatal("refused")
		}
		i++
	}
}
