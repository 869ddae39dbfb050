package fib

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapyard/bench/seed"
)

// TestModel compares a table with the slow model through shuffled inserts, replacements and deletions, down
// to the empty table, which holds what it began with.
func TestModel(t *testing.T) { smallAndLarge(t, compareModel) }

func compareModel(t *testing.T, r *rand.Rand) {
	for round := range max(scaled(20), 2) {
		var d Domain
		tab, model := New(&d), golden{}
		began := held(tab)
		hops := int(MaxNextHop) >> (round % 2 * 22) // nearly all different, or 3, so that blocks become leaves
		for i := range 1200 {
			p, nh := randomPrefix(r), NextHop(1+r.IntN(hops))
			if i > 600 || r.IntN(4) == 0 { // later mostly deletions, of what is there
				if len(model) > 0 && r.IntN(8) != 0 {
					p = model[r.IntN(len(model))].Prefix
				}
				found, err := tab.Delete(p)
				if want := model.delete(p); err != nil || found != want {
					t.Fatalf("Delete(%v) = %v, %v, want %v", p, found, err, want)
				}
			} else {
				if len(model) > 0 && r.IntN(4) == 0 { // a replacement
					p = model[r.IntN(len(model))].Prefix
				}
				model.insert(p, nh)
				if err := tab.Insert(p, nh); err != nil {
					t.Fatal(err)
				}
			}
			addrs := append(probes(r, p), sparseAddr4(r), sparseAddr6(r))
			checkLookups(t, tab.View(), model.lookup, addrs)
			if i%100 == 0 {
				checkContents(t, tab, model)
				checkArena(t, tab)
			}
		}
		for len(model) > 0 {
			p := model[r.IntN(len(model))].Prefix
			model.delete(p)
			if found, err := tab.Delete(p); !found || err != nil {
				t.Fatalf("Delete(%v) = %v, %v", p, found, err)
			}
		}
		checkContents(t, tab, nil)
		checkArena(t, tab)
		if held(tab) != began {
			t.Fatalf("the empty table holds %d bytes, began with %d", held(tab), began)
		}
	}
}

// TestLengths nests every length over one address, in both families, default routes included, and peels them
// off in random order.
func TestLengths(t *testing.T) {
	r := seed.Rand(t)
	for _, addr := range []string{"0.0.0.0", "255.255.255.255", "10.1.2.3", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:1:2:3:4:5:6"} {
		a := netip.MustParseAddr(addr)
		var d Domain
		tab, model := New(&d), golden{}
		for _, l := range r.Perm(a.BitLen() + 1) {
			p := netip.PrefixFrom(a, l).Masked()
			model.insert(p, NextHop(l+1))
			if err := tab.Insert(p, NextHop(l+1)); err != nil {
				t.Fatal(err)
			}
			checkLookups(t, tab.View(), model.lookup, append(probes(r, p), a))
		}
		checkContents(t, tab, model)
		for _, l := range r.Perm(a.BitLen() + 1) {
			p := netip.PrefixFrom(a, l).Masked()
			model.delete(p)
			if found, err := tab.Delete(p); !found || err != nil {
				t.Fatalf("Delete(%v) = %v, %v", p, found, err)
			}
			checkLookups(t, tab.View(), model.lookup, append(probes(r, p), a))
		}
		checkArena(t, tab)
	}
}

// TestBGP loads the real table and compares it with exact lookups by length; then takes half of it away in
// random order and puts it back, after which the same nodes are in use.
func TestBGP(t *testing.T) {
	r := seed.Rand(t)
	routes := bgpRoutes(t)
	r.Shuffle(len(routes), func(i, j int) { routes[i], routes[j] = routes[j], routes[i] })
	routes = routes[:max(scaled(len(routes)), 1)]
	var d Domain
	tab := New(&d)
	if err := tab.Replace(routes); err != nil {
		t.Fatal(err)
	}
	live := tab.arena.live
	t.Logf("%d routes: %d bytes, %.1f per route", tab.Len(), held(tab), float64(held(tab))/float64(tab.Len()))
	checkArena(t, tab)
	compareBGP(t, r, tab, routes)

	half := len(routes) / 2
	changes := make([]Change, half)
	for i := range changes {
		changes[i] = Change{Prefix: routes[i].Prefix, Delete: true}
	}
	for batch := range slices.Chunk(changes, 1000) {
		if err := tab.Apply(batch); err != nil {
			t.Fatal(err)
		}
	}
	checkArena(t, tab)
	compareBGP(t, r, tab, routes[half:])
	for _, route := range routes[:half] {
		if err := tab.Insert(route.Prefix, route.NextHop); err != nil {
			t.Fatal(err)
		}
	}
	checkArena(t, tab)
	compareBGP(t, r, tab, routes)
	if tab.arena.live != live {
		t.Fatalf("%d words in use after deletion and insertion, %d before", tab.arena.live, live)
	}
	t.Logf("after changing half of them one by one: %d bytes", held(tab))
}

func compareBGP(t *testing.T, r *rand.Rand, tab *Table, routes []Route) {
	t.Helper()
	model := newByLength(routes)
	if tab.Len() != len(model.routes) {
		t.Fatalf("Len() = %d, want %d", tab.Len(), len(model.routes))
	}
	var addrs []netip.Addr
	for range 40_000 {
		addrs = append(addrs, probes(r, routes[r.IntN(len(routes))].Prefix)...)
		u := r.Uint32()
		addrs = append(addrs, netip.AddrFrom4([4]byte{byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)}))
	}
	checkLookups(t, tab.View(), model.lookup, addrs)
}

// TestChurn: a million random inserts and deletes, with a reader that holds blocks back for a while, end at
// the memory they began with.
func TestChurn(t *testing.T) {
	r := seed.Rand(t)
	var d Domain
	reader := d.Register()
	defer reader.Close()
	reader.Online()
	tab := New(&d)
	began, beganLive := held(tab), tab.arena.live
	pool := make([]netip.Prefix, 5000)
	for i := range pool {
		pool[i] = randomPrefix(r)
	}
	for i := range scaled(1_000_000) {
		p := pool[r.IntN(len(pool))]
		var err error
		if r.IntN(2) == 0 {
			err = tab.Insert(p, NextHop(1+i))
		} else {
			_, err = tab.Delete(p)
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%64 == 0 {
			reader.Quiesce()
		}
		if limit := 10*tab.arena.live + tab.ribs[ipv4].memory() + tab.ribs[ipv6].memory() + 16<<10; held(tab) > limit {
			t.Fatalf("%d bytes for %d words in use, at most %d promised", held(tab), tab.arena.live, limit)
		}
	}
	tab.flush()
	reader.Quiesce()
	if n := d.Reclaim(); n != 0 {
		t.Fatalf("%d callbacks pending after a quiescent point", n)
	}
	checkArena(t, tab)
	t.Logf("%d routes, %d bytes in use, %d held", tab.Len(), 4*tab.arena.live, held(tab))
	for _, p := range pool {
		if _, err := tab.Delete(p); err != nil {
			t.Fatal(err)
		}
	}
	tab.flush()
	reader.Quiesce()
	d.Reclaim()
	checkArena(t, tab)
	if held(tab) != began || tab.arena.live != beganLive || tab.Len() != 0 {
		t.Fatalf("ends with %d bytes, %d words in use, %d routes; began with %d, %d, 0",
			held(tab), tab.arena.live, tab.Len(), began, beganLive)
	}
}

// TestReplace: the contents become exactly the list, a later entry wins, nothing of the earlier table stays.
func TestReplace(t *testing.T) {
	r := seed.Rand(t)
	var d Domain
	tab := New(&d)
	for range 20 {
		model, routes := golden{}, []Route{}
		for range r.IntN(300) {
			route := Route{randomPrefix(r), NextHop(1 + r.IntN(1000))}
			routes = append(routes, route)
			model.insert(route.Prefix, route.NextHop)
		}
		if err := tab.Replace(routes); err != nil {
			t.Fatal(err)
		}
		checkContents(t, tab, model)
		checkArena(t, tab)
		for _, route := range routes {
			checkLookups(t, tab.View(), model.lookup, probes(r, route.Prefix))
		}
	}
}

// TestErrors: what is refused names its cause and the way out, in the middle of a batch too, and changes
// nothing.
func TestErrors(t *testing.T) {
	var d Domain
	tab := New(&d)
	kept := []Route{{netip.MustParsePrefix("10.0.0.0/8"), 1}, {netip.MustParsePrefix("2001:db8::/32"), 2}}
	if err := tab.Replace(kept); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change Change
		err    error
		text   string
	}{
		{Change{NextHop: 1}, ErrPrefix, "invalid Prefix"},
		{Change{Delete: true}, ErrPrefix, "invalid Prefix"},
		{Change{Prefix: netip.MustParsePrefix("10.0.0.1/8"), NextHop: 1}, ErrPrefix, "write 10.0.0.0/8"},
		{Change{Prefix: netip.MustParsePrefix("10.0.0.1/8"), Delete: true}, ErrPrefix, "write 10.0.0.0/8"},
		{Change{Prefix: netip.MustParsePrefix("2001:db8::1/64"), NextHop: 1}, ErrPrefix, "write 2001:db8::/64"},
		{Change{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104), NextHop: 1}, ErrPrefix, "write 10.0.0.0/8"},
		{Change{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:0:0"), 96), Delete: true}, ErrPrefix, "write 0.0.0.0/0"},
		{Change{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33), NextHop: 1}, ErrPrefix, "invalid Prefix"},
		{Change{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, ErrNextHop, "10.0.0.0/8 via 0: need 1 to 16777215"},
		{Change{Prefix: netip.MustParsePrefix("::/0"), NextHop: MaxNextHop + 1}, ErrNextHop, "via 16777216"},
	} {
		good := Change{Prefix: netip.MustParsePrefix("192.0.2.0/24"), NextHop: 3}
		errs := []error{tab.Apply([]Change{good, c.change, good})}
		if c.change.Delete {
			_, err := tab.Delete(c.change.Prefix)
			errs = append(errs, err)
		} else {
			errs = append(errs, tab.Insert(c.change.Prefix, c.change.NextHop),
				tab.Replace([]Route{{good.Prefix, 3}, {c.change.Prefix, c.change.NextHop}}))
		}
		for _, err := range errs {
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v: error %q, want %q with %q", c.change, err, c.err, c.text)
			}
		}
		checkContents(t, tab, kept)
	}
	if err := checkRoom(MaxRoutes); err != nil {
		t.Error(err)
	}
	if err := checkRoom(MaxRoutes + 1); !errors.Is(err, ErrFull) {
		t.Errorf("one route too many: %v", err)
	}
}

// TestApplyOrder: later changes of a batch count, and a batch that ends where it began, or deletes what isn't
// there, is no error and changes nothing.
func TestApplyOrder(t *testing.T) {
	var d Domain
	tab := New(&d)
	p, q := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/9")
	for i, c := range []struct {
		changes []Change
		want    []Route
	}{
		{[]Change{{p, 1, false}, {p, 2, false}}, []Route{{p, 2}}},
		{[]Change{{q, 1, false}, {q, 0, true}}, []Route{{p, 2}}},
		{[]Change{{q, 0, true}}, []Route{{p, 2}}},
		{[]Change{{p, 0, true}, {p, 3, false}, {q, 4, false}}, []Route{{p, 3}, {q, 4}}},
		{[]Change{{q, 0, true}, {p, 0, true}}, nil},
		{nil, nil},
	} {
		if err := tab.Apply(c.changes); err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
		checkContents(t, tab, c.want)
		checkArena(t, tab)
	}
}

// TestMapped: an IPv4-mapped address is IPv4 for Lookup, and its bare bits are IPv6 for Lookup6.
func TestMapped(t *testing.T) {
	var d Domain
	tab := New(&d)
	if err := tab.Replace([]Route{{netip.MustParsePrefix("10.0.0.0/8"), 4}, {netip.MustParsePrefix("::/0"), 6}}); err != nil {
		t.Fatal(err)
	}
	v := tab.View()
	for addr, want := range map[string]NextHop{"::ffff:10.1.1.1": 4, "::ffff:11.1.1.1": None, "fe80::1%eth0": 6} {
		if got := v.Lookup(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Lookup(%s) = %d, want %d", addr, got, want)
		}
	}
	if got := v.Lookup6(0, 0xffff_0a010101); got != 6 {
		t.Errorf("Lookup6 of a mapped address = %d, want the IPv6 default route's 6", got)
	}
	if got := v.Lookup(netip.Addr{}); got != None {
		t.Errorf("Lookup of the zero Addr = %d", got)
	}
}

// TestSmall: a table with under 1,000 routes takes at most 64 KiB, inserted one by one under a
// reader that passes a quiescent point now and then, or loaded at once.
func TestSmall(t *testing.T) {
	r := seed.Rand(t)
	pods4 := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 32)
	}
	pods6 := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 5: 1, 14: byte(i >> 8), 15: byte(i)}), 128)
	}
	subnets4 := func(int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), 24)
	}
	subnets6 := func(int) netip.Prefix { return join(ipv6, mask(Key6{Hi: 0x20<<56 | r.Uint64()>>8}, 64), 64) }
	hosts6 := func(int) netip.Prefix { return join(ipv6, Key6{r.Uint64(), r.Uint64()}, 128) }
	any6 := func(int) netip.Prefix {
		length := uint32(r.IntN(129))
		return join(ipv6, mask(Key6{r.Uint64(), r.Uint64()}, length), int(length))
	}
	chains6 := func(i int) netip.Prefix { // of routes each of which covers the next
		k := Key6{uint64(i/128+1) * 0x9e3779b97f4a7c15, uint64(i/128+1) * 0xbf58476d1ce4e5b9}
		return join(ipv6, mask(k, uint32(i%128+1)), i%128+1)
	}
	groups6 := func(of int, hi, lo uint64) func(int) netip.Prefix { // with little in common, that end alike but for a few bits
		return func(i int) netip.Prefix {
			q := rand.New(rand.NewPCG(uint64(i/of), 1))
			return join(ipv6, Key6{q.Uint64() ^ uint64(i%of)*hi, q.Uint64() ^ uint64(i%of)*lo}, 128)
		}
	}
	fans6 := func(i int) netip.Prefix { // as far apart as bitmaps go before there are skips
		g := uint64(i / 5)
		return join(ipv6, Key6{g&3<<58 | g>>2&3<<40 | g>>4&3<<22 | g>>6&3<<4, uint64(i%5) << 61}, 128)
	}
	for name, next := range map[string]func(int) netip.Prefix{
		"pods4": pods4, "pods6": pods6, "subnets4": subnets4, "subnets6": subnets6, "hosts6": hosts6, "any6": any6,
		"chains6": chains6, "fans6": fans6,
		"groups of 6": groups6(6, 0, 50), "groups of 7": groups6(7, 0, 50), "groups of 7, early": groups6(7, 0, 1<<40), "groups of 7 in the middle": groups6(7, 50, 0), "groups of 9 in the middle": groups6(9, 50, 0),
	} {
		var d Domain
		reader := d.Register()
		reader.Online()
		tab := New(&d)
		for i := 0; tab.Len() < 999; i++ {
			if err := tab.Insert(next(i), NextHop(i+1)); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				reader.Quiesce()
			}
		}
		one := held(tab)
		reader.Close()
		var routes []Route
		for p, nh := range tab.All() {
			routes = append(routes, Route{p, nh})
		}
		if err := tab.Replace(routes); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes one by one, %d as a bulk load", name, one, held(tab))
		if max(one, held(tab)) > 64<<10 {
			t.Errorf("%s: %d bytes, then %d: more than 64 KiB", name, one, held(tab))
		}
	}
}

// TestSmallAgain: a table that many routes were deleted from, one by one, takes what one with the routes that are
// left does: at most 64 KiB.
func TestSmallAgain(t *testing.T) {
	r := seed.Rand(t)
	hosts := func(bits uint64) func(uint64) netip.Prefix {
		return func(i uint64) netip.Prefix { return join(ipv6, Key6{Hi: 0xfd << 56, Lo: i << bits}, 128) }
	}
	spread := func(uint64) netip.Prefix { return join(ipv6, Key6{Hi: 0xfd<<56 | r.Uint64()>>8, Lo: r.Uint64()}, 128) }
	for _, c := range []struct {
		name   string
		routes int
		next   func(uint64) netip.Prefix
		keep   func(i int) bool
	}{
		{"every second", 1998, hosts(0), func(i int) bool { return i%2 == 0 }},
		{"every second, spread", 1998, spread, func(i int) bool { return i%2 == 0 }},
		{"the first of each block", 999 * loadedRoutes, hosts(0), func(i int) bool { return i%loadedRoutes == 0 }},
		{"the last", 100_000, hosts(8), func(i int) bool { return i >= 99_001 }},
	} {
		var d Domain
		tab := New(&d)
		routes := make([]Route, c.routes)
		for i := range routes {
			routes[i] = Route{c.next(uint64(i)), NextHop(i + 1)}
		}
		if err := tab.Replace(routes); err != nil {
			t.Fatal(err)
		}
		for i := range routes {
			if !c.keep(i) {
				if _, err := tab.Delete(routes[i].Prefix); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("%s: %d routes, %d bytes", c.name, tab.Len(), held(tab))
		if tab.Len() != 999 || held(tab) > 64<<10 {
			t.Errorf("%s: %d routes hold %d bytes: more than 64 KiB", c.name, tab.Len(), held(tab))
		}
		checkArena(t, tab)
	}
}

// TestStuckReader: while a reader passes no quiescent point, changes leave one callback behind, whose blocks are
// re-used when it is gone.
func TestStuckReader(t *testing.T) {
	r := seed.Rand(t)
	var d Domain
	reader := d.Register()
	reader.Online()
	tab, model := New(&d), golden{}
	for range 3000 {
		if err := tab.Apply(randomChanges(r, &model, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.Reclaim(); n > 1 {
		t.Fatalf("%d callbacks are pending", n)
	}
	reader.Close()
	if err := tab.Apply(randomChanges(r, &model, 1)); err != nil {
		t.Fatal(err)
	}
	if n := d.Reclaim(); n != 0 {
		t.Fatalf("%d callbacks are pending without a reader", n)
	}
	checkContents(t, tab, model)
	checkArena(t, tab)
}

// TestCountAfter: what changes would make of the number of routes is what they make of it.
func TestCountAfter(t *testing.T) {
	r := seed.Rand(t)
	var d Domain
	tab, model := New(&d), golden{}
	for range 300 {
		changes := randomChanges(r, &model, r.IntN(20))
		if n := len(changes); n > 1 { // the same prefix again, and one that isn't there
			again := Change{Prefix: changes[r.IntN(n)].Prefix, Delete: true}
			model.delete(again.Prefix)
			changes = append(changes, again, again)
		}
		want := (&edit{ribs: &tab.ribs}).countAfter(changes)
		if err := tab.Apply(changes); err != nil || tab.Len() != want {
			t.Fatalf("%d routes after %v, counted %d before: %v", tab.Len(), changes, want, err)
		}
	}
}

// TestNoAllocs: what a worker calls allocates nothing.
func TestNoAllocs(t *testing.T) {
	var d Domain
	reader := d.Register()
	defer reader.Close()
	tab := New(&d)
	if err := tab.Replace([]Route{{netip.MustParsePrefix("10.0.0.0/8"), 4}, {netip.MustParsePrefix("::/0"), 6}}); err != nil {
		t.Fatal(err)
	}
	addr, keys4, keys6, out := netip.MustParseAddr("10.0.0.1"), make([]uint32, 64), make([]Key6, 64), make([]NextHop, 64)
	if n := testing.AllocsPerRun(100, func() {
		reader.Online()
		v := tab.View()
		v.Lookup(addr)
		v.Lookup4Batch(keys4, out)
		v.Lookup6Batch(keys6, out)
		reader.Quiesce()
		reader.Offline()
	}); n != 0 {
		t.Errorf("%v allocations per burst", n)
	}
}

// TestCollapse: where few routes are left below a bitmap whose values all become the same, a list stands, as if
// compiled anew.
func TestCollapse(t *testing.T) {
	var d Domain
	tab := New(&d)
	odd := netip.MustParsePrefix("10.128.0.0/10")
	routes := []Route{{odd, 2}}
	for _, p := range []string{"10.0.0.0/8", "10.0.0.0/20", "10.16.0.0/13", "10.32.0.0/13", "10.64.0.0/13"} {
		routes = append(routes, Route{netip.MustParsePrefix(p), 1})
	}
	if err := tab.Replace(routes); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Delete(odd); err != nil {
		t.Fatal(err)
	}
	checkArena(t, tab)
}

// TestPools changes tables of a few routes that nest and collide within 25 bits, with two next hops, and compares
// them after each change with ones compiled anew: so lists, skips and leaves come and go, around the middle of
// IPv6 addresses too.
func TestPools(t *testing.T) {
	r := seed.Rand(t)
	t.Run("small", func(t *testing.T) { comparePools(t, r) })
	t.Run("large", func(t *testing.T) {
		lowThresholds(t)
		growRoutes, shrinkRoutes, tableRoutes = 8, 5, 6
		comparePools(t, r)
	})
}

func comparePools(t *testing.T, r *rand.Rand) {
	for range scaled(1000) {
		var d Domain
		tab, model := New(&d), golden{}
		pool := randomPool(r)
		for range 60 {
			p, nh := pool[r.IntN(len(pool))], NextHop(1+r.IntN(2))
			if r.IntN(5) < 2 {
				model.delete(p)
				if _, err := tab.Delete(p); err != nil {
					t.Fatal(err)
				}
			} else {
				model.insert(p, nh)
				if err := tab.Insert(p, nh); err != nil {
					t.Fatal(err)
				}
			}
			checkLookups(t, tab.View(), model.lookup, probes(r, p))
			checkArena(t, tab)
		}
	}
}

// randomPool makes some prefixes of one family that differ in up to three of 25 address bits, which begin where a
// node of a small table does, with lengths there or, now and then, shorter.
func randomPool(r *rand.Rand) (pool []netip.Prefix) {
	f, base, width, start := ipv4, Key6{Hi: 10 << 56}, 32, 8+bitmapBits*r.IntN(3)
	if r.IntN(3) > 0 {
		f, base, width, start = ipv6, Key6{Hi: 0x20 << 56}, 128, 4+bitmapBits*r.IntN(12)
	}
	for range 5 + r.IntN(10) {
		k, length := base, min(width, start+r.IntN(25))
		if r.IntN(12) == 0 {
			length = r.IntN(start + 1)
		}
		for range r.IntN(4) {
			if b := start + r.IntN(25); b < 64 {
				k.Hi ^= 1 << (63 - b)
			} else {
				k.Lo ^= 1 << uint(127-b) // nothing behind the address
			}
		}
		pool = append(pool, join(f, mask(k, uint32(length)), length))
	}
	return pool
}
