package engine

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// A script is what an engine must know of a Dockerfile: which instruction stands
// where, and whether the classic builder can run it. It is no parser: the
// builder reads the Dockerfile itself and complains about what is wrong in it.
type script struct {
	instructions []instruction
	stages       []stage
	// buildKit says what of the Dockerfile only BuildKit understands, newer what
	// only BuildKit since Docker 23 does; "" if nothing does.
	buildKit, newer string
}

// An instruction is one instruction of a Dockerfile.
type instruction struct {
	line int    // from 1
	word string // upper case
	text string // in one line, blanks between words as one space
}

// A stage is a FROM and what follows it.
type stage struct {
	name  string // of AS, lower case; "" if it has none
	first int    // index of its FROM
	base  string // what it starts from, as written
	based bool   // which is an image: neither scratch nor another stage
}

var (
	escapeDirective = regexp.MustCompile("(?i)^#\\s*escape\\s*=\\s*([\\\\`])\\s*$")
	anyDirective    = regexp.MustCompile(`^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$`)
	heredoc         = regexp.MustCompile(`(?:^|\s)\d*<<(-?)(["']?)([A-Za-z_][A-Za-z0-9_.]*)["']?`)
	newFlags        = regexp.MustCompile(`(?i)^(?:RUN\s+(?:--\S+\s+)*(--(?:mount|network|security|device)\b)|(?:COPY|ADD)\s+(?:--\S+\s+)*(--(?:chmod|link|parents|exclude|keep-git-dir|checksum|unpack)\b))`)
	platformArg     = regexp.MustCompile(`^ARG\s+((?:TARGET|BUILD)(?:PLATFORM|OS|ARCH|VARIANT))\b`)
)

// readScript reads the instructions of a Dockerfile.
func readScript(source []byte) *script {
	s := &script{}
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
		in := instruction{line: at, word: strings.ToUpper(words[0]), text: strings.Join(words, " ")}
		switch in.word {
		case "RUN", "COPY", "ADD":
			for _, m := range heredoc.FindAllStringSubmatch(in.text, -1) {
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
func (s *script) needs(what string) {
	if s.buildKit == "" {
		s.buildKit = what
	}
}

// needsNewer notes that only BuildKit since Docker 23 understands what.
func (s *script) needsNewer(what string) {
	if s.newer == "" {
		s.newer = what
	}
}

// add appends an instruction.
func (s *script) add(in instruction) {
	if m := newFlags.FindStringSubmatch(in.text); m != nil {
		s.needs(in.word + " " + m[1] + m[2])
		if m[2] != "" && m[2] != "--chmod" {
			s.needsNewer(in.word + " " + m[2])
		}
	}
	if m := platformArg.FindStringSubmatch(in.word + strings.TrimPrefix(in.text, strings.Fields(in.text)[0])); m != nil {
		s.needs("ARG " + m[1])
	}
	if in.word == "FROM" {
		st := stage{first: len(s.instructions)}
		words := strings.Fields(in.text)[1:]
		for len(words) > 0 && strings.HasPrefix(words[0], "--") {
			words = words[1:]
		}
		if len(words) > 0 {
			st.base = words[0]
			st.based = st.base != "scratch" && s.stage(st.base) < 0
		}
		if len(words) == 3 && strings.EqualFold(words[1], "as") {
			st.name = strings.ToLower(words[2])
		}
		s.stages = append(s.stages, st)
	}
	s.instructions = append(s.instructions, in)
}

// stage returns the index of the stage of that name, or -1.
func (s *script) stage(name string) int {
	for i, st := range slices.Backward(s.stages) {
		if st.name != "" && strings.EqualFold(st.name, name) {
			return i
		}
	}
	return -1
}

// maxText bounds an instruction's text in messages.
const maxText = 240

// textAt returns the instruction that covers a line, cut to a length that fits
// a message.
func (s *script) textAt(line int) string {
	text := ""
	for _, in := range s.instructions {
		if in.line > line {
			break
		}
		text = in.text
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// step returns the i-th instruction, counted from 1 as the classic builder
// counts its steps, and its line. Steps of the builder's own have none.
func (s *script) step(i int) (line int, ok bool) {
	if i < 1 || i > len(s.instructions) {
		return 0, false
	}
	return s.instructions[i-1].line, true
}

// vertex is the name BuildKit gives to a step, such as "[build 2/3] RUN make" or
// "[linux/amd64 2/3] RUN make".
var vertex = regexp.MustCompile(`^\[(?:([^\]]*?)\s+)?(\d+)/(\d+)\] (\S+)`)

// lineOf returns the line of the instruction that BuildKit gave that name to; 0
// if it is none of the Dockerfile's.
func (s *script) lineOf(name string) int {
	m := vertex.FindStringSubmatch(name)
	if m == nil || len(s.stages) == 0 {
		return 0
	}
	at := 0
	words := strings.Fields(m[1])
	if n := len(words); n > 0 && !strings.Contains(words[n-1], "/") {
		at = s.stage(words[n-1])
		if unnamed, ok := strings.CutPrefix(words[n-1], "stage-"); at < 0 && ok {
			at = number(unnamed)
		}
	} else if len(s.stages) > 1 {
		return 0
	}
	if at < 0 || at >= len(s.stages) {
		return 0
	}
	st := s.stages[at]
	end := len(s.instructions)
	if at+1 < len(s.stages) {
		end = s.stages[at+1].first
	}
	// BuildKit numbers what makes a layer: the base image and these four.
	nth := number(m[2])
	for _, in := range s.instructions[st.first:end] {
		switch in.word {
		case "FROM":
			if !st.based {
				continue
			}
		case "RUN", "COPY", "ADD", "WORKDIR":
		default:
			continue
		}
		if nth--; nth == 0 {
			if strings.EqualFold(in.word, m[4]) {
				return in.line
			}
			return 0
		}
	}
	return 0
}

// lineOfBase returns the line of the first FROM of an image that BuildKit calls
// ref, in full; 0 if it cannot be told.
func (s *script) lineOfBase(ref string) int {
	line, images := 0, 0
	for _, st := range s.stages {
		if !st.based {
			continue
		}
		line = s.instructions[st.first].line
		if images++; fullName(st.base) == fullName(ref) {
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

// number reads a small decimal number; -1 if s is none.
func number(s string) int {
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
