package buildctx_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A generator makes random trees and ignore files. The same seed makes the same
// ones.
type generator struct {
	*rand.Rand
	names []string
}

func newGenerator(seed uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 17)), names: []string{
		"a", "b", "c", "ab", "abc", "a.md", "b.md", "README.md", "x.c", "x.o", "src", "lib", "vendor", ".git", ".hidden", "..dots", "a b",
		"ünï", "日本", "x\ny", "[x]", "a*b", "q?", `back\slash`, "#hash", "!bang", "~", "-dash", "$var", "'q'", `"`, "a^b", "{a,b}", "(p)", "+", "%41",
	}}
}

func (g *generator) pick(from []string) string { return from[g.IntN(len(from))] }

func (g *generator) name() string {
	switch g.IntN(40) {
	case 0:
		return strings.Repeat(g.pick([]string{"n", "ü"}), 120)
	case 1:
		return strings.Repeat("long ", 50)
	default:
		return g.pick(g.names)
	}
}

// tree fills dir, which exists. It returns the paths it made, below dir.
func (g *generator) tree(dir string) ([]string, error) {
	t := &treeMaker{g: g, root: dir}
	if err := t.fill("", 0); err != nil {
		return nil, err
	}
	return t.paths, t.times()
}

type treeMaker struct {
	g     *generator
	root  string
	paths []string
	files []string
}

func (t *treeMaker) fill(below string, depth int) error {
	n := t.g.IntN(7)
	if depth == 0 {
		n += 3
	}
	for range n {
		rel := filepath.Join(below, t.g.name())
		full := filepath.Join(t.root, rel)
		if _, err := os.Lstat(full); err == nil {
			continue
		}
		if err := t.make(rel, full, depth); err != nil {
			return err
		}
		t.paths = append(t.paths, rel)
	}
	return nil
}

func (t *treeMaker) make(rel, full string, depth int) error {
	g := t.g
	switch k := g.IntN(20); {
	case k < 7 && depth < 4:
		if err := os.Mkdir(full, 0o755); err != nil {
			return err
		}
		if err := t.fill(rel, depth+1); err != nil {
			return err
		}
		return os.Chmod(full, []os.FileMode{0o755, 0o700, 0o777 | os.ModeSticky, 0o775 | os.ModeSetgid, 0o500}[g.IntN(5)])
	case k == 7:
		return os.Symlink(g.pick([]string{"a", "../b", "/etc/passwd", "/a", "nowhere", ".", "..", "../../../../out", filepath.Base(rel), "a/b/c", "./x/../y", "sp ace"}), full)
	case k == 8 && len(t.files) > 0:
		return os.Link(filepath.Join(t.root, g.pick(t.files)), full)
	case k == 9:
		return syscall.Mkfifo(full, 0o644)
	default:
		size := []int{0, 1, 511, 512, 513, 5000}[g.IntN(6)]
		if g.IntN(50) == 0 {
			size = 300_000
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(g.Uint32())
		}
		if err := os.WriteFile(full, data, 0o644); err != nil {
			return err
		}
		t.files = append(t.files, rel)
		return os.Chmod(full, []os.FileMode{0o644, 0o755, 0o600, 0o444, 0o000, 0o755 | os.ModeSetuid, 0o755 | os.ModeSetgid}[g.IntN(7)])
	}
}

// times gives everything a time, the deepest first.
func (t *treeMaker) times() error {
	for _, path := range slices.Backward(t.paths) {
		sec := t.g.Int64N(2_000_000_000)
		ts := []syscall.Timespec{{Sec: sec}, {Sec: sec, Nsec: t.g.Int64N(1_000_000_000)}}
		if t.g.IntN(4) == 0 {
			ts[1].Nsec = 0
		}
		if err := lutimes(filepath.Join(t.root, path), ts); err != nil {
			return fmt.Errorf("set times of %s: %w", path, err)
		}
	}
	return nil
}

// ignore returns the lines of an ignore file for a tree with those paths, below
// the directory prefix ("" for the root).
func (g *generator) ignore(paths []string, prefix string) []string {
	var lines []string
	for range g.IntN(7) {
		lines = append(lines, g.rule(paths, prefix))
	}
	return lines
}

func (g *generator) rule(paths []string, prefix string) string {
	p := g.pattern(paths)
	if prefix != "" {
		p = prefix + "/" + strings.TrimPrefix(p, "/")
	} else if g.IntN(12) == 0 {
		p = g.pick([]string{"/", "./", "x/../", "../", "  "}) + p
	}
	if g.IntN(10) == 0 {
		p += g.pick([]string{"/", " ", "/.", "/**", "/*"})
	}
	if g.IntN(3) == 0 {
		p = "!" + p
	}
	return p
}

func (g *generator) pattern(paths []string) string {
	p := g.pick(g.names)
	if len(paths) > 0 && g.IntN(4) > 0 {
		p = g.pick(paths)
	}
	if strings.ContainsAny(p, "\n") {
		p = strings.ReplaceAll(p, "\n", "?")
	}
	p = strings.NewReplacer(`\`, `\\`, "[", `\[`).Replace(p)
	parts := strings.Split(p, "/")
	switch g.IntN(10) {
	case 0:
		parts[g.IntN(len(parts))] = "*"
	case 1:
		parts[g.IntN(len(parts))] = "**"
	case 2:
		parts = append([]string{"**"}, parts[len(parts)-1])
	case 3:
		last := &parts[len(parts)-1]
		if i := strings.LastIndex(*last, "."); i >= 0 {
			*last = "*" + (*last)[i:]
		}
	case 4:
		parts = parts[:1+g.IntN(len(parts))]
	case 5:
		parts[0] = "[a-c]*"
	case 6:
		parts = []string{"*"}
	}
	return strings.Join(parts, "/")
}
