package hdfsblob

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// How a key becomes a path. Every component between slashes is a name of its own,
// so a slash of the key is a slash of the path, and the order of keys follows from
// the order within directories.
//
// In a name these stand for themselves: letters and digits of any script, and
// - . _ ~ = @ and the comma. HDFS itself refuses few characters (the colon, for one),
// but paths travel in URLs through two servers, which have disagreed about several
// (Hadoop's HDFS-13176, HDFS-14323, HDFS-14423). Further escaped are a dot that begins
// a name, which keeps clear of "..", .snapshot and of our own uploads, and what would
// look like an escape. The empty name, as between two slashes, is __0x__.
const (
	escapeBegin = "__0x"
	escapeEnd   = "__"
	emptyName   = escapeBegin + escapeEnd
)

// escapeName returns the file name for one component of a key.
func escapeName(s string) string {
	if s == "" {
		return emptyName
	}
	var b strings.Builder
	for i, r := range s {
		if plain(r) && (r != '.' || i > 0) && !strings.HasPrefix(s[i:], escapeBegin) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "%s%x%s", escapeBegin, r, escapeEnd)
		}
	}
	return b.String()
}

func plain(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~=@,", r)
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r)
}

// unescapeName returns the component of a key that has that file name, and false if
// none has it.
func unescapeName(name string) (string, bool) {
	if name == emptyName {
		return "", true
	}
	var b strings.Builder
	for rest := name; rest != ""; {
		if after, ok := strings.CutPrefix(rest, escapeBegin); ok {
			digits, after, ok := strings.Cut(after, escapeEnd)
			r, err := strconv.ParseInt(digits, 16, 32)
			if !ok || err != nil {
				return "", false
			}
			b.WriteRune(rune(r))
			rest = after
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		b.WriteRune(r)
		rest = rest[size:]
	}
	s := b.String()
	return s, escapeName(s) == name && !strings.Contains(s, "/")
}

// escapePath returns the path, relative to the bucket's directory, of a key or of
// the directory part of one.
func escapePath(key string) string {
	names := strings.Split(key, "/")
	for i, name := range names {
		names[i] = escapeName(name)
	}
	return path.Join(names...)
}
