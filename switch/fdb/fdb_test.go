package fdb

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

func scaled(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

// station returns the i-th of many unicast MACs.
func station(i int) wire.MAC {
	return wire.MAC{0x02, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

// model is the slow model of a Table: a slice and a loop, and nothing is remembered that can be counted.
type model struct {
	max     int
	entries []Entry
}

func (m *model) find(vni uint32, mac wire.MAC) *Entry {
	for i := range m.entries {
		if e := &m.entries[i]; e.VNI == vni && e.MAC == mac {
			return e
		}
	}
	return nil
}

func (m *model) remove(drop func(Entry) bool) int {
	before := len(m.entries)
	m.entries = slices.DeleteFunc(m.entries, drop)
	return before - len(m.entries)
}

func (m *model) learn(vni uint32, mac wire.MAC, d port.Dest) Outcome {
	learned := 0
	for _, e := range m.entries {
		if !e.Static {
			learned++
		}
	}
	e := m.find(vni, mac)
	switch {
	case mac[0]%2 == 1 || mac == wire.MAC{}:
		return RefusedGroup
	case e != nil && e.Dest == d:
		return Unchanged
	case e != nil && e.Static:
		return RefusedStatic
	case e != nil:
		e.Dest = d
		return Moved
	case learned == m.max:
		return RefusedFull
	}
	m.entries = append(m.entries, Entry{VNI: vni, MAC: mac, Dest: d})
	return Added
}

func (m *model) insert(vni uint32, mac wire.MAC, d port.Dest) (ok bool) {
	e := m.find(vni, mac)
	switch {
	case mac[0]%2 == 1 || mac == wire.MAC{}:
		return false
	case e == nil:
		m.entries = append(m.entries, Entry{vni, mac, d, true})
	case e.Static && e.Dest != d:
		return false
	default:
		*e = Entry{vni, mac, d, true}
	}
	return true
}

func (m *model) sorted() []Entry {
	list := slices.Clone(m.entries)
	slices.SortFunc(list, func(a, b Entry) int {
		return strings.Compare(fmt.Sprintf("%08x %v", a.VNI, a.MAC), fmt.Sprintf("%08x %v", b.VNI, b.MAC))
	})
	return list
}

// The table of 30 learned entries is driven with 3 × 42 keys, so that it is full now and then, and every
// transition between absent, learned and static occurs. A miscounted learned entry shows as RefusedFull too
// early or too late.
func TestAgainstModel(t *testing.T) {
	rng := seed.Rand(t)
	table, slow := New(30), &model{max: 30}
	seen := map[Outcome]int{}
	for i := range scaled(100_000) {
		vni, mac := uint32(rng.IntN(3)), station(rng.IntN(40))
		switch rng.IntN(20) {
		case 0:
			mac = wire.MAC{0x33, 0x33, 0, 0, 0, 1}
		case 1:
			mac = wire.MAC{}
		}
		d := port.Dest{Port: port.ID(1 + rng.IntN(4)), Peer: uint32(rng.IntN(2))}
		switch rng.IntN(100) {
		case 0:
			want := slow.remove(func(e Entry) bool { return e.Dest.Port == d.Port })
			if got := table.DeletePort(d.Port); got != want {
				t.Fatalf("step %d: DeletePort(%d) = %d, want %d", i, d.Port, got, want)
			}
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
			want := slow.remove(func(e Entry) bool { return e.VNI == vni && e.MAC == mac }) == 1
			if got := table.Delete(vni, mac); got != want {
				t.Fatalf("step %d: Delete(%d, %v) = %t, want %t", i, vni, mac, got, want)
			}
		case 11, 12, 13, 14:
			want := slow.insert(vni, mac, d)
			if err := table.Insert(vni, mac, d); (err == nil) != want {
				t.Fatalf("step %d: Insert(%d, %v, %v) = %v, want success %t", i, vni, mac, d, err, want)
			}
		default:
			want := slow.learn(vni, mac, d)
			seen[want]++
			if got := table.Learn(vni, mac, d); got != want {
				t.Fatalf("step %d: Learn(%d, %v, %v) = %v, want %v", i, vni, mac, d, got, want)
			}
		}
		vni, mac = uint32(rng.IntN(3)), station(rng.IntN(40))
		e := slow.find(vni, mac)
		if got, ok := table.Lookup(vni, mac); ok != (e != nil) || ok && got != e.Dest {
			t.Fatalf("step %d: Lookup(%d, %v) = %v, %t, want %+v", i, vni, mac, got, ok, e)
		}
		if i%100 == 0 {
			if got, want := table.Entries(), slow.sorted(); !slices.Equal(got, want) {
				t.Fatalf("step %d: Entries() = %+v, want %+v", i, got, want)
			}
		}
	}
	for o := Added; o <= RefusedGroup; o++ {
		if seen[o] == 0 {
			t.Errorf("the run never came to %v", o)
		}
	}
}

func TestInsertConflictNamesBoth(t *testing.T) {
	table := New(10)
	if err := table.Insert(7, station(1), port.Dest{Port: 3}); err != nil {
		t.Fatal(err)
	}
	err := table.Insert(7, station(1), port.Dest{Port: 4, Peer: 9})
	if !errors.Is(err, ErrConflict) {
		t.Fatalf("error %v, want ErrConflict", err)
	}
	for _, part := range []string{station(1).String(), "VNI 7", "port 3 ", "port 4 (peer 9)"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q doesn't say %q", err, part)
		}
	}
}

// Two pods send from random MACs, and from those of others: the table takes what it is to take and no more, no
// static entry moves, a pod can still be attached, and space comes back with the port.
func TestFlood(t *testing.T) {
	const bound, pods, attacker1, attacker2 = 1000, 100, 201, 202
	table := New(bound)
	for i := range pods {
		if err := table.Insert(1, station(i), port.Dest{Port: port.ID(1 + i)}); err != nil {
			t.Fatal(err)
		}
	}
	seed := seed.Rand(t).Uint64()
	var attackers sync.WaitGroup
	var added atomic.Int64
	for _, from := range []port.ID{attacker1, attacker2} {
		attackers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(from)))
			for range 3 * bound {
				if table.Learn(1, station(1<<24|rng.IntN(1<<24)), port.Dest{Port: from}) == Added {
					added.Add(1)
				}
				if o := table.Learn(1, station(rng.IntN(pods)), port.Dest{Port: from}); o != RefusedStatic {
					t.Errorf("learning a pod's MAC: %v", o)
				}
			}
		})
	}
	attackers.Wait()
	if n := len(table.Entries()); added.Load() != bound || n != pods+bound {
		t.Errorf("%d learned, %d entries, want %d and %d", added.Load(), n, bound, pods+bound)
	}
	for i := range pods {
		if d, ok := table.Lookup(1, station(i)); !ok || d.Port != port.ID(1+i) {
			t.Errorf("pod %d is at %v, %t", i, d, ok)
		}
	}
	if o := table.Learn(2, station(1), port.Dest{Port: 5}); o != RefusedFull {
		t.Errorf("learning beyond the bound: %v", o)
	}
	if err := table.Insert(2, station(2), port.Dest{Port: 6}); err != nil {
		t.Errorf("attach while the table is full: %v", err)
	}
	if n := table.DeletePort(attacker1) + table.DeletePort(attacker2); n != bound {
		t.Errorf("the attackers' ports had %d entries, want %d", n, bound)
	}
	if o := table.Learn(2, station(1), port.Dest{Port: 5}); o != Added {
		t.Errorf("learning after the flood: %v", o)
	}
}

// A station that moves to and fro is always in exactly one of its places for readers, and a static one in its
// only place, while other writers fill and empty the table. The race detector watches.
func TestReadersAmongWriters(t *testing.T) {
	table := New(8) // few buckets: all of these share chains
	pod, roamer := station(1), station(2)
	if err := table.Insert(1, pod, port.Dest{Port: 1}); err != nil {
		t.Fatal(err)
	}
	table.Learn(1, roamer, port.Dest{Port: 2})
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if d, ok := table.Lookup(1, pod); !ok || d.Port != 1 {
				t.Errorf("the static station is at %v, %t", d, ok)
			}
			if d, ok := table.Lookup(1, roamer); !ok || d.Port != 2 && d.Port != 3 {
				t.Errorf("the roaming station is at %v, %t", d, ok)
			}
			entries := table.Entries()
			unique := slices.CompactFunc(slices.Clone(entries), func(a, b Entry) bool { return a.MAC == b.MAC })
			if len(unique) != len(entries) || entries[0].MAC != pod || entries[1].MAC != roamer {
				t.Errorf("entries are repeated, or one is missing: %+v", entries)
			}
		}
	})
	seed := seed.Rand(t).Uint64()
	for w := range 2 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for range scaled(20_000) {
				table.Learn(1, roamer, port.Dest{Port: port.ID(2 + rng.IntN(2))})
				mac, from := station(10+rng.IntN(20)), port.ID(4+rng.IntN(2))
				table.Learn(1, mac, port.Dest{Port: from})
				switch rng.IntN(10) {
				case 0:
					table.Delete(1, mac)
				case 1:
					table.DeletePort(from)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

func TestHotPathAllocatesNothing(t *testing.T) {
	table := New(10)
	d := port.Dest{Port: 1}
	table.Learn(1, station(1), d)
	if n := testing.AllocsPerRun(100, func() {
		table.Lookup(1, station(1))
		table.Lookup(1, station(2))
		table.Learn(1, station(1), d)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func ExampleTable() {
	table := New(1 << 16)
	pod, _ := wire.ParseMAC("02:00:00:00:00:01")
	if err := table.Insert(1, pod, port.Dest{Port: 1}); err != nil {
		fmt.Println(err)
	}
	fmt.Println(table.Learn(1, pod, port.Dest{Port: 2}))
	dest, known := table.Lookup(1, pod)
	fmt.Println(dest.Port, known)
	// Output:
	// refused_static
	// 1 true
}

func BenchmarkLookup(b *testing.B) {
	const n = 1 << 16
	table := New(n)
	macs := make([]wire.MAC, n)
	for i := range macs {
		macs[i] = station(i)
		table.Learn(1, macs[i], port.Dest{Port: port.ID(i)})
	}
	rand.New(rand.NewPCG(1, 0)).Shuffle(n, func(i, j int) { macs[i], macs[j] = macs[j], macs[i] })
	i := 0
	for b.Loop() {
		if _, ok := table.Lookup(1, macs[i%n]); !ok {
			b.Fatal("lost a station")
		}
		i++
	}
}
