package bench

import (
	"net/netip"

	"github.com/gaissmai/bart"

	"tapyard/fib"
)

// The loops are alike and written out for every contender, so that each calls its lookup directly: neither a
// function value nor the dictionary of a generic function lies between.
//
// sum… adds up the answers for the keys. chase… does so with each key found by means of the last answer, so that
// no lookup can begin before the one before it has ended, although the keys are the same.

// noBits is 0, which neither the compiler nor the processor knows.
var noBits uint32

func sumTapyard4(t *fib.Table, keys []uint32) (sum uint64) {
	v := t.View()
	for _, k := range keys {
		sum += uint64(v.Lookup4(k))
	}
	return sum
}

func chaseTapyard4(t *fib.Table, keys []uint32) (sum uint64) {
	v, hop, none := t.View(), fib.None, fib.NextHop(noBits)
	for i := range keys {
		hop = v.Lookup4(keys[i+int(hop&none)])
		sum += uint64(hop)
	}
	return sum
}

// sumTapyardBatch4 looks up as many keys at a time as out has room for.
func sumTapyardBatch4(t *fib.Table, keys []uint32, out []fib.NextHop) (sum uint64) {
	for len(keys) > 0 {
		n := min(len(keys), len(out))
		t.View().Lookup4Batch(keys[:n], out[:n])
		for _, hop := range out[:n] {
			sum += uint64(hop)
		}
		keys = keys[n:]
	}
	return sum
}

func sumTapyard6(t *fib.Table, keys []fib.Key6) (sum uint64) {
	v := t.View()
	for _, k := range keys {
		sum += uint64(v.Lookup6(k.Hi, k.Lo))
	}
	return sum
}

func chaseTapyard6(t *fib.Table, keys []fib.Key6) (sum uint64) {
	v, hop, none := t.View(), fib.None, fib.NextHop(noBits)
	for i := range keys {
		k := keys[i+int(hop&none)]
		hop = v.Lookup6(k.Hi, k.Lo)
		sum += uint64(hop)
	}
	return sum
}

func sumTapyardBatch6(t *fib.Table, keys []fib.Key6, out []fib.NextHop) (sum uint64) {
	for len(keys) > 0 {
		n := min(len(keys), len(out))
		t.View().Lookup6Batch(keys[:n], out[:n])
		for _, hop := range out[:n] {
			sum += uint64(hop)
		}
		keys = keys[n:]
	}
	return sum
}

func sumBartTable(t *bart.Table[uint32], keys []netip.Addr) (sum uint64) {
	for _, k := range keys {
		hop, _ := t.Lookup(k)
		sum += uint64(hop)
	}
	return sum
}

func chaseBartTable(t *bart.Table[uint32], keys []netip.Addr) (sum uint64) {
	hop, none := uint32(0), noBits
	for i := range keys {
		hop, _ = t.Lookup(keys[i+int(hop&none)])
		sum += uint64(hop)
	}
	return sum
}

func sumBartFast(t *bart.Fast[uint32], keys []netip.Addr) (sum uint64) {
	for _, k := range keys {
		hop, _ := t.Lookup(k)
		sum += uint64(hop)
	}
	return sum
}

func chaseBartFast(t *bart.Fast[uint32], keys []netip.Addr) (sum uint64) {
	hop, none := uint32(0), noBits
	for i := range keys {
		hop, _ = t.Lookup(keys[i+int(hop&none)])
		sum += uint64(hop)
	}
	return sum
}

// countBartLite counts the keys that a route covers, since Lite knows no next hops; Contains is its fastest lookup.
func countBartLite(t *bart.Lite, keys []netip.Addr) (count uint64) {
	for _, k := range keys {
		if t.Contains(k) {
			count++
		}
	}
	return count
}

func chaseBartLite(t *bart.Lite, keys []netip.Addr) (count uint64) {
	answer, none := uint32(0), noBits
	for i := range keys {
		covered := t.Contains(keys[i+int(answer&none)])
		answer = 0
		if covered { // compiled to a move, not a branch
			answer = 1
		}
		count += uint64(answer)
	}
	return count
}
