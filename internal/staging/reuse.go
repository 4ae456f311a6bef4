package staging

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/sync/errgroup"
)

const (
	// neighbours is how many staged contexts are searched for chunks.
	neighbours = 8
	// maxReused is from how many packs of others a context may borrow. Others
	// are sent again, lest a context end up scattered over ever more objects.
	maxReused = 64
	// minUse is the part of a borrowed pack, in percent, below which its chunks
	// are rather sent again, unless they are many.
	minUse = 5
)

// reuse gives places in packs that are in the bucket to those chunks of r that are
// found in one of the latest contexts; the others get no place.
func (s *Store) reuse(ctx context.Context, r *recipe) error {
	r.places = make([]place, len(r.chunks))
	wanted := make(map[[sha256.Size]byte]int, len(r.chunks))
	for i, c := range r.chunks {
		r.places[i].block = -1
		wanted[c.Sum] = i
	}
	others, err := s.latest(ctx)
	if err != nil {
		return err
	}
	b := borrower{r: r, packs: map[packRef]int{}, blocks: map[block]int{}}
	for _, o := range others {
		for i, c := range o.chunks {
			if k, ok := wanted[c.Sum]; ok && r.chunks[k].Size == c.Size && r.places[k].block < 0 {
				b.borrow(k, o, o.places[i])
			}
		}
	}
	r.giveBack()
	return nil
}

// A borrower finds what a recipe has borrowed already.
type borrower struct {
	r      *recipe
	packs  map[packRef]int
	blocks map[block]int // with the numbers that packs have in r
}

// borrow puts chunk k where it lies in o.
func (b *borrower) borrow(k int, o *recipe, at place) {
	bl := o.blocks[at.block]
	ref := o.packs[bl.pack]
	n, ok := b.packs[ref]
	if !ok {
		n = len(b.r.packs)
		b.packs[ref] = n
		b.r.packs = append(b.r.packs, ref)
	}
	bl.pack = n
	i, ok := b.blocks[bl]
	if !ok {
		i = len(b.r.blocks)
		b.blocks[bl] = i
		b.r.blocks = append(b.r.blocks, bl)
	}
	b.r.places[k] = place{i, at.offset}
}

// giveBack undoes the borrowing from packs that are not worth it.
func (r *recipe) giveBack() {
	used := make([]int64, len(r.packs)) // bytes in r, as far as one can tell
	for i, p := range r.places {
		if p.block >= 0 {
			bl := r.blocks[p.block]
			used[bl.pack] += int64(r.chunks[i].Size) * int64(bl.length) / int64(bl.size)
		}
	}
	order := make([]int, len(r.packs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(used[b], used[a]) })
	keep := make([]bool, len(r.packs))
	for rank, i := range order {
		keep[i] = rank < maxReused && used[i]*100 >= r.packs[i].size*minUse
	}
	// What is kept gets new numbers.
	packs := make([]int, len(r.packs))
	var kept []packRef
	for i, p := range r.packs {
		packs[i] = len(kept)
		if keep[i] {
			kept = append(kept, p)
		}
	}
	blocks := make([]int, len(r.blocks))
	var keptBlocks []block
	for i, bl := range r.blocks {
		blocks[i] = -1
		if keep[bl.pack] {
			blocks[i] = len(keptBlocks)
			bl.pack = packs[bl.pack]
			keptBlocks = append(keptBlocks, bl)
		}
	}
	for i, p := range r.places {
		if p.block >= 0 {
			r.places[i].block = blocks[p.block]
		}
	}
	r.packs, r.blocks = kept, keptBlocks
}

// latest reads the recipes that were staged last.
func (s *Store) latest(ctx context.Context) ([]*recipe, error) {
	var newest []*blob.ListObject
	err := s.list(ctx, ContextPrefix, func(o *blob.ListObject) error {
		newest = append(newest, o)
		slices.SortStableFunc(newest, func(a, b *blob.ListObject) int { return b.ModTime.Compare(a.ModTime) })
		newest = newest[:min(len(newest), neighbours)]
		return nil
	})
	if err != nil {
		return nil, err
	}
	recipes := make([]*recipe, len(newest))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, o := range newest {
		g.Go(func() error {
			data, err := s.bucket.ReadAll(gctx, o.Key)
			if err != nil {
				if gcerrors.Code(err) == gcerrors.NotFound || gctx.Err() == nil {
					return nil // nothing depends on it
				}
				return err
			}
			// What cannot be read, or is not what its name says, is no help; it is
			// its reader's business to complain.
			if r, err := decodeRecipe(data); err == nil && ContextPrefix+hexOf(r.digest()) == o.Key {
				r.skeleton, r.parts = nil, nil // most of it, and of no use here
				recipes[i] = r
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(recipes, func(r *recipe) bool { return r == nil }), nil
}
