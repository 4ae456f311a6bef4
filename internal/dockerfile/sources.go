package dockerfile

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// A Source is something that the file wants from the build context.
type Source struct {
	Instruction string // "ADD", "COPY" or "RUN"
	Path        string // as the file has it, variables expanded where they are known; wildcards kept
	Line        int
	Stage       int // index of the stage, the instruction's own
	// Sure tells that an engine will see exactly this path: no variable in it
	// has a value that only a base image knows.
	Sure bool
	// OnBuild tells that the instruction only runs when a stage or another file
	// builds on this one.
	OnBuild bool
}

// Wildcard reports whether the path has wildcards.
func (s Source) Wildcard() bool { return strings.ContainsAny(s.Path, "*?[") }

// Clean returns the path below the context's root, as an engine reads it: slash
// separated, without leading slash, "." for the root. A path that begins with
// ".." cannot leave the root: as in a chroot, it names what lies in it.
func (s Source) Clean() string {
	if c := strings.TrimPrefix(path.Clean("/"+s.Path), "/"); c != "" {
		return c
	}
	return "."
}

// Outside reports whether the path, read as a plain relative path, names
// something outside of the context.
func (s Source) Outside() bool {
	c := path.Clean(strings.TrimLeft(s.Path, "/"))
	return c == ".." || strings.HasPrefix(c, "../")
}

// UsesContext reports whether a build needs a build context: the file copies or
// mounts something local, or asks for it (Metadata.ContextAlways), or builds on an
// image whose tag says that its ONBUILD instructions may.
func (f *File) UsesContext() bool {
	if f.foreign || f.meta.ContextAlways || len(f.Sources()) > 0 {
		return true
	}
	return slices.ContainsFunc(f.Bases(), func(b Base) bool { return strings.Contains(b.Ref, "onbuild") })
}

// TargetSources returns the sources of the stages that a build of the named
// target needs ("" is the last stage), without those of ONBUILD.
func (f *File) TargetSources(target string) ([]Source, error) {
	t, err := f.Target(target)
	if err != nil || f.foreign {
		return nil, err
	}
	needed := f.needs(t.Index)
	return slices.DeleteFunc(f.Sources(), func(s Source) bool { return s.OnBuild || !needed[s.Stage] }), nil
}

// needs returns the stages that a build of stage i runs.
func (f *File) needs(i int) map[int]bool {
	deps := make([][]int, len(f.stages))
	stage := -1
	for _, n := range f.nodes {
		cmd, err := instructions.ParseInstruction(n)
		if err != nil {
			continue // Parse has checked every instruction
		}
		var names []string
		switch c := cmd.(type) {
		case *instructions.Stage:
			stage++
			if p := f.stages[stage].parent; p >= 0 {
				deps[stage] = append(deps[stage], p)
			}
		case *instructions.CopyCommand:
			names = append(names, c.From)
		case *instructions.RunCommand:
			for _, m := range instructions.GetMounts(c) {
				names = append(names, m.From)
			}
		}
		for _, name := range names {
			if f.stages[stage].replaced {
				break // it is not run
			}
			if k, err := strconv.Atoi(name); err == nil && k >= 0 && k < len(f.stages) {
				deps[stage] = append(deps[stage], k)
			} else if k := f.findStage(name, len(f.stages)); k >= 0 {
				deps[stage] = append(deps[stage], k)
			}
		}
	}
	needed := map[int]bool{i: true}
	for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
		for _, d := range deps[queue[0]] {
			if !needed[d] {
				needed[d] = true
				queue = append(queue, d)
			}
		}
	}
	return needed
}

// Sources returns everything that ADD, COPY and RUN --mount=type=bind want from
// the build context, in the order of the file, those of ONBUILD included. URLs,
// heredocs and what comes from stages, images or further contexts is not in it.
func (f *File) Sources() []Source {
	if f.foreign {
		return nil
	}
	w := sourceWalk{f: f, lex: shell.NewLex(f.escape), stage: -1}
	for _, n := range f.nodes {
		cmd, err := instructions.ParseInstruction(n)
		if err != nil {
			continue // Parse has checked every instruction
		}
		w.visit(cmd, n.StartLine, false)
	}
	return w.sources
}

// A sourceWalk follows the variables through the file.
type sourceWalk struct {
	f       *File
	lex     *shell.Lex
	stage   int
	envs    []environment // of each stage so far
	sources []Source
}

// scratch reports whether nothing but this file says what the stage's
// environment is.
func (w *sourceWalk) scratch(stage int) bool {
	for ; stage >= 0; stage = w.f.stages[stage].parent {
		if s := w.f.stages[stage]; s.parent < 0 {
			return s.Base == "scratch" && !s.replaced
		}
	}
	return false
}

func (w *sourceWalk) visit(cmd any, line int, onBuild bool) {
	if st, ok := cmd.(*instructions.Stage); ok && st != nil {
		w.stage++
		env := environment{}
		if p := w.f.stages[w.stage].parent; p >= 0 {
			maps.Copy(env, w.envs[p])
		}
		w.envs = append(w.envs, env)
		return
	}
	if w.stage < 0 {
		return
	}
	if _, ok := cmd.(*instructions.OnbuildCommand); !ok && !onBuild && w.f.stages[w.stage].replaced {
		return // it is not run, but what it has for others is
	}
	env := w.envs[w.stage]
	switch c := cmd.(type) {
	case *instructions.ArgCommand:
		// An engine would report a bad expansion itself, with more context.
		_ = env.declareArgs(w.lex, c, w.f.opt.Args, w.f.global, w.scratch(w.stage))
	case *instructions.EnvCommand:
		// All pairs of one ENV see the values from before it.
		next := make(map[string]variable, len(c.Env))
		for _, kv := range c.Env {
			if value, sure, err := env.expand(w.lex, kv.Value, w.scratch(w.stage)); err == nil {
				next[kv.Key] = variable{value, sure}
			}
		}
		maps.Copy(env, next)
	case *instructions.AddCommand:
		w.addPaths("ADD", c.SourcePaths, line, onBuild)
	case *instructions.CopyCommand:
		if c.From == "" {
			w.addPaths("COPY", c.SourcePaths, line, onBuild)
		}
	case *instructions.RunCommand:
		w.addMounts(c, line, onBuild)
	case *instructions.OnbuildCommand:
		w.visitOnBuild(c.Expression, line)
	}
}

func (w *sourceWalk) addPaths(name string, paths []string, line int, onBuild bool) {
	for _, p := range paths {
		w.add(name, p, line, onBuild)
	}
}

func (w *sourceWalk) add(name, p string, line int, onBuild bool) {
	expanded, sure, err := w.envs[w.stage].expand(w.lex, p, w.scratch(w.stage))
	if err != nil {
		expanded, sure = p, false
	}
	if IsRemote(expanded) {
		return
	}
	w.sources = append(w.sources, Source{
		Instruction: name, Path: expanded, Line: line, Stage: w.stage, Sure: sure, OnBuild: onBuild,
	})
}

func (w *sourceWalk) addMounts(c *instructions.RunCommand, line int, onBuild bool) {
	sure := true
	err := c.Expand(func(word string) (string, error) {
		v, s, err := w.envs[w.stage].expand(w.lex, word, w.scratch(w.stage))
		sure = sure && s
		return v, err
	})
	for _, m := range instructions.GetMounts(c) {
		if m.Type != instructions.MountTypeBind || m.From != "" {
			continue
		}
		w.sources = append(w.sources, Source{
			Instruction: "RUN", Path: m.Source, Line: line, Stage: w.stage,
			Sure: err == nil && sure, OnBuild: onBuild,
		})
	}
}

func (w *sourceWalk) visitOnBuild(expression string, line int) {
	parsed, err := parser.Parse(strings.NewReader(expression))
	if err != nil {
		return
	}
	for _, n := range parsed.AST.Children {
		switch cmd, err := instructions.ParseInstruction(n); cmd.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand:
			if err == nil {
				w.visit(cmd, line, true)
			}
		}
	}
}
