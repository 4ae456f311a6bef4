package portainer_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/org/portainer"

// mayImport says which packages of this module a package may import. Those that
// are not named may import none. The test fails for a package that is missing
// here and imports one of ours, so growth is a reviewed line.
var mayImport = map[string][]string{
	".":                     {"internal/wire", "internal/dockerfile", "internal/buildctx", "internal/staging", "internal/master", "internal/schedapi", "internal/seal", "internal/sshforward", "internal/logrelay", "internal/pause", "internal/ability", "internal/script"},
	"internal/schedapi":     {"internal/master", "internal/pause", "internal/recordio"},
	"internal/execapi":      {"internal/recordio"},
	"internal/ability":      {"internal/script", "internal/seal", "internal/wire"},
	"internal/engine":       {".", "internal/ability", "internal/pause", "internal/script", "internal/wire"},
	"internal/staging":      {"internal/pause"},
	"internal/hdfsblob":     {"internal/pause"},
	"internal/agentrun":     {".", "internal/wire", "internal/ability", "internal/execapi", "internal/staging", "internal/engine", "internal/pause", "internal/seal", "internal/sshforward", "internal/logrelay"},
	"internal/local":        {"internal/scratch", "internal/testmesos"},
	"internal/registryauth": {"internal/pause", "internal/seal"},
	"executor":              {"internal/agentrun", "internal/hdfsblob"},
	"cmd/portainer":         {".", "internal/agentrun", "internal/buildctx", "internal/dockerfile", "internal/hdfsblob", "internal/local", "internal/registryauth", "internal/scratch", "internal/staging"},
	"scripts/demo":          {"internal/dockertest"},
	"test/soak":             {".", "internal/dockertest", "internal/testmesos"},
	"examples/embed":        {"."},
	"examples/matcher":      {"."},
}

// onlyIn confines dependencies, by import path prefix, to some packages.
var onlyIn = map[string][]string{
	"github.com/docker/docker":                     {"internal/engine", "internal/dockertest"},
	"github.com/moby/buildkit/client":              {"internal/engine"},
	"github.com/moby/buildkit/session":             {"internal/engine"},
	"github.com/moby/buildkit/solver":              {"internal/engine"},
	"github.com/moby/buildkit/api":                 {"internal/engine"},
	"github.com/moby/buildkit/util":                {"internal/engine"},
	"github.com/moby/buildkit/frontend/dockerfile": {"internal/dockerfile"},
	"github.com/mesos/mesos-go":                    {".", "internal/schedapi", "internal/execapi", "internal/testmesos"},
	"github.com/distribution/distribution":         {"internal/local"},
	"github.com/spf13":                             {"cmd/portainer"},
	"gocloud.dev/blob/azureblob":                   drivers,
	"gocloud.dev/blob/fileblob":                    drivers,
	"gocloud.dev/blob/gcsblob":                     drivers,
	"gocloud.dev/blob/memblob":                     drivers,
	"gocloud.dev/blob/s3blob":                      drivers,
	module + "/internal/hdfsblob":                  drivers,
}

// drivers are the programs, which choose the blob drivers that they link.
var drivers = []string{"cmd/portainer", "executor", "examples/embed", "examples/matcher", "test/soak"}

// unused are the guarded dependencies that nothing needs at present.
var unused = []string{
	"github.com/moby/buildkit/api", "gocloud.dev/blob/memblob",
}

// neverReached lists what a program that embeds the library must not link.
var neverReached = []string{
	"github.com/docker/docker", "github.com/moby/buildkit/client", "github.com/distribution/distribution",
	"github.com/aws/", "cloud.google.com/", "github.com/Azure/",
	"github.com/stretchr/testify", "testing",
	module + "/internal/engine", module + "/internal/agentrun", module + "/internal/local", module + "/internal/testmesos",
}

// A pkg is what `go list -json` tells of a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// name is the path of p below the module.
func (p pkg) name() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, patterns...)...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("go list: %s", exit.Stderr)
	}
	require.NoError(t, err)
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else {
			require.NoError(t, err)
		}
		pkgs = append(pkgs, p)
	}
}

// isBelow reports whether path is prefix or lies below it.
func isBelow(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

func TestImportDirections(t *testing.T) {
	pkgs := list(t, "./...")
	require.NotEmpty(t, pkgs)
	for _, p := range pkgs {
		for _, imported := range p.Imports {
			if isBelow(imported, module) && isBelow(imported, module+"/internal") || imported == module {
				// A tree of packages under one name is one piece.
				ours := pkg{ImportPath: imported}.name()
				piece := p.name()
				if isBelow(ours, piece) && piece != "." || isBelow(piece, ours) && ours != "." {
					continue
				}
				require.Contains(t, mayImport[pieceOf(piece)], pieceOf(ours), "%s imports %s", p.name(), ours)
			}
			for prefix, where := range onlyIn {
				if !isBelow(imported, prefix) {
					continue
				}
				require.Contains(t, where, pieceOf(p.name()), "%s imports %s", p.name(), imported)
			}
		}
	}
}

// pieceOf cuts a package below one of the pieces to that piece:
// "internal/testmesos/fetch" to "internal/testmesos".
func pieceOf(name string) string {
	if parts := strings.Split(name, "/"); parts[0] == "internal" && len(parts) > 2 {
		return path.Join(parts[:2]...)
	}
	return name
}

func TestLibraryLinksOnlyWhatItUses(t *testing.T) {
	for _, dep := range list(t, ".")[0].Deps {
		for _, prefix := range neverReached {
			require.False(t, isBelow(dep, prefix), "the library reaches %s", dep)
		}
	}
}

func TestEveryConfinedDependencyIsUsed(t *testing.T) {
	// A rule about a dependency that is gone guards nothing.
	used := map[string]bool{}
	for _, p := range list(t, "./...") {
		for _, imported := range p.Imports {
			used[imported] = true
		}
	}
	for prefix := range onlyIn {
		if slices.Contains(unused, prefix) {
			continue
		}
		found := false
		for imported := range used {
			found = found || isBelow(imported, prefix)
		}
		require.True(t, found, "no package imports %s", prefix)
	}
}

// TestEveryDependencyIsExplained: a direct dependency has its sentence in
// docs/design.md.
func TestEveryDependencyIsExplained(t *testing.T) {
	design, err := os.ReadFile(filepath.Join("docs", "design.md"))
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{if not (or .Main .Indirect)}}{{.Path}}{{end}}", "all").Output()
	require.NoError(t, err)
	modules := strings.Fields(string(out))
	require.NotEmpty(t, modules)
	for _, m := range modules {
		require.Contains(t, string(design), "| `"+m+"` | ", "docs/design.md must say what %s is for", m)
	}
}

// TestExportedSignatures keeps third-party types out of the public face, except
// *blob.Bucket.
func TestExportedSignatures(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		foreign := map[string]string{} // local name → import path
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			if !strings.Contains(strings.Split(imported, "/")[0], ".") {
				continue // the standard library
			}
			local := path.Base(imported)
			if spec.Name != nil {
				local = spec.Name.Name
			}
			foreign[local] = imported
		}
		check := func(node ast.Node) {
			ast.Inspect(node, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if id, ok := sel.X.(*ast.Ident); ok && foreign[id.Name] != "" {
					got := foreign[id.Name] + "." + sel.Sel.Name
					require.Equal(t, "gocloud.dev/blob.Bucket", got, "%s", fset.Position(sel.Pos()))
				}
				return true
			})
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Name.IsExported() && (decl.Recv == nil || receiverIsExported(decl)) {
					check(decl.Type)
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() {
							checkType(spec.Type, check)
						}
					case *ast.ValueSpec:
						if spec.Type != nil && slices.ContainsFunc(spec.Names, (*ast.Ident).IsExported) {
							check(spec.Type)
						}
					}
				}
			}
		}
	}
}

// checkType calls check for the parts of a type that others can see.
func checkType(typ ast.Expr, check func(ast.Node)) {
	s, ok := typ.(*ast.StructType)
	if !ok {
		check(typ)
		return
	}
	for _, field := range s.Fields.List {
		if len(field.Names) == 0 || slices.ContainsFunc(field.Names, (*ast.Ident).IsExported) {
			check(field.Type)
		}
	}
}

func receiverIsExported(fn *ast.FuncDecl) bool {
	typ := fn.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}
