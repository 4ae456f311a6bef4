package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"
)

const (
	// minSecret is the shortest secret that is masked: anything shorter is in
	// every other line by chance.
	minSecret = 4
	// minPart is the same for what is only a part of a secret, such as one line
	// of it, or another form of it.
	minPart = 8
	// maxPart is the length that longer ones are cut to. Where all of a secret
	// is written all of its parts are, and one that is wrapped or torn is found
	// as well.
	maxPart = 64
	// maxEmbedded is the longest secret that is looked for in the forms that it
	// takes within other data; a longer one is a file, not a password.
	maxEmbedded = 4 << 10
	// base64Line is where base64(1) begins another line.
	base64Line = 76
)

// values are the secrets of c as they are, and in the company in which
// protocols send them.
func (c Credentials) values() [][]byte {
	var values [][]byte
	for _, a := range c.Registries {
		for _, v := range []string{a.Password, a.IdentityToken, a.RegistryToken} {
			values = append(values, []byte(v))
		}
		if len(a.Password) >= minSecret {
			values = append(values, []byte(base64.StdEncoding.EncodeToString([]byte(a.Username+":"+a.Password))))
		}
	}
	for _, v := range c.Secrets {
		values = append(values, v)
	}
	for _, cert := range c.ClientCerts {
		values = append(values, keyBody(cert.Key))
	}
	if c.Daemon != nil {
		values = append(values, keyBody(c.Daemon.Key))
	}
	for _, place := range slices.Concat(c.CacheFrom, c.CacheTo) {
		_, secrets := RedactCache(place)
		for _, v := range secrets {
			values = append(values, []byte(v))
		}
	}
	return values
}

// keyBody is a private key in PEM form without the lines that all of them have.
func keyBody(pem []byte) []byte {
	var body [][]byte
	for line := range bytes.Lines(pem) {
		if !bytes.HasPrefix(line, []byte("-----")) {
			body = append(body, line)
		}
	}
	return bytes.Join(body, nil)
}

// forms calls add with every text under which secret may appear in a line of a
// log. What add gets may share memory with secret.
func forms(secret []byte, add func([]byte)) {
	whole := bytes.TrimSpace(secret)
	if len(whole) < minSecret {
		return
	}
	if !bytes.ContainsAny(whole, "\r\n") && len(whole) <= maxPart {
		add(whole)
	}
	for _, line := range bytes.FieldsFunc(whole, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = bytes.TrimSpace(line)
		if len(line) < minPart && tells(line) {
			add(line)
		}
		parts(line, maxPart, add)
	}
	if len(whole) <= maxEmbedded {
		embedded(whole, add)
	}
	// Encoded as a file, in lines, the last one with its padding.
	for _, file := range unequal(whole, secret) {
		encoded := []byte(base64.StdEncoding.EncodeToString(file))
		parts(encoded, base64Line, add)
		parts(encoded, maxPart, add)
	}
}

// embedded calls add with the forms that secret takes within other data.
func embedded(whole []byte, add func([]byte)) {
	escaped := jsonEscaped(whole, false)
	for _, form := range []string{
		escaped, jsonEscaped(whole, true),
		url.QueryEscape(string(whole)), lowerEscapes(url.QueryEscape(string(whole))),
		url.PathEscape(string(whole)), lowerEscapes(url.PathEscape(string(whole))),
	} {
		parts([]byte(form), maxPart, add)
	}
	for _, plain := range unequal(whole, []byte(escaped)) {
		for shift := range 3 {
			core := base64Core(plain, shift)
			parts(core, maxPart, add)
			parts(urlAlphabet(core), maxPart, add)
		}
	}
}

// tells reports whether a short line has enough in it to be looked for.
func tells(line []byte) bool {
	n := 0
	for _, r := range string(line) {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			n++
		}
	}
	return n >= minSecret
}

func unequal(a, b []byte) [][]byte {
	if bytes.Equal(a, b) {
		return [][]byte{a}
	}
	return [][]byte{a, b}
}

// parts calls add with pieces of text of at most size bytes, the last of which
// is a full one too. Texts too short or too plain to tell a secret are passed
// over.
func parts(text []byte, size int, add func([]byte)) {
	if len(text) < minPart {
		return
	}
	piece := func(p []byte) {
		if len(p) >= minPart && bytes.Count(p, p[:1]) < len(p) {
			add(p)
		}
	}
	for at := 0; at < len(text); at += size {
		piece(text[at:min(at+size, len(text))])
	}
	if len(text) > size {
		piece(text[len(text)-size:])
	}
}

// jsonEscaped is text within the quotes of a JSON string; with html, as encoders
// write it that escape what HTML would read.
func jsonEscaped(text []byte, html bool) string {
	var quoted strings.Builder
	enc := json.NewEncoder(&quoted)
	enc.SetEscapeHTML(html)
	if enc.Encode(string(text)) != nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(quoted.String(), `"`), "\"\n")
}

// lowerEscapes turns %2F into %2f.
func lowerEscapes(text string) string {
	b := []byte(text)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// base64Core returns the digits that stand for text alone in the base64 of
// something that has text at an offset of shift, modulo 3.
func base64Core(text []byte, shift int) []byte {
	encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), text...))
	first := (8*shift + 5) / 6            // digits with bits of what is ahead
	last := (8 * (shift + len(text))) / 6 // digits with none of what follows
	if first >= last {
		return nil
	}
	return []byte(encoded[first:last])
}

func urlAlphabet(digits []byte) []byte {
	return bytes.Map(func(r rune) rune {
		switch r {
		case '+':
			return '-'
		case '/':
			return '_'
		}
		return r
	}, digits)
}
