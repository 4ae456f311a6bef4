package webhdfstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// An exception is a Java exception on its way to a client.
type exception struct {
	status  int
	class   string
	message string
}

func (e *exception) Error() string { return e.class + ": " + e.message }

// failure returns an exception with the status that Hadoop's ExceptionHandler gives
// its class.
func failure(class, format string, args ...any) error {
	status := http.StatusForbidden // of every IOException but one
	switch class {
	case "java.io.FileNotFoundException":
		status = http.StatusNotFound
	case "java.lang.IllegalArgumentException", "java.lang.UnsupportedOperationException", "org.apache.hadoop.HadoopIllegalArgumentException":
		status = http.StatusBadRequest
	case "org.apache.hadoop.security.authentication.client.AuthenticationException":
		status = http.StatusUnauthorized
	}
	return &exception{status, class, fmt.Sprintf(format, args...)}
}

func notFound(path string) error {
	return failure("java.io.FileNotFoundException", "File does not exist: %s", path)
}

func illegal(format string, args ...any) error {
	return failure("java.lang.IllegalArgumentException", format, args...)
}

func writeException(w http.ResponseWriter, err error) {
	e := (*exception)(nil)
	if !errors.As(err, &e) {
		e = &exception{http.StatusInternalServerError, "java.lang.RuntimeException", err.Error()}
	}
	class := e.class
	if !strings.Contains(class, ".") {
		class = "org.apache.hadoop." + class
	}
	writeJSON(w, e.status, map[string]any{"RemoteException": map[string]any{
		"exception":     class[strings.LastIndexAny(class, ".$")+1:],
		"javaClassName": class,
		"message":       e.message,
	}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
