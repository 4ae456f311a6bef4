package testmesos

import (
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// A reply is an HTTP response that is not a stream.
type reply struct {
	status int
	text   string
	header map[string]string
}

func badRequest(format string, args ...any) *reply {
	return &reply{status: http.StatusBadRequest, text: fmt.Sprintf(format, args...)}
}

func forbidden(format string, args ...any) *reply {
	return &reply{status: http.StatusForbidden, text: fmt.Sprintf(format, args...)}
}

func accepted() *reply { return &reply{status: http.StatusAccepted} }

func unavailable(text string) *reply {
	return &reply{status: http.StatusServiceUnavailable, text: text}
}

func methodNotAllowed(method string) *reply {
	return &reply{
		status: http.StatusMethodNotAllowed,
		text:   "405 Method Not Allowed. Expecting one of { 'POST' }, but received '" + method + "'.",
		header: map[string]string{"Allow": "POST"},
	}
}

// write sends the reply. Replies without a text have no Content-Type, as
// those of libprocess.
func (r *reply) write(w http.ResponseWriter) {
	h := w.Header()
	for k, v := range r.header {
		h.Set(k, v)
	}
	h.Set("Content-Length", strconv.Itoa(len(r.text)))
	if r.text != "" || r.status == http.StatusNotFound {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		h["Content-Type"] = nil
	}
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.text)
}

// writeMessage answers 200 with a message in the given type.
func writeMessage(w http.ResponseWriter, contentType string, m message) {
	var body []byte
	if contentType == typeJSON {
		body = appendJSON(nil, m)
	} else {
		var err error
		if body, err = m.Marshal(); err != nil {
			(&reply{status: http.StatusInternalServerError, text: err.Error()}).write(w)
			return
		}
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// maxBody bounds the body of a call.
const maxBody = 256 << 20

// An api holds the texts in which the three call APIs differ.
type api struct {
	kind         string // as in "Failed to validate scheduler::Call"
	contentTypes string // the types named in 415
	acceptTypes  string // the types named in 406
	bareMissing  bool   // missing fields are not prefixed with "Failed to convert …"
}

var (
	schedulerAPI = api{kind: "scheduler::Call", contentTypes: typeJSON + " or " + typeProtobuf,
		acceptTypes: "'" + typeProtobuf + "' or '" + typeJSON + "'"}
	executorAPI = api{kind: "Executor::Call", contentTypes: typeJSON + " or " + typeProtobuf,
		acceptTypes: "'" + typeProtobuf + "' or '" + typeJSON + "'"}
	agentAPI = api{kind: "agent::Call", contentTypes: typeJSON + " or " + typeProtobuf + " or " + typeRecordIO,
		acceptTypes: typeJSON + " or " + typeProtobuf + " or " + typeRecordIO, bareMissing: true}
)

// readCall checks method and type of a request and decodes its body.
func (a api) readCall(r *http.Request, call message) (typed bool, refusal *reply) {
	if r.Method != http.MethodPost {
		return false, methodNotAllowed(r.Method)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return false, badRequest("Failed to read the body: %v", err)
	}
	contentType := r.Header.Get("Content-Type")
	switch contentType {
	case "":
		return false, badRequest("Expecting 'Content-Type' to be present")
	case typeProtobuf:
		typed, err := unmarshalProtobuf(body, call, "type")
		if err != nil {
			return false, badRequest("Failed to parse body into Call protobuf")
		}
		return typed, nil
	case typeJSON:
		value, err := parseJSON(body)
		if err != nil {
			return false, badRequest("Failed to parse body into JSON: %v", err)
		}
		typed, err := unmarshalJSON(value, call, "type")
		if err != nil {
			if a.bareMissing {
				return false, badRequest("%v", err)
			}
			return false, badRequest("Failed to convert JSON into Call protobuf: %v", err)
		}
		return typed, nil
	}
	return false, &reply{
		status: http.StatusUnsupportedMediaType,
		text:   "Expecting 'Content-Type' of " + a.contentTypes,
	}
}

// accept chooses the type of the response; JSON is preferred.
func (a api) accept(r *http.Request) (string, *reply) {
	for _, t := range []string{typeJSON, typeProtobuf} {
		if accepts(r, t) {
			return t, nil
		}
	}
	return "", &reply{status: http.StatusNotAcceptable, text: "Expecting 'Accept' to allow " + a.acceptTypes}
}

// accepts tells whether a request's Accept header allows a type.
func accepts(r *http.Request, mediaType string) bool {
	headers := r.Header.Values("Accept")
	if len(headers) == 0 {
		return true
	}
	major, _, _ := strings.Cut(mediaType, "/")
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if q := strings.ReplaceAll(params, " ", ""); q == "q=0" || q == "q=0.0" {
			continue
		}
		if slices.Contains([]string{mediaType, major + "/*", "*/*"}, strings.TrimSpace(name)) {
			return true
		}
	}
	return false
}

// authenticate checks the basic authentication of a request against a map of
// principals and secrets; no map means no authentication.
func authenticate(r *http.Request, credentials map[string]string, realm string) (principal string, refusal *reply) {
	if len(credentials) == 0 {
		return "", nil
	}
	user, secret, ok := r.BasicAuth()
	want, known := credentials[user]
	if ok && known && subtle.ConstantTimeCompare([]byte(secret), []byte(want)) == 1 {
		return user, nil
	}
	return "", unauthorized(`Basic realm="` + realm + `"`)
}

func unauthorized(challenge string) *reply {
	return &reply{
		status: http.StatusUnauthorized,
		text:   "401 Unauthorized.",
		header: map[string]string{"WWW-Authenticate": challenge},
	}
}
