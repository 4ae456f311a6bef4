package staging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/pause"
)

// How often, and after which pause, something is tried again. The pauses double.
const (
	retries    = 6
	retryFirst = 100 * time.Millisecond
)

// A trial is something that is tried again while the bucket fails.
type trial struct {
	failures int // since anything came of it
}

// again reports whether to try once more after err, and pauses before. progress tells
// that something has come of the last time.
func (t *trial) again(ctx context.Context, err error, progress bool) bool {
	if progress {
		t.failures = 0
	}
	t.failures++
	if ctx.Err() != nil || t.failures >= retries || !retriable(err) {
		return false
	}
	return pause.For(ctx, retryFirst<<(t.failures-1)) == nil
}

// retriable reports whether trying again may mend err, an error of the bucket.
func retriable(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.retriable()
	}
	if final := (*refusal)(nil); errors.As(err, &final) {
		return false
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound, gcerrors.PermissionDenied, gcerrors.InvalidArgument, gcerrors.Unimplemented, gcerrors.FailedPrecondition:
		return false
	}
	return !errors.Is(err, os.ErrPermission) && !errors.Is(err, errNoSpace)
}

// stallTime is how long a connection may bring nothing. Then there may be a better one.
const stallTime = time.Minute

var errStalled = fmt.Errorf("nothing came for %v", stallTime)

// A stall watches over one connection: its context ends when nothing has come for
// stallTime while something was waited for.
type stall struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// watchStall begins with the waiting for an answer. The caller calls end.
func watchStall(ctx context.Context) (context.Context, *stall) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &stall{ctx, cancel, time.AfterFunc(stallTime, func() { cancel(errStalled) })}
}

// reader is r, watched over. Between its reads nothing is waited for.
func (s *stall) reader(r io.Reader) io.Reader {
	s.timer.Stop()
	return &stallReader{r, s.timer}
}

// end ends the connection's context. It returns err, or why it really is.
func (s *stall) end(err error) error {
	s.timer.Stop()
	if err != nil && errors.Is(context.Cause(s.ctx), errStalled) {
		err = errStalled
	}
	s.cancel(nil)
	return err
}

type stallReader struct {
	r     io.Reader
	timer *time.Timer
}

func (s *stallReader) Read(b []byte) (int, error) {
	s.timer.Reset(stallTime)
	defer s.timer.Stop()
	return s.r.Read(b)
}
