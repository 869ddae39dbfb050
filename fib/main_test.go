package fib

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io/fs"
	"maps"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
)

// TestMain poisons freed blocks, so that a lookup in memory that was freed too early is seen.
func TestMain(m *testing.M) {
	poison = true
	os.Exit(m.Run())
}

// scaled shrinks a number of rounds for -short and for the race detector.
func scaled(n int) int {
	if testing.Short() || raceEnabled {
		return n / 20
	}
	return n
}

// golden is the slow model of a Table: a slice and a loop.
type golden []Route

func (g *golden) insert(p netip.Prefix, nh NextHop) {
	if i := g.index(p); i >= 0 {
		(*g)[i].NextHop = nh
	} else {
		*g = append(*g, Route{p, nh})
	}
}

func (g *golden) delete(p netip.Prefix) bool {
	i := g.index(p)
	if i >= 0 {
		*g = slices.Delete(*g, i, i+1)
	}
	return i >= 0
}

func (g *golden) index(p netip.Prefix) int {
	return slices.IndexFunc(*g, func(r Route) bool { return r.Prefix == p })
}

func (g golden) lookup(a netip.Addr) NextHop {
	best := Route{}
	for _, r := range g {
		if r.Prefix.Contains(a) && (best.NextHop == None || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = r
		}
	}
	return best.NextHop
}

// byLength is the second independent model, for large tables: one exact lookup per length, longest first.
type byLength struct {
	routes  map[netip.Prefix]NextHop
	lengths [2][]int
}

func newByLength(routes []Route) *byLength {
	m := &byLength{routes: map[netip.Prefix]NextHop{}}
	var seen [2][129]bool
	for _, r := range routes {
		m.routes[r.Prefix] = r.NextHop
		seen[familyOf(r.Prefix.Addr())][r.Prefix.Bits()] = true
	}
	for f := range seen {
		for l := 128; l >= 0; l-- {
			if seen[f][l] {
				m.lengths[f] = append(m.lengths[f], l)
			}
		}
	}
	return m
}

func (m *byLength) lookup(a netip.Addr) NextHop {
	for _, l := range m.lengths[familyOf(a)] {
		if nh := m.routes[netip.PrefixFrom(a, l).Masked()]; nh != None {
			return nh
		}
	}
	return None
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// randomPrefix draws from few enough address bits that prefixes nest and collide, at any length.
func randomPrefix(r *rand.Rand) netip.Prefix {
	if r.IntN(2) == 0 {
		return netip.PrefixFrom(sparseAddr4(r), r.IntN(33)).Masked()
	}
	return netip.PrefixFrom(sparseAddr6(r), r.IntN(129)).Masked()
}

func sparseAddr4(r *rand.Rand) netip.Addr {
	u := r.Uint32() & r.Uint32() & r.Uint32()
	return netip.AddrFrom4([4]byte{byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)})
}

func sparseAddr6(r *rand.Rand) netip.Addr {
	b := [16]byte{0: 0x20} // not IPv4-mapped
	for range 4 {
		b[r.IntN(16)] |= 1 << r.IntN(8)
	}
	return netip.AddrFrom16(b)
}

// probes returns addresses that lie at the edges of the prefix, around them, and inside.
func probes(r *rand.Rand, p netip.Prefix) []netip.Addr {
	first, last := p.Addr(), lastAddr(p)
	inside := first.AsSlice()
	for i, b := range last.AsSlice() {
		inside[i] |= b & byte(r.Uint32())
	}
	mid, _ := netip.AddrFromSlice(inside)
	all := []netip.Addr{first, last, mid, first.Prev(), last.Next()}
	return slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.IsValid() || a.Is4In6() })
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// checkLookups compares single and batched lookups of the addresses with a model.
func checkLookups(t *testing.T, v View, want func(netip.Addr) NextHop, addrs []netip.Addr) {
	t.Helper()
	var keys4 []uint32
	var keys6 []Key6
	var want4, want6 []NextHop
	for _, a := range addrs {
		nh := want(a)
		if got := v.Lookup(a); got != nh {
			t.Fatalf("Lookup(%v) = %d, want %d", a, got, nh)
		}
		if f, k := split(a); f == ipv4 {
			keys4, want4 = append(keys4, uint32(k.Hi>>32)), append(want4, nh)
		} else {
			keys6, want6 = append(keys6, k), append(want6, nh)
		}
	}
	got4, got6 := make([]NextHop, len(keys4)), make([]NextHop, len(keys6))
	v.Lookup4Batch(keys4, got4)
	v.Lookup6Batch(keys6, got6)
	if !slices.Equal(got4, want4) || !slices.Equal(got6, want6) {
		t.Fatalf("batched lookups differ from single ones:\n%v\n%v\n%v\n%v", got4, want4, got6, want6)
	}
}

// checkContents compares All and Len with the routes, and the order of All with its promise.
func checkContents(t *testing.T, tab *Table, routes []Route) {
	t.Helper()
	var got []Route
	for p, nh := range tab.All() {
		got = append(got, Route{p, nh})
	}
	want := slices.SortedFunc(slices.Values(routes), func(a, b Route) int {
		if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 { // IPv4 sorts before IPv6
			return c
		}
		return a.Prefix.Bits() - b.Prefix.Bits()
	})
	if !slices.Equal(got, want) {
		t.Fatalf("All yields %d routes, want %d, or in another order:\n%.800v\n%.800v", len(got), len(want), got, want)
	}
	if tab.Len() != len(want) {
		t.Fatalf("Len() = %d, want %d", tab.Len(), len(want))
	}
}

// checkArena walks the memory: every word belongs to word 0, one reachable node or one free block (so nothing
// leaked and nothing was freed twice), and the trie has its canonical form. Nothing may be pending.
func checkArena(t *testing.T, tab *Table) {
	t.Helper()
	tab.mu.Lock()
	defer tab.mu.Unlock()
	a, v := tab.arena, tab.current.Load()
	owner := make([]byte, len(a.words))
	owner[0] = 'z'
	claim := func(off uint32, size int, who byte) {
		for i := int(off); i < int(off)+size; i++ {
			if owner[i] != 0 {
				t.Fatalf("word %d belongs to %c and %c", i, owner[i], who)
			}
			owner[i] = who
		}
	}
	var visit func(off uint32)
	visit = func(off uint32) {
		if off == 0 {
			return
		}
		claim(off, a.size(off), 'n')
		kids := bits.OnesCount16(uint16(a.words[off]))
		if a.words[off+1] == 0 && kids < 2 {
			t.Fatalf("node %d has no prefix and %d children", off, kids)
		}
		for _, kid := range load(a.words, off).kids {
			visit(kid)
		}
	}
	visit(v.roots[ipv4])
	visit(v.roots[ipv6])
	if n := len(owner) - count(owner, 0); n != a.live {
		t.Fatalf("%d words are reachable, %d counted as live", n, a.live)
	}
	for size, off := range a.free {
		for ; off != 0; off = a.words[off] {
			claim(off, size, 'f')
		}
	}
	if n := count(owner, 0); n != 0 {
		t.Fatalf("%d of %d words leaked", n, len(owner))
	}
}

func count(s []byte, b byte) (n int) {
	for _, x := range s {
		if x == b {
			n++
		}
	}
	return n
}

// bgpRoutes returns the real table, or when its file is absent a generated one with similar lengths. Next hops
// are numbered, so that a wrong match is always seen.
func bgpRoutes(t testing.TB) []Route {
	prefixes, err := readPrefixes("../../shared/data/bgp-prefixes.txt.gz")
	if errors.Is(err, fs.ErrNotExist) {
		t.Log("generated table:", err)
		prefixes = generatedPrefixes(200_000)
	} else if err != nil {
		t.Fatal(err)
	}
	routes := make([]Route, len(prefixes))
	for i, p := range prefixes {
		routes[i] = Route{p, NextHop(i + 1)}
	}
	return routes
}

func readPrefixes(name string) (prefixes []netip.Prefix, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		p, err := netip.ParsePrefix(lines.Text())
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, lines.Err()
}

// generatedPrefixes makes a table of the Internet's shape: of lengths /16 to /24, mostly /24 and /22, and /32
// to /48; always the same one.
func generatedPrefixes(n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(1, 2))
	set := map[netip.Prefix]bool{}
	for len(set) < n {
		a4, a6 := [4]byte{}, [16]byte{0x20 | byte(r.IntN(16)), byte(r.Uint32())}
		for i := range a4 {
			a4[i] = byte(r.Uint32())
		}
		for i := 2; i < 6; i++ {
			a6[i] = byte(r.Uint32()) & byte(r.Uint32())
		}
		set[netip.PrefixFrom(netip.AddrFrom4(a4), max(24-r.IntN(9)*r.IntN(2), 16)).Masked()] = true
		if r.IntN(6) == 0 {
			set[netip.PrefixFrom(netip.AddrFrom16(a6), 32+r.IntN(5)*4).Masked()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), netip.Prefix.Compare)
}
