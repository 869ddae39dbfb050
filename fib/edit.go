package fib

import (
	"math/bits"
	"net/netip"
	"slices"
	"sync/atomic"
)

// layouts are the numbers of address bits that select a root's position in small and large tables of a family:
// 256 or 16 words beside 1 MiB or 256 KiB. From 8 and 4 bits on steps of 6 end at the 32nd and 64th bit; from
// 18 and, with a table of 10 bits in between, 16 on they end at the 24th and 32nd, as the Internet's routes do.
// Only tests set them.
var layouts = [2][2]uint32{ipv4: {8, 18}, ipv6: {4, 16}}

// The numbers of routes of a family from which on the large layout and below which the small one is used: apart,
// so that no change or two rebuild a table again and again. Only tests set them, to lower values.
var growRoutes, shrinkRoutes = 4096, 2048

// edit is a version in the making. One writer owns it. It changes the ribs at once, and published blocks only
// by one atomic store of a value, when it may.
type edit struct {
	ribs    *[2]rib
	arena   *arena
	roots   [2][]uint32
	owned   [2]bool  // no reader knows the root
	inPlace bool     // values of published blocks may be changed
	known   int      // the size of the array that readers know: a larger one is another
	fresh   uint32   // blocks from this offset on were made by this edit: no reader knows them
	retired []uint32 // pointers to blocks of arena that readers may know and the new version doesn't reach
}

// tableDepth is the depth of the places that may be tables.
func (e *edit) tableDepth() uint32 {
	const none = 129
	if bits := rootBits(e.roots[ipv6]); bits == layouts[ipv6][1] {
		return bits
	}
	return none
}

// rootBits is how many address bits select a position of a root; 0 for one that is still to be made.
func rootBits(root []uint32) uint32 { return uint32(max(bits.Len(uint(len(root))), 1) - 1) }

// apply makes one change, whose prefix and next hop are valid, and reports whether it changed anything.
func (e *edit) apply(f family, p route, remove bool) bool {
	r := &e.ribs[f]
	if remove {
		if r.delete(p.key, p.length) == 0 {
			return false
		}
	} else if r.set(p) == p.hop {
		return false
	}
	if e.misfit(f) {
		e.rebuild()
		return true
	}
	bits := rootBits(e.roots[f])
	root := level{place{family: f}, bits}
	if p.length > bits {
		i := root.index(p.key, bits)
		was := e.roots[f][i]
		if is := e.change(root.child(p.key, bits), was, p); is != was {
			e.setRoots(f, i, []uint32{is})
		}
		return true
	}
	i, n := root.index(p.key, bits), uint32(1)<<(bits-p.length)
	values := make([]uint32, n)
	e.relay(root, values, e.roots[f][i:i+n], p)
	e.setRoots(f, i, values)
	return true
}

// layout is the number of root bits that suits a family's routes.
func (e *edit) layout(f family) uint32 {
	small, large := layouts[f][0], layouts[f][1]
	if n := e.ribs[f].count; n >= growRoutes || n >= shrinkRoutes && rootBits(e.roots[f]) == large {
		return large
	}
	return small
}

// countAfter is the number of routes that there would be after changes.
func (e *edit) countAfter(changes []Change) int {
	n, there := e.ribs[ipv4].count+e.ribs[ipv6].count, map[netip.Prefix]bool{}
	for _, c := range changes {
		was, known := there[c.Prefix]
		if !known {
			f, k := split(c.Prefix.Addr())
			was = e.ribs[f].get(k, uint32(c.Prefix.Bits())) != 0
		}
		if there[c.Prefix] = !c.Delete; was && c.Delete {
			n--
		} else if !was && !c.Delete {
			n++
		}
	}
	return n
}

// misfit reports whether the blocks must be compiled anew: for another layout, or because more than half of the
// arena, in a small table more than a seventh, isn't in use. It grew while readers held blocks back, is fragmented,
// or its routes were deleted. A small table doesn't even grow while more than a 17th of it isn't in use.
func (e *edit) misfit(f family) bool {
	const (
		room  = 4 * maxWords // for a change of a small table
		tight = 4096         // words, from which on a small table must be careful not to hold more than 64 KiB
	)
	a, routes := e.arena, e.ribs[ipv4].count+e.ribs[ipv6].count
	used, held := len(a.words), cap(a.words)
	switch {
	case e.layout(f) != rootBits(e.roots[f]) || held > 2*(a.live+room):
		return true
	case routes < shrinkRoutes && held > tight:
		return held > a.live+a.live/6+2*room || used+room > held && used-a.live > a.live/16+room
	}
	return false
}

// rebuild compiles everything anew, in an arena of its own.
func (e *edit) rebuild() {
	const words4, words6 = 6, 5 // of a route of the real table, rounded up; the arena grows when it must
	made := edit{ribs: e.ribs, arena: newArena(e.ribs[ipv4].count*words4 + e.ribs[ipv6].count*words6)}
	for f := range family(2) {
		bits := e.layout(f)
		made.roots[f], made.owned[f] = make([]uint32, 1<<bits), true
		at, r := place{family: f}, &e.ribs[f]
		made.lay(level{at, bits}, span{values: made.roots[f], place: at, cover: r.get(Key6{}, 0)}, r.seek(Key6{}, 1))
	}
	if used := len(made.arena.words); cap(made.arena.words) > used+used/16 {
		made.arena.resize(used + used/32)
	}
	*e = made
}

// change brings the word of a place up to date with the routes, of which one below the place has changed, and
// returns the new word.
func (e *edit) change(at place, w uint32, p route) uint32 {
	switch kindOf(w) {
	case kindLeaf:
		return e.recompile(at, w, e.ribs[at.family].cover(at.key, at.depth))
	case kindSkip:
		return e.changeSkip(at, w, p)
	case kindBitmap:
		return e.changeBitmap(at, w, p)
	case kindTable:
		return e.changeTable(at, w, p)
	}
	return e.recompile(at, w, e.arena.miss(w))
}

// recompile compiles a place anew.
func (e *edit) recompile(at place, old, cover uint32) uint32 {
	w, _ := e.compile(at, e.ribs[at.family].seek(at.key, at.depth+1), cover)
	e.release(old)
	return w
}

func (e *edit) changeSkip(at place, w uint32, p route) uint32 {
	to := e.arena.skipPlace(w)
	kind, now := e.shape(at, e.ribs[at.family].seek(at.key, at.depth+1))
	if kind != kindSkip || now != to {
		return e.recompile(at, w, e.arena.miss(w))
	}
	return e.setValue(w, w&offMask+skipValue, e.change(to, e.arena.words[w&offMask+skipValue], p))
}

func (e *edit) changeTable(at place, w uint32, p route) uint32 {
	if kind, _ := e.shape(at, e.ribs[at.family].seek(at.key, at.depth+1)); kind != kindTable {
		return e.recompile(at, w, e.ribs[at.family].cover(at.key, at.depth))
	}
	l, off := level{at, tableBits}, w&offMask
	i, reach := at.index(p.key, tableBits), at.reach(tableBits)
	if p.length > reach {
		return e.setValue(w, off+i, e.change(at.child(p.key, reach), e.arena.words[off+i], p))
	}
	values := slices.Clone(e.arena.words[off : off+1<<tableBits])
	n := uint32(1) << (reach - p.length)
	e.relay(l, values[i:i+n], e.arena.words[off+i:off+i+n], p)
	e.free(w)
	return e.arena.storeTable(values)
}

func (e *edit) changeBitmap(at place, w uint32, p route) uint32 {
	if e.outgrown(at, w) {
		return e.recompile(at, w, e.ribs[at.family].cover(at.key, at.depth))
	}
	var old, values [positions]uint32
	reach, i := at.reach(bitmapBits), at.index(p.key, bitmapBits)
	n := uint32(1) << (at.depth + bitmapBits - min(p.length, reach))
	if p.length > reach {
		off := e.arena.valueOf(w, i)
		was := e.arena.words[off]
		is := e.change(at.child(p.key, reach), was, p)
		if is == was || is >= pointer && was >= pointer {
			return e.setValue(w, off, is)
		}
		e.arena.values(w, &values)
		fill(values[i:i+n], is)
		e.free(w)
		return e.arena.storeBitmap(&values)
	}
	e.arena.values(w, &old)
	values = old
	e.relay(level{at, bitmapBits}, values[i:i+n], old[i:i+n], p)
	e.free(w)
	return e.arena.storeBitmap(&values)
}

// outgrown reports whether something else than the bitmap w, which doesn't know of the latest change yet, must
// stand at a place now. One with many runs has many routes below it, and one less after the change.
func (e *edit) outgrown(at place, w uint32) bool {
	if e.arena.runs(w) > sparseRuns && at.depth != e.tableDepth() {
		return false
	}
	kind, _ := e.shape(at, e.ribs[at.family].seek(at.key, at.depth+1))
	return kind != kindBitmap
}

// relay makes the values of a node's positions anew that a changed route covers. before is what they were.
func (e *edit) relay(l level, values, before []uint32, p route) {
	r := &e.ribs[l.family]
	at := place{family: l.family, key: p.key, depth: p.length, low: l.low}
	s := span{values: values, before: before, place: at, cover: r.cover(p.key, p.length)}
	e.lay(l, s, r.seek(p.key, p.length+1))
}

// setValue makes is the value at an offset of the block w, in place or in a copy, and returns the block's word.
func (e *edit) setValue(w, off, is uint32) uint32 {
	if e.arena.words[off] == is {
		return w
	}
	if !e.inPlace && w&offMask < e.fresh {
		size := e.arena.size(w)
		to := e.arena.alloc(size)
		copy(e.arena.words[to:], e.arena.words[w&offMask:][:size])
		off += to - w&offMask
		e.free(w)
		w = w&^offMask | to
	}
	e.arena.set(off, is)
	return w
}

// setRoots makes these the values of a root's positions from i on. Readers may see some before others.
func (e *edit) setRoots(f family, i uint32, values []uint32) {
	if !e.owned[f] && (!e.inPlace || e.moved()) {
		e.roots[f], e.owned[f] = slices.Clone(e.roots[f]), true
	}
	root := e.roots[f][i:]
	for i, w := range values {
		if root[i] != w {
			atomic.StoreUint32(&root[i], w)
		}
	}
}

// moved reports whether the arena has grown out of the array that readers know.
func (e *edit) moved() bool { return cap(e.arena.words) != e.known }

// free takes a block out of the version in the making: at once if only this edit knows it, else after the
// readers of the published version.
func (e *edit) free(w uint32) {
	e.arena.live -= e.arena.size(w)
	if w&offMask >= e.fresh {
		e.arena.put(w)
	} else {
		e.retired = append(e.retired, w)
	}
}

// release frees all blocks that a word reaches.
func (e *edit) release(w uint32) {
	if w < pointer {
		return
	}
	for _, v := range e.arena.children(w) {
		e.release(v)
	}
	e.free(w)
}
