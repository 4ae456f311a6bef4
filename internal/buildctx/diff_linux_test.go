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

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/org/portainer/internal/buildctx"
)

var (
	diffSeed  = flag.Uint64("diff.seed", 1, "seed of the trees that are built by docker and by us; 0 means a new one")
	diffCases = flag.Int("diff.cases", 240, "number of trees that share an ignore file with others")
	diffAlone = flag.Int("diff.alone", 13, "number of trees that have an ignore file of their own")
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
// rules for exceptions (docker/buildx#850) and for some characters in patterns and
// names (moby/patternmatcher, shouldEscape), so it only gets what has none of them.
func TestSameAsDocker(t *testing.T) {
	seed := *diffSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	d := startDocker(t)
	g := newGenerator(seed)
	t.Logf("seed %d", seed)
	batches := *diffCases / batch
	for i := range batches {
		d.compareBatch(t, g, i)
	}
	for i := range *diffAlone {
		d.compareAlone(t, g, i)
	}
	t.Logf("%d random contexts are those of docker build with BuildKit, and %d of them, with simple rules, those of the classic builder (seed %d)",
		batches*batch+*diffAlone, d.classic, seed)
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
	d.compare(t, fmt.Sprintf("batch %d, simple rules", i), dir, simple(ignore), rules)
	if i%2 == 0 {
		d.compareClassic(t, fmt.Sprintf("batch %d", i), dir, simple(ignore))
		d.classic += batch
	}
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

// simple returns the rules that every docker build understands alike.
func simple(ignore []string) []string {
	return slices.DeleteFunc(slices.Clone(ignore), func(l string) bool {
		return strings.ContainsAny(l, "!+(){}|^") || strings.Contains(l, "**")
	})
}

// compare builds dir both ways.
func (d *docker) compare(t *testing.T, name, dir string, ignore []string, rules map[string][]string) {
	t.Helper()
	file := filepath.Join(dir, ".dockerignore")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(ignore, "\n")), 0o644))
	// Docker takes a file with the path, size and time of one that it got for an
	// earlier build to be that file.
	d.compared++
	when := time.Date(2020, 1, 1, 0, 0, d.compared, 1, time.UTC)
	require.NoError(t, os.Chtimes(file, when, when))
	before := nodes(t, dir)
	about := func(p string) string {
		if rules == nil {
			return lines(ignore)
		}
		return lines(rules[strings.Split(p, "/")[0]])
	}
	patterns, err := ignorefile.ReadAll(strings.NewReader(strings.Join(ignore, "\n")))
	require.NoError(t, err)
	emptied := func(p string) bool {
		m, err := patternmatcher.New(patterns)
		require.NoError(t, err)
		out, err := m.MatchesOrParentMatches(p)
		require.NoError(t, err)
		return out
	}
	got, gotErr := d.byPack(t, buildctx.Options{Dir: dir}, copyAll)
	oracles := map[string]func(t *testing.T, dir, dockerfile string) (map[string]node, error){"BuildKit's client": d.byDirectory}
	if len(simple(ignore)) == len(ignore) {
		oracles["docker build"] = d.byCommand
	}
	for oracle, build := range oracles {
		want, wantErr := build(t, dir, copyAllFile(t))
		require.Equal(t, wantErr != nil, gotErr != nil, "%s, %s\n%s\ntheirs: %v\nours: %v", name, oracle, lines(ignore), wantErr, gotErr)
		if gotErr == nil {
			for p, n := range got {
				require.Equal(t, before[p].Content, n.Content, "%s: content of %q", name, p)
			}
			require.NoError(t, d.differences(want, got, emptied, about), "%s, %s", name, oracle)
		}
	}
}

// TestOddContextsSameAsDocker compares what random trees do not have.
func TestOddContextsSameAsDocker(t *testing.T) {
	d := startDocker(t)
	socket := func(t *testing.T, dir string) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		t.Chdir(dir) // the path of a socket must be short
		require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}))
	}
	tests := []struct {
		name, dockerfile string
		files            []string
		make             func(t *testing.T, dir string)
		ignore           string // of the Dockerfile itself
		root             string // of the context, below the directory
	}{
		{name: "nothing", files: nil, dockerfile: copyAll},
		{name: "everything left out", files: []string{"a", ".dockerignore\n*"}, dockerfile: copyAll},
		{name: "socket", files: []string{"a\nx"}, make: socket, dockerfile: "FROM scratch\nCOPY a /\n"},
		{name: "copied socket", files: []string{"a\nx"}, make: socket, dockerfile: copyAll},
		{name: "device", files: []string{"a"}, dockerfile: copyAll, make: func(t *testing.T, dir string) {
			require.NoError(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		}},
		{name: "ignore file is a link", files: []string{"rules\nb", ".dockerignore -> rules", "a", "b"}, dockerfile: copyAll},
		{name: "ignore file is an absolute link", files: []string{"d/rules\nb", ".dockerignore -> /d/rules", "a", "b"}, dockerfile: copyAll},
		{name: "Dockerfile's own ignore file", files: []string{".dockerignore\na", "a", "b"}, ignore: "b", dockerfile: copyAll},
		{name: "empty ignore file of the Dockerfile", files: []string{".dockerignore\na", "a", "b"}, ignore: "\n", dockerfile: copyAll},
		{name: "links", dockerfile: "FROM scratch\nCOPY in/f /1\nCOPY abs/f /2\nCOPY d/up/d/f /3\nCOPY i*/f /4\nCOPY in /5\nCOPY in/ /6/\nCOPY ../d /7\n",
			files: []string{"d/f\nf", "in -> d", "abs -> /d", "d/up -> .."}},
		{name: "wildcards", dockerfile: "FROM scratch\nCOPY *.c d/[ab]* d/e?/* /x/\n", files: []string{"a.c", "b.c", "d/a", "d/b/c", "d/e1/f", "d/x"}},
		{name: "root with attributes", dockerfile: "FROM scratch\nCOPY . /x/\nCOPY . /y\n", files: []string{"a"}, make: func(t *testing.T, dir string) {
			require.NoError(t, os.Chmod(dir, 0o700|os.ModeSticky))
		}},
		{name: "sparse", dockerfile: copyAll, files: []string{"s"}, make: func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "s"), 5<<20))
		}},
		{name: "large links", dockerfile: copyAll, files: []string{strings.Repeat("a/", 40) + "f", "l -> " + strings.Repeat("../", 200)}},
		{name: "longest names", dockerfile: copyAll, files: []string{
			strings.Repeat("n", 255), strings.Repeat("ü", 127) + "/" + strings.Repeat("d", 255) + "/" + strings.Repeat("e", 255) + "/f\nf",
			"l -> " + strings.Repeat("t", 255) + "/" + strings.Repeat("u", 255), strings.Repeat("h", 255) + " = " + strings.Repeat("n", 255),
		}},
		{name: "the root is a link", root: "d/link", files: []string{"d/link -> ../real", "real/a", "real/b -> ../out", "out"}, dockerfile: copyAll},
		{name: "links to and from themselves", dockerfile: copyAll, files: []string{"self -> self", "a -> b", "b -> a", "d/up -> ..", "d/here -> .", "none -> no/where"}},
		{name: "copied link that loops", dockerfile: "FROM scratch\nCOPY a/f /\n", files: []string{"a -> b", "b -> a"}},
		{name: "copied link that dangles", dockerfile: "FROM scratch\nCOPY a /x/\n", files: []string{"a -> none"}},
		{name: "Dockerfile and ignore file left out", dockerfile: copyAll, files: []string{"Dockerfile\nFROM scratch", ".dockerignore\nDockerfile\n.dockerignore", "a"}},
		{name: "rules in every guise", dockerfile: copyAll, files: []string{
			".dockerignore\n\ufeff# a comment\r\n/a/\r\n  b/./c  \r\n../above\nd//e/../f\n!d/f/g\n\n#h\n", "a/x", "b/c/x", "b/d", "d/f/g", "d/f/h", "#h", "above",
		}},
		{name: "missing", dockerfile: "FROM scratch\nCOPY b /\n", files: []string{"a"}},
		{name: "left out", dockerfile: "FROM scratch\nCOPY a /\n", files: []string{"a", ".dockerignore\na"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tree(t, tt.files...)
			if tt.make != nil {
				tt.make(t, dir)
			}
			df := filepath.Join(t.TempDir(), "Dockerfile")
			require.NoError(t, os.WriteFile(df, []byte(tt.dockerfile), 0o644))
			if tt.ignore != "" {
				require.NoError(t, os.WriteFile(df+".dockerignore", []byte(strings.TrimSuffix(tt.ignore, "\n")), 0o644))
			}
			dir = filepath.Join(dir, tt.root)
			want, wantErr := d.byDirectory(t, dir, df)
			got, gotErr := d.byPack(t, buildctx.Options{Dir: dir, Dockerfile: df}, tt.dockerfile)
			require.Equal(t, wantErr != nil, gotErr != nil, "theirs: %v\nours: %v", wantErr, gotErr)
			none := func(string) bool { return false }
			require.NoError(t, d.differences(want, got, none, func(string) string { return "" }))
		})
	}
}
