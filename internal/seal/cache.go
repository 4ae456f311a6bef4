package seal

import (
	"bytes"
	"encoding/csv"
	"slices"
	"strings"
)

// secretAttributes are those attributes of a place of cache that are not for
// everybody (buildkit cache/remotecache/s3, azblob and gha).
var secretAttributes = []string{"secret_access_key", "session_token", "token", "ghtoken"}

// RedactCache returns what may be shown of a place that a build's cache comes from
// or goes to, as "type=s3,bucket=b,secret_access_key=…", and the secrets in it.
func RedactCache(place string) (shown string, secrets []string) {
	fields, err := csv.NewReader(strings.NewReader(place)).Read()
	if err != nil {
		return place, nil // an engine cannot read it either
	}
	for i, field := range fields {
		name, value, ok := strings.Cut(field, "=")
		if ok && value != "" && slices.Contains(secretAttributes, strings.ToLower(strings.TrimSpace(name))) {
			secrets = append(secrets, value)
			fields[i] = name + "=" + redacted
		}
	}
	if len(secrets) == 0 {
		return place, nil
	}
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	_ = w.Write(fields) // a buffer takes everything
	w.Flush()
	return strings.TrimRight(out.String(), "\n"), secrets
}
