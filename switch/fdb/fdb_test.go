package fdb

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// small is for tests that don't come near its bounds.
var small = Config{MaxLearned: 10, MaxLearnedPerPort: 10, Ageing: 300 * time.Second}

// station returns the i-th of many unicast MACs.
func station(i int) wire.MAC {
	return wire.MAC{0x02, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

func TestInsertConflictNamesBoth(t *testing.T) {
	table := New(small)
	if err := table.Insert(7, station(1), port.Dest{Port: 3}); err != nil {
		t.Fatal(err)
	}
	err := table.Insert(7, station(1), port.Dest{Port: 4, Peer: 9})
	var conflict *ConflictError
	want := ConflictError{7, station(1), port.Dest{Port: 3}, port.Dest{Port: 4, Peer: 9}}
	if !errors.Is(err, ErrConflict) || !errors.As(err, &conflict) || *conflict != want {
		t.Fatalf("error %#v, want ErrConflict with both", err)
	}
	for _, part := range []string{station(1).String(), "VNI 7", "port 3 ", "port 4 (peer 9)"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q doesn't say %q", err, part)
		}
	}
}

// Two pods send from random MACs, and from those of others: each fills its own share and no more, no static entry
// moves, a third pod still has the rest of the table, a pod can be attached to one that is full, and space comes
// back with the port.
func TestFlood(t *testing.T) {
	const share, bound, pods, attacker1, attacker2 = 400, 1000, 100, 201, 202
	table := New(Config{MaxLearned: bound, MaxLearnedPerPort: share})
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
			for range 3 * share {
				mac := station(1<<24 | int(from)<<16 | rng.IntN(1<<16))
				if o, _ := table.Learn(0, 1, mac, port.Dest{Port: from}); o == Added {
					added.Add(1)
				}
				if o, was := table.Learn(0, 1, station(rng.IntN(pods)), port.Dest{Port: from}); o != RefusedStatic || was.Port > pods {
					t.Errorf("learning a pod's MAC: %v, from %v", o, was)
				}
			}
		})
	}
	attackers.Wait()
	if n := len(table.Entries()); added.Load() != 2*share || n != pods+2*share {
		t.Errorf("%d learned, %d entries, want %d and %d", added.Load(), n, 2*share, pods+2*share)
	}
	for i := range pods {
		if d, ok := table.Lookup(1, station(i)); !ok || d.Port != port.ID(1+i) {
			t.Errorf("pod %d is at %v, %t", i, d, ok)
		}
	}
	for i := range bound - 2*share + 1 {
		want := Added
		if i == bound-2*share {
			want = RefusedFull
		}
		if o, _ := table.Learn(0, 2, station(i), port.Dest{Port: 5}); o != want {
			t.Errorf("address %d behind an honest port: %v, want %v", i, o, want)
		}
	}
	if err := table.Insert(2, station(bound), port.Dest{Port: 6}); err != nil {
		t.Errorf("attach while the table is full: %v", err)
	}
	if n := table.DeletePort(attacker1) + table.DeletePort(attacker2); n != 2*share {
		t.Errorf("the attackers' ports had %d entries, want %d", n, 2*share)
	}
	if o, _ := table.Learn(0, 1, station(1<<24), port.Dest{Port: attacker1}); o != Added {
		t.Errorf("learning after the flood: %v", o)
	}
}

// A station whose port may not learn more can still leave it, and then another one finds room there.
func TestMoveAwayFromFullPort(t *testing.T) {
	table := New(Config{MaxLearned: 10, MaxLearnedPerPort: 1})
	table.SetPortLimit(2, 2)
	crowded, roomy := port.Dest{Port: 1}, port.Dest{Port: 2}
	for _, c := range []struct {
		station int
		at      port.Dest
		want    Outcome
	}{
		{1, crowded, Added}, {2, crowded, RefusedPortFull}, {3, roomy, Added}, {3, crowded, RefusedPortFull},
		{1, roomy, Moved}, {2, crowded, Added}, {2, roomy, RefusedPortFull},
		{1, port.Dest{Port: 2, Peer: 7}, Moved}, {2, roomy, Moved}, // a peer has a share of its own
	} {
		if o, _ := table.Learn(0, 1, station(c.station), c.at); o != c.want {
			t.Errorf("station %d at %v: %v, want %v", c.station, c.at, o, c.want)
		}
	}
}

// The fifth move within 180 s is the last for 180 s (RFC 7432 section 15.1): a burst of moves, to the nanosecond.
func TestFlapping(t *testing.T) {
	const start, beat = 1_800_000_000 * second, 45 * second // the fifth comes 4 beats after the first
	at := func(i int) port.Dest { return port.Dest{Port: port.ID(1 + i%2)} }
	table := New(small)
	for i, want := range []Outcome{Added, Moved, Moved, Moved, Moved, Moved, Moved, Moved} {
		if o, _ := table.Learn(start+int64(i)*beat, 1, station(1), at(i)); o != want {
			t.Errorf("a move every 45 s, the %d.: %v, want %v", i, o, want)
		}
	}
	table = New(small)
	for i, want := range []Outcome{Added, Moved, Moved, Moved, Moved, Froze, RefusedFlapping} {
		o, was := table.Learn(start+int64(i)*(beat-1), 1, station(1), at(i))
		if o != want || i > 0 && was != at(i-1) {
			t.Errorf("a move every 45 s less 1 ns, the %d.: %v from %v, want %v", i, o, was, want)
		}
	}
	froze := start + 5*(beat-1)
	thaws := froze + 180*second
	if e := table.Entries()[0]; e.Dest != at(5) || e.Moves != 5 || e.FrozenUntil != thaws {
		t.Errorf("entry %+v, want frozen at %v until %d", e, at(5), thaws)
	}
	if s := table.Seen(thaws-1, 1, station(1), at(0)); s != FrozenElsewhere {
		t.Errorf("at the end of the freeze it is %v", s)
	}
	if s := table.Seen(thaws, 1, station(1), at(0)); s != NeedsLearn {
		t.Errorf("after the freeze it is %v", s)
	}
	if o, _ := table.Learn(thaws, 1, station(1), at(0)); o != Moved {
		t.Errorf("moving after the freeze: %v", o)
	}
}

// A station that talks stays, whatever its talk costs in writes, and one that is silent goes, 300 s after its last
// frame (IEEE 802.1Q section 8.8.3) and not before. Ages are kept to the second.
func TestAgeing(t *testing.T) {
	table, now, d := New(small), 1_800_000_000*second, port.Dest{Port: 1}
	table.Learn(now, 1, station(1), d)
	table.Learn(now, 1, station(2), d)
	if err := table.Insert(1, station(3), d); err != nil {
		t.Fatal(err)
	}
	for range 299 * 4 {
		now += second / 4
		table.Seen(now, 1, station(1), d)
		table.Seen(now, 1, station(2), port.Dest{Port: 2}) // where it isn't
		if n := table.Expire(now); n != 0 {
			t.Fatalf("%d entries aged after less than 300 s", n)
		}
	}
	now += second
	if n := table.Expire(now); n != 1 {
		t.Errorf("%d entries aged after 300 s, want 1", n)
	}
	if _, ok := table.Lookup(1, station(2)); ok {
		t.Error("the silent station is still there")
	}
	if n := table.Expire(now + 1e6*second); n != 1 || len(table.Entries()) != 1 {
		t.Errorf("%d more aged, left %+v, want the static entry", n, table.Entries())
	}
}

// A station that moves to and fro is always in exactly one of its places for readers, and a static one in its
// only place, while other writers fill and empty the table. The race detector watches.
func TestReadersAmongWriters(t *testing.T) {
	table := New(Config{MaxLearned: 8, MaxLearnedPerPort: 8}) // few buckets: all of these share chains
	pod, roamer := station(1), station(2)
	if err := table.Insert(1, pod, port.Dest{Port: 1}); err != nil {
		t.Fatal(err)
	}
	table.Learn(0, 1, roamer, port.Dest{Port: 2})
	var clock atomic.Int64
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
			if s := table.Seen(clock.Load(), 1, pod, port.Dest{Port: 2}); s != StaticElsewhere {
				t.Errorf("the static station's MAC elsewhere is %v", s)
			}
			if s := table.Seen(clock.Load(), 1, roamer, port.Dest{Port: 2}); s == StaticElsewhere {
				t.Errorf("the roaming station is %v", s)
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
				now := clock.Add(20 * second) // the roamer is frozen at times
				table.Learn(now, 1, roamer, port.Dest{Port: port.ID(2 + rng.IntN(2))})
				mac, from := station(10+rng.IntN(20)), port.ID(4+rng.IntN(2))
				table.Learn(now, 1, mac, port.Dest{Port: from})
				switch rng.IntN(20) {
				case 0, 1:
					table.Delete(1, mac)
				case 2:
					table.DeletePort(from)
				case 3:
					table.DeletePeer(from, 0)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

// What a worker sees at each tick never ages, while others come and go around it in the same chains. The race
// detector watches.
func TestSeenAmongExpiries(t *testing.T) {
	table := New(Config{MaxLearned: 8, MaxLearnedPerPort: 8, Ageing: 5 * time.Second})
	talker, d := station(1), port.Dest{Port: 1}
	var clock atomic.Int64
	var heard [2]atomic.Int64
	table.Learn(0, 1, talker, d)
	stop := make(chan struct{})
	var others sync.WaitGroup
	for w := range 2 {
		others.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				runtime.Gosched()
				now := clock.Load()
				if s := table.Seen(now, 1, talker, d); s != Known {
					t.Errorf("the talking station is %v at %d", s, now)
				}
				if w == 1 {
					table.Learn(now, 1, station(2+i%20), port.Dest{Port: port.ID(2 + i%3)})
				}
				heard[w].Store(now)
			}
		})
	}
	removed := 0
	for range scaled(2_000) {
		for now := clock.Add(second); heard[0].Load() != now || heard[1].Load() != now; {
			runtime.Gosched()
		}
		removed += table.Expire(clock.Load())
	}
	close(stop)
	others.Wait()
	if removed == 0 {
		t.Error("nothing ever aged")
	}
}

// Pods are attached whose MACs were learned and are just ageing: none may go.
func TestInsertAmongExpiries(t *testing.T) {
	const n = 256
	for range scaled(2_000) {
		table := New(Config{MaxLearned: n, MaxLearnedPerPort: n, Ageing: time.Second})
		for i := range n {
			table.Learn(0, 1, station(i), port.Dest{Port: 1})
		}
		var attach sync.WaitGroup
		attach.Go(func() {
			for i := range n {
				if err := table.Insert(1, station(i), port.Dest{Port: 2}); err != nil {
					t.Error(err)
				}
			}
		})
		table.Expire(second)
		attach.Wait()
		if left := len(table.Entries()); left != n {
			t.Fatalf("%d of %d pods are left", left, n)
		}
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	table, d, now := New(small), port.Dest{Port: 1}, int64(0)
	table.Learn(now, 1, station(1), d)
	if err := table.Insert(1, station(2), d); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		table.Learn(now, 1, station(3), port.Dest{Port: port.ID(i)})
	}
	if n := testing.AllocsPerRun(100, func() {
		now += 2 * second // each call is a touch
		for i := 1; i <= 4; i++ {
			table.Lookup(1, station(i))
			table.Seen(now, 1, station(i), d)
		}
		table.Learn(now, 1, station(1), d)
		table.Expire(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func ExampleTable() {
	table := New(Config{MaxLearned: 1 << 13, MaxLearnedPerPort: 1 << 10, Ageing: 300 * time.Second})
	pod, _ := wire.ParseMAC("02:00:00:00:00:01")
	if err := table.Insert(1, pod, port.Dest{Port: 1}); err != nil {
		fmt.Println(err)
	}
	now := time.Now().UnixNano()
	stranger, elsewhere := wire.MAC{2, 5: 2}, port.Dest{Port: 2}
	fmt.Println(table.Seen(now, 1, pod, elsewhere))
	if table.Seen(now, 1, stranger, elsewhere) == NeedsLearn {
		outcome, _ := table.Learn(now, 1, stranger, elsewhere)
		fmt.Println(outcome)
	}
	dest, known := table.Lookup(1, pod)
	fmt.Println(dest.Port, known)
	// Output:
	// static_elsewhere
	// added
	// 1 true
}

// benchmarkTable returns a table of n learned stations, and their MACs in another order.
func benchmarkTable(n int) (*Table, []wire.MAC) {
	table := New(Config{MaxLearned: n, MaxLearnedPerPort: n, Ageing: 300 * time.Second})
	macs := make([]wire.MAC, n)
	for i := range macs {
		macs[i] = station(i)
		table.Learn(0, 1, macs[i], port.Dest{Port: 1})
	}
	rand.New(rand.NewPCG(1, 0)).Shuffle(n, func(i, j int) { macs[i], macs[j] = macs[j], macs[i] })
	return table, macs
}

// perSize runs f with a table of few stations, which is in the cache, and with one that is full.
func perSize(b *testing.B, f func(b *testing.B, table *Table, macs []wire.MAC)) {
	for _, n := range []int{64, 8192} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, macs := benchmarkTable(n)
			f(b, table, macs)
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	perSize(b, func(b *testing.B, table *Table, macs []wire.MAC) {
		i := 0
		for b.Loop() {
			if _, ok := table.Lookup(1, macs[i%len(macs)]); !ok {
				b.Fatal("lost a station")
			}
			i++
		}
	})
}

// What the data path asks of each source, each station a thousand times a second.
func BenchmarkSeen(b *testing.B) {
	perSize(b, func(b *testing.B, table *Table, macs []wire.MAC) {
		i, d, now := 0, port.Dest{Port: 1}, int64(0)
		for b.Loop() {
			now += second / int64(1000*len(macs))
			if table.Seen(now, 1, macs[i%len(macs)], d) != Known {
				b.Fatal("lost a station")
			}
			i++
		}
	})
}

// The slow worker's share of a second: nothing is due.
func BenchmarkExpire(b *testing.B) {
	perSize(b, func(b *testing.B, table *Table, _ []wire.MAC) {
		for b.Loop() {
			if table.Expire(0) != 0 {
				b.Fatal("lost a station")
			}
		}
	})
}
