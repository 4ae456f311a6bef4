package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// maxArgDepth bounds argument files that name argument files.
const maxArgDepth = 8

// expandArgs replaces each @FILE by the arguments in FILE. What follows "--" is
// left alone.
func expandArgs(args []string) ([]string, error) {
	return expandArgsTo(nil, args, 0)
}

func expandArgsTo(out, args []string, depth int) ([]string, error) {
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...), nil
		}
		name, isFile := strings.CutPrefix(arg, "@")
		if !isFile {
			out = append(out, arg)
			continue
		}
		if depth == maxArgDepth {
			return nil, usagef("argument file %s: more than %d argument files within each other", name, maxArgDepth)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, usagef("argument file: %w", err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		if out, err = expandArgsTo(out, lines, depth+1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "PORTAINER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// flagsFromEnv sets the flags that the command line did not. They do not count
// as changed.
func flagsFromEnv(flags *pflag.FlagSet, env func(string) (string, bool)) error {
	var problems []error
	flags.VisitAll(func(f *pflag.Flag) {
		value, ok := env(envName(f.Name))
		if f.Changed || !ok || value == "" || f.Name == "help" {
			return
		}
		values := []string{value}
		if _, list := f.Value.(pflag.SliceValue); list {
			values = strings.FieldsFunc(value, func(r rune) bool { return r == '\n' })
		}
		for _, v := range values {
			if err := f.Value.Set(v); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", envName(f.Name), err))
			}
		}
	})
	if len(problems) > 0 {
		return &usageError{errors.Join(problems...)}
	}
	return nil
}
