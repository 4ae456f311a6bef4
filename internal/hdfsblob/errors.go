package hdfsblob

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"gocloud.dev/gcerrors"
)

// A RemoteError is what a cluster answered instead of doing as it was asked.
// blob.Bucket.ErrorAs finds it.
type RemoteError struct {
	Status    int    // of HTTP
	Exception string // the Java class, without its package; empty if the answer names none
	Message   string // its first line
}

func (e *RemoteError) Error() string {
	switch {
	case e.Exception == "" && e.Message == "":
		return fmt.Sprintf("HTTP status %d %s", e.Status, http.StatusText(e.Status))
	case e.Exception == "":
		return fmt.Sprintf("HTTP status %d: %s", e.Status, e.Message)
	default:
		return e.Exception + ": " + e.Message
	}
}

// maxErrorBody is how much of an error's body is read.
const maxErrorBody = 64 << 10

// remoteError reads an error response.
func remoteError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return err
	}
	e := &RemoteError{Status: resp.StatusCode}
	var doc struct {
		RemoteException struct {
			Exception string `json:"exception"`
			Message   string `json:"message"`
		}
	}
	if json.Unmarshal(body, &doc) == nil && doc.RemoteException.Exception != "" {
		e.Exception, e.Message = doc.RemoteException.Exception, doc.RemoteException.Message
	} else {
		if !strings.Contains(resp.Header.Get("Content-Type"), "html") {
			e.Message = string(body)
		}
		if resp.StatusCode == http.StatusNotFound && strings.TrimSpace(e.Message) == "" {
			e.Message = "not found, and not by WebHDFS: the address must be that of a namenode's web server, with dfs.webhdfs.enabled"
		}
	}
	// Hadoop's messages often go on with a stack trace.
	e.Message, _, _ = strings.Cut(strings.TrimSpace(e.Message), "\n")
	return e
}

// exception returns the name of the Java exception in err, or "".
func exception(err error) string {
	if e := (*RemoteError)(nil); errors.As(err, &e) {
		return e.Exception
	}
	return ""
}

func isNotFound(err error) bool { return codeOf(err) == gcerrors.NotFound }

// A codedError is an error of ours with the class that it has for callers.
type codedError struct {
	code gcerrors.ErrorCode
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func errorf(code gcerrors.ErrorCode, format string, args ...any) error {
	return &codedError{code, fmt.Errorf(format, args...)}
}

// errStalled is why a request ends in which nothing moved for Options.StallTimeout.
var errStalled = errors.New("no progress")

// codeOf classes an error. Hadoop answers most of its exceptions with 403
// (org.apache.hadoop.hdfs.web.resources.ExceptionHandler), so the class decides, not
// the status.
func codeOf(err error) gcerrors.ErrorCode {
	if e := (*codedError)(nil); errors.As(err, &e) {
		return e.code
	}
	switch {
	case errors.Is(err, context.Canceled):
		return gcerrors.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return gcerrors.DeadlineExceeded
	}
	e := (*RemoteError)(nil)
	if !errors.As(err, &e) {
		return gcerrors.Unknown
	}
	switch e.Exception {
	case "FileNotFoundException":
		return gcerrors.NotFound
	case "AccessControlException", "AuthorizationException", "AuthenticationException", "SecurityException", "InvalidToken":
		return gcerrors.PermissionDenied
	case "FileAlreadyExistsException":
		return gcerrors.AlreadyExists
	case "ParentNotDirectoryException", "PathIsNotEmptyDirectoryException", "SafeModeException", "StandbyException":
		return gcerrors.FailedPrecondition
	case "NSQuotaExceededException", "DSQuotaExceededException", "QuotaExceededException", "QuotaByStorageTypeExceededException",
		"MaxDirectoryItemsExceededException", "DiskOutOfSpaceException":
		return gcerrors.ResourceExhausted
	case "IllegalArgumentException", "HadoopIllegalArgumentException", "InvalidPathException", "PathComponentTooLongException":
		return gcerrors.InvalidArgument
	case "UnsupportedOperationException":
		return gcerrors.Unimplemented
	}
	switch {
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden && e.Exception == "":
		return gcerrors.PermissionDenied
	case e.Status >= http.StatusInternalServerError:
		return gcerrors.Internal
	}
	return gcerrors.Unknown
}

// What to do about an error of one attempt.
type remedy int

const (
	giveUp    remedy = iota
	tryAgain         // at the same namenode
	tryOthers        // at the next namenode
)

func remedyFor(err error) remedy {
	if e := (*codedError)(nil); errors.As(err, &e) {
		return giveUp
	}
	if e := (*RemoteError)(nil); errors.As(err, &e) {
		switch e.Exception {
		case "StandbyException", "ObserverRetryOnActiveException":
			return tryOthers
		case "RetriableException", "SafeModeException", "ServerTooBusyException":
			return tryAgain
		}
		switch {
		case e.Status == http.StatusTooManyRequests:
			return tryAgain
		case e.Status >= http.StatusInternalServerError && e.Status != http.StatusNotImplemented:
			return tryOthers
		}
		return giveUp
	}
	if e := (*tls.CertificateVerificationError)(nil); errors.As(err, &e) {
		return giveUp
	}
	// The connection, or what came over it.
	return tryOthers
}

// neverSent tells whether err says that no request ever got to the server.
func neverSent(err error) bool {
	e := (*net.OpError)(nil)
	return errors.As(err, &e) && e.Op == "dial"
}

// withoutURL takes the URL out of an error of package net/http: it holds the token.
func withoutURL(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
