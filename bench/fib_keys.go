package bench

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"

	"tapyard/fib"
)

const (
	zipfExponent     = 1.1     // of the skewed keys
	zipfDestinations = 1 << 16 // that they fall on
)

// keySet is what one cell looks up, in the type of each contender. Some route covers every key.
type keySet struct {
	addrs []netip.Addr
	keys4 []uint32   // the same, for IPv4
	keys6 []fib.Key6 // or for IPv6
}

func newKeySet(f ipFamily, addrs []netip.Addr) *keySet {
	k := &keySet{addrs: addrs}
	for _, a := range addrs {
		if f == family4 {
			k.keys4 = append(k.keys4, number4(a))
		} else {
			k.keys6 = append(k.keys6, number6(a))
		}
	}
	return k
}

// randomAddrs draws addresses that the prefixes of one family cover: for IPv4 uniformly over the covered
// addresses, for IPv6, where that would all but leave out the longer ones, inside a prefix drawn uniformly.
func randomAddrs(r *rand.Rand, f ipFamily, prefixes []netip.Prefix, n int) []netip.Addr {
	addrs := make([]netip.Addr, n)
	if f == family4 {
		c := coverage(prefixes)
		for i := range addrs {
			addrs[i] = c.draw(r)
		}
		return addrs
	}
	for i := range addrs {
		addrs[i] = drawInside(r, prefixes[r.IntN(len(prefixes))])
	}
	return addrs
}

// skewedAddrs draws from few of such addresses, most often from the first ones: Zipf's distribution.
func skewedAddrs(r *rand.Rand, f ipFamily, prefixes []netip.Prefix, n int) []netip.Addr {
	destinations := randomAddrs(r, f, prefixes, zipfDestinations)
	zipf := rand.NewZipf(r, zipfExponent, 1, zipfDestinations-1)
	addrs := make([]netip.Addr, n)
	for i := range addrs {
		addrs[i] = destinations[zipf.Uint64()]
	}
	return addrs
}

// span is a range of IPv4 addresses, and how many the spans before it hold.
type span struct {
	first, size, before uint64
}

// spans are disjoint and in order.
type spans []span

// coverage returns the IPv4 addresses that sorted prefixes cover.
func coverage(prefixes []netip.Prefix) (c spans) {
	end, total := uint64(0), uint64(0)
	for _, p := range prefixes {
		first, size := uint64(number4(p.Addr())), uint64(1)<<(32-p.Bits())
		if first < end { // prefixes nest or are disjoint
			continue
		}
		c = append(c, span{first: first, size: size, before: total})
		end, total = first+size, total+size
	}
	return c
}

// total is how many addresses they hold.
func (c spans) total() uint64 { return c[len(c)-1].before + c[len(c)-1].size }

func (c spans) draw(r *rand.Rand) netip.Addr {
	n := r.Uint64N(c.total())
	i, found := slices.BinarySearchFunc(c, n, func(s span, n uint64) int { return cmp.Compare(s.before, n) })
	if !found {
		i--
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(c[i].first+n-c[i].before))
	return netip.AddrFrom4(b)
}

// drawInside returns an address inside an IPv6 prefix.
func drawInside(r *rand.Rand, p netip.Prefix) netip.Addr {
	k := number6(p.Addr())
	k.Hi |= r.Uint64() & (math.MaxUint64 >> p.Bits())
	k.Lo |= r.Uint64() & (math.MaxUint64 >> max(p.Bits()-64, 0))
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.Hi)
	binary.BigEndian.PutUint64(b[8:], k.Lo)
	return netip.AddrFrom16(b)
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func number6(a netip.Addr) fib.Key6 {
	b := a.As16()
	return fib.Key6{Hi: binary.BigEndian.Uint64(b[:8]), Lo: binary.BigEndian.Uint64(b[8:])}
}
