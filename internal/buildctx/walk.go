package buildctx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// An entry is a file, directory, link or other thing of the tree.
type entry struct {
	path string // in the context, slash separated
	full string // on this machine
	info fs.FileInfo
	link string // of a symbolic link

	// What inspect may fill in.
	inspected bool
	attrs     map[string]string // extended attributes
	known     []byte            // of the content
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
	// ahead has directories read by other goroutines, before they are visited, and
	// inspect, if not nil, called there for what is probably to be visited.
	ahead   bool
	inspect func(*entry) error
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
	root := &listing{full: w.root}
	if w.ahead {
		r := &reader{outside: w.outside, inspect: w.inspect}
		if err := r.readAhead(root, w.ignore); err != nil {
			return err
		}
		defer r.stop()
	}
	if err := w.dir(root, nil, false); err != nil {
		return err
	}
	return w.graft()
}

// dir visits the content of one directory. out tells that the directory itself is
// left out: it is then visited when something in it is an exception.
func (w *walker) dir(l *listing, self *parent, out bool) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	l.read(w.ignore, w.outside, w.inspect)
	if l.err != nil {
		if l.name != "" && errors.Is(l.err, fs.ErrNotExist) {
			return fmt.Errorf("%s vanished while the context was read: %w", l.name, ErrChanged)
		}
		if out && errors.Is(l.err, fs.ErrPermission) {
			return nil
		}
		return fmt.Errorf("read directory of the context: %w", l.err)
	}
	for i := range l.items {
		if err := w.one(&l.items[i], self); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) one(it *item, above *parent) error {
	if it.err != nil {
		return it.err
	}
	if it.out && w.left != nil {
		w.left(it.entry.path, it.dir)
	}
	if it.over {
		return nil
	}
	e, below := it.entry, it.below
	if e.link != "" && w.outside {
		var err error
		if e, err = w.follow(e); err != nil {
			return err
		}
		if e.info.IsDir() {
			below = &listing{name: e.path, full: e.full, info: it.info}
		}
	}
	self := &parent{entry: e, above: above, sent: !it.out}
	if !it.out {
		if err := w.send(above); err != nil {
			return err
		}
		if err := w.visit(e); err != nil {
			return err
		}
	}
	if below == nil {
		return nil
	}
	return w.dir(below, self, it.out)
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
