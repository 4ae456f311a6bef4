package buildctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/moby/patternmatcher"
)

// An entry is a file, directory, link or other thing of the tree.
type entry struct {
	path string // in the context, slash separated
	full string // on this machine
	info fs.FileInfo
	link string // of a symbolic link
}

// A walker visits what the ignore file leaves of a tree, directories before what
// is in them, names in order of their bytes.
type walker struct {
	ctx    context.Context
	root   string
	ignore *ignorer
	visit  func(entry) error
	// outside brings in what lies elsewhere; see Options.AllowOutside.
	outside bool
	grafts  []Graft
	// left, if not nil, is told of each thing left out. What is below a left-out
	// directory is only visited, and told, if it might be an exception.
	left func(path string, dir bool)
}

// A parent is a directory on the way from the root to the present one.
type parent struct {
	entry entry
	sent  bool
	above *parent
}

func (w *walker) run() error {
	if err := w.dir("", w.root, nil, patternmatcher.MatchInfo{}, false); err != nil {
		return err
	}
	return w.graft()
}

// dir visits the content of one directory. out tells that the directory itself is
// left out: it is then visited when something in it is an exception.
func (w *walker) dir(name, full string, self *parent, info patternmatcher.MatchInfo, out bool) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	list, err := os.ReadDir(full)
	if err != nil {
		if name != "" && errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s vanished while the context was read: %w", name, ErrChanged)
		}
		if out && errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return fmt.Errorf("read directory of the context: %w", err)
	}
	for _, d := range list {
		if err := w.one(path.Join(name, d.Name()), filepath.Join(full, d.Name()), d, self, info); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) one(name, full string, d fs.DirEntry, above *parent, aboveInfo patternmatcher.MatchInfo) error {
	out, info, err := w.ignore.match(name, aboveInfo)
	if err != nil {
		return err
	}
	if out {
		if w.left != nil {
			w.left(name, d.IsDir())
		}
		if !d.IsDir() && !(w.outside && d.Type()&fs.ModeSymlink != 0) || w.ignore.skips(name) {
			return nil
		}
	}
	fi, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone before it was looked at: as if it had never been
	}
	if err != nil {
		return fmt.Errorf("read the context: %w", err)
	}
	e := entry{path: name, full: full, info: fi}
	if fi.Mode()&fs.ModeSymlink != 0 {
		if e.link, err = os.Readlink(full); err != nil {
			return fmt.Errorf("read the context: %w", err)
		}
		if w.outside {
			if e, err = w.follow(e); err != nil {
				return err
			}
		}
	}
	self := &parent{entry: e, above: above, sent: !out}
	if !out {
		if err := w.send(above); err != nil {
			return err
		}
		if err := w.visit(e); err != nil {
			return err
		}
	}
	if !e.info.IsDir() {
		return nil
	}
	return w.dir(name, e.full, self, info, out)
}

// send visits the directories above something that is not left out.
func (w *walker) send(p *parent) error {
	if p == nil || p.sent {
		return nil
	}
	if err := w.send(p.above); err != nil {
		return err
	}
	p.sent = true
	return w.visit(p.entry)
}
