package staging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/org/portainer/internal/pause"
)

// A Cache keeps packs on the disk of an agent, so that contexts which share them
// are fetched once. Any number of processes may use the same directory. What is in
// it is checked like everything else that is read, and it may be removed at any
// time.
type Cache struct {
	// Dir is where the packs are. It is made when it is needed.
	Dir string
	// Limit is how many bytes they may have in all; those that were not used for
	// longest go first. 0 means 10 GiB.
	Limit int64
}

// defaultCacheLimit is the limit of a Cache that has none of its own.
const defaultCacheLimit = 10 << 30

// minCached is the part of a pack, in percent, that a context must need for the
// pack to be fetched whole.
const minCached = 25

// OpenCached is Open with packs taken from c where they are there, and left there
// for later. A cache that cannot be written is no error: then everything is fetched.
func (s *Store) OpenCached(ctx context.Context, ref Ref, c *Cache) (io.ReadCloser, error) {
	return s.open(ctx, ref, func(r *recipe) readFunc {
		used := r.packUse()
		return func(ctx context.Context, p packRef, offset, length int64) ([]byte, error) {
			if used[p]*100 < p.size*minCached {
				return s.readObject(ctx, p, offset, length)
			}
			data, err := c.read(p, offset, length)
			if err == nil {
				return data, nil
			}
			if data, err = c.fetch(ctx, s, p); err != nil {
				return nil, err
			}
			return data[offset : offset+length], nil
		}
	}, c.drop)
}

// packUse returns how many bytes of each pack the recipe needs.
func (r *recipe) packUse() map[packRef]int64 {
	used := map[packRef]int64{}
	seen := make([]bool, len(r.blocks))
	for _, p := range r.places {
		if !seen[p.block] {
			seen[p.block] = true
			bl := r.blocks[p.block]
			used[r.packs[bl.pack]] += int64(bl.length)
		}
	}
	return used
}

func (c *Cache) path(p packRef) string { return filepath.Join(c.Dir, hex.EncodeToString(p.sum[:])) }

// read reads a piece of a pack that is there, and notes that it was used.
func (c *Cache) read(p packRef, offset, length int64) ([]byte, error) {
	f, err := os.Open(c.path(p))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, length)
	if _, err := f.ReadAt(data, offset); err != nil {
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(f.Name(), now, now) // at worst it goes sooner
	return data, nil
}

// drop removes a pack that has turned out to be damaged.
func (c *Cache) drop(p packRef) { _ = os.Remove(c.path(p)) }

// fetch reads a whole pack from the bucket, leaves it in the cache and returns it.
// Of several who want the same pack only one fetches it.
func (c *Cache) fetch(ctx context.Context, s *Store, p packRef) ([]byte, error) {
	unlock, lockErr := c.lock(ctx, hex.EncodeToString(p.sum[:]))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if lockErr == nil {
		defer unlock()
		if data, err := c.read(p, 0, p.size); err == nil {
			return data, nil
		}
	}
	data, err := s.readObject(ctx, p, 0, p.size)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != p.sum {
		return nil, fmt.Errorf("read staged object %s: %w: its content is not what its name says", p.key(), ErrCorrupt)
	}
	if lockErr == nil {
		// A full disk must not keep a build from running.
		if c.store(p, data) == nil {
			_ = c.evict(ctx)
		}
	}
	return data, nil
}

// store writes a pack, whole or not at all.
func (c *Cache) store(p packRef, data []byte) error {
	f, err := os.CreateTemp(c.Dir, tempPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), c.path(p))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

const (
	tempPrefix = ".new-"
	lockSuffix = ".lock"
	// tempLife is how old a file must be that someone left half written.
	tempLife = time.Hour
	lockPoll = 20 * time.Millisecond
)

// lock makes this goroutine the only one of all processes to have the lock of that
// name.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(c.Dir, name+lockSuffix)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		locked, err := tryLock(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		if locked {
			// Whoever had it before may have removed the file that we locked.
			ours, err := f.Stat()
			now, nowErr := os.Stat(path)
			if err == nil && nowErr == nil && os.SameFile(ours, now) {
				return func() {
					_ = os.Remove(path)
					f.Close()
				}, nil
			}
		}
		f.Close()
		if !locked && pause.For(ctx, lockPoll) != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// evict removes what was not used for longest until the cache is within its limit.
func (c *Cache) evict(ctx context.Context) error {
	unlock, err := c.lock(ctx, "evict")
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	var packs []fs.FileInfo
	var total int64
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case strings.HasSuffix(e.Name(), lockSuffix):
		case strings.HasPrefix(e.Name(), tempPrefix):
			if time.Since(fi.ModTime()) > tempLife {
				_ = os.Remove(filepath.Join(c.Dir, e.Name()))
			}
		default:
			packs = append(packs, fi)
			total += fi.Size()
		}
	}
	limit := c.Limit
	if limit == 0 {
		limit = defaultCacheLimit
	}
	slices.SortFunc(packs, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range packs {
		if total <= limit {
			break
		}
		if err := os.Remove(filepath.Join(c.Dir, fi.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= fi.Size()
	}
	return nil
}
