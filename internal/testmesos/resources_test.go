package testmesos

import (
	"testing"
	"time"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
	"github.com/stretchr/testify/require"
)

func mustParse(t *testing.T, text string) resources {
	t.Helper()
	rs, err := parseResources(text)
	require.NoError(t, err)
	return rs
}

func TestResourcesArithmetic(t *testing.T) {
	for _, tt := range []struct {
		have, less, left string
		contained        bool
	}{
		{"cpus:4;mem:100", "cpus:1.5", "cpus:2.5; mem:100", true},
		{"cpus:0.3", "cpus:0.1", "cpus:0.2", true},
		{"cpus:0.3", "cpus:0.3", "{}", true},
		{"cpus:1", "cpus:1.001", "{}", false},
		{"cpus:1", "gpus:1", "cpus:1", false},
		{"cpus:1;cpus(a):2", "cpus(a):1", "cpus:1; cpus(reservations: [(STATIC,a)]):1", true},
		{"cpus:3", "cpus(a):1", "cpus:3", false},
		{"ports:[1-10]", "ports:[3-4]", "ports:[1-2, 5-10]", true},
		{"ports:[1-10]", "ports:[1-1,10-10]", "ports:[2-9]", true},
		{"ports:[1-4,6-9]", "ports:[4-6]", "ports:[1-4, 6-9]", false},
		{"disks:{a,b,c}", "disks:{b}", "disks:{a, c}", true},
		{"disks:{a}", "disks:{a,b}", "{}", false},
	} {
		have, less := mustParse(t, tt.have), mustParse(t, tt.less)
		left, contained := have.minus(less)
		require.Equal(t, tt.left, left.String(), "%s - %s", tt.have, tt.less)
		require.Equal(t, tt.contained, contained, "%s - %s", tt.have, tt.less)
		if contained {
			sum := left.plus(less)
			require.True(t, sum.contains(have) && have.contains(sum), "%s + %s = %s", left, less, sum)
		}
		require.Equal(t, mustParse(t, tt.have), have, "operands stay")
	}
	var sum resources
	for range 10 {
		sum = sum.plus(mustParse(t, "cpus:0.1;ports:[5-5]"))
	}
	require.Equal(t, "cpus:1; ports:[5-5]", sum.String())
}

func TestResourcesOverlap(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"ports:[1-5]", "ports:[6-7]", false},
		{"ports:[1-5]", "ports:[5-7]", true},
		{"ports:[1-2,8-9]", "ports:[3-8]", true},
		{"ports:[1-5]", "ports(a):[1-5]", false},
		{"cpus:1", "cpus:1", false},
		{"disks:{a}", "disks:{a,b}", true},
	} {
		require.Equal(t, tt.want, mustParse(t, tt.a).overlaps(mustParse(t, tt.b)), "%s and %s", tt.a, tt.b)
	}
}

func TestValidateReservations(t *testing.T) {
	reserved := func(types ...mesos.Resource_ReservationInfo_Type) mesos.Resource {
		r := mesos.Resource{Name: "cpus", Type: new(mesos.SCALAR), Scalar: &mesos.Value_Scalar{Value: 1}}
		role := "a"
		for _, typ := range types {
			r.Reservations = append(r.Reservations, mesos.Resource_ReservationInfo{Type: new(typ), Role: new(role)})
			role += "/b"
		}
		return r
	}
	static, dynamic := mesos.Resource_ReservationInfo_STATIC, mesos.Resource_ReservationInfo_DYNAMIC
	for _, tt := range []struct {
		name   string
		r      mesos.Resource
		change func(*mesos.Resource)
		want   string
	}{
		{"static", reserved(static), nil, ""},
		{"refined", reserved(static, dynamic), nil, ""},
		{"static refinement", reserved(static, static), nil, "A refined reservation cannot be STATIC"},
		{"not below", reserved(static, dynamic), func(r *mesos.Resource) { r.Reservations[1].Role = new("c") }, "role 'c' is not a refinement of 'a'"},
		{"star", reserved(dynamic), func(r *mesos.Resource) { r.Reservations[0].Role = new("*") }, `role "*" cannot be reserved`},
		{"both forms", reserved(static, dynamic), func(r *mesos.Resource) { r.Role = new("a") }, "'Resource.role' must not be set"},
		{"old form", reserved(), func(r *mesos.Resource) { r.Role = new("a") }, ""},
		{"bad role", reserved(), func(r *mesos.Resource) { r.Role = new("-a") }, "starts with a dash"},
		{"dynamic star", reserved(), func(r *mesos.Resource) { r.Reservation = &mesos.Resource_ReservationInfo{} }, "cannot be dynamically reserved"},
		{"shared", reserved(), func(r *mesos.Resource) { r.Shared = &mesos.Resource_SharedInfo{} }, "Resource cpus cannot be shared"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(&tt.r)
			}
			err := upgradeResources([]mesos.Resource{tt.r})
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestProtoForOldFrameworks(t *testing.T) {
	rs := mustParse(t, "cpus(a):1;mem:2").allocatedTo("a")
	pbs := rs.protoFor(capabilities{})
	require.Equal(t, "a", pbs[0].GetRole())
	require.Empty(t, pbs[0].Reservations)
	require.Nil(t, pbs[0].AllocationInfo)
	pbs = rs.protoFor(capabilities{multiRole: true, reservationRefinement: true})
	require.Nil(t, pbs[0].Role)
	require.Len(t, pbs[0].Reservations, 1)
	require.Equal(t, "a", pbs[1].AllocationInfo.GetRole())
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		5 * time.Second:         "5secs",
		time.Minute:             "1mins",
		90 * time.Second:        "90secs",
		15 * time.Minute:        "15mins",
		2 * time.Hour:           "2hrs",
		25 * time.Hour:          "25hrs",
		48 * time.Hour:          "2days",
		14 * 24 * time.Hour:     "2weeks",
		1500 * time.Millisecond: "1500ms",
		1500:                    "1500ns",
		2000:                    "2us",
		0:                       "0ns",
	} {
		require.Equal(t, want, formatDuration(d))
	}
}

func TestValidUUID(t *testing.T) {
	id := newUUID()
	require.True(t, validUUID(id[:]))
	require.False(t, validUUID(id[:15]))
	require.False(t, validUUID(make([]byte, 16)))
}

func TestValidateID(t *testing.T) {
	for id, want := range map[string]string{
		"build-1":                 "",
		"":                        "ID must not be empty",
		"..":                      "'..' is disallowed",
		`a\b`:                     "contains invalid characters",
		"a\x7f":                   "contains invalid characters",
		string(make([]byte, 256)): "ID must not be greater than 255 characters",
	} {
		err := validateID(id)
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
	}
}
