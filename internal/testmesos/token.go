package testmesos

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Executors authenticate with a JSON web token that names framework, executor
// and container (mesos docs/authentication.md#executor-authentication).

const executorRealm = "mesos-agent-executor"

// tokenClaims is the payload of a token.
type tokenClaims struct {
	Framework string `json:"fid"`
	Executor  string `json:"eid"`
	Container string `json:"cid"`
}

// executorToken makes the token of an executor.
func executorToken(key []byte, framework, executor, container string) string {
	payload, err := json.Marshal(tokenClaims{framework, executor, container})
	if err != nil {
		panic("testmesos: encode token: " + err.Error())
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." +
		base64.RawURLEncoding.EncodeToString(payload)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signToken(key, signed))
}

func signToken(key []byte, signed string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(signed))
	return h.Sum(nil)
}

// authenticateExecutor checks the token of a request.
func authenticateExecutor(r *http.Request, key []byte) (*tokenClaims, *reply) {
	refuse := func(why string) *reply {
		return unauthorized(fmt.Sprintf(`Bearer realm="%s", error="invalid_token", error_description="%s"`, executorRealm, why))
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return nil, unauthorized(`Bearer realm="` + executorRealm + `"`)
	}
	token, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return nil, refuse("Scheme '" + strings.SplitN(header, " ", 2)[0] + "' unrecognized")
	}
	dot := strings.LastIndexByte(token, '.')
	if dot < 0 {
		return nil, refuse("Invalid JWT: Expected 3 components in token, got 1")
	}
	signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil || !hmac.Equal(signature, signToken(key, token[:dot])) {
		return nil, refuse("Invalid JWT: Token signature does not match")
	}
	_, encoded, _ := strings.Cut(token[:dot], ".")
	payload, err := base64.RawURLEncoding.DecodeString(encoded)
	claims := &tokenClaims{}
	if err != nil || json.Unmarshal(payload, claims) != nil {
		return nil, refuse("Invalid JWT: Failed to parse payload")
	}
	return claims, nil
}

// check tells whether the token is the one of an executor.
func (t *tokenClaims) check(framework, executor, container string) error {
	switch {
	case t.Framework != framework:
		return says("Authenticated principal does not contain the correct framework ID")
	case t.Executor != executor:
		return says("Authenticated principal does not contain the correct executor ID")
	case t.Container != container:
		return says("Authenticated principal does not contain the correct container ID")
	}
	return nil
}
