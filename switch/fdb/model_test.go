package fdb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tapyard/bench/seed"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

const second = int64(time.Second)

// model is the slow model of a Table: a slice and loops, and nothing is remembered that can be counted.
type model struct {
	cfg     Config
	limits  map[port.ID]int
	entries []modelEntry
}

type modelEntry struct {
	Entry
	moved []int64 // when, all of them
}

func (m *model) find(vni uint32, mac wire.MAC) *modelEntry {
	for i := range m.entries {
		if e := &m.entries[i]; e.VNI == vni && e.MAC == mac {
			return e
		}
	}
	return nil
}

func (m *model) remove(drop func(modelEntry) bool) int {
	before := len(m.entries)
	m.entries = slices.DeleteFunc(m.entries, drop)
	return before - len(m.entries)
}

func (m *model) learned(of func(port.Dest) bool) (n int) {
	for _, e := range m.entries {
		if !e.Static && of(e.Dest) {
			n++
		}
	}
	return n
}

func (m *model) full(d port.Dest) bool {
	limit, own := m.limits[d.Port]
	if !own {
		limit = m.cfg.MaxLearnedPerPort
	}
	return m.learned(func(other port.Dest) bool { return other == d }) >= limit
}

// frozen: the clock may have been set back to before the freeze.
func (e *modelEntry) frozen(now int64) bool {
	return e.FrozenUntil != 0 && now < e.FrozenUntil && now >= e.FrozenUntil-180*second
}

// touch: ages are kept to the second.
func (e *modelEntry) touch(now int64) {
	if !e.Static && (now >= e.LastSeen+second || now <= e.LastSeen-second) {
		e.LastSeen = now
	}
}

func (m *model) seen(now int64, vni uint32, mac wire.MAC, d port.Dest) Sighting {
	e := m.find(vni, mac)
	switch {
	case e == nil:
		return NeedsLearn
	case e.Dest == d:
		e.touch(now)
		return Known
	case e.Static:
		return StaticElsewhere
	case e.frozen(now):
		return FrozenElsewhere
	}
	return NeedsLearn
}

func (m *model) learn(now int64, vni uint32, mac wire.MAC, d port.Dest) (o Outcome, was port.Dest) {
	e := m.find(vni, mac)
	if e != nil {
		was = e.Dest
	}
	switch {
	case mac[0]%2 == 1 || mac == wire.MAC{}:
		return RefusedGroup, was
	case e != nil && e.Dest == d:
		e.touch(now)
		return Unchanged, was
	case e != nil && e.Static:
		return RefusedStatic, was
	case e != nil && e.frozen(now):
		return RefusedFlapping, was
	case m.full(d):
		return RefusedPortFull, was
	case e == nil && m.learned(func(port.Dest) bool { return true }) >= m.cfg.MaxLearned:
		return RefusedFull, was
	case e == nil:
		m.entries = append(m.entries, modelEntry{Entry: Entry{VNI: vni, MAC: mac, Dest: d, LastSeen: now}})
		return Added, was
	}
	return e.move(now, d), was
}

// move freezes with the fifth move in less than 180 s.
func (e *modelEntry) move(now int64, d port.Dest) Outcome {
	e.Dest, e.LastSeen, e.FrozenUntil = d, now, 0
	e.Moves++
	e.moved = append(e.moved, now)
	if first := len(e.moved) - 5; first >= 0 && now >= e.moved[first] && now < e.moved[first]+180*second {
		e.FrozenUntil = now + 180*second
		return Froze
	}
	return Moved
}

func (m *model) insert(vni uint32, mac wire.MAC, d port.Dest) (ok bool) {
	e := m.find(vni, mac)
	static := modelEntry{Entry: Entry{VNI: vni, MAC: mac, Dest: d, Static: true}}
	switch {
	case mac[0]%2 == 1 || mac == wire.MAC{}:
		return false
	case e == nil:
		m.entries = append(m.entries, static)
	case e.Static && e.Dest != d:
		return false
	default:
		*e = static
	}
	return true
}

// expire: what was seen in the future, before the clock was set back, counts as seen now.
func (m *model) expire(now int64) int {
	for i := range m.entries {
		if e := &m.entries[i]; e.LastSeen >= now+second {
			e.touch(now)
		}
	}
	return m.remove(func(e modelEntry) bool { return !e.Static && now-e.LastSeen >= int64(m.cfg.Ageing) })
}

func (m *model) sorted() []Entry {
	var list []Entry
	for _, e := range m.entries {
		list = append(list, e.Entry)
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return strings.Compare(fmt.Sprintf("%08x %v", a.VNI, a.MAC), fmt.Sprintf("%08x %v", b.VNI, b.MAC))
	})
	return list
}

// step is what a random operation on both is about.
type step struct {
	now int64
	vni uint32
	mac wire.MAC
	d   port.Dest
}

const macs = 20

// randomStep draws a key out of 3 × 20 and a destination, which is mostly the MAC's own: a quarter of them roams.
// The clock goes on by 0 to 200 ms, and now and then leaps or is set back.
func randomStep(rng *rand.Rand, now int64) step {
	n := rng.IntN(macs)
	s := step{
		now: now + rng.Int64N(second/5), vni: uint32(rng.IntN(3)), mac: station(n),
		d: port.Dest{Port: port.ID(1 + n%4), Peer: uint32(n % 2)},
	}
	switch rng.IntN(5000) {
	case 0, 1:
		s.now += rng.Int64N(400 * second)
	case 2:
		s.now -= rng.Int64N(400 * second)
	}
	switch rng.IntN(40) {
	case 0:
		s.mac = wire.MAC{0x33, 0x33, 0, 0, 0, 1}
	case 1:
		s.mac = wire.MAC{}
	}
	if n%4 == 0 || rng.IntN(10) == 0 {
		s.d = port.Dest{Port: port.ID(1 + rng.IntN(4)), Peer: uint32(rng.IntN(2))}
	}
	return s
}

// change does to both one of 40 kinds of things that are not about a frame, and returns what was done and both
// results.
func (s step) change(table *Table, slow *model, limit, kind int) (what string, got, want any) {
	switch kind {
	case 0:
		delete(slow.limits, s.d.Port)
		return fmt.Sprintf("DeletePort(%d)", s.d.Port), table.DeletePort(s.d.Port),
			slow.remove(func(e modelEntry) bool { return e.Dest.Port == s.d.Port })
	case 1:
		return fmt.Sprintf("DeletePeer(%v)", s.d), table.DeletePeer(s.d.Port, s.d.Peer),
			slow.remove(func(e modelEntry) bool { return e.Dest == s.d })
	case 2:
		table.SetPortLimit(s.d.Port, limit)
		slow.limits[s.d.Port] = limit
		return "SetPortLimit", nil, nil
	case 3, 4, 5, 6:
		return fmt.Sprintf("Insert(%+v)", s), table.Insert(s.vni, s.mac, s.d) == nil, slow.insert(s.vni, s.mac, s.d)
	case 7, 8, 9, 10, 11, 12, 13, 14:
		return fmt.Sprintf("Delete(%+v)", s), table.Delete(s.vni, s.mac),
			slow.remove(func(e modelEntry) bool { return e.VNI == s.vni && e.MAC == s.mac }) == 1
	}
	return fmt.Sprintf("Expire(%d)", s.now), table.Expire(s.now), slow.expire(s.now)
}

// The bounds are below what the keys ask for, so that every transition between absent, learned, frozen and
// static occurs, and each refusal. A miscounted learned entry shows as a bound that holds too early or too
// late.
func TestAgainstModel(t *testing.T) {
	rng := seed.Rand(t)
	cfg := Config{MaxLearned: 36, MaxLearnedPerPort: 12, Ageing: 60 * time.Second}
	table, slow := New(cfg), &model{cfg: cfg, limits: map[port.ID]int{}}
	outcomes, sightings, expired := map[Outcome]int{}, map[Sighting]int{}, 0
	s := step{now: 1_800_000_000 * second}
	for i := range scaled(200_000) {
		s = randomStep(rng, s.now)
		switch kind := rng.IntN(1000); {
		case kind < 40:
			what, got, want := s.change(table, slow, rng.IntN(20), kind)
			if got != want {
				t.Fatalf("step %d: %s = %v, want %v", i, what, got, want)
			}
			if n, ok := want.(int); ok && kind >= 15 {
				expired += n
			}
		case kind < 500:
			want := slow.seen(s.now, s.vni, s.mac, s.d)
			sightings[want]++
			if got := table.Seen(s.now, s.vni, s.mac, s.d); got != want {
				t.Fatalf("step %d: Seen(%+v) = %v, want %v", i, s, got, want)
			}
		default:
			want, wantWas := slow.learn(s.now, s.vni, s.mac, s.d)
			outcomes[want]++
			if got, was := table.Learn(s.now, s.vni, s.mac, s.d); got != want || was != wantWas {
				t.Fatalf("step %d: Learn(%+v) = %v, %v, want %v, %v", i, s, got, was, want, wantWas)
			}
		}
		compare(t, i, table, slow, uint32(rng.IntN(3)), station(rng.IntN(macs)))
	}
	for o := Added; o <= RefusedGroup; o++ {
		if outcomes[o] == 0 {
			t.Errorf("the run never came to %v", o)
		}
	}
	for s := NeedsLearn; s <= FrozenElsewhere; s++ {
		if sightings[s] == 0 {
			t.Errorf("the run never came to %v", s)
		}
	}
	t.Log(outcomes, sightings, "expired:", expired)
	if expired == 0 {
		t.Error("nothing ever aged")
	}
}

func compare(t *testing.T, i int, table *Table, slow *model, vni uint32, mac wire.MAC) {
	t.Helper()
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
