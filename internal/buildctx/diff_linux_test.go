package buildctx_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/buildctx"
)

var (
	diffSeed  = flag.Uint64("diff.seed", 1, "seed of the trees that are built by docker and by us; 0 means a new one")
	diffCases = flag.Int("diff.cases", 400, "number of trees")
)

// batch is how many trees one build takes, each in a directory of its own with the
// rules of the one ignore file that begin with its name.
const batch = 40

func lutimes(name string, ts []syscall.Timespec) error {
	times := []unix.Timespec{{Sec: ts[0].Sec, Nsec: ts[0].Nsec}, {Sec: ts[1].Sec, Nsec: ts[1].Nsec}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// TestSameAsDocker builds random trees with random ignore files: by docker, which
// reads the directory itself, and from the tar stream of Pack. What comes out must
// be the same to the last bit and nanosecond.
//
// Docker is both the client of today, BuildKit's own as docker buildx has it, and
// the docker build of this machine. The latter is older than BuildKit's present
// rules for exceptions (docker/buildx#850), so it only gets trees without any.
func TestSameAsDocker(t *testing.T) {
	seed := *diffSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	d := startDocker(t)
	g := newGenerator(seed)
	batches := max(1, *diffCases*3/4/batch)
	for i := range batches {
		d.compareBatch(t, g, i)
	}
	alone := max(1, *diffCases/4)
	for i := range alone {
		d.compareAlone(t, g, i)
	}
	t.Logf("%d trees are the same (seed %d)", batches*batch+alone, seed)
}

func (d *docker) compareBatch(t *testing.T, g *generator, i int) {
	dir := t.TempDir()
	var ignore []string
	rules := map[string][]string{}
	for k := range batch {
		name := fmt.Sprintf("t%02d", k)
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		paths, err := g.tree(filepath.Join(dir, name))
		require.NoError(t, err)
		rules[name] = g.ignore(paths, name)
		ignore = append(ignore, rules[name]...)
	}
	d.compare(t, fmt.Sprintf("batch %d", i), dir, ignore, rules)
	d.compare(t, fmt.Sprintf("batch %d without exceptions", i), dir, withoutExceptions(ignore), rules)
}

func (d *docker) compareAlone(t *testing.T, g *generator, i int) {
	dir := t.TempDir()
	paths, err := g.tree(dir)
	require.NoError(t, err)
	ignore := g.ignore(paths, "")
	if g.IntN(5) == 0 {
		ignore = append([]string{"\ufeff*"}, ignore...)
	}
	if g.IntN(5) == 0 {
		ignore = append(ignore, "# comment", "", "#"+strings.Join(ignore, ""))
	}
	if g.IntN(5) == 0 {
		ignore = []string{strings.Join(ignore, "\r\n")}
	}
	d.compare(t, fmt.Sprintf("tree %d", i), dir, ignore, nil)
}

func withoutExceptions(ignore []string) []string {
	return slices.DeleteFunc(slices.Clone(ignore), func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "!") })
}

// compare builds dir both ways.
func (d *docker) compare(t *testing.T, name, dir string, ignore []string, rules map[string][]string) {
	t.Helper()
	file := filepath.Join(dir, ".dockerignore")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(ignore, "\n")), 0o644))
	when := time.Date(2020, 1, 1, 0, 0, 0, 1, time.UTC)
	require.NoError(t, os.Chtimes(file, when, when))
	about := func(p string) string {
		if rules == nil {
			return lines(ignore)
		}
		return lines(rules[strings.Split(p, "/")[0]])
	}
	got, gotErr := d.byPack(t, buildctx.Options{Dir: dir}, copyAll)
	oracles := map[string]func(*testing.T, string, string) (map[string]node, error){"BuildKit's client": d.byDirectory}
	if !strings.Contains(strings.Join(ignore, "\n"), "!") {
		oracles["docker build"] = func(t *testing.T, dir, df string) (map[string]node, error) { return d.byCommand(t, dir, df) }
	}
	for oracle, build := range oracles {
		want, wantErr := build(t, dir, copyAll)
		require.Equal(t, wantErr != nil, gotErr != nil, "%s, %s\n%s\ntheirs: %v\nours: %v", name, oracle, lines(ignore), wantErr, gotErr)
		if gotErr == nil {
			require.NoError(t, d.differences(want, got, about), "%s, %s", name, oracle)
		}
	}
}
