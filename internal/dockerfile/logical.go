package dockerfile

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// A logical is an instruction as the parser joined it from the lines of the
// file, with the place in the file that each byte came from. It is how a word of
// an instruction can be changed without touching the bytes around it.
type logical struct {
	text    []byte
	offsets []int // of each byte of text, in the file
	// comments are the comment lines between the lines of the instruction.
	comments []comment
}

type comment struct {
	line int
	text string // without the leading white space, with the #
}

var errMisread = errors.New("internal error: the instruction's lines were read otherwise than the parser does")

// lines returns the file cut into lines, their ends included.
func (f *File) lines() [][]byte { return bytes.SplitAfter(f.text, []byte("\n")) }

// locate returns the logical line of n. It follows the parser's own reading
// (frontend/dockerfile/parser/parser.go, Parse) and fails where it got another
// text, rather than changing a wrong place.
func (f *File) locate(lines [][]byte, n *parser.Node) (*logical, error) {
	if n.StartLine < 1 || n.StartLine > len(lines) {
		return nil, errMisread
	}
	offset := 0
	for _, l := range lines[:n.StartLine-1] {
		offset += len(l)
	}
	var lo logical
	continuation := continuationOf(f.escape)
	for i := n.StartLine - 1; i < len(lines); i++ {
		line, at := lines[i], offset
		offset += len(line)
		if i == 0 {
			if rest, ok := bytes.CutPrefix(line, bom); ok {
				line, at = rest, at+len(bom)
			}
		}
		line = bytes.TrimRight(line, "\r\n")
		first := i == n.StartLine-1
		trimmed := bytes.TrimLeftFunc(line, unicode.IsSpace)
		switch {
		case first:
			at += len(line) - len(trimmed)
			line = trimmed
		case len(trimmed) == 0:
			continue
		case trimmed[0] == '#':
			lo.comments = append(lo.comments, comment{i + 1, string(trimmed)})
			continue
		}
		end := true
		if m := continuation.FindSubmatchIndex(line); m != nil {
			end = false
			keep := m[0]
			if m[2] >= 0 {
				keep = m[3]
			}
			line = line[:keep]
		}
		for j, c := range line {
			lo.text = append(lo.text, c)
			lo.offsets = append(lo.offsets, at+j)
		}
		if end {
			break
		}
	}
	if string(lo.text) != n.Original {
		return nil, errMisread
	}
	return &lo, nil
}

var (
	bom                   = []byte{0xEF, 0xBB, 0xBF}
	backslashContinuation = regexp.MustCompile(`([^\\])\\[ \t]*$|^\\[ \t]*$`)
	backtickContinuation  = regexp.MustCompile("([^`])`[ \\t]*$|^`[ \\t]*$")
)

func continuationOf(escape rune) *regexp.Regexp {
	if escape == '`' {
		return backtickContinuation
	}
	return backslashContinuation
}

// A flag is one --name=value of an instruction, unquoted, with the place in the
// file of each byte.
type flag struct {
	text    []byte
	offsets []int
}

// flags returns the flags of the instruction, and the place in the file of its
// first argument, or -1 if it has none.
func (lo *logical) flags(escape rune) ([]flag, int) {
	text := lo.text
	i := 0
	for i < len(text) && unicode.IsSpace(rune(text[i])) {
		i++
	}
	for i < len(text) && !strings.ContainsRune("\t\v\f\r ", rune(text[i])) {
		i++ // the instruction's name
	}
	var flags []flag
	for {
		for i < len(text) && unicode.IsSpace(rune(text[i])) {
			i++
		}
		if i == len(text) {
			return flags, -1
		}
		if !bytes.HasPrefix(text[i:], []byte("--")) {
			return flags, lo.offsets[i]
		}
		var f flag
		var quote byte
		for ; i < len(text); i++ {
			c, at := text[i], lo.offsets[i]
			switch {
			case quote == 0 && unicode.IsSpace(rune(c)):
			case quote == 0 && (c == '\'' || c == '"'):
				quote = c
				continue
			case quote != 0 && c == quote:
				quote = 0
				continue
			case rune(c) == escape && i+1 < len(text):
				i++
				f.text, f.offsets = append(f.text, text[i]), append(f.offsets, at)
				continue
			case rune(c) == escape:
				continue
			default:
				f.text, f.offsets = append(f.text, c), append(f.offsets, at)
				continue
			}
			break
		}
		if string(f.text) == "--" {
			for i < len(text) && unicode.IsSpace(rune(text[i])) {
				i++
			}
			if i == len(text) {
				return flags, -1
			}
			return flags, lo.offsets[i]
		}
		flags = append(flags, f)
	}
}
