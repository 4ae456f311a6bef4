package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/portainer"
	"github.com/org/portainer/internal/buildctx"
	"github.com/org/portainer/internal/dockerfile"
)

// defaultContextLimit is more than a context has that is meant.
const defaultContextLimit = 4 << 30

// contextFlags say what is in a build context.
type contextFlags struct {
	dir          string
	limit        sizeFlag
	allowOutside bool
}

func (c *contextFlags) addFlags(f *pflag.FlagSet) {
	c.limit = defaultContextLimit
	f.StringVar(&c.dir, "context", "", "the directory of the build context (default: the one that holds the Dockerfile), or a URL")
	f.Var(&c.limit, "context-limit", "refuse a build context with more bytes in files; 0 means no limit")
	f.BoolVar(&c.allowOutside, "allow-outside-context", false, "let links and ADD ../… bring in what lies outside of the directory")
}

// bundler is the bundler for these flags. It remembers digests of files in the
// user's cache directory.
func (c *contextFlags) bundler(env func(string) (string, bool)) portainer.DirBundler {
	return portainer.DirBundler{CacheDir: cacheDir(env), Limit: int64(c.limit), AllowOutside: c.allowOutside}
}

// cacheDir is portainer's part of the user's cache directory, by the rules of the
// XDG base directory specification; "" if the user has none.
func cacheDir(env func(string) (string, bool)) string {
	if dir, ok := env("XDG_CACHE_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "portainer")
	}
	if home, ok := env("HOME"); ok && filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "portainer")
	}
	return ""
}

// dockerfilePath is the Dockerfile that an argument names: a directory stands for
// the one in it.
func dockerfilePath(arg string) string {
	if info, err := os.Stat(arg); err == nil && info.IsDir() {
		return filepath.Join(arg, "Dockerfile")
	}
	return arg
}

func newContext(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Look at build contexts",
		Args:  cobra.ArbitraryArgs,
		RunE:  commandNeeded,
	}
	var c contextFlags
	var why bool
	ls := &cobra.Command{
		Use:   "ls [flags] DOCKERFILE",
		Short: "List what a build would send",
		Long: `ls lists the files that a build would send, the largest first, and how many bytes
they are in all. With --why it lists every path, and for what is left out the
rule of the ignore file that does so.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give one Dockerfile: see portainer context ls --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file := dockerfilePath(args[0])
			if _, err := os.Stat(file); err != nil {
				return &usageError{err}
			}
			verdicts, err := buildctx.Explain(cmd.Context(), buildctx.Options{
				Dir: cmp.Or(c.dir, filepath.Dir(file)), Dockerfile: file, AllowOutside: c.allowOutside,
			})
			if err != nil {
				return &usageError{err}
			}
			if !takesContext(file) {
				complain(g.stderr, fmt.Errorf("%s takes nothing from its context: a build sends none of it", file))
			}
			return g.tellContext(verdicts, why)
		},
	}
	f := ls.Flags()
	f.StringVar(&c.dir, "context", "", "the directory of the build context (default: the one that holds the Dockerfile)")
	f.BoolVar(&c.allowOutside, "allow-outside-context", false, "let links bring in what lies outside of the directory")
	f.BoolVar(&why, "why", false, "list what is left out, too, and why")
	cmd.AddCommand(ls)
	return cmd
}

// takesContext reports whether the Dockerfile with that name may use anything of its
// context. One that is not understood may.
func takesContext(name string) bool {
	text, err := os.ReadFile(name)
	if err != nil {
		return true
	}
	file, err := dockerfile.Parse(name, text)
	return err != nil || file.UsesContext()
}

// tellContext lists a context on standard output.
func (g *globals) tellContext(verdicts []buildctx.Verdict, why bool) error {
	if !why {
		verdicts = slices.DeleteFunc(verdicts, func(v buildctx.Verdict) bool { return !v.In })
		slices.SortStableFunc(verdicts, func(a, b buildctx.Verdict) int { return cmp.Compare(b.Size, a.Size) })
	}
	var total int64
	for _, v := range verdicts {
		total += v.Size
		state, rule := fmt.Sprintf("%10s", bytesOf(v.Size)), ""
		if !v.In {
			state = "  left out"
		}
		if why && v.Rule != nil {
			rule = "\t" + v.Rule.String()
		}
		if _, err := fmt.Fprintf(g.stdout, "%s  %s%s\n", state, v.Path, rule); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(g.stdout, "%10s  in all\n", bytesOf(total))
	return err
}
