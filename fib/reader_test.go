package fib

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// TestViewHolds: a View keeps its answers while its reader passes no quiescent point, whatever batches change,
// re-use, grow or rebuild meanwhile. Freed blocks are poisoned, so one freed too early is seen.
func TestViewHolds(t *testing.T) { smallAndLarge(t, viewHolds) }

func viewHolds(t *testing.T, r *rand.Rand) {
	for range max(scaled(40), 3) {
		var d Domain
		reader := d.Register()
		reader.Online()
		tab, model := New(&d), golden{}
		for range 10 {
			reader.Quiesce()
			v, then := tab.View(), newByLength(model)
			for range 1 + r.IntN(40) {
				if err := tab.Apply(randomChanges(r, &model, 2+r.IntN(4))); err != nil {
					t.Fatal(err)
				}
			}
			for p := range then.routes {
				checkLookups(t, v, then.lookup, probes(r, p))
			}
			checkLookups(t, tab.View(), model.lookup, []netip.Addr{sparseAddr4(r), sparseAddr6(r)})
		}
		reader.Close()
		if n := d.Reclaim(); n != 0 {
			t.Fatalf("%d callbacks pending without readers", n)
		}
		checkArena(t, tab)
	}
}

// TestSingleChangesShow: while single changes and batches go on, an existing View answers each lookup as some
// state since it was taken does. Freed blocks are poisoned, so one freed too early is seen.
func TestSingleChangesShow(t *testing.T) { smallAndLarge(t, singleChangesShow) }

func singleChangesShow(t *testing.T, r *rand.Rand) {
	for range max(scaled(100), 5) {
		var d Domain
		reader := d.Register()
		reader.Online()
		tab, model := New(&d), golden{}
		v, answers := tab.View(), map[netip.Addr][]NextHop{}
		for i := range 300 {
			if i%30 == 0 {
				reader.Quiesce()
				v, answers = tab.View(), map[netip.Addr][]NextHop{}
				for range 50 {
					for _, a := range probes(r, randomPrefix(r)) {
						answers[a] = []NextHop{model.lookup(a)}
					}
				}
			}
			changes := randomChanges(r, &model, 1+r.IntN(8)/7) // mostly one
			if err := tab.Apply(changes); err != nil {
				t.Fatal(err)
			}
			for a, known := range answers {
				if now := model.lookup(a); !slices.Contains(known, now) {
					answers[a] = append(known, now)
				}
				if got := v.Lookup(a); !slices.Contains(answers[a], got) {
					t.Fatalf("after %v Lookup(%v) = %d, was one of %d since the View was taken", changes, a, got, answers[a])
				}
			}
		}
		reader.Close()
		d.Reclaim()
		checkArena(t, tab)
	}
}

// randomChanges makes n changes of a model, half of them deletions as far as there is something to delete.
func randomChanges(r *rand.Rand, model *golden, n int) (changes []Change) {
	for range n {
		if len(*model) > 0 && r.IntN(2) == 0 {
			p := (*model)[r.IntN(len(*model))].Prefix
			model.delete(p)
			changes = append(changes, Change{Prefix: p, Delete: true})
			continue
		}
		p, nh := randomPrefix(r), NextHop(1+r.IntN(1000))
		model.insert(p, nh)
		changes = append(changes, Change{Prefix: p, NextHop: nh})
	}
	return changes
}

// TestApplyIsAtomic: a writer moves an IPv4 and an IPv6 route together, one batch each time, while other
// writers churn and now and then the whole table is loaded anew. No burst of a concurrent reader sees half a
// batch, or a wrong answer for the routes that never change.
func TestApplyIsAtomic(t *testing.T) { smallAndLarge(t, applyIsAtomic) }

func applyIsAtomic(t *testing.T, r *rand.Rand) {
	pair4, pair6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/48")
	fixed := map[string]NextHop{"0.0.0.0/0": 1, "198.51.100.0/24": 2, "198.51.100.77/32": 3, "::/0": 4, "3fff::/20": 5, "3fff::7/128": 6}
	bulk := []Route{{pair4, 1000}, {pair6, 1000}}
	for p, nh := range fixed {
		bulk = append(bulk, Route{netip.MustParsePrefix(p), nh})
	}
	want := map[netip.Addr]NextHop{}
	for p, a := range map[string]string{"0.0.0.0/0": "240.0.0.1", "198.51.100.0/24": "198.51.100.76", "198.51.100.77/32": "198.51.100.77",
		"::/0": "ff02::1", "3fff::/20": "3fff::6", "3fff::7/128": "3fff::7"} {
		want[netip.MustParseAddr(a)] = fixed[p]
	}

	var d Domain
	tab := New(&d)
	if err := tab.Replace(bulk); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var readers, writers sync.WaitGroup
	for range 2 {
		reader := d.Register()
		readers.Go(func() {
			defer reader.Close()
			for !stop.Load() && !t.Failed() {
				reader.Online()
				for range 20 {
					burst(t, tab.View(), pair4.Addr().Next(), pair6.Addr().Next(), want)
					reader.Quiesce()
				}
				reader.Offline()
				runtime.Gosched()
			}
		})
	}
	rounds := scaled(30_000)
	writers.Go(func() {
		for i := range rounds {
			nh := NextHop(1000 + i)
			changes := []Change{{Prefix: pair4, NextHop: nh}, {Prefix: pair6, NextHop: nh}}
			if i%3 == 0 { // both away: then the default routes answer, see burst
				changes = []Change{{Prefix: pair6, Delete: true}, {Prefix: pair4, Delete: true}}
			}
			var err error
			if i%500 == 0 {
				err = tab.Replace(bulk)
			} else {
				err = tab.Apply(changes)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	churn := make([]netip.Prefix, 500) // 16.0.0.0/6 and 2800::/6: nothing that is looked up
	for i := range churn {
		if i%2 == 0 {
			churn[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{16 + byte(r.IntN(4)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), 8+r.IntN(25)).Masked()
		} else {
			churn[i] = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x28, byte(r.Uint32()), 9: byte(r.Uint32()), 15: byte(r.Uint32())}), 8+r.IntN(121)).Masked()
		}
	}
	steps := r.Perm(rounds)
	writers.Go(func() {
		for _, i := range steps {
			var err error
			if p := churn[i%len(churn)]; i/len(churn)%2 == 0 {
				err = tab.Insert(p, NextHop(7+i))
			} else {
				_, err = tab.Delete(p)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	writers.Wait()
	for got := range tab.All() { // a copy, while others read
		if !got.IsValid() {
			t.Errorf("All yields %v", got)
		}
	}
	stop.Store(true)
	readers.Wait()
	d.Reclaim()
	checkArena(t, tab)
}

// burst looks up what one version of the table must answer consistently. The pair's next hops are equal, or
// the two default routes'.
func burst(t *testing.T, v View, pair4, pair6 netip.Addr, want map[netip.Addr]NextHop) {
	got4, got6 := v.Lookup(pair4), v.Lookup(pair6)
	if together := got4 == got6 && got4 >= 1000; !together && (got4 != 1 || got6 != 4) {
		t.Errorf("half a batch: IPv4 via %d, IPv6 via %d", got4, got6)
	}
	for a, nh := range maps.All(want) {
		if got := v.Lookup(a); got != nh {
			t.Errorf("Lookup(%v) = %d, want %d, which never changed", a, got, nh)
		}
	}
	if again := v.Lookup(pair4); again != got4 {
		t.Errorf("one View answered %d, then %d", got4, again)
	}
}

// TestAllDuringChanges: the loop body may change the table; the iteration shows the version it began with.
func TestAllDuringChanges(t *testing.T) {
	var d Domain
	tab := New(&d)
	var routes []Route
	for i := range 200 {
		routes = append(routes, Route{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16), NextHop(i + 1)})
	}
	if err := tab.Replace(routes); err != nil {
		t.Fatal(err)
	}
	var seen []Route
	for p, nh := range tab.All() {
		seen = append(seen, Route{p, nh})
		for _, q := range []int{len(seen) % 200, 199 - len(seen)%200} {
			if _, err := tab.Delete(routes[q].Prefix); err != nil {
				t.Fatal(err)
			}
		}
		if err := tab.Insert(netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(len(seen))}), 16), 999); err != nil {
			t.Fatal(err)
		}
	}
	var fresh Domain
	same := New(&fresh)
	if err := same.Replace(seen); err != nil {
		t.Fatal(err)
	}
	checkContents(t, same, routes)
	for range tab.All() {
		break // an iteration may be left early
	}
	if n := d.Reclaim(); n != 0 || len(d.readers) != 0 {
		t.Fatalf("%d callbacks, %d readers are left", n, len(d.readers))
	}
}
