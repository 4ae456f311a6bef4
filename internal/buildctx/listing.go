package buildctx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/moby/patternmatcher"
)

// A listing is the content of one directory, as the ignore rules see it.
type listing struct {
	name, full string
	info       patternmatcher.MatchInfo // of the directory

	once  sync.Once
	items []item
	err   error
}

// An item is one name in a directory.
type item struct {
	entry entry
	dir   bool                     // what the directory said
	out   bool                     // left out
	over  bool                     // left out, with everything that may be below
	info  patternmatcher.MatchInfo // for what is below
	below *listing                 // of a directory that must be visited
	err   error
}

// read makes the listing, by the rules of ignore, which nobody else may use
// meanwhile.
func (l *listing) read(ignore *ignorer, outside bool, inspect func(*entry) error) {
	l.once.Do(func() {
		var list []fs.DirEntry
		if list, l.err = os.ReadDir(l.full); l.err != nil {
			return
		}
		l.items = make([]item, 0, len(list))
		for _, d := range list {
			it := item{entry: entry{path: path.Join(l.name, d.Name()), full: filepath.Join(l.full, d.Name())}, dir: d.IsDir()}
			it.out, it.info, it.err = ignore.match(it.entry.path, l.info)
			if it.err == nil {
				it.over = it.out && (!d.IsDir() && !(outside && d.Type()&fs.ModeSymlink != 0) || ignore.skips(it.entry.path))
			}
			if it.err == nil && !it.over {
				var err error
				if it.entry.info, err = d.Info(); errors.Is(err, fs.ErrNotExist) {
					continue // gone before it was looked at: as if it had never been
				}
				it.err = it.look(err, inspect)
			}
			l.items = append(l.items, it)
		}
	})
}

// look learns the rest of an entry that has its info, or err.
func (it *item) look(err error, inspect func(*entry) error) error {
	e := &it.entry
	if err == nil && e.info.Mode()&fs.ModeSymlink != 0 {
		e.link, err = os.Readlink(e.full)
	}
	if err != nil {
		return fmt.Errorf("read the context: %w", err)
	}
	if e.info.IsDir() {
		it.below = &listing{name: e.path, full: e.full, info: it.info}
	}
	if it.out || inspect == nil {
		return nil
	}
	return inspect(e)
}

// A reader reads listings before they are asked for, those first that will be asked
// for first.
type reader struct {
	outside bool
	inspect func(*entry) error // may be called by several goroutines at a time

	work sync.WaitGroup
	mu   sync.Mutex
	cond sync.Cond
	todo []*listing // the last one is the next
	idle int
	done bool
}

// readAhead starts as many readers as there are processors, each with a copy of
// ignore. The caller calls stop.
func (r *reader) readAhead(first *listing, ignore *ignorer) error {
	r.cond.L = &r.mu
	r.todo = []*listing{first}
	n := runtime.GOMAXPROCS(0)
	for range n {
		own, err := ignore.clone()
		if err != nil {
			r.stop()
			return err
		}
		r.work.Go(func() {
			for {
				l, ok := r.next(n)
				if !ok {
					return
				}
				l.read(own, r.outside, r.inspect)
				r.add(l)
			}
		})
	}
	return nil
}

// next returns what to read next. ok is false when there is nothing more to come.
func (r *reader) next(readers int) (l *listing, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.idle++; len(r.todo) == 0 && !r.done; {
		if r.idle == readers {
			r.done = true
			r.cond.Broadcast()
			break
		}
		r.cond.Wait()
	}
	if r.done {
		return nil, false
	}
	r.idle--
	l = r.todo[len(r.todo)-1]
	r.todo = r.todo[:len(r.todo)-1]
	return l, true
}

// add has the directories in l read, too.
func (r *reader) add(l *listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, item := range slices.Backward(l.items) {
		if item.below != nil {
			r.todo = append(r.todo, item.below)
		}
	}
	r.cond.Broadcast()
}

// stop ends the reading and waits for its end.
func (r *reader) stop() {
	r.mu.Lock()
	r.done = true
	r.mu.Unlock()
	if r.cond.L != nil {
		r.cond.Broadcast()
	}
	r.work.Wait()
}
