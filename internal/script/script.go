// Package script reads of a Dockerfile what running it takes: which instruction
// stands where, and which builders can run it.
package script

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// A Script is what an engine must know of a Dockerfile: which instruction stands
// where, and whether the classic builder can run it. It is no parser: the
// builder reads the Dockerfile itself and complains about what is wrong in it.
type Script struct {
	Instructions []Instruction
	Stages       []Stage
	// BuildKit says what of the Dockerfile only BuildKit understands, Newer what
	// only BuildKit since Docker 23 does; "" if nothing does.
	BuildKit, Newer string
}

// An Instruction is one instruction of a Dockerfile.
type Instruction struct {
	Line int    // from 1
	Word string // upper case
	Text string // in one line, blanks between words as one space
}

// A Stage is a FROM and what follows it.
type Stage struct {
	Name  string // of AS, lower case; "" if it has none
	First int    // index of its FROM
	Base  string // what it starts from, as written
	Based bool   // which is an image: neither scratch nor another stage
}

var (
	escapeDirective = regexp.MustCompile("(?i)^#\\s*escape\\s*=\\s*([\\\\`])\\s*$")
	anyDirective    = regexp.MustCompile(`^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$`)
	heredoc         = regexp.MustCompile(`(?:^|\s)\d*<<(-?)(["']?)([A-Za-z_][A-Za-z0-9_.]*)["']?`)
	newFlags        = regexp.MustCompile(`(?i)^(?:RUN\s+(?:--\S+\s+)*(--(?:mount|network|security|device)\b)|(?:COPY|ADD)\s+(?:--\S+\s+)*(--(?:chmod|link|parents|exclude|keep-git-dir|checksum|unpack)\b))`)
	platformArg     = regexp.MustCompile(`^ARG\s+((?:TARGET|BUILD)(?:PLATFORM|OS|ARCH|VARIANT))\b`)
)

// Read reads the instructions of a Dockerfile.
func Read(source []byte) *Script {
	s := &Script{}
	lines := bytes.Split(bytes.TrimPrefix(source, []byte("\xef\xbb\xbf")), []byte{'\n'})
	escape := byte('\\')
	directives := true
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(string(lines[i]))
		if directives {
			if m := anyDirective.FindStringSubmatch(line); m != nil {
				if e := escapeDirective.FindStringSubmatch(line); e != nil {
					escape = e[1][0]
				}
				if strings.EqualFold(m[1], "syntax") {
					s.needs("# syntax=" + m[2])
				}
				continue
			}
			directives = false
		}
		if line == "" || line[0] == '#' {
			continue
		}
		at := i + 1
		var text strings.Builder
		for {
			more := strings.HasSuffix(line, string(escape))
			text.WriteString(strings.TrimSuffix(line, string(escape)))
			if !more {
				break
			}
			// Comments and empty lines inside an instruction count for nothing.
			for i++; i < len(lines); i++ {
				if line = strings.TrimSpace(string(lines[i])); line != "" && line[0] != '#' {
					break
				}
			}
			if i >= len(lines) {
				break
			}
			text.WriteByte(' ')
		}
		words := strings.Fields(text.String())
		if len(words) == 0 {
			continue
		}
		in := Instruction{Line: at, Word: strings.ToUpper(words[0]), Text: strings.Join(words, " ")}
		switch in.Word {
		case "RUN", "COPY", "ADD":
			for _, m := range heredoc.FindAllStringSubmatch(in.Text, -1) {
				end := i + 1
				for end < len(lines) && heredocEnd(lines[end], m[1] != "") != m[3] {
					end++
				}
				if end < len(lines) {
					i = end
					s.needs("here-document")
					s.needsNewer("here-document")
				}
			}
		}
		s.add(in)
	}
	return s
}

// heredocEnd is line as it is compared with the word that ends a here-document.
func heredocEnd(line []byte, tabs bool) string {
	t := strings.TrimSuffix(string(line), "\r")
	if tabs {
		t = strings.TrimLeft(t, "\t")
	}
	return t
}

// needs notes that only BuildKit understands what.
func (s *Script) needs(what string) {
	if s.BuildKit == "" {
		s.BuildKit = what
	}
}

// needsNewer notes that only BuildKit since Docker 23 understands what.
func (s *Script) needsNewer(what string) {
	if s.Newer == "" {
		s.Newer = what
	}
}

// add appends an instruction.
func (s *Script) add(in Instruction) {
	if m := newFlags.FindStringSubmatch(in.Text); m != nil {
		s.needs(in.Word + " " + m[1] + m[2])
		if m[2] != "" && m[2] != "--chmod" {
			s.needsNewer(in.Word + " " + m[2])
		}
	}
	if m := platformArg.FindStringSubmatch(in.Word + strings.TrimPrefix(in.Text, strings.Fields(in.Text)[0])); m != nil {
		s.needs("ARG " + m[1])
	}
	if in.Word == "FROM" {
		st := Stage{First: len(s.Instructions)}
		words := strings.Fields(in.Text)[1:]
		for len(words) > 0 && strings.HasPrefix(words[0], "--") {
			words = words[1:]
		}
		if len(words) > 0 {
			st.Base = words[0]
			st.Based = st.Base != "scratch" && s.Stage(st.Base) < 0
		}
		if len(words) == 3 && strings.EqualFold(words[1], "as") {
			st.Name = strings.ToLower(words[2])
		}
		s.Stages = append(s.Stages, st)
	}
	s.Instructions = append(s.Instructions, in)
}

// Stage returns the index of the stage of that name, or -1.
func (s *Script) Stage(name string) int {
	for i, st := range slices.Backward(s.Stages) {
		if st.Name != "" && strings.EqualFold(st.Name, name) {
			return i
		}
	}
	return -1
}

// maxText bounds an instruction's text in messages.
const maxText = 240

// TextAt returns the instruction that covers a line, cut to a length that fits
// a message.
func (s *Script) TextAt(line int) string {
	text := ""
	for _, in := range s.Instructions {
		if in.Line > line {
			break
		}
		text = in.Text
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// Step returns the i-th instruction, counted from 1 as the classic builder
// counts its steps, and its line. Steps of the builder's own have none.
func (s *Script) Step(i int) (line int, ok bool) {
	if i < 1 || i > len(s.Instructions) {
		return 0, false
	}
	return s.Instructions[i-1].Line, true
}

// vertex is the name BuildKit gives to a step, such as "[build 2/3] RUN make" or
// "[linux/amd64 2/3] RUN make".
var vertex = regexp.MustCompile(`^\[(?:([^\]]*?)\s+)?(\d+)/(\d+)\] (\S+)`)

// LineOf returns the line of the instruction that BuildKit gave that name to; 0
// if it is none of the Dockerfile's.
func (s *Script) LineOf(name string) int {
	m := vertex.FindStringSubmatch(name)
	if m == nil || len(s.Stages) == 0 {
		return 0
	}
	at := 0
	words := strings.Fields(m[1])
	if n := len(words); n > 0 && !strings.Contains(words[n-1], "/") {
		at = s.Stage(words[n-1])
		if unnamed, ok := strings.CutPrefix(words[n-1], "stage-"); at < 0 && ok {
			at = Number(unnamed)
		}
	} else if len(s.Stages) > 1 {
		return 0
	}
	if at < 0 || at >= len(s.Stages) {
		return 0
	}
	st := s.Stages[at]
	end := len(s.Instructions)
	if at+1 < len(s.Stages) {
		end = s.Stages[at+1].First
	}
	// BuildKit numbers what makes a layer: the base image and these four.
	nth := Number(m[2])
	for _, in := range s.Instructions[st.First:end] {
		switch in.Word {
		case "FROM":
			if !st.Based {
				continue
			}
		case "RUN", "COPY", "ADD", "WORKDIR":
		default:
			continue
		}
		if nth--; nth == 0 {
			if strings.EqualFold(in.Word, m[4]) {
				return in.Line
			}
			return 0
		}
	}
	return 0
}

// LineOfBase returns the line of the first FROM of an image that BuildKit calls
// ref, in full; 0 if it cannot be told.
func (s *Script) LineOfBase(ref string) int {
	line, images := 0, 0
	for _, st := range s.Stages {
		if !st.Based {
			continue
		}
		line = s.Instructions[st.First].Line
		if images++; fullName(st.Base) == fullName(ref) {
			return line
		}
	}
	if images == 1 { // its name has a variable in it
		return line
	}
	return 0
}

// fullName is an image's name without what every image's name begins or ends
// with when it is not said.
func fullName(ref string) string {
	ref = strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/"), "library/")
	return strings.TrimSuffix(ref, ":latest")
}

// Number reads a small decimal number; -1 if s is none.
func Number(s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > 1<<20 {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	if s == "" {
		return -1
	}
	return n
}
