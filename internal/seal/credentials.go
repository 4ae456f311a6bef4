package seal

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Credentials are the secrets of one build. However they are printed, logged or
// marshalled, only the names of what they hold are seen; Encode is the one way
// to the values. But fmt calls no methods on unexported fields: a struct that is
// ever printed must keep Credentials behind a pointer.
type Credentials struct {
	// Registries maps a registry as references name it, "host" or "host:port",
	// to what it wants. Docker Hub is "docker.io".
	Registries map[string]RegistryAuth
	// Secrets maps the id of a build secret (RUN --mount=type=secret,id=…) to
	// its value.
	Secrets map[string][]byte
	// ClientCerts maps registries to what they want to see of their clients.
	ClientCerts map[string]ClientCert
	// Daemon is what a given engine's daemon wants to see of its clients; nil for
	// nothing.
	Daemon *ClientCert
	// CacheFrom and CacheTo are the build's options of these names if they hold
	// secrets; nil means those of the task.
	CacheFrom, CacheTo []string
	// URLs maps the keys of staged objects to where they can be read for some time.
	// Nothing of them may get into a log: they are not masked.
	URLs map[string]string
}

// A ClientCert is a certificate and its private key, as PEM.
type ClientCert struct{ Cert, Key []byte }

// String says that there is one.
func (c ClientCert) String() string { return "client certificate " + redacted }

// Format is String whatever the verb.
func (c ClientCert) Format(s fmt.State, _ rune) { fmt.Fprint(s, c.String()) }

// GoString is String.
func (c ClientCert) GoString() string { return c.String() }

// LogValue is String.
func (c ClientCert) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String.
func (c ClientCert) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// A RegistryAuth is what a registry, or the token server it names, wants to see.
// The zero value is anonymous.
type RegistryAuth struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token; Username is empty or the one it
	// was given to.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
}

// redacted is what is shown in the place of secrets.
const redacted = "[redacted]"

// Empty reports whether there is nothing to be kept secret.
func (c Credentials) Empty() bool {
	return len(c.Registries)+len(c.Secrets)+len(c.ClientCerts)+len(c.CacheFrom)+len(c.CacheTo)+len(c.URLs) == 0 && c.Daemon == nil
}

// String names registries and secrets, and shows no value.
func (c Credentials) String() string {
	var parts []string
	for _, host := range slices.Sorted(maps.Keys(c.Registries)) {
		parts = append(parts, fmt.Sprintf("registry %s: %s", host, c.Registries[host]))
	}
	for _, id := range slices.Sorted(maps.Keys(c.Secrets)) {
		parts = append(parts, fmt.Sprintf("secret %s: %s", id, redacted))
	}
	for _, host := range slices.Sorted(maps.Keys(c.ClientCerts)) {
		parts = append(parts, fmt.Sprintf("registry %s: %s", host, c.ClientCerts[host]))
	}
	if c.Daemon != nil {
		parts = append(parts, fmt.Sprintf("engine: %s", c.Daemon))
	}
	if n := len(c.CacheFrom) + len(c.CacheTo); n > 0 {
		parts = append(parts, fmt.Sprintf("%d places of cache %s", n, redacted))
	}
	if n := len(c.URLs); n > 0 {
		parts = append(parts, fmt.Sprintf("URLs of %d staged objects %s", n, redacted))
	}
	if len(parts) == 0 {
		return "no credentials"
	}
	return strings.Join(parts, ", ")
}

// Format is String whatever the verb: others would print the fields.
func (c Credentials) Format(s fmt.State, _ rune) { fmt.Fprint(s, c.String()) }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

// LogValue is String.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String, and what encoding/json and its like use.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// String says how one authenticates, not with what.
func (a RegistryAuth) String() string {
	switch {
	case a == RegistryAuth{}:
		return "anonymous"
	case a.RegistryToken != "":
		return "bearer token " + redacted
	case a.IdentityToken != "":
		return "identity token " + redacted
	default:
		return fmt.Sprintf("user %q %s", a.Username, redacted)
	}
}

// Format is String whatever the verb.
func (a RegistryAuth) Format(s fmt.State, _ rune) { fmt.Fprint(s, a.String()) }

// GoString is String.
func (a RegistryAuth) GoString() string { return a.String() }

// LogValue is String.
func (a RegistryAuth) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText is String.
func (a RegistryAuth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// credentialsVersion grows when an older reader would misread a newer writer.
const credentialsVersion = 1

// The form in which credentials are sealed.
type (
	credentialsJSON struct {
		Version     int                         `json:"version"`
		Registries  map[string]registryAuthJSON `json:"registries,omitempty"`
		Secrets     map[string][]byte           `json:"secrets,omitempty"`
		ClientCerts map[string]clientCertJSON   `json:"client_certs,omitempty"`
		Daemon      *clientCertJSON             `json:"daemon,omitempty"`
		CacheFrom   []string                    `json:"cache_from,omitempty"`
		CacheTo     []string                    `json:"cache_to,omitempty"`
		URLs        []byte                      `json:"urls,omitempty"` // packed
	}
	clientCertJSON struct {
		Cert []byte `json:"cert"`
		Key  []byte `json:"key"`
	}
	registryAuthJSON struct {
		Username      string `json:"username,omitempty"`
		Password      string `json:"password,omitempty"`
		IdentityToken string `json:"identity_token,omitempty"`
		RegistryToken string `json:"registry_token,omitempty"`
	}
)

// Encode returns c with all its values, for Seal and nothing else.
func (c Credentials) Encode() ([]byte, error) {
	j := credentialsJSON{
		Version: credentialsVersion, Secrets: c.Secrets, Daemon: (*clientCertJSON)(c.Daemon),
		CacheFrom: c.CacheFrom, CacheTo: c.CacheTo,
	}
	if len(c.Registries) > 0 {
		j.Registries = make(map[string]registryAuthJSON, len(c.Registries))
		for host, a := range c.Registries {
			j.Registries[host] = registryAuthJSON(a)
		}
	}
	if len(c.ClientCerts) > 0 {
		j.ClientCerts = make(map[string]clientCertJSON, len(c.ClientCerts))
		for host, cert := range c.ClientCerts {
			j.ClientCerts[host] = clientCertJSON(cert)
		}
	}
	var err error
	if j.URLs, err = packURLs(c.URLs); err != nil {
		return nil, fmt.Errorf("encode credentials: %w", err)
	}
	data, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode credentials: %w", err)
	}
	return data, nil
}

// DecodeCredentials reads what Encode wrote. Its errors hold nothing of data.
func DecodeCredentials(data []byte) (Credentials, error) {
	var head struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(data, &head) != nil {
		return Credentials{}, errMalformed
	}
	if head.Version != credentialsVersion {
		return Credentials{}, fmt.Errorf("credentials have version %d, but this executor understands version %d: framework and executor must be of the same release",
			head.Version, credentialsVersion)
	}
	var j credentialsJSON
	if json.Unmarshal(data, &j) != nil {
		return Credentials{}, errMalformed
	}
	c := Credentials{
		Secrets: j.Secrets, Daemon: (*ClientCert)(j.Daemon), CacheFrom: j.CacheFrom, CacheTo: j.CacheTo,
	}
	if len(j.Registries) > 0 {
		c.Registries = make(map[string]RegistryAuth, len(j.Registries))
		for host, a := range j.Registries {
			c.Registries[host] = RegistryAuth(a)
		}
	}
	if len(j.ClientCerts) > 0 {
		c.ClientCerts = make(map[string]ClientCert, len(j.ClientCerts))
		for host, cert := range j.ClientCerts {
			c.ClientCerts[host] = ClientCert(cert)
		}
	}
	var err error
	c.URLs, err = unpackURLs(j.URLs)
	return c, err
}

// errMalformed stands for errors of encoding/json, which quote what they read.
var errMalformed = errors.New("malformed credentials")
