package hdfsblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
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

	rootMode atomic.Pointer[string] // the directory's permission, once it was seen
	tidied   atomic.Bool            // leftovers of killed writers were looked for
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
	// Directories that have become empty would be in the way of keys with their names.
	// Writers that miss one make it again. An error here is one more directory.
	for dir := path.Dir(name); dir != b.root; dir = path.Dir(dir) {
		if was, err := b.remove(ctx, dir); err != nil || !was {
			break
		}
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
	if b.rootMode.Load() != nil {
		return nil
	}
	status, err := b.stat(ctx, b.root)
	if err != nil && isNotFound(err) {
		if !b.createDir {
			return errorf(gcerrors.NotFound, "the directory %s does not exist; make it, or add create_dir=true to the bucket's URL: %w", b.root, err)
		}
		if err := b.client.mkdirs(ctx, b.root, ""); err != nil {
			return err
		}
		status, err = b.stat(ctx, b.root)
	}
	if err != nil {
		return err
	}
	if status.Type != typeDirectory {
		return errorf(gcerrors.FailedPrecondition, "%s is not a directory", b.root)
	}
	b.rootMode.Store(&status.Permission)
	return nil
}

// mkdirs makes a directory below the bucket's. It is open to whom that one is: who
// shares a bucket shares its directories.
func (b *bucket) mkdirs(ctx context.Context, path string) error {
	return b.client.mkdirs(ctx, path, *b.rootMode.Load())
}

// uploadPrefix begins the name, directly in the bucket's directory, of a file that is
// not a whole blob yet. No key has such a name.
const uploadPrefix = ".upload-"

// leftoverAge is the age from which an upload is nobody's: HDFS sets a file's time
// when the writing begins.
const leftoverAge = 7 * 24 * time.Hour

// tidy removes, once, what killed writers left. That it cannot is no reason not to
// write.
func (b *bucket) tidy(ctx context.Context) {
	if b.tidied.Swap(true) {
		return
	}
	files, err := b.list(ctx, b.root)
	if err != nil {
		return
	}
	for _, f := range files {
		if f.Type == typeFile && strings.HasPrefix(f.PathSuffix, uploadPrefix) && time.Since(f.modTime()) > leftoverAge {
			if _, err := b.remove(ctx, path.Join(b.root, f.PathSuffix)); err != nil {
				return
			}
		}
	}
}

// describe says what a failed write was about.
func describe(key string, err error) error {
	return fmt.Errorf("write %s: %w", key, err)
}
