package buildctx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// ignoreLimit bounds an ignore file. Larger ones are mistakes.
const ignoreLimit = 16 << 20

// A Rule is one pattern of an ignore file.
type Rule struct {
	File    string // the ignore file, as it was opened
	Line    int    // 1 is the first
	Pattern string // normalised; begins with ! if it makes an exception
}

// String returns "FILE:LINE: PATTERN".
func (r Rule) String() string { return fmt.Sprintf("%s:%d: %s", r.File, r.Line, r.Pattern) }

// An ignorer says which paths of a tree are left out. It has moby's semantics:
// the last matching rule decides, a rule that matches a directory matches what is
// in it, and ! makes exceptions. It is for one goroutine.
type ignorer struct {
	rules   []Rule
	matcher *patternmatcher.PatternMatcher // nil without rules
	// wildExceptions tells that some exception has a wildcard before its end, so
	// that no left-out directory can be passed over unseen.
	wildExceptions bool
}

// readIgnore reads the ignore file for the tree at root: the one named after the
// Dockerfile if there is one, even an empty one, else .dockerignore.
func readIgnore(root, dockerfile string) (*ignorer, error) {
	if dockerfile != "" {
		name := dockerfile + ".dockerignore"
		data, err := readLimited(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
			return nil, fmt.Errorf("read ignore file: %w", err)
		}
		if err == nil {
			return parseIgnore(name, data)
		}
	}
	name := filepath.Join(root, ".dockerignore")
	// A link is followed, but not out of the tree.
	target, err := resolveIn(root, ".dockerignore")
	if err == nil {
		var data []byte
		if data, err = readLimited(filepath.Join(root, filepath.FromSlash(target))); err == nil {
			return parseIgnore(name, data)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &ignorer{}, nil
	}
	return nil, fmt.Errorf("read ignore file: %w", err)
}

func readLimited(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, ignoreLimit+1))
	if err != nil {
		return nil, err
	}
	if len(data) > ignoreLimit {
		return nil, fmt.Errorf("%s is larger than %d MiB", name, ignoreLimit>>20)
	}
	return data, nil
}

// parseIgnore reads the rules of an ignore file.
func parseIgnore(name string, data []byte) (*ignorer, error) {
	ig := &ignorer{}
	var patterns []string
	for i, line := range bytes.SplitAfter(data, []byte("\n")) {
		// One line at a time, to know its number. The empty line before all but
		// the first keeps ReadAll from taking a byte order mark off them.
		if i > 0 {
			line = append([]byte("\n"), line...)
		}
		found, err := ignorefile.ReadAll(bytes.NewReader(line))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
		for _, p := range found {
			if _, err := patternmatcher.New([]string{p}); err != nil {
				return nil, fmt.Errorf("%s:%d: %q: %w", name, i+1, p, err)
			}
			ig.rules = append(ig.rules, Rule{name, i + 1, p})
			patterns = append(patterns, p)
		}
	}
	if len(patterns) == 0 {
		return ig, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	ig.matcher = m
	for _, p := range m.Patterns() {
		if p.Exclusion() && strings.ContainsAny(withoutTrailingGlob(p), `*[]?^\`) {
			ig.wildExceptions = true
		}
	}
	return ig, nil
}

// clone returns a copy for another goroutine.
func (ig *ignorer) clone() (*ignorer, error) {
	if ig.matcher == nil {
		return ig, nil
	}
	patterns := make([]string, len(ig.rules))
	for i, r := range ig.rules {
		patterns[i] = r.Pattern
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	return &ignorer{rules: ig.rules, matcher: m, wildExceptions: ig.wildExceptions}, nil
}

// match reports whether path (slash separated, below the root) is left out. The
// state of its directory goes in, its own comes out, for what is below it.
func (ig *ignorer) match(path string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if ig.matcher == nil {
		return false, patternmatcher.MatchInfo{}, nil
	}
	out, info, err := ig.matcher.MatchesUsingParentResults(path, parent)
	if err != nil {
		return false, info, fmt.Errorf("match %q against the ignore file: %w", path, err)
	}
	return out, info, nil
}

// skips reports whether nothing below the left-out directory dir can be an
// exception, so that it need not be read.
func (ig *ignorer) skips(dir string) bool {
	if !ig.matcher.Exclusions() {
		return true
	}
	if ig.wildExceptions {
		return false
	}
	prefix := filepath.FromSlash(dir) + string(filepath.Separator)
	for _, p := range ig.matcher.Patterns() {
		if p.Exclusion() && strings.HasPrefix(withoutTrailingGlob(p)+string(filepath.Separator), prefix) {
			return false
		}
	}
	return true
}

func withoutTrailingGlob(p *patternmatcher.Pattern) string {
	s := strings.TrimSuffix(p.String(), string(filepath.Separator)+"**")
	return strings.TrimSuffix(s, string(filepath.Separator)+"*")
}

// explain returns the rule that decides about path: the last one that matches it
// or a directory above it. ok is false if none does.
func (ig *ignorer) explain(path string) (r Rule, ok bool) {
	for _, rule := range ig.rules {
		m, err := patternmatcher.New([]string{strings.TrimPrefix(rule.Pattern, "!")})
		if err != nil {
			continue
		}
		if hit, err := m.MatchesOrParentMatches(path); err == nil && hit {
			r, ok = rule, true
		}
	}
	return r, ok
}
