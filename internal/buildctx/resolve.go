package buildctx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks bounds how many links one path may go through, as the kernel does.
const maxLinks = 40

// ErrLoop reports a path with links that lead round in a circle.
var ErrLoop = errors.New("too many links")

// resolveIn follows the links in name as if root were the root of the file
// system: neither ".." nor an absolute link leaves it. The result is slash
// separated, below root, "." for root itself. The error says which part is
// missing.
func resolveIn(root, name string) (string, error) {
	done := "" // resolved so far
	rest := name
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			if done = path.Dir(done); done == "." {
				done = ""
			}
			continue
		}
		next := path.Join(done, part)
		full := filepath.Join(root, filepath.FromSlash(next))
		fi, err := os.Lstat(full)
		if err != nil {
			return "", err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			if rest != "" && !fi.IsDir() {
				return "", &fs.PathError{Op: "open", Path: full, Err: syscall.ENOTDIR}
			}
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: %w", filepath.Join(root, filepath.FromSlash(name)), ErrLoop)
		}
		target, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		target = filepath.ToSlash(target)
		if path.IsAbs(target) {
			done = ""
		}
		rest = target + "/" + rest
	}
	if done == "" {
		done = "."
	}
	return done, nil
}

// isLoop reports an error of the kernel or of filepath.EvalSymlinks about links
// without end.
func isLoop(err error) bool {
	return errors.Is(err, syscall.ELOOP) || err != nil && strings.HasSuffix(err.Error(), "too many links")
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
