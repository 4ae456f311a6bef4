package dockerfile

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Render returns the text for an engine. The lines of our own instructions are
// blank, so that every other line keeps its number. With from != "" every image
// reference of a FROM, of a COPY --from and of a RUN --mount=from that names no
// registry of its own is prefixed with from and a slash; stages, further build
// contexts, scratch and references that name a registry are left alone, as they
// turn out with the arguments known to f. Everything else keeps its very bytes.
//
// ONBUILD instructions are left alone: they run in another file's build.
func (f *File) Render(from string) ([]byte, error) {
	var inserts []int // places in the file
	lines := f.lines()
	from = strings.TrimRight(from, "/")
	if from != "" && !f.foreign {
		stage := -1
		for _, n := range f.nodes {
			places, err := f.imagePlaces(lines, n, &stage)
			if err != nil {
				return nil, &Error{File: f.name, Line: n.StartLine, Err: err}
			}
			inserts = append(inserts, places...)
		}
	}
	blank := make([]bool, len(lines)+1)
	for _, r := range f.blanks {
		for i := r.first; i <= r.last && i <= len(lines); i++ {
			blank[i] = true
		}
	}
	slices.Sort(inserts)
	var out bytes.Buffer
	offset := 0
	for i, line := range lines {
		end := offset + len(line)
		if blank[i+1] {
			if i == 0 && bytes.HasPrefix(line, bom) {
				out.Write(bom)
			}
			out.Write(line[len(bytes.TrimRight(line, "\r\n")):])
			offset = end
			continue
		}
		at := offset
		for len(inserts) > 0 && inserts[0] < end {
			out.Write(f.text[at:inserts[0]])
			out.WriteString(from)
			out.WriteByte('/')
			at = inserts[0]
			inserts = inserts[1:]
		}
		out.Write(f.text[at:end])
		offset = end
	}
	return out.Bytes(), nil
}

// imagePlaces returns where in the file the image references of n begin that
// want a registry. stage is the index of the present stage, which it advances.
func (f *File) imagePlaces(lines [][]byte, n *parser.Node, stage *int) ([]int, error) {
	name := strings.ToLower(n.Value)
	switch name {
	case command.From, command.Copy, command.Run:
	default:
		return nil, nil
	}
	lo, err := f.locate(lines, n)
	if err != nil {
		return nil, err
	}
	flags, arg := lo.flags(f.escape)
	if name == command.From {
		*stage++
		s := f.stages[*stage]
		if arg < 0 || s.parent >= 0 || s.replaced || !f.wantsRegistry(s.Base) {
			return nil, nil
		}
		return []int{arg}, nil
	}
	var places []int
	for _, fl := range flags {
		at := -1
		switch name {
		case command.Copy:
			if bytes.HasPrefix(fl.text, []byte("--from=")) {
				at = len("--from=")
			}
			if at >= 0 && f.isImage(string(fl.text[at:])) && at < len(fl.offsets) {
				places = append(places, fl.offsets[at])
			}
		case command.Run:
			start, value := mountFrom(fl.text)
			if start >= 0 && f.isImage(value) {
				places = append(places, fl.offsets[start])
			}
		}
	}
	return places, nil
}

// isImage reports whether the value of a --from names an image that wants a
// registry. BuildKit looks among all stages, later ones too, and takes a number
// for a stage's index.
func (f *File) isImage(ref string) bool {
	if _, err := strconv.Atoi(ref); err == nil {
		return false
	}
	return f.findStage(ref, len(f.stages)) < 0 && f.wantsRegistry(ref)
}

// wantsRegistry reports whether ref, which is no stage, names an image without
// saying where it is.
func (f *File) wantsRegistry(ref string) bool {
	if ref == "" || ref == "scratch" || strings.HasPrefix(ref, "/") || strings.Contains(ref, "$") || f.isContext(ref) {
		return false
	}
	return !hasRegistry(ref)
}

// hasRegistry follows the rule of github.com/distribution/reference: the part
// before the first slash is a host if it has a dot, a colon or an upper case
// letter, or is "localhost".
func hasRegistry(ref string) bool {
	host, _, ok := strings.Cut(ref, "/")
	return ok && (strings.ContainsAny(host, ".:") || host == "localhost" || strings.ToLower(host) != host)
}

// mountFrom finds the value of from= in a --mount flag: its index in the flag's
// text, or -1.
func mountFrom(text []byte) (int, string) {
	rest, ok := bytes.CutPrefix(text, []byte("--mount="))
	if !ok {
		return -1, ""
	}
	start, quoted := len(text)-len(rest), false
	for i := start; i <= len(text); i++ {
		if i < len(text) && text[i] == '"' {
			quoted = !quoted
		}
		if i < len(text) && (text[i] != ',' || quoted) {
			continue
		}
		field := text[start:i]
		skip := 0
		if len(field) > 1 && field[0] == '"' && field[len(field)-1] == '"' {
			field, skip = field[1:len(field)-1], 1
		}
		if key, value, ok := bytes.Cut(field, []byte("=")); ok && strings.EqualFold(string(key), "from") && len(value) > 0 {
			return start + skip + len(key) + 1, string(value)
		}
		start = i + 1
	}
	return -1, ""
}

// A Base is an image that a build needs from elsewhere.
type Base struct {
	Ref  string // variables expanded, as in the file: without the registry of Render
	Line int
}

// Bases returns the images that the file names, in FROM, COPY --from and
// RUN --mount=from, without stages, further contexts and scratch. Each reference
// comes once.
func (f *File) Bases() []Base {
	var bases []Base
	add := func(ref string, line int) {
		if ref == "" || ref == "scratch" || f.isContext(ref) {
			return
		}
		if !slices.ContainsFunc(bases, func(b Base) bool { return b.Ref == ref }) {
			bases = append(bases, Base{ref, line})
		}
	}
	stage := -1
	for _, n := range f.nodes {
		cmd, err := instructions.ParseInstruction(n)
		if err != nil {
			continue // Parse has checked every instruction
		}
		switch c := cmd.(type) {
		case *instructions.Stage:
			stage++
			if s := f.stages[stage]; s.parent < 0 && !s.replaced {
				add(s.Base, s.Line)
			}
		case *instructions.CopyCommand:
			if _, err := strconv.Atoi(c.From); err != nil && f.findStage(c.From, len(f.stages)) < 0 {
				add(c.From, n.StartLine)
			}
		case *instructions.RunCommand:
			for _, m := range instructions.GetMounts(c) {
				if f.findStage(m.From, len(f.stages)) < 0 {
					add(m.From, n.StartLine)
				}
			}
		}
	}
	return bases
}
