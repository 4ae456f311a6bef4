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
)

// defaultBuffer is how much of a blob is kept to be sent again.
const defaultBuffer = 4 << 20

// cleanupTime is what removing a half-written file may take.
const cleanupTime = 5 * time.Second

// A writer writes a blob to a temporary file, which it renames in the end.
type writer struct {
	ctx       context.Context
	b         *bucket
	key       string
	path      string // of the blob
	temporary string
	attrs     *attributes
	notExist  bool // the blob must not be there before

	limit int    // of head
	head  []byte // what is kept
	size  int64
	sent  bool // there may be a temporary file

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
		ctx:       ctx,
		b:         b,
		key:       key,
		path:      name,
		temporary: path.Join(b.root, uploadPrefix+rand.Text()),
		attrs:     a,
		notExist:  opts.IfNotExist,
		limit:     opts.BufferSize,
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
		return nil
	}
	err = describe(w.key, err)
	if !w.sent {
		return err
	}
	if cleanupErr := w.discard(); cleanupErr != nil {
		err = fmt.Errorf("%w; and what was written is left in %s: %w", err, w.temporary, cleanupErr)
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
	var last *replay
	resp, err := w.b.transfer(w.ctx, request{method: http.MethodPut, op: "CREATE", path: w.temporary, params: url.Values{
		"overwrite":    {"true"},  // what an attempt of ours left
		"createparent": {"false"}, // it was seen
	}}, func() (io.Reader, int64, error) {
		if last != nil && !last.abandon() {
			return nil, 0, fmt.Errorf("more had been sent than the %d bytes that are kept to be sent again", w.limit)
		}
		w.sent = true
		last = &replay{head: bytes.NewReader(w.head)}
		if tail == nil {
			return last, int64(len(w.head)), nil
		}
		last.tail = tail
		return last, -1, nil
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// commit gives the temporary file its name.
func (w *writer) commit() error {
	status, err := w.b.stat(w.ctx, w.temporary)
	if err != nil {
		return err
	}
	if status.Length != w.size {
		return fmt.Errorf("the cluster kept %d of %d bytes", status.Length, w.size)
	}
	if !w.attrs.isDefault() && !w.b.skipMetadata {
		if err := w.b.setAttributes(w.ctx, w.temporary, w.attrs); err != nil {
			return err
		}
	}
	const attempts = 5 // someone may be removing empty directories
	for attempt := 1; ; attempt++ {
		err := w.b.rename(w.ctx, w.temporary, status, w.path, !w.notExist)
		switch {
		case err == nil:
			return nil
		case w.notExist && codeOf(err) == gcerrors.AlreadyExists:
			return errorf(gcerrors.FailedPrecondition, "%w", err)
		case attempt == attempts:
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

// discard removes the temporary file.
func (w *writer) discard() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), cleanupTime)
	defer cancel()
	// A datanode that has just lost its client may be about to create the file.
	wait := firstBackoff / 2
	for range 3 {
		was, err := w.b.remove(ctx, w.temporary)
		if err != nil && !isNotFound(err) {
			return err
		}
		if was {
			return nil
		}
		if !sleep(ctx, wait) {
			break
		}
		wait *= 2
	}
	return nil
}

// A replay is the body of one attempt at sending: what is kept, then the rest. An
// abandoned attempt may still be read by package net/http, and must not take anything
// of the rest then.
type replay struct {
	mu        sync.Mutex
	head      *bytes.Reader
	tail      *io.PipeReader
	inTail    bool
	abandoned bool
}

func (r *replay) Read(p []byte) (int, error) {
	r.mu.Lock()
	if r.abandoned {
		r.mu.Unlock()
		return 0, errors.New("this attempt was given up")
	}
	if n, _ := r.head.Read(p); n > 0 || r.tail == nil {
		r.mu.Unlock()
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	r.inTail = true
	r.mu.Unlock()
	return r.tail.Read(p)
}

// abandon ends the attempt, and returns false if it is too late for another one.
func (r *replay) abandon() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	return !r.inTail
}
