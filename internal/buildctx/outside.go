package buildctx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A Graft is something outside of the root that the context shall have.
type Graft struct {
	At   string // in the context, slash separated
	From string // on this machine
}

// follow returns what a link that leaves the root points to, in the link's place. A
// link that stays in the root, or leads nowhere, is returned as it is.
func (w *walker) follow(e entry) (entry, error) {
	target := e.link
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(e.full), target)
	}
	real, err := filepath.EvalSymlinks(target)
	if errors.Is(err, fs.ErrNotExist) || isNotDir(err) || isLoop(err) {
		return e, nil
	}
	if err != nil {
		return e, fmt.Errorf("follow the link %s out of the context: %w", e.path, err)
	}
	if rel, err := filepath.Rel(w.root, real); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		if filepath.IsAbs(e.link) || !w.below(e.full) {
			// In the context, but a link that the image would not understand, or
			// one in something that came from outside: also what it points to.
			return w.replace(e, real)
		}
		return e, nil
	}
	return w.replace(e, real)
}

// below reports whether a file lies in the root itself.
func (w *walker) below(full string) bool {
	return strings.HasPrefix(full, w.root+string(filepath.Separator))
}

// replace puts the file or directory real in the place of the link e.
func (w *walker) replace(e entry, real string) (entry, error) {
	fi, err := os.Lstat(real)
	if err != nil {
		return e, fmt.Errorf("follow the link %s out of the context: %w", e.path, err)
	}
	if fi.IsDir() {
		// A link to something above itself would go round for ever.
		dir, err := filepath.EvalSymlinks(filepath.Dir(e.full))
		if err != nil {
			return e, fmt.Errorf("follow the link %s out of the context: %w", e.path, err)
		}
		if dir == real || strings.HasPrefix(dir, strings.TrimSuffix(real, string(filepath.Separator))+string(filepath.Separator)) {
			return e, fmt.Errorf("the link %s points to %s, which it is itself in: it cannot be part of the context; leave it out with .dockerignore", e.path, real)
		}
		if depth := strings.Count(e.path, "/"); depth > maxDepth {
			return e, fmt.Errorf("the links on the way to %s lead round in a circle", e.path)
		}
	}
	e.full, e.info, e.link, e.inspected = real, fi, "", false
	return e, nil
}

// maxDepth bounds how deep links to directories may nest.
const maxDepth = 100

// graft visits what the Dockerfile wants from outside of the root.
func (w *walker) graft() error {
	made := map[string]string{}
	for _, g := range w.grafts {
		if !w.outside {
			return fmt.Errorf("%s lies outside of the build context %s", g.From, w.root)
		}
		if from, again := made[g.At]; again {
			if from == g.From {
				continue
			}
			return fmt.Errorf("both %s and %s would be %s in the build context", from, g.From, g.At)
		}
		made[g.At] = g.From
		if err := w.graftOne(g); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) graftOne(g Graft) error {
	if g.At == "." {
		return fmt.Errorf("%s lies outside of the build context %s, and cannot take its place", g.From, w.root)
	}
	if _, err := os.Lstat(filepath.Join(w.root, filepath.FromSlash(g.At))); err == nil {
		return fmt.Errorf("%s lies outside of the build context %s, which has another %s", g.From, w.root, g.At)
	}
	real, err := filepath.EvalSymlinks(g.From)
	if err != nil {
		return fmt.Errorf("add %s to the build context: %w", g.From, err)
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return fmt.Errorf("add %s to the build context: %w", g.From, err)
	}
	// The directories above exist in the context, or are made like the root.
	for i := range g.At {
		if g.At[i] != '/' {
			continue
		}
		above := g.At[:i]
		if _, err := os.Lstat(filepath.Join(w.root, filepath.FromSlash(above))); errors.Is(err, fs.ErrNotExist) {
			root, err := os.Lstat(w.root)
			if err != nil {
				return err
			}
			if err := w.visit(entry{path: above, full: w.root, info: root}); err != nil {
				return err
			}
		}
	}
	e := entry{path: path.Clean(g.At), full: real, info: fi}
	if err := w.visit(e); err != nil {
		return err
	}
	if !fi.IsDir() {
		return nil
	}
	return w.dir(&listing{name: e.path, full: real}, &parent{entry: e, sent: true}, false)
}
