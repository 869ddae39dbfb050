package fib

import "slices"

// rib is what the writer knows: the routes of one family in the order of their addresses and then lengths,
// so that all routes under a prefix are neighbours and a covering prefix comes before what it covers. It is a
// list of blocks of flat words: a route of IPv4 is two (address; length and next hop), one of IPv6 five.
// Readers never see it.
type rib struct {
	width  int        // words of a route
	blocks [][]uint32 // none is empty, none holds more than blockRoutes
	firsts []Key6     // the first address of each block
	count  int
}

const (
	// blockRoutes bounds what an insertion moves: half a block on average, 1 KiB of IPv4 or 2.5 KiB of IPv6.
	blockRoutes = 256
	// loadedRoutes is how full a bulk load leaves a block, so that the next insertions find room.
	loadedRoutes = blockRoutes * 7 / 8
	// smallestBlock is the least room, in routes, that a block is made for.
	smallestBlock = 4
)

// route is the decoded form of a route: key has no bits set beyond length.
type route struct {
	key    Key6
	length uint32 // bits
	hop    uint32
}

// cursor is a place in a rib, valid until the next change: route i of block b, or the end.
type cursor struct{ b, i int }

func newRIB(f family) rib { return rib{width: f.keyWords() + 1} }

// before reports whether a route (k, length) sorts before another.
func before(k Key6, length uint32, than Key6, thanLength uint32) bool {
	if k.Hi != than.Hi {
		return k.Hi < than.Hi
	}
	if k.Lo != than.Lo {
		return k.Lo < than.Lo
	}
	return length < thanLength
}

// decode reads route i of a block.
func (r *rib) decode(block []uint32, i int) route {
	if r.width == 2 {
		w := block[2*i : 2*i+2]
		return route{Key6{Hi: uint64(w[0]) << 32}, w[1] >> 24, w[1] & hopMask}
	}
	w := block[5*i : 5*i+5]
	return route{readKey6(w), w[4] >> 24, w[4] & hopMask}
}

// encode writes a route in as many words as w has: two, five, or three if it ends in the upper half of an IPv6
// address.
func encode(w []uint32, at route) {
	w[0] = uint32(at.key.Hi >> 32)
	if len(w) >= 3 {
		w[1] = uint32(at.key.Hi)
	}
	if len(w) == 5 {
		w[2], w[3] = uint32(at.key.Lo>>32), uint32(at.key.Lo)
	}
	w[len(w)-1] = at.length<<24 | at.hop
}

// encode writes route i of a block.
func (r *rib) encode(block []uint32, i int, at route) { encode(block[i*r.width:(i+1)*r.width], at) }

func (r *rib) len(b int) int { return len(r.blocks[b]) / r.width }

// seek returns the place of the first route that doesn't sort before (k, length).
func (r *rib) seek(k Key6, length uint32) cursor {
	low, high := 0, len(r.blocks) // the last block that begins before (k, length) is low-1
	for low < high {
		mid := int(uint(low+high) / 2)
		first := r.firsts[mid]
		less := first.Hi < k.Hi || first.Hi == k.Hi && first.Lo < k.Lo
		if !less && first == k {
			less = r.decode(r.blocks[mid], 0).length < length
		}
		if less {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return cursor{}
	}
	b := low - 1
	block := r.blocks[b]
	low, high = 1, r.len(b)
	for low < high {
		mid := int(uint(low+high) / 2)
		if at := r.decode(block, mid); before(at.key, at.length, k, length) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return r.normal(cursor{b, low})
}

// normal moves a cursor behind the last route of a block to the next block.
func (r *rib) normal(c cursor) cursor {
	if c.b < len(r.blocks) && c.i >= r.len(c.b) {
		return cursor{c.b + 1, 0}
	}
	return c
}

// at returns the route at c, or false at the end.
func (r *rib) at(c cursor) (route, bool) {
	if c.b >= len(r.blocks) {
		return route{}, false
	}
	return r.decode(r.blocks[c.b], c.i), true
}

// within returns the route at c if its address lies under the first depth bits of k.
func (r *rib) within(c cursor, k Key6, depth uint32) (route, bool) {
	at, ok := r.at(c)
	return at, ok && samePrefix(at.key, k, depth)
}

func (r *rib) next(c cursor) cursor { return r.normal(cursor{c.b, c.i + 1}) }

// previous returns the place before c, or false at the beginning.
func (r *rib) previous(c cursor) (cursor, bool) {
	switch {
	case c.i > 0:
		return cursor{c.b, c.i - 1}, true
	case c.b > 0:
		return cursor{c.b - 1, r.len(c.b-1) - 1}, true
	}
	return c, false
}

// advance moves c over n routes, or to the end.
func (r *rib) advance(c cursor, n int) cursor {
	for c.b < len(r.blocks) && n >= r.len(c.b)-c.i {
		n -= r.len(c.b) - c.i
		c = cursor{c.b + 1, 0}
	}
	if c.b < len(r.blocks) {
		c.i += n
	}
	return c
}

// skip returns the place of the first route behind the first depth bits of k, all of whose routes from c on
// are passed over: few in most cases, so it looks at the next ones before it searches.
func (r *rib) skip(c cursor, k Key6, depth uint32) cursor {
	const few = 8
	for range few {
		if _, inside := r.within(c, k, depth); !inside {
			return c
		}
		c = r.next(c)
	}
	return r.end(k, depth)
}

// end returns the place of the first route behind the first depth bits of k.
func (r *rib) end(k Key6, depth uint32) cursor {
	last := Key6{Hi: k.Hi, Lo: ^uint64(0)}
	if depth < 64 {
		last.Hi |= ^uint64(0) >> depth
	} else {
		last.Lo = k.Lo | ^uint64(0)>>(depth-64)
	}
	return r.seek(last, 129) // longer than any route
}

// get returns the next hop of a route, or 0.
func (r *rib) get(k Key6, length uint32) uint32 {
	if at, ok := r.at(r.seek(k, length)); ok && at.key == k && at.length == length {
		return at.hop
	}
	return 0
}

// cover returns the next hop of the longest route of at most the given length that holds k, or 0.
func (r *rib) cover(k Key6, length uint32) uint32 {
	for {
		k = mask(k, length)
		c, ok := r.previous(r.seek(k, length+1))
		if !ok {
			return 0
		}
		at, _ := r.at(c)
		common := min(commonBits(at.key, k), length)
		if at.length <= common {
			return at.hop
		}
		// What covers k sorts before it, hence not behind this route, and so covers this one as well: it has
		// at most the bits that the two share. They are fewer than before, or the route would have covered k.
		length = common
	}
}

// set inserts a route or replaces its next hop, and returns the earlier one, or 0.
func (r *rib) set(at route) (old uint32) {
	c := r.seek(at.key, at.length)
	if found, ok := r.at(c); ok && found.key == at.key && found.length == at.length {
		r.encode(r.blocks[c.b], c.i, at)
		return found.hop
	}
	if len(r.blocks) == 0 {
		r.insertBlock(0, make([]uint32, 0, smallestBlock*r.width))
	}
	if c.i == 0 && c.b > 0 { // rather at the end of the block before
		c = cursor{c.b - 1, r.len(c.b - 1)}
	}
	if r.len(c.b) == blockRoutes {
		c = r.split(c)
	}
	r.blocks[c.b] = r.room(r.blocks[c.b])
	block := r.blocks[c.b]
	copy(block[(c.i+1)*r.width:], block[c.i*r.width:])
	r.encode(block, c.i, at)
	if c.i == 0 {
		r.firsts[c.b] = at.key
	}
	r.count++
	return 0
}

// room makes a block one route longer. It grows by a 16th, so that small tables stay small.
func (r *rib) room(block []uint32) []uint32 {
	n := len(block) + r.width
	if n <= cap(block) {
		return block[:n]
	}
	routes := len(block) / r.width
	longer := make([]uint32, n, min(routes+routes/16+smallestBlock, blockRoutes)*r.width)
	copy(longer, block)
	return longer
}

// split halves a full block and returns where c is now.
func (r *rib) split(c cursor) cursor {
	const half = blockRoutes / 2
	block := r.blocks[c.b]
	r.insertBlock(c.b+1, slices.Clone(block[half*r.width:]))
	r.blocks[c.b] = slices.Clone(block[:half*r.width])
	if c.i > half {
		return cursor{c.b + 1, c.i - half}
	}
	return c
}

func (r *rib) insertBlock(b int, block []uint32) {
	first := Key6{}
	if len(block) > 0 {
		first = r.decode(block, 0).key
	}
	r.blocks = slices.Insert(r.blocks, b, block)
	r.firsts = slices.Insert(r.firsts, b, first)
}

// delete removes a route and returns its next hop, or 0 if it wasn't there.
func (r *rib) delete(k Key6, length uint32) (old uint32) {
	c := r.seek(k, length)
	at, ok := r.at(c)
	if !ok || at.key != k || at.length != length {
		return 0
	}
	block := slices.Delete(r.blocks[c.b], c.i*r.width, (c.i+1)*r.width)
	r.blocks[c.b] = block
	r.count--
	if c.i == 0 && len(block) > 0 {
		r.firsts[c.b] = r.decode(block, 0).key
	}
	r.shrink(c.b)
	return at.hop
}

// shrink gives back what a deletion from block b left over: the block, one of two neighbours that fit into half
// of one, or room of which a ninth isn't used.
func (r *rib) shrink(b int) {
	n := r.len(b)
	switch {
	case n == 0:
		r.removeBlock(b)
	case r.mergeable(b):
		r.merge(b)
	case b > 0 && r.mergeable(b-1):
		r.merge(b - 1)
	case cap(r.blocks[b]) > (n+n/8+smallestBlock)*r.width:
		r.blocks[b] = append(make([]uint32, 0, (n+n/16+smallestBlock)*r.width), r.blocks[b]...)
	}
}

// mergeable reports whether block b and the next one fit into half of one.
func (r *rib) mergeable(b int) bool {
	return b+1 < len(r.blocks) && r.len(b)+r.len(b+1) <= blockRoutes/2
}

func (r *rib) merge(b int) {
	r.blocks[b] = slices.Concat(r.blocks[b], r.blocks[b+1])
	r.removeBlock(b + 1)
}

func (r *rib) removeBlock(b int) {
	r.blocks = fitted(slices.Delete(r.blocks, b, b+1))
	r.firsts = fitted(slices.Delete(r.firsts, b, b+1))
}

// fitted returns s, in a smaller array if it leaves more than half of the one it has unused.
func fitted[T any](s []T) []T {
	const spare = 4
	switch {
	case len(s) == 0:
		return nil
	case cap(s) > 2*(len(s)+spare):
		return slices.Clone(s)
	}
	return s
}

// load fills an empty rib with routes that rise by address and length.
func (r *rib) load(routes []route) {
	for some := range slices.Chunk(routes, loadedRoutes) {
		capacity := blockRoutes
		if len(routes) < growRoutes {
			capacity = len(some)
		}
		block := make([]uint32, len(some)*r.width, capacity*r.width)
		for i, at := range some {
			r.encode(block, i, at)
		}
		r.blocks = append(r.blocks, block)
		r.firsts = append(r.firsts, some[0].key)
	}
	r.count = len(routes)
}

// clone copies the routes, packed.
func (r *rib) clone() rib {
	c := rib{width: r.width, count: r.count, firsts: slices.Clone(r.firsts)}
	for _, b := range r.blocks {
		c.blocks = append(c.blocks, slices.Clone(b))
	}
	return c
}

// memory is the number of bytes that the rib holds.
func (r *rib) memory() int {
	n := cap(r.blocks)*24 + cap(r.firsts)*16 // of a slice and of a Key6
	for _, b := range r.blocks {
		n += cap(b) * 4
	}
	return n
}
