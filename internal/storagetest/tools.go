// Package storagetest exercises staging against real storage servers: an S3 server,
// Azurite for Azure Blob Storage, a GCS emulator and HDFS's test cluster, beside
// directories and memory. Other tests start the same servers with it.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// toolsDir returns the directory in the source tree that keeps tools between runs.
// Git ignores it.
func toolsDir(ctx context.Context) (root, dir string, err error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", "", fmt.Errorf("find the source tree: go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", "", errors.New("find the source tree: not in a module")
	}
	root = filepath.Dir(mod)
	dir = filepath.Join(root, ".tools")
	return root, dir, os.MkdirAll(dir, 0o777)
}

// GoTool returns the path of a program built from the module in tools/s3, by its
// package. It is built once for every version of it that go.mod there names.
func GoTool(ctx context.Context, pkg string) (string, error) {
	root, dir, err := toolsDir(ctx)
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "tools", "s3")
	version, err := run(ctx, module, "go", "list", "-f", "{{.Module.Version}}", pkg)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "bin", filepath.Base(pkg)+"-"+strings.TrimSpace(version))
	err = once(name, func(temporary string) error {
		_, err := run(ctx, module, "go", "build", "-o", temporary, pkg)
		return err
	})
	return name, err
}

// versionPattern keeps npm from anything but one version of a package.
var versionPattern = regexp.MustCompile(`^\d+\.\d+\.\d+$`)

// NPM returns a directory whose node_modules have that version of a package of npm's
// registry. It is installed once, without running its scripts.
func NPM(ctx context.Context, name, version string) (string, error) {
	if !versionPattern.MatchString(version) {
		return "", fmt.Errorf("npm package %s: %q is not a version", name, version)
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("npm package %s: install Node.js: %w", name, err)
		}
	}
	_, dir, err := toolsDir(ctx)
	if err != nil {
		return "", err
	}
	installed := filepath.Join(dir, "npm", name+"-"+version)
	err = once(installed, func(temporary string) error {
		if err := os.Mkdir(temporary, 0o777); err != nil {
			return err
		}
		// npm looks for a project in the directories above.
		if err := os.WriteFile(filepath.Join(temporary, "package.json"), []byte("{\"private\": true}\n"), 0o666); err != nil {
			return err
		}
		if _, err := run(ctx, temporary, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", name+"@"+version); err != nil {
			return fmt.Errorf("this test needs the npm package %s %s: %w", name, version, err)
		}
		return nil
	})
	return installed, err
}

// once has create called if name is missing, with another name beside it, and then
// renames that: whoever else does the same at the same time, or is killed in between,
// leaves nothing half done.
func once(name string, create func(temporary string) error) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	temporary := filepath.Join(dir, filepath.Base(name))
	if err := create(temporary); err != nil {
		return err
	}
	err = os.Rename(temporary, name)
	if _, statErr := os.Stat(name); statErr == nil {
		return nil // someone else's, if not ours
	}
	return err
}

// run runs a command in a directory and returns its output.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return stdout.String(), nil
}
