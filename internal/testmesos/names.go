package testmesos

import (
	"crypto/rand"
	"fmt"
	"strings"
	"time"
)

// newUUID returns a random UUID (RFC 4122, version 4).
func newUUID() [16]byte {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func uuidString(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// validUUID tells whether b is a UUID that Mesos takes: 16 bytes with a known
// version and the variant of RFC 4122 (mesos 3rdparty/stout/include/stout/uuid.hpp).
func validUUID(b []byte) bool {
	if len(b) != 16 {
		return false
	}
	version := b[6] >> 4
	return b[8]&0xc0 == 0x80 && version >= 1 && version <= 5
}

// says makes an error whose text is one of Mesos's, capital letters, full stops
// and all.
func says(format string, args ...any) error { return fmt.Errorf(format, args...) }

// validateID checks the id of a framework, a task or an executor.
func validateID(id string) error {
	switch {
	case id == "":
		return says("ID must not be empty")
	case len(id) > 255:
		return says("ID must not be greater than 255 characters")
	case id == "." || id == "..":
		return says("'%s' is disallowed", id)
	}
	for i := range len(id) {
		if c := id[i]; c < ' ' || c == 0x7f || c == '/' || c == '\\' {
			return says("'%s' contains invalid characters", id)
		}
	}
	return nil
}

// validateRole checks the name of a role (mesos docs/roles.md#invalid-role-names).
func validateRole(role string) error {
	switch {
	case role == "*":
		return nil
	case role == "":
		return says("Role names cannot be the empty string")
	case strings.HasPrefix(role, "/"):
		return says("Role '%s' cannot start with a slash", role)
	case strings.HasSuffix(role, "/"):
		return says("Role '%s' cannot end with a slash", role)
	case strings.Contains(role, "//"):
		return says("Role '%s' cannot contain two adjacent slashes", role)
	}
	for part := range strings.SplitSeq(role, "/") {
		switch {
		case part == "." || part == ".." || part == "*":
			return says("Role '%s' cannot include '%s' as a component", role, part)
		case strings.HasPrefix(part, "-"):
			return says("Role component '%s' is invalid because it starts with a dash", part)
		case strings.ContainsAny(part, "\t\n\v\f\r \x7f\b"):
			return says("Role component '%s' is invalid because it contains backspace or whitespace", part)
		}
	}
	return nil
}

// inRole tells whether resources reserved to a role may go to another: they
// may if it is the same or below it.
func inRole(reserved, role string) bool {
	return reserved == "*" || reserved == role || strings.HasPrefix(role, reserved+"/")
}

// formatDuration prints a duration the way Mesos does: a whole number of the
// largest unit that fits, such as 5secs, 15mins or 90secs (mesos
// 3rdparty/stout/include/stout/duration.hpp).
func formatDuration(d time.Duration) string {
	units := []struct {
		name string
		unit time.Duration
	}{
		{"weeks", 7 * 24 * time.Hour}, {"days", 24 * time.Hour}, {"hrs", time.Hour}, {"mins", time.Minute},
		{"secs", time.Second}, {"ms", time.Millisecond}, {"us", time.Microsecond},
	}
	for _, u := range units {
		if (d >= u.unit || d <= -u.unit) && d%u.unit == 0 {
			return fmt.Sprintf("%d%s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%dns", d)
}
