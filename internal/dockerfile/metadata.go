package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Metadata is what a Dockerfile says to portainer itself, either as instructions
//
//	REGISTRY registry.example.com:5000
//	REPOSITORY team/app
//	CPUS 2          (or BUILD_CPU)
//	MEM 1g          (or BUILD_MEM; a bare number is in MB)
//
// or as comments, which leave the file valid for docker build:
//
//	# portainer: repository=team/app cpus=2 mem=1g registry=registry.example.com:5000
//
// A comment may also say gpus=1, target=stage, platform=linux/amd64,linux/arm64, and context=always, for a base image whose ONBUILD
// instructions need the build context though the file itself copies nothing.
type Metadata struct {
	Registry      string
	Repository    string
	CPUs          float64  // 0 if not given
	MemMB         float64  // 0 if not given
	GPUs          float64  // 0 if not given
	Target        string   // the stage to build
	Platforms     []string // what the image is for
	ContextAlways bool
	// Lines are where each was given: "registry", "repository", "cpus", "mem",
	// "gpus", "target", "platform", "context".
	Lines map[string]int
}

// Metadata returns the file's metadata. Treat it as read only.
func (f *File) Metadata() Metadata { return f.meta }

// metadataKeys are the instructions, in lower case, and the key each one sets.
var metadataKeys = map[string]string{
	"registry":   "registry",
	"repository": "repository",
	"cpus":       "cpus",
	"build_cpu":  "cpus",
	"mem":        "mem",
	"build_mem":  "mem",
}

var commentKeys = []string{"registry", "repository", "cpus", "mem", "gpus", "target", "platform", "context"}

func isMetadata(instruction string) bool {
	_, ok := metadataKeys[strings.ToLower(instruction)]
	return ok
}

// addInstruction takes a metadata instruction. The parser keeps the arguments of
// instructions it does not know only in Original.
func (f *File) addInstruction(n *parser.Node) []error {
	words := strings.Fields(n.Original)
	name := strings.ToUpper(n.Value)
	if len(words) != 2 {
		return []error{f.errorAt(n.StartLine, "%s takes exactly one argument, not %d", name, len(words)-1)}
	}
	if err := f.meta.set(metadataKeys[strings.ToLower(n.Value)], words[1], n.StartLine); err != nil {
		return []error{f.errorAt(n.StartLine, "%s: %w", name, err)}
	}
	return nil
}

var metadataComment = regexp.MustCompile(`^#[ \t]*portainer:[ \t]*(.*?)[ \t]*$`)

// addComments takes the metadata comments, wherever a comment may stand: between
// instructions and between the lines of one, but not in a heredoc.
func (f *File) addComments(nodes []*parser.Node) []error {
	var problems []error
	lines := f.lines()
	within := make([]bool, len(lines)+2) // lines that belong to an instruction
	var comments []comment
	for _, n := range nodes {
		for i := n.StartLine; i <= n.EndLine && i < len(within); i++ {
			within[i] = true
		}
		lo, err := f.locate(lines, n)
		if err != nil {
			problems = append(problems, &Error{File: f.name, Line: n.StartLine, Err: err})
			continue
		}
		comments = append(comments, lo.comments...)
	}
	for i, line := range lines {
		if !within[i+1] {
			comments = append(comments, comment{i + 1, strings.TrimSpace(strings.TrimPrefix(string(line), string(bom)))})
		}
	}
	for _, c := range comments {
		problems = append(problems, f.addComment(c)...)
	}
	return problems
}

func (f *File) addComment(c comment) []error {
	m := metadataComment.FindStringSubmatch(strings.TrimRight(c.text, "\r\n"))
	if m == nil {
		return nil
	}
	var problems []error
	for word := range strings.FieldsSeq(m[1]) {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			problems = append(problems, f.errorAt(c.line, "# portainer: %q is not of the form key=value", word))
			continue
		}
		if err := f.meta.set(strings.ToLower(key), value, c.line); err != nil {
			problems = append(problems, f.errorAt(c.line, "# portainer: %s: %w", key, err))
		}
	}
	return problems
}

// readForeign takes the metadata comments of a file in another language: those
// of its leading comment lines, the only ones sure to be comments.
func (f *File) readForeign() error {
	var problems []error
	for i, line := range f.lines() {
		text := strings.TrimSpace(strings.TrimPrefix(string(line), string(bom)))
		if text != "" && !strings.HasPrefix(text, "#") {
			break
		}
		problems = append(problems, f.addComment(comment{i + 1, text})...)
	}
	return errors.Join(problems...)
}

// set sets one value. The same key may come again only with the same value.
func (m *Metadata) set(key, value string, line int) error {
	next := *m
	var err error
	switch key {
	case "registry":
		next.Registry, err = parseRegistry(value)
	case "repository":
		next.Repository, err = parseRepository(value)
	case "cpus":
		next.CPUs, err = parseCPUs(value)
	case "mem":
		next.MemMB, err = ParseMem(value)
	case "gpus":
		next.GPUs, err = ParseGPUs(value)
	case "target":
		next.Target = value
		if value == "" {
			err = errors.New("it names no stage")
		}
	case "platform":
		next.Platforms, err = parsePlatforms(value)
	case "context":
		next.ContextAlways = value == "always"
		if value != "always" && value != "auto" {
			err = fmt.Errorf("%q is neither always nor auto", value)
		}
	default:
		err = fmt.Errorf("unknown key; the keys are %s", strings.Join(commentKeys, ", "))
		return didYouMean(err, key, commentKeys)
	}
	if err != nil {
		return err
	}
	if first, again := m.Lines[key]; again {
		if m.Registry != next.Registry || m.Repository != next.Repository || m.CPUs != next.CPUs ||
			m.MemMB != next.MemMB || m.Target != next.Target || !slices.Equal(m.Platforms, next.Platforms) || m.GPUs != next.GPUs || m.ContextAlways != next.ContextAlways {
			return fmt.Errorf("%s has another value in line %d", key, first)
		}
		return nil
	}
	next.Lines = map[string]int{key: line}
	maps.Copy(next.Lines, m.Lines)
	*m = next
	return nil
}

var (
	registryHost   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)
	platform       = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?$`)
	repositoryPath = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
)

func parseRegistry(s string) (string, error) {
	if strings.Contains(s, "://") {
		return "", fmt.Errorf("%q has a scheme: give the host, or host:port, alone", s)
	}
	if !registryHost.MatchString(s) {
		return "", fmt.Errorf("%q is not of the form host or host:port", s)
	}
	return s, nil
}

func parseRepository(s string) (string, error) {
	if !repositoryPath.MatchString(s) || len(s) > 255 {
		return "", fmt.Errorf("%q is not a repository path such as team/app: lower case, without host, tag or digest", s)
	}
	return s, nil
}

// parsePlatforms reads platforms that are separated by commas.
func parsePlatforms(s string) ([]string, error) {
	list := strings.Split(s, ",")
	for _, p := range list {
		if !platform.MatchString(p) {
			return nil, fmt.Errorf("%q is not a platform such as linux/arm64 or linux/arm/v7", p)
		}
	}
	return list, nil
}

func parseCPUs(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 {
		return 0, fmt.Errorf("%q is not a number of CPUs above 0", s)
	}
	return v, nil
}

// ParseGPUs reads a number of GPUs, which Mesos shares out whole (mesos
// docs/gpu-support.md).
func ParseGPUs(s string) (float64, error) {
	v, err := strconv.ParseUint(s, 10, 16)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("%q is not a whole number of GPUs above 0", s)
	}
	return float64(v), nil
}

// ParseMem reads an amount of memory and returns it in MB of 2^20 bytes: a bare
// number is in MB, and b, k, m, g or t say otherwise ("512m", "1.5g", "2GiB").
func ParseMem(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		bytes, sizeErr := units.RAMInBytes(s)
		v, err = float64(bytes)/(1<<20), sizeErr
	}
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 {
		return 0, fmt.Errorf("%q is not an amount of memory above 0, such as 512 (MB), 512m or 1g", s)
	}
	return v, nil
}
