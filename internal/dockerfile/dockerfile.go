// Package dockerfile knows facts about a Dockerfile without building it: its
// stages and base images, the local files it copies, the metadata that portainer
// keeps in it, and the text that an engine shall see.
//
// The text is parsed by BuildKit's own parser, so that what is accepted here is
// what an engine accepts.
package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// An Error is one problem of a Dockerfile.
type Error struct {
	File string // as it was given to Parse
	Line int    // 1 is the first; 0 means the file as a whole
	Err  error
}

// Error returns "FILE:LINE: problem".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

// Options are facts from outside the file that change what it means.
type Options struct {
	// Args are the build arguments (ARG) that will be given to the engine.
	Args map[string]string
	// Contexts are the names of further build contexts, as ContextName returns
	// them. A FROM or --from that names one of them names no image, and a stage of
	// that name is not built: the context takes its place.
	Contexts []string
}

// A File is a parsed Dockerfile. It is immutable and may be used by many
// goroutines.
type File struct {
	name    string
	text    []byte
	escape  rune
	foreign bool
	opt     Options
	nodes   []*parser.Node // the instructions that an engine sees, in order
	meta    Metadata
	blanks  []lineRange // of our own instructions
	stages  []Stage
	global  environment // ARGs before the first FROM
}

// A lineRange is from line first to line last, both included, 1 the first.
type lineRange struct{ first, last int }

// A Stage is what one FROM begins.
type Stage struct {
	Index    int    // 0 is the first
	Name     string // after AS, in lower case; "" if it has none
	Base     string // what FROM names, variables expanded; "" if they have no value
	Platform string // of --platform, as written
	Line     int    // of FROM
	parent   int    // index of the stage it is based on, or -1
	replaced bool   // by a further build context of that name
}

// Parse reads a Dockerfile. name is what messages call it.
//
// The error is of type *Error, or joins several of them: Parse reports every bad
// instruction, and everything wrong with our own metadata. A file whose syntax
// directive asks for a frontend other than docker/dockerfile is in a language
// that Parse does not know; it is accepted as it is.
func Parse(name string, text []byte) (*File, error) {
	f := &File{name: name, text: text}
	if syntax, _, _, ok := parser.DetectSyntax(text); ok && !isDockerfileFrontend(syntax) {
		f.foreign = true
		if err := f.readForeign(); err != nil {
			return nil, err
		}
		return f, nil
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, f.parserError(err)
	}
	f.escape = parsed.EscapeToken
	var problems []error
	for _, n := range parsed.AST.Children {
		if isMetadata(n.Value) {
			problems = append(problems, f.addInstruction(n)...)
			f.blanks = append(f.blanks, lineRange{n.StartLine, n.EndLine})
			continue
		}
		f.nodes = append(f.nodes, n)
		problems = append(problems, f.checkInstruction(n)...)
	}
	problems = append(problems, f.addComments(parsed.AST.Children)...)
	problems = append(problems, f.checkOrder()...)
	if len(problems) == 0 {
		problems = append(problems, f.resolveStages()...)
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b error) int { return lineOf(a) - lineOf(b) })
		return nil, errors.Join(problems...)
	}
	return f, nil
}

// Unknown returns a File of that name of which nothing is known: it is somewhere
// that cannot be looked at.
func Unknown(name string) *File { return &File{name: name, foreign: true} }

// With returns f as seen with opt. The error tells of what only then is wrong.
func (f *File) With(opt Options) (*File, error) {
	g := *f
	g.opt = Options{Args: maps.Clone(opt.Args), Contexts: slices.Clone(opt.Contexts)}
	if problems := g.resolveStages(); len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &g, nil
}

// Name returns what messages call the file.
func (f *File) Name() string { return f.name }

// Foreign reports whether a syntax directive says that the file is not in the
// Dockerfile language, or the file is Unknown. Nothing but Metadata, from comments,
// is then known of it.
func (f *File) Foreign() bool { return f.foreign }

// Syntax returns the image of the frontend that a syntax directive names; "" if
// there is none.
func (f *File) Syntax() string {
	syntax, _, _, _ := parser.DetectSyntax(f.text)
	return syntax
}

// Stages returns the stages in the order of the file.
func (f *File) Stages() []Stage { return slices.Clone(f.stages) }

// Target returns the stage to build: the named one, or the last if name is "".
func (f *File) Target(name string) (Stage, error) {
	if f.foreign {
		return Stage{Name: name, parent: -1}, nil
	}
	if name == "" {
		return f.stages[len(f.stages)-1], nil
	}
	if i := f.findStage(name, len(f.stages)); i >= 0 {
		return f.stages[i], nil
	}
	var names []string
	for _, s := range f.stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	err := fmt.Errorf("no stage is named %q: the target must be a name after FROM … AS", name)
	return Stage{}, &Error{File: f.name, Err: didYouMean(err, name, names)}
}

// findStage returns the index of the last stage before limit with that name, or -1.
func (f *File) findStage(name string, limit int) int {
	for i := limit - 1; i >= 0; i-- {
		if s := f.stages[i].Name; s != "" && s == strings.ToLower(name) {
			return i
		}
	}
	return -1
}

func (f *File) errorAt(line int, format string, args ...any) error {
	return &Error{File: f.name, Line: line, Err: fmt.Errorf(format, args...)}
}

// parserError gives an error of BuildKit's parser our shape.
func (f *File) parserError(err error) error {
	line := 0
	var le *parser.LocationError
	if errors.As(err, &le) && len(le.Locations) > 0 && len(le.Locations[0]) > 0 {
		line = le.Locations[0][0].Start.Line
	}
	if line == 0 && len(bytes.TrimSpace(f.text)) == 0 {
		return f.errorAt(0, "the file is empty: it needs at least a FROM instruction")
	}
	if le != nil {
		err = le.Unwrap()
		if err.Error() == "file with no instructions" {
			return f.errorAt(0, "the file has no instruction: it needs at least a FROM")
		}
	}
	return &Error{File: f.name, Line: line, Err: err}
}

// checkInstruction reports what is wrong with one instruction by itself.
func (f *File) checkInstruction(n *parser.Node) []error {
	_, err := instructions.ParseInstruction(n)
	if err == nil {
		return nil
	}
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		err = fmt.Errorf("unknown instruction: %s", n.Value)
		err = didYouMean(err, n.Value, instructionNames())
		return []error{&Error{File: f.name, Line: n.StartLine, Err: err}}
	}
	var le *parser.LocationError
	if errors.As(err, &le) {
		err = le.Unwrap()
	}
	return []error{&Error{File: f.name, Line: n.StartLine, Err: err}}
}

// checkOrder reports a file without FROM, and instructions before the first.
func (f *File) checkOrder() []error {
	var early []error
	for _, n := range f.nodes {
		switch strings.ToLower(n.Value) {
		case command.From:
			return early
		case command.Arg:
		default:
			if _, known := command.Commands[strings.ToLower(n.Value)]; known {
				early = append(early, f.errorAt(n.StartLine, "%s stands before the first FROM: only ARG may", strings.ToUpper(n.Value)))
			}
		}
	}
	for _, n := range f.nodes {
		if _, known := command.Commands[strings.ToLower(n.Value)]; !known {
			return nil // the file's FROM may be the misspelt word, which was reported
		}
	}
	return []error{f.errorAt(0, "the file has no FROM instruction")}
}

var dockerfileFrontend = regexp.MustCompile(`(^|/)docker/dockerfile(-upstream)?([:@].*)?$`)

func isDockerfileFrontend(ref string) bool { return dockerfileFrontend.MatchString(ref) }

func instructionNames() []string {
	names := slices.Collect(maps.Keys(command.Commands))
	names = append(names, slices.Collect(maps.Keys(metadataKeys))...)
	slices.Sort(names)
	return names
}

func lineOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Line
	}
	return 0
}
