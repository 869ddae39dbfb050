package fib

import (
	"math/bits"
	"net/netip"
)

// walk yields the routes in the order of All.
func (v *version) walk(yield func(netip.Prefix, NextHop) bool) {
	for _, root := range v.roots {
		if !walk(v.words, root, yield) {
			return
		}
	}
}

func walk(w []uint32, off uint32, yield func(netip.Prefix, NextHop) bool) bool {
	if off == 0 {
		return true
	}
	n := load(w, off)
	if n.hops[1] != 0 && !yield(join(n.family, n.key, int(n.depth)), NextHop(n.hops[1])) {
		return false
	}
	for b := range uint32(16) {
		if !n.walkPrefixes(b, yield) || !walk(w, n.kids[b], yield) {
			return false
		}
	}
	return true
}

// walkPrefixes yields the node's prefixes, one bit long or longer, whose first address has the four bits b.
func (n *node) walkPrefixes(b uint32, yield func(netip.Prefix, NextHop) bool) bool {
	first := uint32(4 - min(bits.TrailingZeros32(b), 3)) // shorter ones would have a bit of b beyond their length
	for length := first; length <= 4; length++ {
		hop := n.hops[slot(b, length)]
		if hop != 0 && !yield(join(n.family, withNibble(n.key, n.depth, b), int(n.depth+length)), NextHop(hop)) {
			return false
		}
	}
	return true
}

// withNibble sets the four bits of k after the first depth bits, which are zero.
func withNibble(k Key6, depth, n uint32) Key6 {
	if depth < 64 {
		k.Hi |= uint64(n) << (60 - depth)
	} else {
		k.Lo |= uint64(n) << (124 - depth)
	}
	return k
}
