package portainer

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/org/portainer/internal/dockerfile"
)

// elsewhere reports whether the Dockerfile of req is in a context that only the engine
// fetches.
func elsewhere(req *Request) bool { return req.Remote != "" && req.Source == nil }

// locateRemote checks and fills in the fields about a remote context.
func locateRemote(req *Request) error {
	if req.Dir != "" || req.Bundler != nil {
		return errors.New("there is one build context: Remote goes with neither Dir nor Bundler")
	}
	if !dockerfile.IsRemoteContext(req.Remote) {
		return fmt.Errorf("remote context %q: it must be the URL of a git repository, or an http or https URL", req.Remote)
	}
	if err := checkURL(req.Remote); err != nil {
		return fmt.Errorf("remote context: %w", err)
	}
	req.Dockerfile = cmp.Or(req.Dockerfile, "Dockerfile")
	return nil
}

// checkFrom checks the registry of base images, and refuses to rewrite a Dockerfile that
// is not here.
func checkFrom(req *Request, from string) error {
	if from == "" {
		return nil
	}
	if host, _, _ := strings.Cut(from, "/"); !isRegistry(host) {
		return fmt.Errorf("base images cannot be had from %q: it must be the host or host:port of a registry, without a scheme", from)
	}
	if !elsewhere(req) {
		return nil
	}
	return fmt.Errorf("%s: its Dockerfile cannot be read here, so base images cannot be had from %s: let it name its registries, "+
		"or take the text of the Dockerfile from here and only the context from there", req.Remote, from)
}

// checkURL refuses a URL with a password: it would travel in the task, where many may
// see it.
func checkURL(s string) error {
	if !strings.Contains(s, "://") {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("it is no URL") // the error has all of it
	}
	if _, secret := u.User.Password(); secret {
		return fmt.Errorf("the URL of %s has a password in it, which everyone could read who may see the task: "+
			"give it as a build secret, GIT_AUTH_TOKEN or GIT_AUTH_HEADER", u.Host)
	}
	return nil
}

// Schemes of further contexts that engines fetch by themselves, besides URLs.
const (
	imageScheme  = "docker-image://"
	layoutScheme = "oci-layout://"
)

// fetchable reports whether an engine fetches a further context by itself.
func fetchable(from string) bool {
	return strings.HasPrefix(from, imageScheme) || dockerfile.IsRemote(from)
}

// namedContexts checks what further contexts are called and where they come from, and
// returns them under the names that BuildKit looks for.
func namedContexts(given map[string]string) (map[string]string, error) {
	if len(given) == 0 {
		return given, nil
	}
	var problems []error
	out := make(map[string]string, len(given))
	for name, from := range given {
		short, err := dockerfile.ContextName(name)
		if err == nil {
			err = checkNamedContext(from)
		}
		if _, twice := out[short]; twice && err == nil {
			err = fmt.Errorf("there is another one called %s", short)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("build-context %s: %w", name, err))
		}
		out[short] = from
	}
	return out, errors.Join(problems...)
}

// checkNamedContext checks where a further context comes from.
func checkNamedContext(from string) error {
	switch {
	case strings.HasPrefix(from, "ssh://"):
		return fmt.Errorf("%q: BuildKit takes no ssh:// here: git@host:path says the same", from)
	case fetchable(from):
		return checkURL(from)
	case strings.HasPrefix(from, layoutScheme):
		return errors.New("an OCI layout on this machine cannot be reached by an agent: push the image to a registry and give docker-image://…")
	case strings.Contains(from, "://"):
		return fmt.Errorf("%q: it must be docker-image://…, the URL of a git repository or file, or a directory", from)
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", from)
	}
	return nil
}
