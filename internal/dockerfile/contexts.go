package dockerfile

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// ContextName returns the name of a further build context as BuildKit looks it up:
// as a reference without the parts that go without saying, so that "alpine" is
// also "docker.io/library/alpine:latest" (buildkit frontend/dockerui, NamedContext).
func ContextName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("%q cannot name a build context: %w", name, err)
	}
	short := strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	if short == "scratch" || short == "context" {
		return "", fmt.Errorf("%q cannot name a build context: BuildKit means something else by it", name)
	}
	return short, nil
}

// isContext reports whether ref, of a FROM, an AS or a --from, names a further build
// context.
func (f *File) isContext(ref string) bool {
	if len(f.opt.Contexts) == 0 {
		return false
	}
	name, err := ContextName(ref)
	return err == nil && slices.Contains(f.opt.Contexts, name)
}

var scpLike = regexp.MustCompile(`^[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:`)

// IsRemote reports whether an engine fetches src by itself: a URL, or a git repository.
func IsRemote(src string) bool {
	for _, scheme := range []string{"http://", "https://", "git://", "ssh://"} {
		if strings.HasPrefix(src, scheme) {
			return true
		}
	}
	return scpLike.MatchString(src)
}

// IsRemoteContext reports whether s is what an engine takes for a build context that
// it fetches by itself: the URL of a git repository or of an archive or Dockerfile
// (buildkit frontend/dockerui, DetectGitContext and DetectHTTPContext). A path that
// begins with "github.com/" looks like one, too.
func IsRemoteContext(s string) bool { return IsRemote(s) || strings.HasPrefix(s, "github.com/") }
