package dockertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Tools returns a directory with a buildkitd as tools/build.sh makes it. The first
// call in a repository builds it, which takes minutes.
func Tools(ctx context.Context) (dir string, err error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(root, ".tools", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(filepath.Join(root, ".tools", "lock"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	// What is older than the list of modules is made of others.
	modules, err := os.Stat(filepath.Join(root, "tools", "go.sum"))
	if err != nil {
		return "", err
	}
	program, err := os.Stat(filepath.Join(dir, "buildkitd"))
	if err == nil && !program.ModTime().Before(modules.ModTime()) {
		return dir, nil
	}
	out, err := exec.CommandContext(ctx, filepath.Join(root, "tools", "build.sh"), dir, "buildkitd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("tools/build.sh: %w: %s", err, out)
	}
	return dir, nil
}

// repository returns the top directory of the repository that the test runs in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tools", "build.sh")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("tools/build.sh is in no directory above")
		}
		dir = up
	}
}
