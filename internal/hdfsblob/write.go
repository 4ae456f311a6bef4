package hdfsblob

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"github.com/org/portainer/internal/pause"
)

// defaultBuffer is how much of a blob is kept to be sent again.
const defaultBuffer = 4 << 20

// cleanupTime is what removing a half-written file may take.
const cleanupTime = 5 * time.Second

// A writer writes a blob to a temporary file, which it renames in the end.
type writer struct {
	ctx      context.Context
	b        *bucket
	key      string
	path     string // of the blob
	attrs    *attributes
	notExist bool // the blob must not be there before

	limit int    // of head
	head  []byte // what is kept
	size  int64

	// attempts are what was sent. Each has its own file: a datanode that was given up may
	// still be about to empty one. The last succeeded if any did.
	attempts []*attempt

	// Once head is full the rest goes through a pipe to the goroutine that sends it.
	tail *io.PipeWriter
	done chan struct{}
	err  error // of the sending, once done is closed
}

func (b *bucket) NewTypedWriter(ctx context.Context, key, contentType string, opts *driver.WriterOptions) (driver.Writer, error) {
	a := &attributes{
		CacheControl:       opts.CacheControl,
		ContentDisposition: opts.ContentDisposition,
		ContentEncoding:    opts.ContentEncoding,
		ContentLanguage:    opts.ContentLanguage,
		ContentType:        contentType,
		Metadata:           maps.Clone(opts.Metadata),
	}
	return b.newWriter(ctx, key, a, opts)
}

func (b *bucket) newWriter(ctx context.Context, key string, a *attributes, opts *driver.WriterOptions) (*writer, error) {
	name, err := b.path(key)
	if err != nil {
		return nil, err
	}
	if opts.BeforeWrite != nil {
		if err := opts.BeforeWrite(func(any) bool { return false }); err != nil {
			return nil, err
		}
	}
	w := &writer{
		ctx:      ctx,
		b:        b,
		key:      key,
		path:     name,
		attrs:    a,
		notExist: opts.IfNotExist,
		limit:    opts.BufferSize,
	}
	if w.limit <= 0 {
		w.limit = defaultBuffer
	}
	return w, nil
}

func (w *writer) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, contextError(w.ctx)
	}
	w.size += int64(len(p))
	if w.tail == nil {
		if len(w.head)+len(p) <= w.limit {
			w.head = append(w.head, p...)
			return len(p), nil
		}
		tail, pipe := io.Pipe()
		w.tail, w.done = pipe, make(chan struct{})
		go func() {
			defer close(w.done)
			w.err = w.send(tail)
			tail.CloseWithError(w.err) // no Write waits for nobody
		}()
	}
	n, err := w.tail.Write(p)
	if err != nil {
		return n, describe(w.key, err)
	}
	return n, nil
}

// Close makes the blob of what was written, or nothing if the context is done.
func (w *writer) Close() error {
	var err error
	if w.ctx.Err() != nil {
		err = contextError(w.ctx)
	}
	switch {
	case w.tail != nil:
		// A sending that is to be whole ends with the pipe. Any other must see that it
		// is not.
		w.tail.CloseWithError(err)
		<-w.done
		err = w.err
	case err == nil:
		err = w.send(nil)
	default:
		return err // nothing was sent
	}
	if err == nil {
		err = w.commit()
	}
	if err == nil {
		w.discard(w.attempts[:len(w.attempts)-1]) // what cannot be removed is in nobody's way
		return nil
	}
	err = describe(w.key, err)
	if cleanupErr := w.discard(w.attempts); cleanupErr != nil {
		err = fmt.Errorf("%w; and what was written could not be removed: %w", err, cleanupErr)
	}
	return err
}

// send writes head, and tail if there is one, to the temporary file.
func (w *writer) send(tail *io.PipeReader) error {
	if err := w.b.ensureRoot(w.ctx); err != nil {
		return err
	}
	w.b.tidy(w.ctx)
	if w.notExist {
		// To know early; rename will look again.
		if _, err := w.b.stat(w.ctx, w.path); err == nil {
			return errorf(gcerrors.FailedPrecondition, "%s exists", w.path)
		} else if !isNotFound(err) {
			return err
		}
	}
	resp, err := w.b.transfer(w.ctx, request{method: http.MethodPut, op: "CREATE", path: w.path, params: url.Values{
		"overwrite":    {"false"},
		"createparent": {"false"}, // it was seen
	}}, func() (string, io.Reader, int64, error) {
		if n := len(w.attempts); n > 0 && !w.attempts[n-1].abandon() {
			return "", nil, 0, fmt.Errorf("more had been sent than the %d bytes that are kept to be sent again", w.limit)
		}
		a := &attempt{path: path.Join(w.b.root, uploadPrefix+rand.Text()), head: bytes.NewReader(w.head), tail: tail}
		w.attempts = append(w.attempts, a)
		if tail == nil {
			return a.path, a, int64(len(w.head)), nil
		}
		return a.path, a, -1, nil
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// commit gives the whole temporary file its name.
func (w *writer) commit() error {
	temporary := w.attempts[len(w.attempts)-1].path
	status, err := w.b.stat(w.ctx, temporary)
	if err != nil {
		return err
	}
	if status.Length != w.size {
		return fmt.Errorf("the cluster kept %d of %d bytes", status.Length, w.size)
	}
	if !w.attrs.isDefault() && !w.b.skipMetadata {
		if err := w.b.setAttributes(w.ctx, temporary, w.attrs); err != nil {
			return err
		}
	}
	const tries = 5 // someone may be removing empty directories
	for try := 1; ; try++ {
		err := w.b.rename(w.ctx, temporary, status, w.path, !w.notExist)
		switch {
		case err == nil:
			return nil
		case w.notExist && codeOf(err) == gcerrors.AlreadyExists:
			return errorf(gcerrors.FailedPrecondition, "%w", err)
		case try == tries:
			return err
		case errors.Is(err, errParentMissing):
			if err := w.b.mkdirs(w.ctx, path.Dir(w.path)); err != nil {
				return err
			}
		case !errors.Is(err, errTaken):
			return err
		}
	}
}

// discard removes the files of attempts.
func (w *writer) discard(attempts []*attempt) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), cleanupTime)
	defer cancel()
	for _, a := range attempts {
		if !a.wasRead() {
			continue // it got to no datanode
		}
		// A datanode that has just lost its client may be about to create the file.
		wait := firstBackoff / 2
		for try := 1; ; try++ {
			was, err := w.b.remove(ctx, a.path)
			if err != nil && !isNotFound(err) {
				return err
			}
			if was || try == 3 || pause.For(ctx, wait) != nil {
				break
			}
			wait *= 2
		}
	}
	return nil
}

// An attempt is the body of one request: what is kept, then the rest. One that was
// abandoned may still be read by package net/http, and must not take anything of the
// rest then.
type attempt struct {
	path string

	mu        sync.Mutex
	head      *bytes.Reader
	tail      *io.PipeReader // nil if head is all
	read      bool
	inTail    bool
	abandoned bool
}

func (a *attempt) Read(p []byte) (int, error) {
	a.mu.Lock()
	a.read = true
	if a.abandoned {
		a.mu.Unlock()
		return 0, errors.New("this attempt was given up")
	}
	if n, _ := a.head.Read(p); n > 0 || a.tail == nil {
		a.mu.Unlock()
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	a.inTail = true
	a.mu.Unlock()
	return a.tail.Read(p)
}

// abandon ends the attempt, and returns false if it is too late for another one.
func (a *attempt) abandon() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.abandoned = true
	return !a.inTail
}

// wasRead tells whether there was a connection to send it over.
func (a *attempt) wasRead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.read
}
