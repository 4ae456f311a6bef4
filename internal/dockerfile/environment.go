package dockerfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// An environment holds the variables that are known at some point of the file.
// It implements shell.EnvGetter.
type environment map[string]variable

type variable struct {
	value string
	// sure tells that an engine will see this very value: a base image's ENV
	// wins over an ARG of the same name, and what a base image sets is not known
	// here.
	sure bool
}

// Get implements shell.EnvGetter.
func (e environment) Get(name string) (string, bool) {
	v, ok := e[name]
	return v.value, ok
}

// Keys implements shell.EnvGetter.
func (e environment) Keys() []string { return slices.Sorted(maps.Keys(e)) }

// expand returns word with the variables of e, and whether an engine is sure to
// see the same. closed tells that no base image can set further variables.
func (e environment) expand(lex *shell.Lex, word string, closed bool) (string, bool, error) {
	res, err := lex.ProcessWordWithMatches(word, e)
	if err != nil {
		return "", false, err
	}
	sure := closed || len(res.Unmatched) == 0
	for name := range res.Matched {
		sure = sure && e[name].sure
	}
	return res.Result, sure, nil
}

// platformArgs are the global arguments that BuildKit sets by itself, with values
// that serve to see the shape of a reference. The engine's own may differ.
var platformArgs = map[string]string{
	"BUILDPLATFORM": "linux/amd64", "BUILDOS": "linux", "BUILDOSVERSION": "", "BUILDARCH": "amd64", "BUILDVARIANT": "",
	"TARGETPLATFORM": "linux/amd64", "TARGETOS": "linux", "TARGETOSVERSION": "", "TARGETARCH": "amd64", "TARGETVARIANT": "",
	"TARGETSTAGE": "default",
}

// resolveStages fills f.global and f.stages from f.nodes and f.opt.
func (f *File) resolveStages() []error {
	f.global = environment{}
	f.stages = nil
	if f.foreign {
		return nil
	}
	for name, value := range platformArgs {
		f.global[name] = variable{value: value}
	}
	for name, value := range f.opt.Args {
		if _, ok := platformArgs[name]; ok {
			f.global[name] = variable{value, true}
		}
	}
	lex := shell.NewLex(f.escape)
	var problems []error
	for _, n := range f.nodes {
		switch strings.ToLower(n.Value) {
		case command.Arg:
			if len(f.stages) > 0 {
				continue
			}
			cmd, err := instructions.ParseInstruction(n)
			if err != nil {
				return []error{&Error{File: f.name, Line: n.StartLine, Err: err}}
			}
			if err := f.global.declareArgs(lex, cmd.(*instructions.ArgCommand), f.opt.Args, nil, true); err != nil {
				problems = append(problems, &Error{File: f.name, Line: n.StartLine, Err: err})
			}
		case command.From:
			cmd, err := instructions.ParseInstruction(n)
			if err != nil {
				return []error{&Error{File: f.name, Line: n.StartLine, Err: err}}
			}
			st := cmd.(*instructions.Stage)
			base, _, err := f.global.expand(lex, st.BaseName, true)
			if err != nil {
				problems = append(problems, &Error{File: f.name, Line: n.StartLine, Err: err})
			}
			stage := Stage{
				Index: len(f.stages), Name: strings.ToLower(st.Name), Base: base, Platform: st.Platform,
				Line: n.StartLine, parent: f.findStage(base, len(f.stages)),
			}
			if stage.replaced = f.isContext(stage.Name); stage.replaced {
				stage.parent = -1
			}
			f.stages = append(f.stages, stage)
		}
	}
	return problems
}

// declareArgs adds the variables of an ARG instruction. A value comes from the
// build arguments, else from the default, else from the global arguments.
func (e environment) declareArgs(lex *shell.Lex, cmd *instructions.ArgCommand, args map[string]string, global environment, closed bool) error {
	for _, a := range cmd.Args {
		if given, ok := args[a.Key]; ok {
			e[a.Key] = variable{given, closed}
			continue
		}
		if a.Value != nil {
			value, valueSure, err := e.expand(lex, *a.Value, closed)
			if err != nil {
				return err
			}
			e[a.Key] = variable{value, closed && valueSure}
			continue
		}
		if v, ok := global[a.Key]; ok {
			e[a.Key] = variable{v.value, closed && v.sure}
		}
	}
	return nil
}
