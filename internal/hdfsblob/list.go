package hdfsblob

import (
	"context"
	"path"
	"slices"
	"strings"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

// defaultPage is how many objects a page has if nobody says how many. Each page
// lists its directory anew.
const defaultPage = 10_000

func (b *bucket) ListPaged(ctx context.Context, opts *driver.ListOptions) (*driver.ListPage, error) {
	if opts.BeforeList != nil {
		if err := opts.BeforeList(func(any) bool { return false }); err != nil {
			return nil, err
		}
	}
	l := &listing{b: b, prefix: opts.Prefix, delimiter: opts.Delimiter, after: string(opts.PageToken), size: opts.PageSize, page: &driver.ListPage{}}
	if l.size == 0 {
		l.size = defaultPage
	}
	// All keys with the prefix are below its directory part.
	dir := opts.Prefix[:strings.LastIndexByte(opts.Prefix, '/')+1]
	err := l.walk(ctx, dir)
	if isNotFound(err) {
		// Nothing has that prefix, unless the bucket itself is missing.
		if _, rootErr := b.stat(ctx, b.root); rootErr != nil && !(isNotFound(rootErr) && b.createDir) {
			return nil, rootErr
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return l.page, nil
}

// A listing collects one page in the order of keys.
type listing struct {
	b                 *bucket
	prefix, delimiter string
	after             string // the last key of the page before
	size              int
	page              *driver.ListPage
}

// An entry is a file or a directory, by its key; a directory's ends in a slash.
type entry struct {
	key string
	fileStatus
}

func (e *entry) isDir() bool { return e.Type == typeDirectory }

// entries returns what keys there are directly in a directory, in their order.
func (b *bucket) entries(ctx context.Context, dir string) ([]entry, error) {
	files, err := b.list(ctx, b.dirPath(dir))
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(files))
	for _, f := range files {
		name, ok := unescapeName(f.PathSuffix)
		if !ok || f.Type != typeFile && f.Type != typeDirectory {
			continue // not ours
		}
		e := entry{key: dir + name, fileStatus: f}
		if e.isDir() {
			e.key += "/"
		}
		entries = append(entries, e)
	}
	// With the slash, a directory sorts as all that is in it does.
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return entries, nil
}

// dirPath returns the path of a directory, by its key with the slash.
func (b *bucket) dirPath(dir string) string {
	if dir == "" {
		return b.root
	}
	return path.Join(b.root, escapePath(strings.TrimSuffix(dir, "/")))
}

// walk adds what is in a directory to the page.
func (l *listing) walk(ctx context.Context, dir string) error {
	entries, err := l.b.entries(ctx, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if l.full() {
			return nil
		}
		if err := l.visit(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// full is true once the page has a token: there is more than fits it.
func (l *listing) full() bool { return l.page.NextPageToken != nil }

func (l *listing) visit(ctx context.Context, e entry) error {
	switch {
	case !strings.HasPrefix(e.key, l.prefix) && !(e.isDir() && strings.HasPrefix(l.prefix, e.key)):
		return nil
	case e.key <= l.after && !(e.isDir() && strings.HasPrefix(l.after, e.key)):
		return nil // on an earlier page, with all that is in it
	}
	shown, collapsed := l.collapse(e.key)
	switch {
	case collapsed && (shown <= l.after || l.last() == shown):
		return nil
	case collapsed && e.isDir():
		// All that is in it is shown as one, if there is anything.
		some, err := l.b.hasFiles(ctx, e.key)
		if err != nil || !some {
			return err
		}
	case e.isDir():
		err := l.walk(ctx, e.key)
		if isNotFound(err) {
			return nil // removed meanwhile
		}
		return err
	}
	if len(l.page.Objects) == l.size {
		l.page.NextPageToken = []byte(l.last())
		return nil
	}
	if collapsed {
		l.page.Objects = append(l.page.Objects, &driver.ListObject{Key: shown, IsDir: true})
		return nil
	}
	l.page.Objects = append(l.page.Objects, &driver.ListObject{Key: e.key, ModTime: e.modTime(), Size: e.Length})
	return nil
}

// collapse returns what stands for a key in the listing: itself, or the part up to
// the first delimiter after the prefix.
func (l *listing) collapse(key string) (string, bool) {
	if l.delimiter == "" || !strings.HasPrefix(key, l.prefix) {
		return key, false
	}
	i := strings.Index(key[len(l.prefix):], l.delimiter)
	if i < 0 {
		return key, false
	}
	return key[:len(l.prefix)+i+len(l.delimiter)], true
}

// last returns the last key on the page.
func (l *listing) last() string {
	if n := len(l.page.Objects); n > 0 {
		return l.page.Objects[n-1].Key
	}
	return ""
}

// hasFiles tells whether there is a key below a directory. HDFS keeps directories
// that have become empty.
func (b *bucket) hasFiles(ctx context.Context, dir string) (bool, error) {
	entries, err := b.entries(ctx, dir)
	if err != nil {
		if codeOf(err) == gcerrors.NotFound {
			return false, nil
		}
		return false, err
	}
	for _, e := range entries {
		if !e.isDir() {
			return true, nil
		}
	}
	for _, e := range entries {
		if some, err := b.hasFiles(ctx, e.key); some || err != nil {
			return some, err
		}
	}
	return false, nil
}
