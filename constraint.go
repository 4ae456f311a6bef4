package portainer

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Constraint says on which agents a build may run, as Marathon's placement
// constraints do. Builds with an equal Constraint are to each other what the
// tasks of one app are in Marathon: CLUSTER, GROUP_BY, UNIQUE and MAX_PER count
// those of them that are launched and have not ended, and no other builds.
//
// All operators but UNLIKE refuse an agent that has no such attribute. Values
// of attributes that are not text are compared in the form in which an operator
// of Mesos writes them: "4", "[31000-32000]", "{a,b}".
type Constraint struct {
	// Attribute is the name of an agent attribute, or "hostname" (also
	// "@hostname") for the agent's own name.
	Attribute string
	// Operator is one of
	//
	//	CLUSTER   the value is Value; with no Value, the one that the others have
	//	GROUP_BY  the value has no more of the others than any value that has some;
	//	          while fewer than Value (a number) have some, it has none
	//	IS        the value is Value
	//	LIKE      all of the value matches the regular expression Value
	//	MAX_PER   the value has fewer than Value (a number) of the others
	//	UNIQUE    the value has none of the others
	//	UNLIKE    the value does not match as for LIKE, or there is none
	Operator string
	// Value is what the operator takes: required for IS, LIKE, MAX_PER and
	// UNLIKE, optional for CLUSTER and GROUP_BY, and "" for UNIQUE.
	Value string
}

// hostnameAttribute is the name under which constraints speak of an agent's
// hostname.
const hostnameAttribute = "hostname"

// The operators of constraints.
const (
	opCluster = "CLUSTER"
	opGroupBy = "GROUP_BY"
	opIs      = "IS"
	opLike    = "LIKE"
	opMaxPer  = "MAX_PER"
	opUnique  = "UNIQUE"
	opUnlike  = "UNLIKE"
)

// operatorNames is for messages.
const operatorNames = "CLUSTER, GROUP_BY, IS, LIKE, MAX_PER, UNIQUE or UNLIKE"

// maxConstraint bounds the text of a constraint. A regular expression of that
// length still compiles at once.
const maxConstraint = 1 << 10

// ParseConstraint reads "attribute:OPERATOR" or "attribute:OPERATOR:value". The
// value may contain colons. The error wraps ErrInvalid.
func ParseConstraint(s string) (Constraint, error) {
	var c Constraint
	var some bool
	c.Attribute, c.Operator, some = strings.Cut(s, ":")
	if !some {
		return Constraint{}, fmt.Errorf("%w constraint %q: want attribute:OPERATOR or attribute:OPERATOR:value", ErrInvalid, s)
	}
	c.Operator, c.Value, _ = strings.Cut(c.Operator, ":")
	r, err := newRule(c)
	if err != nil {
		return Constraint{}, err
	}
	return r.Constraint, nil
}

// String is the form that ParseConstraint reads.
func (c Constraint) String() string {
	if c.Value == "" {
		return c.Attribute + ":" + c.Operator
	}
	return c.Attribute + ":" + c.Operator + ":" + c.Value
}

// A rule is a checked Constraint, ready to be evaluated.
type rule struct {
	Constraint
	key    string          // Constraint.String, under which builds are counted
	like   *regexp.Regexp  // LIKE, UNLIKE; leftmost-longest
	likes  map[string]bool // what like said of values
	number int             // MAX_PER, GROUP_BY
}

// newRule checks c. The error wraps ErrInvalid and names c.
func newRule(c Constraint) (*rule, error) {
	invalid := func(format string, args ...any) (*rule, error) {
		return nil, fmt.Errorf("%w constraint %q: %w", ErrInvalid, c, fmt.Errorf(format, args...))
	}
	if len(c.String()) > maxConstraint {
		return nil, fmt.Errorf("%w constraint %q…: longer than %d bytes", ErrInvalid, c.String()[:32], maxConstraint)
	}
	switch {
	case c.Attribute == "@"+hostnameAttribute:
		c.Attribute = hostnameAttribute
	case c.Attribute == "":
		return invalid("no attribute before the first colon")
	case strings.HasPrefix(c.Attribute, "@"):
		return invalid("%s is not supported; want hostname or the name of an agent attribute", c.Attribute)
	case strings.Contains(c.Attribute, ":") || strings.ContainsFunc(c.Attribute, notInName):
		return invalid("%q cannot be the name of an agent attribute", c.Attribute)
	}
	c.Operator = strings.ToUpper(c.Operator)
	r := new(rule)
	switch c.Operator {
	case opCluster:
	case opIs:
		if c.Value == "" {
			return invalid("IS needs a value")
		}
	case opUnique:
		if c.Value != "" {
			return invalid("UNIQUE takes no value")
		}
	case opLike, opUnlike:
		if c.Value == "" {
			return invalid("%s needs a regular expression", c.Operator)
		}
		like, err := regexp.Compile(c.Value)
		if err != nil {
			return invalid("%w (RE2 syntax: no look-around, no back-references)", err)
		}
		like.Longest()
		r.like, r.likes = like, make(map[string]bool)
	case opMaxPer, opGroupBy:
		if c.Value == "" && c.Operator == opGroupBy {
			break
		}
		n, err := strconv.Atoi(c.Value)
		if err != nil || n < 1 {
			return invalid("%s needs a whole number of at least 1, not %q", c.Operator, c.Value)
		}
		r.number = n
		c.Value = strconv.Itoa(n) // "+2" and "2" are one constraint
	case "":
		return invalid("no operator; want %s", operatorNames)
	default:
		return invalid("unknown operator %q; want %s", c.Operator, operatorNames)
	}
	r.Constraint, r.key = c, c.String()
	return r, nil
}

func notInName(r rune) bool {
	return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == unicode.ReplacementChar
}

// counts reports whether r looks at where other builds are.
func (r *rule) counts() bool {
	switch r.Operator {
	case opCluster:
		return r.Value == ""
	case opGroupBy, opMaxPer, opUnique:
		return true
	}
	return false
}

// maxLikes bounds the memory of rule.likes: more values than agents of a large
// cluster have.
const maxLikes = 1 << 14

// matches reports whether all of value matches r.like. Java's String.matches,
// which Marathon uses, is anchored at both ends.
func (r *rule) matches(value string) bool {
	known, ok := r.likes[value]
	if ok {
		return known
	}
	// The leftmost-longest match is all of value if any match is. Anchors put
	// around the text of the expression would not do: they bind to what is left
	// of an unclosed \Q.
	at := r.like.FindStringIndex(value)
	match := at != nil && at[0] == 0 && at[1] == len(value)
	if len(r.likes) < maxLikes {
		r.likes[value] = match
	}
	return match
}

// decimal is the form of a scalar attribute.
var decimal = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

// sameValue reports whether an attribute has the wanted value. An agent keeps a
// number as a scalar of three decimals, however its operator wrote it.
func sameValue(have, want string) bool {
	if have == want {
		return true
	}
	if !decimal.MatchString(want) {
		return false
	}
	h, err1 := strconv.ParseFloat(have, 64)
	w, err2 := strconv.ParseFloat(want, 64)
	return err1 == nil && err2 == nil && math.Round(h*1000) == math.Round(w*1000)
}

// rules are the constraints of a build. Lists that say the same are one rules,
// so pointers may be compared. A nil *rules constrains nothing.
type rules struct {
	list []*rule
}

// A placed knows which values of attributes the live builds hold, by constraint.
// It belongs to one goroutine, and so do the rules it makes.
type placed struct {
	known   map[string]*rules // by the keys of their list
	tallies map[string]*tally // by rule.key
}

func newPlaced() *placed {
	return &placed{known: make(map[string]*rules), tallies: make(map[string]*tally)}
}

// A tally counts the builds of one constraint by value.
type tally struct {
	builds map[string]int // never 0
	sizes  map[int]int    // how many values have so many builds; never 0
	least  int            // the smallest key of sizes; 0 if there is none
	epoch  uint64         // grows when an offer that was refused may be good now
}

func (t *tally) add(value string, by int) {
	before := t.builds[value]
	after := before + by
	if after < 0 {
		panic(fmt.Sprintf("constraint: value %q released more often than taken", value))
	}
	t.resize(before, -1)
	t.resize(after, 1)
	if after == 0 {
		delete(t.builds, value)
	} else {
		t.builds[value] = after
	}
	switch {
	case after > 0 && (t.least == 0 || after < t.least):
		t.least = after
	case t.sizes[t.least] == 0:
		t.least = 0
		for size := range t.sizes {
			if t.least == 0 || size < t.least {
				t.least = size
			}
		}
	}
}

func (t *tally) resize(size, by int) {
	if size == 0 {
		return
	}
	if t.sizes[size] += by; t.sizes[size] == 0 {
		delete(t.sizes, size)
	}
}

// maxKnown bounds the memory of placed for programs that make constraints up
// for every build.
const maxKnown = 1 << 12

// forget drops what no live build needs. Rules in use stay valid, only equal
// ones made later have another pointer.
func (p *placed) forget() {
	clear(p.known)
	maps.DeleteFunc(p.tallies, func(_ string, t *tally) bool { return len(t.builds) == 0 })
}

// compile checks constraints. It returns nil for an empty list. The error wraps
// ErrInvalid.
func (p *placed) compile(constraints []Constraint) (*rules, error) {
	list := make([]*rule, 0, len(constraints))
	for _, c := range constraints {
		r, err := newRule(c)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *rule) int { return strings.Compare(a.key, b.key) })
	list = slices.CompactFunc(list, func(a, b *rule) bool { return a.key == b.key })
	if len(list) == 0 {
		return nil, nil
	}
	var text strings.Builder
	for _, r := range list {
		fmt.Fprintf(&text, "%q", r.key)
	}
	if known := p.known[text.String()]; known != nil {
		return known, nil
	}
	if len(p.known) >= maxKnown {
		p.forget()
	}
	rs := &rules{list: list}
	p.known[text.String()] = rs
	return rs, nil
}

// values returns what an attempt on o holds: the values of the attributes that
// rs counts. It is all that add and remove need, also in a later life of the
// framework. It is nil if there is nothing to hold.
func (rs *rules) values(o *Offer) map[string]string {
	if rs == nil {
		return nil
	}
	var values map[string]string
	for _, r := range rs.list {
		if !r.counts() {
			continue
		}
		if value, ok := attributeOf(o, r.Attribute); ok {
			if values == nil {
				values = make(map[string]string)
			}
			values[r.Attribute] = value
		}
	}
	return values
}

func attributeOf(o *Offer, name string) (value string, ok bool) {
	if name == hostnameAttribute {
		return o.Hostname, true
	}
	value, ok = o.Attributes[name]
	return value, ok
}

// add counts an attempt of a build with rs that holds values.
func (p *placed) add(rs *rules, values map[string]string) { p.count(rs, values, 1) }

// remove undoes add, when the attempt has ended.
func (p *placed) remove(rs *rules, values map[string]string) { p.count(rs, values, -1) }

func (p *placed) count(rs *rules, values map[string]string, by int) {
	if rs == nil {
		return
	}
	for _, r := range rs.list {
		value, ok := values[r.Attribute]
		if !ok || !r.counts() {
			continue
		}
		t := p.tallies[r.key]
		if t == nil {
			t = &tally{builds: make(map[string]int), sizes: make(map[int]int)}
			p.tallies[r.key] = t
		}
		t.add(value, by)
		if by < 0 || r.Operator == opGroupBy {
			t.epoch++ // what else is added only narrows the choice
		}
	}
}

// clone returns a copy that may be changed on its own, to try placements out. It
// shares the rules.
func (p *placed) clone() *placed {
	c := &placed{known: p.known, tallies: make(map[string]*tally, len(p.tallies))}
	for k, t := range p.tallies {
		c.tallies[k] = &tally{builds: maps.Clone(t.builds), sizes: maps.Clone(t.sizes), least: t.least, epoch: t.epoch}
	}
	return c
}

// epoch is a number that is the same as long as what check refused for rs is
// still refused: a build that found no place need not be tried again, nor one
// with the same rules that needs no less. It holds between two calls of compile.
func (p *placed) epoch(rs *rules) uint64 {
	var sum uint64
	if rs != nil {
		for _, r := range rs.list {
			if t := p.tallies[r.key]; t != nil {
				sum += t.epoch
			}
		}
	}
	return sum
}

// A refusal is why an offer must not be used for a build. The zero refusal is
// none.
type refusal struct {
	rule   *rule
	value  string // of the agent
	has    bool   // whether it has one
	builds int    // that are on value already
	least  int    // builds on the value that has least
	values int    // values that have builds
	other  string // the value that they are on, for CLUSTER
}

// refused reports whether there is a reason.
func (f refusal) refused() bool { return f.rule != nil }

// constraint is the one that was not met, "" if all were.
func (f refusal) constraint() string {
	if f.rule == nil {
		return ""
	}
	text := f.rule.Attribute + " " + f.rule.Operator
	if f.rule.Value != "" {
		text += " " + f.rule.Value
	}
	return text
}

// String names the constraint and what the agent has instead:
// "rack LIKE r[12]: agent has rack=r3".
func (f refusal) String() string {
	if f.rule == nil {
		return ""
	}
	name := f.rule.Attribute
	has := "agent has " + name + "=" + f.value
	if !f.has {
		return f.constraint() + ": agent has no " + name
	}
	switch f.rule.Operator {
	case opUnique, opMaxPer:
		return fmt.Sprintf("%s: %s=%s has %s", f.constraint(), name, f.value, plural(f.builds, "build"))
	case opGroupBy:
		if f.builds == f.least {
			return fmt.Sprintf("%s: %s=%s has %s, and only %s of %s any",
				f.constraint(), name, f.value, plural(f.builds, "build"), plural(f.values, "value"), name)
		}
		return fmt.Sprintf("%s: %s=%s has %s, another value %d", f.constraint(), name, f.value, plural(f.builds, "build"), f.least)
	case opCluster:
		if f.rule.Value == "" {
			return fmt.Sprintf("%s: %s, other builds have %s=%s", f.constraint(), has, name, f.other)
		}
	}
	return f.constraint() + ": " + has
}

// check returns the first reason why a build with rs must not be placed on o. It
// costs a few look-ups a constraint, however many builds and agents there are.
func (p *placed) check(rs *rules, o *Offer) refusal {
	if rs == nil {
		return refusal{}
	}
	for _, r := range rs.list {
		value, has := attributeOf(o, r.Attribute)
		if !has {
			if r.Operator == opUnlike {
				continue
			}
			return refusal{rule: r}
		}
		if f := p.checkRule(r, value); f.refused() {
			return f
		}
	}
	return refusal{}
}

// checkRule evaluates one constraint for an agent with this value.
func (p *placed) checkRule(r *rule, value string) refusal {
	no := refusal{rule: r, value: value, has: true}
	switch r.Operator {
	case opLike, opUnlike:
		if r.matches(value) != (r.Operator == opLike) {
			return no
		}
		return refusal{}
	case opIs:
		if !sameValue(value, r.Value) {
			return no
		}
		return refusal{}
	case opCluster:
		if r.Value != "" {
			if !sameValue(value, r.Value) {
				return no
			}
			return refusal{}
		}
	}
	t := p.tallies[r.key]
	if t == nil {
		return refusal{}
	}
	no.builds, no.least, no.values = t.builds[value], t.least, len(t.builds)
	switch r.Operator {
	case opCluster:
		if no.values == 0 || no.builds > 0 {
			return refusal{}
		}
		for other := range t.builds { // one, as a rule
			if no.other == "" || other < no.other {
				no.other = other
			}
		}
	case opUnique:
		if no.builds == 0 {
			return refusal{}
		}
	case opMaxPer:
		if no.builds < r.number {
			return refusal{}
		}
	case opGroupBy:
		// As Marathon does: a value that is new is good; one that is not must be
		// among those that have least, and as many values must be in use as the
		// constraint says there are.
		if no.builds == 0 || no.builds == no.least && no.values >= r.number {
			return refusal{}
		}
	}
	return no
}
