package fib

import (
	"math/bits"
	"net/netip"
)

// View is one version of a Table, for the lookups of one burst. It is valid until the next quiescent point of
// the Reader under which it was taken: using it later may give wrong answers or panic. Lookups are wait-free
// and allocate nothing. The zero View is not usable.
type View struct{ v *version }

// View returns the table's current version. The caller is an online Reader of the table's Domain.
func (t *Table) View() View { return View{t.current.Load()} }

// Lookup returns the next hop of the longest prefix that holds addr, or None. An IPv4-mapped IPv6 address is
// looked up as IPv4, a zone is ignored, and the zero Addr has no route.
func (v View) Lookup(addr netip.Addr) NextHop {
	if !addr.IsValid() {
		return None
	}
	f, k := split(addr.Unmap())
	if f == ipv4 {
		return v.Lookup4(uint32(k.Hi >> 32))
	}
	return v.Lookup6(k.Hi, k.Lo)
}

// Lookup4 returns the next hop for an IPv4 address (host order of its big-endian bytes: 10.0.0.1 is
// 0x0a000001), or None.
func (v View) Lookup4(addr uint32) NextHop {
	w, best := v.v.words, uint32(0) // word 0 of an arena is None
	for off := v.v.roots[ipv4]; off != 0; {
		head := w[off]
		depth := headDepth(head)
		if (addr^w[off+headWords])>>(32-depth) != 0 {
			break
		}
		best, off = step(w, off, head, headWords+1, addr>>(28-depth)&15, best)
	}
	return NextHop(w[best])
}

// Lookup6 returns the next hop for an IPv6 address (see Key6), or None. It takes the bits as they are: an
// IPv4-mapped address is an IPv6 address here.
func (v View) Lookup6(hi, lo uint64) NextHop {
	w, best := v.v.words, uint32(0)
	for off := v.v.roots[ipv6]; off != 0; {
		head := w[off]
		depth := headDepth(head)
		k := Key6{Hi: hi, Lo: lo}
		if !samePrefix(k, readKey6(w, off), depth) {
			break
		}
		best, off = step(w, off, head, headWords+4, nibble(k, depth), best)
	}
	return NextHop(w[best])
}

// Lookup4Batch writes the next hop of keys[i] into out[i]; out is at least as long as keys.
func (v View) Lookup4Batch(keys []uint32, out []NextHop) {
	out = out[:len(keys)]
	for i, k := range keys {
		out[i] = v.Lookup4(k)
	}
}

// Lookup6Batch writes the next hop of keys[i] into out[i]; out is at least as long as keys.
func (v View) Lookup6Batch(keys []Key6, out []NextHop) {
	out = out[:len(keys)]
	for i, k := range keys {
		out[i] = v.Lookup6(k.Hi, k.Lo)
	}
}

// step looks up four bits n in the node at off, whose hops begin `start` words into it. It returns where the
// longest match so far stands and the child to go on with, 0 at the end.
func step(w []uint32, off, head, start, n, best uint32) (newBest, child uint32) {
	prefixes := w[off+1]
	hops := off + start
	if m := prefixes & covering[n]; m != 0 {
		longest := uint32(bits.Len32(m) - 1)
		best = hops + rank(prefixes, longest)
	}
	if head>>n&1 == 0 {
		return best, 0
	}
	return best, w[hops+uint32(bits.OnesCount32(prefixes))+rank(head, n)]
}

// covering[n] has the bits (see slot) of the prefixes inside a node that hold the four bits n, from the
// 4-bit prefix 16|n over 8|n/2, 4|n/4 and 2|n/8 to the empty one, 1. A longer prefix has a higher bit.
var covering = func() (c [16]uint32) {
	for n := range c {
		for i := 16 | n; i > 0; i /= 2 {
			c[n] |= 1 << i
		}
	}
	return c
}()

// rank counts the bits of set below bit i.
func rank(set, i uint32) uint32 { return uint32(bits.OnesCount32(set & (1<<i - 1))) }
