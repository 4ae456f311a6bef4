package agentrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/engine"
	"github.com/org/portainer/internal/staging"
	"github.com/org/portainer/internal/wire"
)

// outputs keeps what an attempt writes in the staging bucket.
type outputs struct {
	store  *staging.Store
	prefix string // of the keys of the attempt

	mu   sync.Mutex
	kept []wire.Delivered
}

// openOutputs returns nil for a task without outputs that go there, and what gives the
// bucket back.
func openOutputs(ctx context.Context, t *wire.Task) (*outputs, func() error, error) {
	if t.Delivery == nil {
		return nil, func() error { return nil }, nil
	}
	bucket, err := blob.OpenBucket(ctx, t.Delivery.BucketURL)
	if err != nil {
		return nil, nil, saveError(ctx, fmt.Errorf("open the staging bucket: %w", err))
	}
	return &outputs{store: staging.New(bucket), prefix: t.Delivery.Prefix + strconv.Itoa(t.Attempt) + "-"}, bucket.Close, nil
}

// save is the engine.SaveFunc of the attempt; nil if there is nowhere to save.
func (o *outputs) save() engine.SaveFunc {
	if o == nil {
		return nil
	}
	return func(ctx context.Context, index int, r io.Reader) error {
		in := &errReader{r: r}
		got, err := o.store.PutOutput(ctx, o.prefix+strconv.Itoa(index), in)
		if err != nil {
			if in.err != nil {
				return in.err
			}
			return saveError(ctx, err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.kept = slices.DeleteFunc(o.kept, func(old wire.Delivered) bool { return old.Output == index }) // the last one counts
		o.kept = append(o.kept, wire.Delivered{Output: index, Key: got.Key, Size: got.Size, Digest: got.Digest})
		return nil
	}
}

// delivered is what was saved.
func (o *outputs) delivered() []wire.Delivered {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept
}

// saveError makes the error of a bucket that cannot be written. That an agent may not
// write it is so on every agent, all else may be this agent's trouble.
func saveError(ctx context.Context, err error) error {
	class := portainer.ClassLost
	if gcerrors.Code(err) == gcerrors.PermissionDenied || errors.Is(err, os.ErrPermission) {
		class = portainer.ClassStaging
	}
	if ctx.Err() != nil {
		class, err = portainer.ClassCancelled, errors.Join(err, context.Cause(ctx))
	}
	return &portainer.BuildError{Phase: portainer.PhaseOutput, Class: class, Err: fmt.Errorf("save an output: %w", err)}
}

// outputsOf are the outputs of a task as the engine is asked for them.
func outputsOf(t *wire.Task) []portainer.Output {
	var list []portainer.Output
	for _, o := range t.Outputs {
		list = append(list, portainer.Output{Type: o.Type, Attrs: o.Attrs})
	}
	return list
}
