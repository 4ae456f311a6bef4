package staging

import (
	"regexp"
	"strings"

	"gocloud.dev/gcerrors"
)

// A storageError is an error of the storage in one line. Some services answer with
// pages, and gocloud repeats the key.
type storageError struct{ err error }

// told makes err fit to be shown.
func told(err error) error {
	if err == nil {
		return nil
	}
	return &storageError{err}
}

// keyPattern is what gocloud puts ahead of the error of a driver.
var keyPattern = regexp.MustCompile(`^blob( \(key ".*?"\))? \(code=\w+\): `)

func (e *storageError) Error() string {
	text := keyPattern.ReplaceAllString(e.err.Error(), "")
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '<' || strings.Trim(line, "-") == "" {
			if len(lines) > 0 && line != "" && line[0] == '<' {
				break // the page itself, of which the lines before tell what matters
			}
			continue
		}
		lines = append(lines, line)
	}
	text = strings.Join(lines, "; ")
	switch gcerrors.Code(e.err) {
	case gcerrors.NotFound:
		text = "not found: " + text
	case gcerrors.PermissionDenied:
		text = "permission denied: " + text
	}
	return text
}

func (e *storageError) Unwrap() error { return e.err }
