package testmesos

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	mesos "github.com/mesos/mesos-go/api/v1/lib"
)

// A resource is one entry of a set of resources, in the form that masters and
// agents keep: reservations as a stack and the role it is allocated to. Scalars
// are counted in thousandths, as Mesos does (mesos src/common/values.cpp).
type resource struct {
	meta   *mesos.Resource // everything but the value; never written after it was made
	key    string          // meta in the wire format: equal keys add up
	milli  int64
	ranges []span
	items  []string
}

// A span is a range with both ends included.
type span struct{ begin, end uint64 }

// resources is a set with at most one entry for each key. The operations
// return new sets and leave their operands alone.
type resources []resource

// milli converts a scalar to thousandths.
func milli(v float64) int64 { return int64(math.Round(v * 1000)) }

// formatMilli prints thousandths as Mesos prints scalars.
func formatMilli(n int64) string { return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64) }

// newResource takes over a valid resource in internal form.
func newResource(pb mesos.Resource) resource {
	r := resource{}
	switch {
	case pb.Scalar != nil:
		r.milli = milli(pb.Scalar.Value)
	case pb.Ranges != nil:
		for _, s := range pb.Ranges.Range {
			r.ranges = append(r.ranges, span{s.Begin, s.End})
		}
		r.ranges = mergeSpans(r.ranges)
	case pb.Set != nil:
		r.items = slices.Clone(pb.Set.Item)
		slices.Sort(r.items)
	}
	meta := pb
	meta.Scalar, meta.Ranges, meta.Set, meta.Role, meta.Reservation = nil, nil, nil, nil, nil
	r.setMeta(clone(&meta))
	return r
}

func (r *resource) setMeta(meta *mesos.Resource) {
	r.meta = meta
	b, err := meta.Marshal()
	if err != nil {
		panic(fmt.Sprintf("testmesos: encode resource: %v", err))
	}
	r.key = string(b)
}

// newResources takes over valid resources in internal form. Empty ones are
// dropped.
func newResources(pbs []mesos.Resource) resources {
	var rs resources
	for _, pb := range pbs {
		rs = rs.plus(resources{newResource(pb)})
	}
	return rs
}

func (r resource) empty() bool { return r.milli == 0 && len(r.ranges) == 0 && len(r.items) == 0 }

func (r resource) shared() bool { return r.meta.Shared != nil }

// proto returns the resource in the form for executors, for agents and for
// frameworks with the capability RESERVATION_REFINEMENT.
func (r resource) proto() mesos.Resource {
	pb := *r.meta
	switch *pb.Type {
	case mesos.SCALAR:
		pb.Scalar = &mesos.Value_Scalar{Value: float64(r.milli) / 1000}
	case mesos.RANGES:
		pb.Ranges = &mesos.Value_Ranges{}
		for _, s := range r.ranges {
			pb.Ranges.Range = append(pb.Ranges.Range, mesos.Value_Range{Begin: s.begin, End: s.end})
		}
	case mesos.SET:
		pb.Set = &mesos.Value_Set{Item: r.items}
	}
	return pb
}

func (rs resources) proto() []mesos.Resource {
	pbs := make([]mesos.Resource, len(rs))
	for i, r := range rs {
		pbs[i] = r.proto()
	}
	return pbs
}

// protoFor returns the resources as an offer shows them to a framework.
func (rs resources) protoFor(c capabilities) []mesos.Resource {
	pbs := rs.proto()
	for i := range pbs {
		pb := &pbs[i]
		if !c.multiRole {
			pb.AllocationInfo = nil
		}
		if c.reservationRefinement {
			continue
		}
		pb.Role = new("*")
		if n := len(pb.Reservations); n > 0 {
			last := pb.Reservations[n-1]
			pb.Role = last.Role
			if last.GetType() == mesos.Resource_ReservationInfo_DYNAMIC {
				pb.Reservation = &mesos.Resource_ReservationInfo{Principal: last.Principal, Labels: last.Labels}
			}
			pb.Reservations = nil
		}
	}
	return pbs
}

// refined tells whether a resource has a reservation that can only be shown
// to frameworks with RESERVATION_REFINEMENT.
func (r resource) refined() bool { return len(r.meta.Reservations) > 1 }

// reservationRole returns the role that the resource is reserved to, or "*".
func (r resource) reservationRole() string {
	if n := len(r.meta.Reservations); n > 0 {
		return r.meta.Reservations[n-1].GetRole()
	}
	return "*"
}

func (rs resources) empty() bool { return len(rs) == 0 }

func (rs resources) clone() resources { return slices.Clone(rs) }

func (rs resources) find(key string) int {
	return slices.IndexFunc(rs, func(r resource) bool { return r.key == key })
}

// plus returns the sum.
func (rs resources) plus(more resources) resources {
	sum := rs.clone()
	for _, r := range more {
		if r.empty() {
			continue
		}
		i := sum.find(r.key)
		if i < 0 {
			sum = append(sum, r)
			continue
		}
		s := &sum[i]
		s.milli += r.milli
		s.ranges = mergeSpans(append(slices.Clone(s.ranges), r.ranges...))
		s.items = append(slices.Clone(s.items), r.items...)
		slices.Sort(s.items)
		s.items = slices.Compact(s.items)
	}
	return sum
}

// minus returns what is left of rs without less, and whether rs had it all.
func (rs resources) minus(less resources) (resources, bool) {
	left := rs.clone()
	all := true
	for _, r := range less {
		if r.empty() {
			continue
		}
		i := left.find(r.key)
		if i < 0 {
			all = false
			continue
		}
		l := &left[i]
		if l.milli < r.milli {
			all = false
		}
		l.milli = max(l.milli-r.milli, 0)
		var ok bool
		l.ranges, ok = subtractSpans(l.ranges, r.ranges)
		all = all && ok
		var items []string
		for _, item := range l.items {
			if !slices.Contains(r.items, item) {
				items = append(items, item)
			}
		}
		all = all && len(items)+len(r.items) == len(l.items)
		l.items = items
		if l.empty() {
			left = slices.Delete(left, i, i+1)
		}
	}
	return left, all
}

// contains tells whether less is part of rs.
func (rs resources) contains(less resources) bool {
	_, ok := rs.minus(less)
	return ok
}

// filter returns the entries that keep holds for.
func (rs resources) filter(keep func(resource) bool) resources {
	var out resources
	for _, r := range rs {
		if keep(r) {
			out = append(out, r)
		}
	}
	return out
}

// allocatedTo returns the resources marked as allocated to a role; "" removes
// the mark.
func (rs resources) allocatedTo(role string) resources {
	var out resources
	for _, r := range rs {
		meta := *r.meta
		meta.AllocationInfo = nil
		if role != "" {
			meta.AllocationInfo = &mesos.Resource_AllocationInfo{Role: new(role)}
		}
		r.setMeta(&meta)
		out = out.plus(resources{r})
	}
	return out
}

// scalar returns the sum of the scalars of a name in thousandths.
func (rs resources) scalar(name string) int64 {
	var n int64
	for _, r := range rs {
		if r.meta.Name == name {
			n += r.milli
		}
	}
	return n
}

// has tells whether there is an entry of a name.
func (rs resources) has(name string) bool {
	return slices.ContainsFunc(rs, func(r resource) bool { return r.meta.Name == name })
}

// overlaps tells whether two sets claim the same port, or the same item of
// another range or set.
func (rs resources) overlaps(other resources) bool {
	for _, r := range rs {
		for _, o := range other {
			if r.key != o.key || r.shared() {
				continue
			}
			if _, ok := subtractSpans(complementOf(r.ranges), o.ranges); !ok {
				return true
			}
			for _, item := range r.items {
				if slices.Contains(o.items, item) {
					return true
				}
			}
		}
	}
	return false
}

// String prints the resources the way Mesos does in its messages.
func (rs resources) String() string {
	if len(rs) == 0 {
		return "{}"
	}
	parts := make([]string, len(rs))
	for i, r := range rs {
		parts[i] = r.String()
	}
	return strings.Join(parts, "; ")
}

func (r resource) String() string {
	var b strings.Builder
	b.WriteString(r.meta.Name)
	if a := r.meta.AllocationInfo; a != nil {
		fmt.Fprintf(&b, "(allocated: %s)", a.GetRole())
	}
	if rv := r.meta.Reservations; len(rv) > 0 {
		stack := make([]string, len(rv))
		for i, v := range rv {
			stack[i] = "(" + v.GetType().String() + "," + v.GetRole()
			if v.Principal != nil {
				stack[i] += "," + *v.Principal
			}
			stack[i] += ")"
		}
		fmt.Fprintf(&b, "(reservations: [%s])", strings.Join(stack, ","))
	}
	if d := r.meta.Disk; d != nil && d.Persistence != nil {
		fmt.Fprintf(&b, "[%s]", d.Persistence.ID)
	}
	if r.meta.Revocable != nil {
		b.WriteString("{REV}")
	}
	if r.shared() {
		b.WriteString("<SHARED>")
	}
	b.WriteByte(':')
	switch *r.meta.Type {
	case mesos.SCALAR:
		b.WriteString(formatMilli(r.milli))
	case mesos.RANGES:
		b.WriteString(formatSpans(r.ranges))
	case mesos.SET:
		b.WriteString("{" + strings.Join(r.items, ", ") + "}")
	}
	return b.String()
}

func formatSpans(spans []span) string {
	parts := make([]string, len(spans))
	for i, s := range spans {
		parts[i] = fmt.Sprintf("%d-%d", s.begin, s.end)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// mergeSpans sorts spans and joins those that touch.
func mergeSpans(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.begin, b.begin) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.begin <= out[n-1].end+1 && out[n-1].end != math.MaxUint64 {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

// subtractSpans removes less from spans and tells whether all of it was there.
func subtractSpans(spans, less []span) ([]span, bool) {
	all := true
	for _, l := range less {
		found := false
		for i, s := range spans {
			if l.begin < s.begin || l.end > s.end {
				continue
			}
			var parts []span
			if s.begin < l.begin {
				parts = append(parts, span{s.begin, l.begin - 1})
			}
			if l.end < s.end {
				parts = append(parts, span{l.end + 1, s.end})
			}
			spans = slices.Concat(spans[:i], parts, spans[i+1:])
			found = true
			break
		}
		all = all && found
	}
	return spans, all
}

// complementOf returns everything that is not in spans, which are sorted.
func complementOf(spans []span) []span {
	var out []span
	next := uint64(0)
	for _, s := range spans {
		if s.begin > next {
			out = append(out, span{next, s.begin - 1})
		}
		if s.end == math.MaxUint64 {
			return out
		}
		next = s.end + 1
	}
	return append(out, span{next, math.MaxUint64})
}

// upgradeResources checks the resources of a call and brings them into
// internal form. The messages are those of mesos src/common/resources.cpp.
func upgradeResources(pbs []mesos.Resource) error {
	for i := range pbs {
		if err := validateResource(&pbs[i]); err != nil {
			return says("Resource '%s' is invalid: %w", describeResource(pbs[i]), err)
		}
	}
	for i := range pbs {
		pb := &pbs[i]
		if len(pb.Reservations) == 0 && pb.GetRole() != "*" && pb.Role != nil {
			info := mesos.Resource_ReservationInfo{Type: new(mesos.Resource_ReservationInfo_STATIC), Role: pb.Role}
			if pb.Reservation != nil {
				info.Type = new(mesos.Resource_ReservationInfo_DYNAMIC)
				info.Principal, info.Labels = pb.Reservation.Principal, pb.Reservation.Labels
			}
			pb.Reservations = []mesos.Resource_ReservationInfo{info}
		}
		pb.Role, pb.Reservation = nil, nil
	}
	return nil
}

// describeResource prints a resource that may be invalid.
func describeResource(pb mesos.Resource) string {
	value := ""
	switch {
	case pb.Scalar != nil:
		value = formatMilli(milli(pb.Scalar.Value))
	case pb.Ranges != nil:
		var spans []span
		for _, s := range pb.Ranges.Range {
			spans = append(spans, span{s.Begin, s.End})
		}
		value = formatSpans(spans)
	case pb.Set != nil:
		value = "{" + strings.Join(pb.Set.Item, ", ") + "}"
	}
	return pb.Name + ":" + value
}

func validateResource(pb *mesos.Resource) error {
	if pb.Name == "" {
		return says("Empty resource name")
	}
	if err := validateValue(pb); err != nil {
		return err
	}
	if pb.Disk != nil && pb.Name != "disk" {
		return says("DiskInfo should not be set for %s resource", pb.Name)
	}
	if err := validateReservations(pb); err != nil {
		return err
	}
	if pb.Shared != nil {
		if pb.Name != "disk" {
			return says("Resource %s cannot be shared", pb.Name)
		}
		if pb.Disk == nil || pb.Disk.Persistence == nil {
			return says("Only persistent volumes can be shared")
		}
	}
	return nil
}

func validateValue(pb *mesos.Resource) error {
	switch pb.GetType() {
	case mesos.SCALAR:
		if pb.Scalar == nil || pb.Ranges != nil || pb.Set != nil {
			return says("Invalid scalar resource")
		}
		if pb.Scalar.Value != 0 && milli(pb.Scalar.Value) <= 0 {
			return says("Invalid scalar resource: value <= 0")
		}
	case mesos.RANGES:
		if pb.Scalar != nil || pb.Ranges == nil || pb.Set != nil {
			return says("Invalid ranges resource")
		}
		for i, r := range pb.Ranges.Range {
			if r.Begin > r.End {
				return says("Invalid ranges resource: begin > end")
			}
			for _, s := range pb.Ranges.Range[i+1:] {
				if r.Begin <= s.Begin && s.Begin <= r.End {
					return says("Invalid ranges resource: overlapping ranges")
				}
			}
		}
	case mesos.SET:
		if pb.Scalar != nil || pb.Ranges != nil || pb.Set == nil {
			return says("Invalid set resource")
		}
		for i, item := range pb.Set.Item {
			if slices.Contains(pb.Set.Item[i+1:], item) {
				return says("Invalid set resource: duplicated elements")
			}
		}
	default:
		return says("Unsupported resource type")
	}
	return nil
}

func validateReservations(pb *mesos.Resource) error {
	if len(pb.Reservations) == 0 {
		role := "*"
		if pb.Role != nil {
			role = *pb.Role
		}
		if err := validateRole(role); err != nil {
			return err
		}
		if rv := pb.Reservation; rv != nil {
			switch {
			case rv.Type != nil:
				return says("'Resource.ReservationInfo.type' must not be set for the 'Resource.reservation' field")
			case rv.Role != nil:
				return says("'Resource.ReservationInfo.role' must not be set for the 'Resource.reservation' field")
			case role == "*":
				return says(`Invalid reservation: role "*" cannot be dynamically reserved`)
			}
		}
		return nil
	}
	for i, rv := range pb.Reservations {
		if rv.Type == nil {
			return says("Invalid reservation: 'Resource.ReservationInfo.type' field must be set.")
		}
		if rv.Role == nil {
			return says("Invalid reservation: 'Resource.ReservationInfo.role' field must be set.")
		}
		if err := validateRole(*rv.Role); err != nil {
			return err
		}
		if *rv.Role == "*" {
			return says(`Invalid reservation: role "*" cannot be reserved`)
		}
		if i == 0 {
			continue
		}
		if *rv.Type == mesos.Resource_ReservationInfo_STATIC {
			return says("Invalid refined reservation: A refined reservation cannot be STATIC")
		}
		if above := pb.Reservations[i-1].GetRole(); !strings.HasPrefix(*rv.Role, above+"/") {
			return says("Invalid refined reservation: role '%s' is not a refinement of '%s'", *rv.Role, above)
		}
	}
	if len(pb.Reservations) > 1 && (pb.Role != nil || pb.Reservation != nil) {
		name := "role"
		if pb.Role == nil {
			name = "reservation"
		}
		return says("Invalid resource format: 'Resource.%s' must not be set if"+
			" there is more than one reservation in 'Resource.reservations'", name)
	}
	if r := pb.Reservations[0]; len(pb.Reservations) == 1 && pb.Role != nil && *pb.Role != *r.Role {
		return says("Invalid resource format: 'Resource.role' field with '%s' does not match the role"+
			" '%s' in 'Resource.reservations'", *pb.Role, *r.Role)
	}
	return nil
}

// parseResources reads resources as the agent flag --resources takes them,
// such as "cpus:4;cpus(role):2;mem:8192;ports:[31000-32000]".
func parseResources(text string) (resources, error) {
	var rs resources
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fmt.Errorf("resource %q: want name:value", part)
		}
		pb := mesos.Resource{Name: strings.TrimSpace(name)}
		if base, role, ok := strings.Cut(pb.Name, "("); ok {
			pb.Name, pb.Role = base, new(strings.TrimSuffix(role, ")"))
		}
		if err := parseValue(strings.TrimSpace(value), &pb); err != nil {
			return nil, fmt.Errorf("resource %q: %w", part, err)
		}
		pbs := []mesos.Resource{pb}
		if err := upgradeResources(pbs); err != nil {
			return nil, err
		}
		rs = rs.plus(newResources(pbs))
	}
	return rs, nil
}

func parseValue(text string, pb *mesos.Resource) error {
	switch {
	case strings.HasPrefix(text, "["):
		pb.Type, pb.Ranges = new(mesos.RANGES), &mesos.Value_Ranges{}
		for part := range strings.SplitSeq(strings.Trim(text, "[]"), ",") {
			lo, hi, ok := strings.Cut(strings.TrimSpace(part), "-")
			begin, err1 := strconv.ParseUint(lo, 10, 64)
			end, err2 := strconv.ParseUint(hi, 10, 64)
			if !ok || err1 != nil || err2 != nil {
				return fmt.Errorf("range %q: want begin-end", part)
			}
			pb.Ranges.Range = append(pb.Ranges.Range, mesos.Value_Range{Begin: begin, End: end})
		}
	case strings.HasPrefix(text, "{"):
		pb.Type, pb.Set = new(mesos.SET), &mesos.Value_Set{}
		for part := range strings.SplitSeq(strings.Trim(text, "{}"), ",") {
			pb.Set.Item = append(pb.Set.Item, strings.TrimSpace(part))
		}
	default:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("value %q is no number", text)
		}
		pb.Type, pb.Scalar = new(mesos.SCALAR), &mesos.Value_Scalar{Value: v}
	}
	return nil
}

// parseAttributes reads attributes as the agent flag --attributes takes them,
// such as "rack:a;zone:[1-3];cores:8".
func parseAttributes(text string) ([]mesos.Attribute, error) {
	var out []mesos.Attribute
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("attribute %q: want name:value", part)
		}
		pb := mesos.Resource{Name: name}
		a := mesos.Attribute{Name: name}
		if err := parseValue(value, &pb); err == nil && pb.GetType() != mesos.SET {
			a.Type, a.Scalar, a.Ranges = pb.GetType(), pb.Scalar, pb.Ranges
		} else {
			a.Type, a.Text = mesos.TEXT, &mesos.Value_Text{Value: value}
		}
		out = append(out, a)
	}
	return out, nil
}
