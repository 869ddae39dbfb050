package fib

import "net/netip"

// edit is a version in the making: a persistent trie that shares with the published version what it doesn't
// change. One writer owns it; it is published or forgotten.
type edit struct {
	arena   *arena
	roots   [2]uint32 // by family
	count   int
	fresh   uint32   // blocks from this offset on were made by this edit: no reader knows them
	retired []uint32 // blocks of arena that the published version reaches and this one doesn't
}

func newEdit(a *arena, v *version) *edit {
	return &edit{arena: a, roots: v.roots, count: v.count, fresh: uint32(len(a.words))}
}

// clear drops all routes, and the arena with them.
func (e *edit) clear() { *e = edit{arena: newArena(0)} }

// compact moves the edit into a new arena that is packed in the order of lookups. The published version stays
// in the old one.
func (e *edit) compact() {
	to := newArena(e.arena.live)
	for f, root := range e.roots {
		e.roots[f] = e.arena.copyTree(to, root)
	}
	e.arena, e.fresh, e.retired = to, 0, nil
}

// shrinkEmpty gives an empty table the memory that it began with.
func (e *edit) shrinkEmpty() {
	if e.count == 0 && cap(e.arena.words) > slackWords {
		e.clear()
	}
}

func (e *edit) apply(c Change) {
	if c.Delete {
		e.delete(c.Prefix)
	} else {
		e.insert(c.Prefix, c.NextHop)
	}
}

// place is where a prefix belongs: the node at the given depth on the way of key, and a slot in it.
type place struct {
	family family
	key    Key6
	depth  uint32
	slot   uint32
}

func placeOf(p netip.Prefix) place {
	f, k := split(p.Addr())
	length := uint32(p.Bits())
	if length == 0 {
		return place{family: f, slot: 1}
	}
	depth := (length - 1) &^ 3
	return place{family: f, key: k, depth: depth, slot: slot(nibble(k, depth), length-depth)}
}

// slot numbers the prefixes inside a node as a heap does: the prefix of the given length (0 to 4) at the start
// of the four bits n stands at 2^length + its bits, so its covering prefixes are found by halving.
func slot(n, length uint32) uint32 { return 1<<length | n>>(4-length) }

// insert adds or replaces a route; the prefix and next hop are valid.
func (e *edit) insert(p netip.Prefix, nh NextHop) {
	at := placeOf(p)
	e.tidy()
	e.roots[at.family] = e.insertAt(e.roots[at.family], at, nh)
}

// insertAt inserts below off (0: nothing there) and returns the new subtree.
func (e *edit) insertAt(off uint32, at place, nh NextHop) uint32 {
	if off == 0 {
		return e.fork(at, at.depth, nh, 0, Key6{})
	}
	n := load(e.arena.words, off)
	if common := min(commonBits(n.key, at.key)&^3, at.depth); common < n.depth {
		return e.fork(at, common, nh, off, n.key)
	}
	if at.depth == n.depth {
		if n.hops[at.slot] == 0 {
			e.count++
		}
		n.hops[at.slot] = uint32(nh)
	} else {
		kid := &n.kids[nibble(at.key, n.depth)]
		*kid = e.insertAt(*kid, at, nh)
	}
	e.release(off)
	return e.arena.store(&n)
}

// fork makes the node at the given depth on the way to at, with the existing subtree `other` (0: none) below
// it, and the route in it or, deeper than that, in a leaf.
func (e *edit) fork(at place, depth uint32, nh NextHop, other uint32, otherKey Key6) uint32 {
	n := node{family: at.family, depth: depth, key: mask(at.key, depth)}
	if other != 0 {
		n.kids[nibble(otherKey, depth)] = other
	}
	if depth == at.depth {
		e.count++
		n.hops[at.slot] = uint32(nh)
	} else {
		n.kids[nibble(at.key, depth)] = e.fork(at, at.depth, nh, 0, Key6{})
	}
	return e.arena.store(&n)
}

// delete removes a route and reports whether it was there.
func (e *edit) delete(p netip.Prefix) bool {
	at := placeOf(p)
	if !e.has(at) {
		return false
	}
	e.tidy()
	e.roots[at.family] = e.deleteAt(e.roots[at.family], at)
	e.count--
	return true
}

// has reports whether there is a route at a place.
func (e *edit) has(at place) bool {
	off := e.roots[at.family]
	for off != 0 {
		n := load(e.arena.words, off)
		if n.depth >= at.depth {
			return n.depth == at.depth && n.key == mask(at.key, at.depth) && n.hops[at.slot] != 0
		}
		off = n.kids[nibble(at.key, n.depth)]
	}
	return false
}

// deleteAt removes the route at a place where there is one, and returns the new subtree: none if it is empty,
// the only child if the node has nothing else.
func (e *edit) deleteAt(off uint32, at place) uint32 {
	n := load(e.arena.words, off)
	if at.depth == n.depth {
		n.hops[at.slot] = 0
	} else {
		kid := &n.kids[nibble(at.key, n.depth)]
		*kid = e.deleteAt(*kid, at)
	}
	e.release(off)
	if n.hops == [32]uint32{} {
		if kid, only := n.onlyChild(); only {
			return kid
		}
	}
	return e.arena.store(&n)
}

// onlyChild returns the node's child if there is at most one, or else false.
func (n *node) onlyChild() (kid uint32, only bool) {
	for _, k := range n.kids {
		if k != 0 && kid != 0 {
			return 0, false
		}
		kid |= k
	}
	return kid, true
}

// release takes a block out of the version in the making: at once if only this edit knows it, else after the
// readers of the published version.
func (e *edit) release(off uint32) {
	e.arena.live -= e.arena.size(off)
	if off >= e.fresh {
		e.arena.put(off)
	} else {
		e.retired = append(e.retired, off)
	}
}

// tidy runs between two changes, when only the roots name blocks.
func (e *edit) tidy() {
	if e.arena.sparse() {
		e.compact()
	}
}
