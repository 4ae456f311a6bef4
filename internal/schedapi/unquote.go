package schedapi

import (
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// unquote returns the bytes of a JSON string. Unlike encoding/json it keeps bytes
// that are not UTF-8, which agents pass through as they are: a log is bytes, and
// its offsets count them.
func unquote(s []byte) ([]byte, error) {
	errBad := errors.New("malformed string")
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return nil, errBad
	}
	s = s[1 : len(s)-1]
	out := make([]byte, 0, len(s))
	for len(s) > 0 {
		if s[0] != '\\' {
			out = append(out, s[0])
			s = s[1:]
			continue
		}
		if len(s) < 2 {
			return nil, errBad
		}
		c := s[1]
		s = s[2:]
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(s)
			if !ok {
				return nil, errBad
			}
			s = s[4:]
			if utf16.IsSurrogate(r) && len(s) >= 6 && s[0] == '\\' && s[1] == 'u' {
				if low, ok := hex4(s[2:]); ok {
					if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
						r = pair
						s = s[6:]
					}
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, errBad
		}
	}
	return out, nil
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s[:4]), 16, 16)
	return rune(n), err == nil
}
