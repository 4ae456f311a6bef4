package schedapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Errors to test for with errors.Is.
var (
	// ErrNotSubscribed reports a call that was not sent, for want of a
	// subscription.
	ErrNotSubscribed = errors.New("not subscribed")
	// ErrFailedOver reports that another scheduler subscribed with the same
	// framework ID. To subscribe again would only take it back, and so on for
	// ever.
	ErrFailedOver = errors.New("another scheduler took over the framework")
	// ErrRemoved reports a framework ID that the master has done with: torn down,
	// or disconnected for longer than its failover timeout.
	ErrRemoved = errors.New("the master has removed the framework")
	// ErrUnauthorized reports credentials that are wrong or missing.
	ErrUnauthorized = errors.New("wrong principal or secret")
)

// A RejectedError reports that the master will not have the framework. errors.Is
// finds ErrFailedOver, ErrRemoved or ErrUnauthorized in it where it is for one of
// these reasons.
type RejectedError struct {
	Master  string // host:port
	Message string // the master's words
	reason  error
}

func (e *RejectedError) Error() string {
	if e.reason != nil {
		return fmt.Sprintf("master %s: %v (%s)", e.Master, e.reason, e.Message)
	}
	return fmt.Sprintf("master %s refuses the framework: %s", e.Master, e.Message)
}

// Unwrap returns the reason, if it is a known one.
func (e *RejectedError) Unwrap() error { return e.reason }

// A StatusError reports an answer that is neither success nor redirection.
type StatusError struct {
	Call string
	Code int
	Body string // its beginning
}

// maxStatusBody is how much of an error's text is kept.
const maxStatusBody = 1 << 10

// newStatusError reads and closes the body of resp.
func newStatusError(call string, resp *http.Response) *StatusError {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxStatusBody)) // the status tells enough
	return &StatusError{Call: call, Code: resp.StatusCode, Body: strings.TrimSpace(string(body))}
}

func (e *StatusError) Error() string { return e.Call + ": " + e.text() }

func (e *StatusError) text() string {
	if e.Body == "" || strings.HasPrefix(e.Body, "<") { // a page of some proxy
		return fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code))
	}
	if strings.HasPrefix(e.Body, strconv.Itoa(e.Code)+" ") {
		return e.Body
	}
	return fmt.Sprintf("%d %s", e.Code, e.Body)
}

// final reports whether SUBSCRIBE would be answered like this again.
func (e *StatusError) final() bool {
	switch e.Code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden,
		http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return true
	}
	return false
}

func (e *StatusError) reason() error {
	if e.Code == http.StatusUnauthorized {
		return ErrUnauthorized
	}
	return nil
}

// withoutURL takes off the URL that net/http puts around an error: the caller
// names the host.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
