package buildctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A Source is a path that a Dockerfile wants from the context.
type Source struct {
	Where string // for messages: "Dockerfile:12"
	Path  string // as written there
	Clean string // slash separated, below the root, "." for the root
	// Wildcard tells that Clean is a pattern.
	Wildcard bool
	// Outside tells that Path, read as a plain path, leaves the root.
	Outside bool
}

// A SourceError reports a path that a Dockerfile wants and the context lacks.
type SourceError struct {
	Source Source
	Dir    string // of the context
	Rule   *Rule  // the rule of the ignore file that leaves it out, if that is why
	Link   string // the link on the way that leads out of the context, if that is why
}

// Error says which path is missing and why.
func (e *SourceError) Error() string {
	s := fmt.Sprintf("%s: %q", e.Source.Where, e.Source.Path)
	switch {
	case e.Rule != nil:
		return s + fmt.Sprintf(" is left out of the build context by %s", e.Rule)
	case e.Link != "":
		return s + fmt.Sprintf(" goes through the link %s, which leads out of the build context %s", e.Link, e.Dir)
	case e.Source.Outside:
		return s + fmt.Sprintf(" lies outside of the build context %s, and only what lies in it can be copied", e.Dir)
	case e.Source.Wildcard:
		return s + fmt.Sprintf(" matches nothing in the build context %s", e.Dir)
	default:
		return s + fmt.Sprintf(" is not in the build context %s", e.Dir)
	}
}

// Unwrap returns fs.ErrNotExist.
func (e *SourceError) Unwrap() error { return fs.ErrNotExist }

// CheckSources returns an error that joins a *SourceError for each of the sources
// that the context will lack. It reads no file.
func CheckSources(ctx context.Context, opt Options, sources []Source) error {
	root, ignore, err := open(opt)
	if err != nil {
		return err
	}
	c := &checker{ctx: ctx, root: root, dir: opt.Dir, ignore: ignore, outside: opt.AllowOutside}
	var missing []error
	for _, s := range sources {
		err := c.check(s)
		var se *SourceError
		if err != nil && !errors.As(err, &se) {
			return err
		}
		if err != nil {
			missing = append(missing, err)
		}
	}
	return errors.Join(missing...)
}

type checker struct {
	ctx       context.Context
	root, dir string
	ignore    *ignorer
	outside   bool
	list      []string // everything in the context, once a pattern asked for it
	listed    bool
}

func (c *checker) check(s Source) error {
	if s.Wildcard {
		return c.checkPattern(s)
	}
	target, err := resolveIn(c.root, s.Clean)
	if err != nil && c.outside {
		// Links that leave the tree are followed by the walk.
		if _, err := os.Stat(filepath.Join(c.root, filepath.FromSlash(s.Clean))); err == nil {
			return nil
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) || isNotDir(err) || errors.Is(err, ErrLoop):
		return &SourceError{Source: s, Dir: c.dir, Link: c.linkOut(s.Clean)}
	case err != nil:
		return fmt.Errorf("%s: %w", s.Where, err)
	}
	// Both the links on the way and what they lead to must be in the context.
	for _, p := range []string{s.Clean, target} {
		if p == "." {
			continue
		}
		in, err := c.has(p)
		if err != nil {
			return err
		}
		if !in {
			e := &SourceError{Source: s, Dir: c.dir}
			if r, ok := c.ignore.explain(p); ok {
				e.Rule = &r
			}
			return e
		}
	}
	return nil
}

// has reports whether the existing path p is in the context: not left out, or a
// directory above something that is not.
func (c *checker) has(p string) (bool, error) {
	if c.ignore.matcher == nil {
		return true, nil
	}
	out, err := c.ignore.matcher.MatchesOrParentMatches(p)
	if err != nil {
		return false, fmt.Errorf("match %q against the ignore file: %w", p, err)
	}
	if !out {
		return true, nil
	}
	if fi, err := os.Lstat(filepath.Join(c.root, filepath.FromSlash(p))); err != nil || !fi.IsDir() || c.ignore.skips(p) {
		return false, nil
	}
	if err := c.walk(); err != nil {
		return false, err
	}
	for _, q := range c.list {
		if strings.HasPrefix(q, p+"/") {
			return true, nil
		}
	}
	return false, nil
}

// walk lists the context, once.
func (c *checker) walk() error {
	if c.listed {
		return nil
	}
	w := &walker{ctx: c.ctx, root: c.root, ignore: c.ignore, outside: c.outside, visit: func(e entry) error {
		c.list = append(c.list, e.path)
		return nil
	}}
	c.listed = true
	return w.run()
}

// checkPattern looks for one path that the pattern matches, part by part, as an
// engine does.
func (c *checker) checkPattern(s Source) error {
	if _, err := path.Match(s.Clean, ""); err != nil {
		return fmt.Errorf("%s: %q: %w", s.Where, s.Path, err)
	}
	// What comes before the first wildcard may go through links.
	dir, pattern := splitPattern(s.Clean)
	real, err := resolveIn(c.root, dir)
	if err != nil {
		return &SourceError{Source: s, Dir: c.dir, Link: c.linkOut(dir)}
	}
	if err := c.walk(); err != nil {
		return err
	}
	if real != "." {
		pattern = path.Join(escapePattern(real), pattern)
	}
	if strings.Contains(pattern, "**") {
		return nil // only newer engines know it, and they look themselves
	}
	for _, p := range c.list {
		if ok, _ := path.Match(pattern, p); ok {
			return nil
		}
	}
	// A pattern may go on behind a link, or end at a directory above.
	for _, p := range c.list {
		fi, err := os.Lstat(filepath.Join(c.root, filepath.FromSlash(p)))
		if err == nil && fi.Mode()&fs.ModeSymlink != 0 && matchesAbove(pattern, p) {
			return nil
		}
	}
	return &SourceError{Source: s, Dir: c.dir}
}

// matchesAbove reports whether p matches the first parts of pattern.
func matchesAbove(pattern, p string) bool {
	parts := strings.Split(pattern, "/")
	n := strings.Count(p, "/") + 1
	if n >= len(parts) {
		return false
	}
	ok, _ := path.Match(strings.Join(parts[:n], "/"), p)
	return ok
}

// splitPattern cuts a pattern in the parts without wildcards and the rest.
func splitPattern(pattern string) (dir, rest string) {
	parts := strings.Split(pattern, "/")
	i := 0
	for i < len(parts)-1 && !strings.ContainsAny(parts[i], `*?[\`) {
		i++
	}
	if i == 0 {
		return ".", pattern
	}
	return strings.Join(parts[:i], "/"), strings.Join(parts[i:], "/")
}

var patternEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func escapePattern(s string) string { return patternEscaper.Replace(s) }

// linkOut returns the first link on the way of name that leads out of the tree.
func (c *checker) linkOut(name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		p := path.Join(parts[:i+1]...)
		target, err := os.Readlink(filepath.Join(c.root, filepath.FromSlash(p)))
		if err != nil {
			continue
		}
		target = filepath.ToSlash(target)
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		if path.IsAbs(target) || target == ".." || strings.HasPrefix(target, "../") {
			return p
		}
	}
	return ""
}
