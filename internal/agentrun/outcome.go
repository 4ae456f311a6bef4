package agentrun

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/wire"
)

// failed is the outcome of an attempt that did not begin.
func failed(phase portainer.Phase, class portainer.Class, err error) *wire.Outcome {
	now := time.Now()
	return &wire.Outcome{Started: now, Ended: now, Failure: &wire.Failure{Class: string(class), Phase: string(phase), Message: err.Error()}}
}

// failure is the outcome that err means. What fails after the task was killed failed
// because of that.
func failure(ctx context.Context, err error) *wire.Outcome {
	f := &wire.Failure{Class: string(portainer.ClassLost), Phase: string(portainer.PhaseBuild), Message: err.Error()}
	var be *portainer.BuildError
	if errors.As(err, &be) {
		f.Class, f.Phase, f.Step, f.Line = string(be.Class), string(be.Phase), be.Step, be.Line
		if be.Err != nil {
			f.Message = be.Err.Error()
		}
	}
	if ctx.Err() != nil {
		f.Class, f.Step, f.Line, f.Message = string(portainer.ClassCancelled), "", 0, context.Cause(ctx).Error()
	}
	return &wire.Outcome{Failure: f}
}

// maxSummary bounds what masters and agents show in their state.
const maxSummary = 512

// summary is an outcome in one line, for people who look at the task in Mesos.
func summary(o *wire.Outcome) string {
	text := strings.Join(o.Refs, " ")
	if f := o.Failure; f != nil {
		text = f.Message
		if f.Step != "" {
			text = f.Step + ": " + text
		}
		text = f.Class + ": " + text
	}
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\n", " "), "?")
	if len(text) > maxSummary {
		text = strings.ToValidUTF8(text[:maxSummary], "") + "…"
	}
	return text
}
