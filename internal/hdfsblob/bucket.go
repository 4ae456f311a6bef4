package hdfsblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync/atomic"
	"time"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

// A bucket is the files below one directory.
type bucket struct {
	*client
	root                    string
	createDir, skipMetadata bool

	rootSeen atomic.Bool // the directory is there
	tidied   atomic.Bool // leftovers of killed writers were looked for
}

// path returns the path of the file for a key.
func (b *bucket) path(key string) (string, error) {
	if key == "" {
		return "", errorf(gcerrors.InvalidArgument, "the key is empty")
	}
	return path.Join(b.root, escapePath(key)), nil
}

func (b *bucket) ErrorCode(err error) gcerrors.ErrorCode { return codeOf(err) }

func (b *bucket) As(any) bool { return false }

func (b *bucket) ErrorAs(err error, target any) bool {
	if t, ok := target.(**RemoteError); ok {
		return errors.As(err, t)
	}
	return false
}

func (b *bucket) Close() error {
	if b.ownTransport {
		b.http.CloseIdleConnections()
	}
	return nil
}

// SignedURL returns an error: a WebHDFS URL is signed by a delegation token, which
// opens all that its owner may read.
func (b *bucket) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errorf(gcerrors.Unimplemented, "WebHDFS has no signed URLs")
}

// file returns the status and the attributes of the file for a key.
func (b *bucket) file(ctx context.Context, key string) (string, *fileStatus, *attributes, error) {
	name, err := b.path(key)
	if err != nil {
		return "", nil, nil, err
	}
	if b.skipMetadata {
		status, err := b.stat(ctx, name)
		if err == nil && status.Type != typeFile {
			err = notAFile(name)
		}
		return name, status, &attributes{ContentType: defaultContentType}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		attributes *attributes
		err        error
	}
	got := make(chan result, 1)
	go func() {
		a, err := b.attributes(ctx, name)
		got <- result{a, err}
	}()
	status, err := b.stat(ctx, name)
	if err == nil && status.Type != typeFile {
		err = notAFile(name)
	}
	if err != nil {
		cancel()
	}
	attrs := <-got
	if err == nil {
		err = attrs.err
	}
	return name, status, attrs.attributes, err
}

func notAFile(path string) error {
	return errorf(gcerrors.NotFound, "%s is not a file", path)
}

func (b *bucket) Attributes(ctx context.Context, key string) (*driver.Attributes, error) {
	_, status, a, err := b.file(ctx, key)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{
		CacheControl:       a.CacheControl,
		ContentDisposition: a.ContentDisposition,
		ContentEncoding:    a.ContentEncoding,
		ContentLanguage:    a.ContentLanguage,
		ContentType:        a.ContentType,
		Metadata:           a.Metadata,
		ModTime:            status.modTime(),
		Size:               status.Length,
		ETag:               status.etag(),
	}, nil
}

func (b *bucket) Delete(ctx context.Context, key string, opts *driver.DeleteOptions) error {
	name, err := b.path(key)
	if err != nil {
		return err
	}
	status, err := b.stat(ctx, name)
	if err != nil {
		return err
	}
	if status.Type != typeFile {
		return notAFile(name) // DELETE would take an empty directory as well
	}
	if opts.BeforeDelete != nil {
		if err := opts.BeforeDelete(func(any) bool { return false }); err != nil {
			return err
		}
	}
	was, err := b.remove(ctx, name)
	if err != nil {
		return err
	}
	if !was {
		return errorf(gcerrors.NotFound, "DELETE %s: it is gone", name)
	}
	return nil
}

// Copy reads the source and writes it again: WebHDFS has no copy.
func (b *bucket) Copy(ctx context.Context, dstKey, srcKey string, opts *driver.CopyOptions) (err error) {
	_, _, a, err := b.file(ctx, srcKey)
	if err != nil {
		return err
	}
	if opts.BeforeCopy != nil {
		if err := opts.BeforeCopy(func(any) bool { return false }); err != nil {
			return err
		}
	}
	r, err := b.NewRangeReader(ctx, srcKey, 0, -1, &driver.ReaderOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := b.newWriter(ctx, dstKey, a, &driver.WriterOptions{})
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		cancel()
		w.Close() // its error is that of the cancelled context
		return err
	}
	return w.Close()
}

// ensureRoot finds, or makes, the bucket's directory before the first write.
func (b *bucket) ensureRoot(ctx context.Context) error {
	if b.rootSeen.Load() {
		return nil
	}
	status, err := b.stat(ctx, b.root)
	switch {
	case err == nil && status.Type != typeDirectory:
		return errorf(gcerrors.FailedPrecondition, "%s is not a directory", b.root)
	case err == nil:
	case isNotFound(err) && b.createDir:
		if err := b.mkdirs(ctx, b.root); err != nil {
			return err
		}
	case isNotFound(err):
		return errorf(gcerrors.NotFound, "the directory %s does not exist; make it, or add create_dir=true to the bucket's URL: %w", b.root, err)
	default:
		return err
	}
	b.rootSeen.Store(true)
	return nil
}

// Where blobs are written before they are whole. No key has this name, nor one
// that begins with it.
const uploadsDir = ".uploads"

// leftoverAge is the age from which a file in uploadsDir is nobody's: HDFS sets its
// time when the writing begins.
const leftoverAge = 7 * 24 * time.Hour

// tidy removes, once, what killed writers left. That it cannot is no reason not to
// write.
func (b *bucket) tidy(ctx context.Context) {
	if b.tidied.Swap(true) {
		return
	}
	dir := path.Join(b.root, uploadsDir)
	files, err := b.list(ctx, dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if f.Type == typeFile && time.Since(f.modTime()) > leftoverAge {
			if _, err := b.remove(ctx, path.Join(dir, f.PathSuffix)); err != nil {
				return
			}
		}
	}
}

// describe says what a failed write was about.
func describe(key string, err error) error {
	return fmt.Errorf("write %s: %w", key, err)
}
