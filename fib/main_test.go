package fib

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"tapyard/bench/seed"
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

// lowThresholds makes tables of a few dozen routes large ones, with smaller roots, until the test ends.
func lowThresholds(t testing.TB) {
	grow, shrink, table, roots := growRoutes, shrinkRoutes, tableRoutes, layouts
	growRoutes, shrinkRoutes, tableRoutes, layouts = 60, 30, 8, [2][2]uint32{{2, 10}, {4, 7}}
	t.Cleanup(func() { growRoutes, shrinkRoutes, tableRoutes, layouts = grow, shrink, table, roots })
}

// smallAndLarge runs a test on tables that stay small and on some that become large ones.
func smallAndLarge(t *testing.T, f func(*testing.T, *rand.Rand)) {
	r := seed.Rand(t)
	t.Run("small", func(t *testing.T) { f(t, r) })
	t.Run("large", func(t *testing.T) {
		lowThresholds(t)
		f(t, r)
	})
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
	for len(keys4)%vectorKeys != 0 && len(keys4) > 0 { // vectors take no fewer
		keys4, want4 = append(keys4, keys4[0]), append(want4, want4[0])
	}
	for len(keys6)%vectorKeys != 0 && len(keys6) > 0 {
		keys6, want6 = append(keys6, keys6[0]), append(want6, want6[0])
	}
	got4, got6 := make([]NextHop, len(keys4)), make([]NextHop, len(keys6))
	v.Lookup4Batch(keys4, got4)
	v.Lookup6Batch(keys6, got6)
	if !slices.Equal(got4, want4) || !slices.Equal(got6, want6) {
		t.Fatalf("batched lookups differ from single ones:\n%v\n%v\n%v\n%v", got4, want4, got6, want6)
	}
	v.v.batch4(keys4, got4)
	v.v.batch6(keys6, got6)
	if !slices.Equal(got4, want4) || !slices.Equal(got6, want6) {
		t.Fatalf("lookups in bursts without vectors differ from single ones:\n%v\n%v\n%v\n%v", got4, want4, got6, want6)
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

// checkArena walks the memory: every word belongs to the arena's head, one reachable block or one free block
// (so nothing leaked and nothing was freed twice), and the blocks are those that compiling the routes anew
// makes. Nothing may be pending.
func checkArena(t *testing.T, tab *Table) {
	t.Helper()
	tab.flush()
	tab.mu.Lock()
	defer tab.mu.Unlock()
	a, v := tab.arena, tab.current.Load()
	owner := make([]byte, len(a.words))
	owner[0], owner[1] = 'h', 'h'
	claim := func(w uint32, size int, who byte) {
		off := int(w & offMask)
		for i := off; i < off+size; i++ {
			if owner[i] != 0 {
				t.Fatalf("word %d belongs to %c and %c", i, owner[i], who)
			}
			owner[i] = who
		}
	}
	var visit func(w uint32)
	visit = func(w uint32) {
		if w < pointer {
			return
		}
		claim(w, a.size(w), 'b')
		for _, v := range a.children(w) {
			visit(v)
		}
	}
	for _, w := range slices.Concat(v.root4, v.root6) {
		visit(w)
	}
	if n := len(owner) - count(owner, 0); n != a.live {
		t.Fatalf("%d words are reachable, %d counted as live", n, a.live)
	}
	for i := range a.free {
		for off := a.free[i]; off != 0; off = a.words[off] {
			claim(off, 2*i, 'f')
		}
	}
	for off := a.freeTable; off != 0; off = a.words[off] {
		claim(off, 1<<tableBits, 'f')
	}
	if n := count(owner, 0); n != 0 {
		t.Fatalf("%d of %d words leaked", n, len(owner))
	}
	fresh := edit{ribs: &tab.ribs, roots: [2][]uint32{v.root4, v.root6}}
	fresh.rebuild()
	for f, root := range [2][]uint32{v.root4, v.root6} {
		if len(root) != len(fresh.roots[f]) {
			t.Fatalf("root of %d words, compiled anew %d", len(root), len(fresh.roots[f]))
		}
		for i, w := range root {
			if was, is := dump(a, w), dump(fresh.arena, fresh.roots[f][i]); was != is {
				t.Fatalf("family %d, root position %d: %.500s\ncompiled anew: %.500s", f, i, was, is)
			}
		}
	}
}

// flush retires what waits for company.
func (t *Table) flush() {
	t.mu.Lock()
	a, blocks := t.arena, t.limbo
	t.limbo = nil
	t.mu.Unlock()
	t.domain.Retire(func() { t.recycle(a, blocks) })
}

// dump writes what a word stands for, without offsets.
func dump(a *arena, w uint32) string {
	if w < pointer {
		return fmt.Sprint(w)
	}
	values := a.children(w)
	head := a.words[w&offMask:][:a.used(w)-len(values)]
	s := fmt.Sprintf("(%d %x", kindOf(w), head)
	for _, v := range values {
		s += " " + dump(a, v)
	}
	return s + ")"
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

// held is the number of bytes that a table holds.
func held(tab *Table) int {
	_, total := tab.Memory()
	return total
}
