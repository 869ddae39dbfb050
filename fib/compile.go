package fib

// place is a subtree: the addresses whose first depth bits are those of key.
type place struct {
	family family
	key    Key6   // no bits set beyond depth
	depth  uint32 // bits
	low    bool   // readers have come to Lo: a skip led here or above
}

// reach is how far a node of the given number of address bits at this place sees: an IPv6 node doesn't look
// across the middle of the address.
func (p place) reach(bits uint32) uint32 {
	limit := uint32(128)
	if p.family == ipv4 {
		limit = 32
	} else if p.depth < 64 {
		limit = 64
	}
	return min(p.depth+bits, limit)
}

// index is the position of an address in a node of the given number of address bits at this place. Bits beyond
// the reach count as zero.
func (p place) index(k Key6, bits uint32) uint32 {
	half, depth := k.Hi, p.depth
	if depth >= 64 {
		half, depth = k.Lo, depth-64
	}
	return uint32(half << depth >> (64 - bits))
}

// child is the place of an address below a node with the given reach.
func (p place) child(k Key6, reach uint32) place {
	return place{p.family, mask(k, reach), reach, p.low}
}

const (
	// listRoutes is how many routes a list has at most. A reader compares them one by one, some 2 ns each,
	// and mispredicts which of them it is, some 7 ns. A list replaces a chain of bitmaps, each of some 20
	// bytes and 3 ns.
	listRoutes = 6
	// listChain is how many bitmaps in a chain are better than a list in a large table, where speed counts for
	// more than memory: up to 80 bytes instead of 16 or 24 for a route, but only 4 % more for the Internet's.
	listChain = 4
	// skipBits is the least number of bits that a skip must save: more than two bitmaps.
	skipBits = 2*bitmapBits + 1
	// sparseRuns is the number of runs up to which a bitmap may have no more than listRoutes routes below it,
	// after one was removed: each makes two at most.
	sparseRuns = 2*(listRoutes+1) + 1
)

// tableRoutes is how many routes must be below a table, so that it costs them at most 32 bytes each. Only tests
// set it, to a lower value.
var tableRoutes = 128

// shape decides which kind of block stands for a place, whose routes begin at c: it depends on the routes
// alone, not on how they came about. to is where a skip leads.
func (e *edit) shape(at place, c cursor) (kind uint32, to place) {
	r := &e.ribs[at.family]
	first, ok := r.within(c, at.key, at.depth)
	if !ok {
		return kindLeaf, at
	}
	if n, longest := r.few(c, at); n <= listRoutes {
		if longest <= at.reach(e.chain(at.family)) && !at.between() {
			return kindBitmap, at
		}
		return at.listKind(longest), at
	}
	if at.family == ipv4 {
		return kindBitmap, at
	}
	if to := e.common(at, first); at.between() || to.depth >= at.depth+skipBits {
		return kindSkip, to
	}
	if at.depth == e.tableDepth() {
		if _, many := r.within(r.advance(c, tableRoutes-1), at.key, at.depth); many {
			return kindTable, at
		}
	}
	return kindBitmap, at
}

// chain is how many bits below a place routes may end and yet not be in a list, however few they are.
func (e *edit) chain(f family) uint32 {
	if rootBits(e.roots[f]) == layouts[f][1] {
		return listChain * bitmapBits
	}
	return bitmapBits
}

// listKind is the kind of list for routes of at most the given length.
func (p place) listKind(longest uint32) uint32 {
	switch {
	case p.family == ipv4:
		return kindList4
	case p.low:
		return kindListLo
	case longest <= 64:
		return kindListHi
	}
	return kindList6
}

// between reports whether the place is just behind Hi: only a skip can lead readers to Lo.
func (p place) between() bool { return p.family == ipv6 && p.depth == 64 && !p.low }

// few counts the routes from c on that are below a place, up to one more than a list can have, and returns the
// greatest length among them.
func (r *rib) few(c cursor, at place) (n int, longest uint32) {
	for ; n <= listRoutes; n++ {
		route, ok := r.within(c, at.key, at.depth)
		if !ok {
			break
		}
		longest = max(longest, route.length)
		c = r.next(c)
	}
	return n, longest
}

// common is the deepest place that holds all routes below another one, whose first is given, with none at it:
// a route that covers the others would be the first of them.
func (e *edit) common(at place, first route) place {
	r := &e.ribs[at.family]
	c, _ := r.previous(r.end(at.key, at.depth))
	last, _ := r.at(c)
	depth := max(min(commonBits(first.key, last.key), first.length-1), at.depth)
	return place{at.family, mask(first.key, depth), depth, at.low || depth >= 64}
}

// compile makes the blocks of a place from the routes below it, which begin at c, and returns the word for it
// and the first route behind them. cover is the leaf of the longest route above.
func (e *edit) compile(at place, c cursor, cover uint32) (w uint32, behind cursor) {
	switch kind, to := e.shape(at, c); kind {
	case kindLeaf:
		return cover, c
	case kindList4, kindListHi, kindListLo, kindList6:
		return e.compileList(at, c, cover, kind)
	case kindSkip:
		value, behind := e.compileBitmap(to, c, cover) // there is nothing more to skip
		return e.arena.storeSkip(cover, to, value), behind
	case kindTable:
		var values [1 << tableBits]uint32
		behind = e.lay(level{at, tableBits}, span{values: values[:], place: at, cover: cover}, c)
		return e.arena.storeTable(values[:]), behind
	}
	return e.compileBitmap(at, c, cover)
}

func (e *edit) compileBitmap(at place, c cursor, cover uint32) (w uint32, behind cursor) {
	var values [positions]uint32
	behind = e.lay(level{at, bitmapBits}, span{values: values[:], place: at, cover: cover}, c)
	return e.arena.storeBitmap(&values), behind
}

// compileList compiles up to listRoutes routes into a list of the given kind.
func (e *edit) compileList(at place, c cursor, cover, kind uint32) (w uint32, behind cursor) {
	var routes [listRoutes]route
	n := 0
	for ; ; n++ {
		next, ok := e.ribs[at.family].within(c, at.key, at.depth)
		if !ok {
			break
		}
		i := n
		for ; i > 0 && routes[i-1].length < next.length; i-- { // longest first
			routes[i] = routes[i-1]
		}
		routes[i] = next
		c = e.ribs[at.family].next(c)
	}
	return e.arena.storeList(kind, cover, routes[:n]), c
}

// level is a node of a number of address bits at a place.
type level struct {
	place
	bits uint32
}

// span is a run of a node's positions whose values are to be made: those of all addresses of a place at or
// below the node, whose cover is given.
type span struct {
	values []uint32
	before []uint32 // what the values were, nil if the node is new
	place  place
	cover  uint32
}

// lay makes the values of a span from the routes below its place, which begin at c, and returns the first
// route behind them. What was compiled for a position stays if no route that covers it has changed: those
// that have are at the span's place.
func (e *edit) lay(l level, s span, c cursor) (behind cursor) {
	for i := range s.values {
		s.values[i] = s.cover
	}
	r, base, reach := &e.ribs[l.family], l.index(s.place.key, l.bits), l.reach(l.bits)
	for {
		// Routes rise, so one that covers others comes before them and they overwrite it.
		at, ok := r.within(c, s.place.key, s.place.depth)
		if !ok {
			return c
		}
		i := l.index(at.key, l.bits) - base
		if at.length <= reach {
			fill(s.values[i:][:1<<(l.depth+l.bits-at.length)], at.hop)
			c = r.next(c)
			continue
		}
		child, cover := l.child(at.key, reach), s.values[i]
		w := cover
		if s.before != nil && s.before[i] >= pointer && cover != s.cover {
			w, c = s.before[i], r.skip(c, child.key, child.depth)
		} else {
			if s.before != nil {
				e.release(s.before[i])
			}
			w, c = e.compile(child, c, cover)
		}
		fill(s.values[i:][:1<<(l.depth+l.bits-reach)], w)
	}
}

func fill(s []uint32, w uint32) {
	for i := range s {
		s[i] = w
	}
}
