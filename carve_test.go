package portainer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
)

// scalar is an entry of an offer as a master sends it to a framework without
// RESERVATION_REFINEMENT.
func scalar(name string, amount float64, role string) mesos.Resource {
	kind, allocated := mesos.SCALAR, "team/build"
	return mesos.Resource{
		Name: name, Type: &kind, Scalar: &mesos.Value_Scalar{Value: amount}, Role: &role,
		AllocationInfo: &mesos.Resource_AllocationInfo{Role: &allocated},
	}
}

// unusable are entries that no build may use.
func unusable() []mesos.Resource {
	revocable, shared, persistent, mount := scalar("cpus", 64, "*"), scalar("mem", 1e6, "*"), scalar("disk", 1e6, "*"), scalar("disk", 1e6, "*")
	revocable.Revocable = &mesos.Resource_RevocableInfo{}
	shared.Shared = &mesos.Resource_SharedInfo{}
	persistent.Disk = &mesos.Resource_DiskInfo{Persistence: &mesos.Resource_DiskInfo_Persistence{ID: "p"}}
	mount.Disk = &mesos.Resource_DiskInfo{Source: &mesos.Resource_DiskInfo_Source{Type: mesos.Resource_DiskInfo_Source_MOUNT}}
	ports, kind := scalar("ports", 0, "*"), mesos.RANGES
	ports.Type, ports.Scalar = &kind, nil
	ports.Ranges = &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 31000, End: 32000}}}
	return []mesos.Resource{revocable, shared, persistent, mount, ports}
}

func TestFromMesos(t *testing.T) {
	role, begins := "team/build", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	port := int32(5051)
	ip, name := "10.0.0.7", "agent7.example"
	raw := &mesos.Offer{
		ID: mesos.OfferID{Value: "M-O1"}, AgentID: mesos.AgentID{Value: "M-S1"}, Hostname: "host7",
		AllocationInfo: &mesos.Resource_AllocationInfo{Role: &role},
		URL:            &mesos.URL{Scheme: "http", Address: mesos.Address{Hostname: &name, IP: &ip, Port: port}},
		Unavailability: &mesos.Unavailability{Start: mesos.TimeInfo{Nanoseconds: begins.UnixNano()}},
		Resources: append(unusable(),
			scalar("cpus", 0.1, "team/build"), scalar("cpus", 0.2, "*"), scalar("mem", 1024, "*"), scalar("mem", 512, "team"),
			scalar("disk", 100, "*"), scalar("gpus", 2, "*"), scalar("bandwidth", 9, "*")),
		Attributes: []mesos.Attribute{
			{Name: "rack", Type: mesos.TEXT, Text: &mesos.Value_Text{Value: "r1"}},
			{Name: "speed", Type: mesos.SCALAR, Scalar: &mesos.Value_Scalar{Value: 2.5}},
			{Name: "big", Type: mesos.SCALAR, Scalar: &mesos.Value_Scalar{Value: 12345678}},
			{Name: "ports", Type: mesos.RANGES, Ranges: &mesos.Value_Ranges{Range: []mesos.Value_Range{{Begin: 1, End: 2}, {Begin: 5, End: 9}}}},
			{Name: "zones", Type: mesos.SET, Set: &mesos.Value_Set{Item: []string{"a", "b"}}},
		},
	}
	require.Equal(t, Offer{
		ID: "M-O1", Agent: "M-S1", Hostname: "host7", Role: "team/build",
		Resources:   Resources{CPUs: 0.3, MemMB: 1536, DiskMB: 100, GPUs: 2},
		Attributes:  map[string]string{"rack": "r1", "speed": "2.5", "big": "12345678", "ports": "[1-2,5-9]", "zones": "{a,b}"},
		Unavailable: begins.Local(),
		agentURL:    "http://10.0.0.7:5051",
	}, fromMesos(raw, false))
}

func TestAgentURL(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, tt := range []struct {
		name           string
		url            *mesos.URL
		plain, overTLS string
	}{
		{"no URL", nil, "http://host7:5051", "https://host7:5051"},
		{"name and address", &mesos.URL{Address: mesos.Address{Hostname: text("a.example"), IP: text("10.0.0.7"), Port: 5052}}, "http://10.0.0.7:5052", "https://a.example:5052"},
		{"name", &mesos.URL{Address: mesos.Address{Hostname: text("a.example"), Port: 5052}}, "http://a.example:5052", "https://a.example:5052"},
		{"address", &mesos.URL{Address: mesos.Address{IP: text("10.0.0.7"), Port: 5052}}, "http://10.0.0.7:5052", "https://10.0.0.7:5052"},
		{"IPv6", &mesos.URL{Address: mesos.Address{IP: text("fd00::7"), Port: 5052}}, "http://[fd00::7]:5052", "https://[fd00::7]:5052"},
		{"port only", &mesos.URL{Address: mesos.Address{Port: 5052}}, "http://host7:5052", "https://host7:5052"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &mesos.Offer{Hostname: "host7", URL: tt.url}
			require.Equal(t, tt.plain, agentURL(o, false))
			require.Equal(t, tt.overTLS, agentURL(o, true))
		})
	}
}

// carved renders entries as "<name>:<amount>(<role>)".
func carved(entries []mesos.Resource) string {
	var parts []string
	for i := range entries {
		parts = append(parts, fmt.Sprintf("%s:%g(%s)", entries[i].Name, entries[i].GetScalar().GetValue(), entries[i].GetRole()))
	}
	return strings.Join(parts, " ")
}

func TestCarve(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pool  []mesos.Resource
		want  Resources
		taken string // "" if there is not enough
		left  string
	}{
		{
			name: "one entry of each", pool: []mesos.Resource{scalar("cpus", 4, "*"), scalar("mem", 1024, "*")},
			want: Resources{CPUs: 1, MemMB: 1000}, taken: "cpus:1(*) mem:1000(*)", left: "cpus:3(*) mem:24(*)",
		},
		{
			name: "reserved first, then for ancestors, the nearest first, then unreserved",
			pool: []mesos.Resource{scalar("cpus", 8, "*"), scalar("cpus", 1, "team"), scalar("cpus", 2, "team/build/small"), scalar("cpus", 3, "team/build")},
			want: Resources{CPUs: 7}, taken: "cpus:2(team/build/small) cpus:3(team/build) cpus:1(team) cpus:1(*)",
			left: "cpus:7(*) cpus:0(team) cpus:0(team/build/small) cpus:0(team/build)",
		},
		{
			name: "several entries of a name", pool: []mesos.Resource{scalar("cpus", 0.1, "*"), scalar("cpus", 0.2, "*"), scalar("cpus", 0.3, "*")},
			want: Resources{CPUs: 0.6}, taken: "cpus:0.1(*) cpus:0.2(*) cpus:0.3(*)", left: "cpus:0(*) cpus:0(*) cpus:0(*)",
		},
		{
			name: "a thousandth short", pool: []mesos.Resource{scalar("cpus", 4, "*"), scalar("mem", 9.999, "*")},
			want: Resources{CPUs: 1, MemMB: 10}, left: "cpus:4(*) mem:9.999(*)",
		},
		{
			name: "nothing usable", pool: unusable(), want: Resources{CPUs: 0.001},
			left: "cpus:64(*) mem:1e+06(*) disk:1e+06(*) disk:1e+06(*) ports:0(*)",
		},
		{name: "nothing wanted, nothing taken", pool: nil, want: Resources{}, taken: "nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			taken, ok := carve(tt.pool, "team/build/small", tt.want)
			require.Equal(t, tt.taken != "", ok)
			if tt.taken == "nothing" {
				tt.taken = ""
			}
			require.Equal(t, tt.taken, carved(taken))
			require.Equal(t, tt.left, carved(tt.pool))
		})
	}
}

// TestCarveAtRandom checks that nothing is lost, invented or taken from where it
// must not be, whatever the entries are.
func TestCarveAtRandom(t *testing.T) {
	names, roles := []string{"cpus", "mem", "disk", "gpus"}, []string{"*", "team", "team/build"}
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 3))
		pool := unusable()
		for range random.IntN(12) {
			pool = append(pool, scalar(names[random.IntN(len(names))], float64(random.IntN(5000))/1000, roles[random.IntN(len(roles))]))
		}
		random.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
		before := slices.Clone(pool)
		amount := func() float64 { return float64(random.IntN(3000)*random.IntN(2)) / 1000 }
		want := Resources{CPUs: amount(), MemMB: amount(), DiskMB: amount(), GPUs: amount()}

		var available Resources
		for i := range pool {
			if usable(&pool[i]) {
				available = available.Add(asResources(&pool[i]))
			}
		}
		taken, ok := carve(pool, "team/build", want)
		require.Equal(t, available.Fits(want), ok, "seed %d", seed)
		if !ok {
			require.Equal(t, before, pool, "seed %d: pool changed in vain", seed)
			continue
		}
		var sum Resources
		for i := range taken {
			require.Positive(t, taken[i].Scalar.Value, "seed %d", seed)
			require.NotNil(t, taken[i].AllocationInfo, "seed %d", seed)
			sum = sum.Add(asResources(&taken[i]))
		}
		require.Equal(t, want, sum, "seed %d", seed)
		for i := range pool {
			if !usable(&pool[i]) {
				require.Equal(t, before[i], pool[i], "seed %d: %d", seed, i)
				continue
			}
			// What is less specific is used only where the more specific is used up.
			used := before[i].Scalar.Value - pool[i].Scalar.Value
			require.GreaterOrEqual(t, used, 0.0)
			for j := range pool {
				if used > 0 && usable(&pool[j]) && pool[j].Name == pool[i].Name && len(pool[j].GetRole()) > len(pool[i].GetRole()) {
					require.Zero(t, pool[j].Scalar.Value, "seed %d: %d before %d", seed, i, j)
				}
			}
			total := asResources(&pool[i])
			for k := range taken {
				if taken[k].Name == pool[i].Name && taken[k].GetRole() == pool[i].GetRole() {
					require.NotSame(t, taken[k].Scalar, pool[i].Scalar)
				}
			}
			require.True(t, asResources(&before[i]).Fits(total))
		}
		// The pool and what was taken make up what was there.
		for _, role := range roles {
			sumOf := func(entries []mesos.Resource) Resources {
				var sum Resources
				for i := range entries {
					if usable(&entries[i]) && entries[i].GetRole() == role {
						sum = sum.Add(asResources(&entries[i]))
					}
				}
				return sum
			}
			require.Equal(t, sumOf(before), sumOf(pool).Add(sumOf(taken)), "seed %d: role %s", seed, role)
		}
	}
}

func asResources(r *mesos.Resource) Resources {
	v := r.GetScalar().GetValue()
	switch r.Name {
	case "cpus":
		return Resources{CPUs: v}
	case "mem":
		return Resources{MemMB: v}
	case "disk":
		return Resources{DiskMB: v}
	case "gpus":
		return Resources{GPUs: v}
	}
	return Resources{}
}
