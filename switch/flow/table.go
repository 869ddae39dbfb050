package flow

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

const (
	// DefaultCapacity is Linux' nf_conntrack_max on a machine with over 4 GiB: 16 MiB of entries, of which the
	// kernel gives out what is used, and 256 KiB of tags.
	DefaultCapacity = 1 << 18
	// ways: one word of tags. With the choice of two buckets (claim) a table that is 60 % full refuses nothing.
	ways = 8
)

// The state word of an entry, from the lowest bit: second of the last frame 32, State 4, the side of the opener
// 1, family 1, phase 2, version 24.
const (
	connShift    = 32
	openerShift  = 36
	familyIPv6   = uint64(1) << 37
	phaseMask    = uint64(3) << 38
	free         = uint64(0) << 38
	busy         = uint64(1) << 38 // one worker's own
	live         = uint64(2) << 38
	versionShift = 40
	versionMask  = uint64(1<<24-1) << versionShift

	live4, live6 = live, live | familyIPv6
	kindMask     = phaseMask | familyIPv6
	identity     = versionMask | kindMask // what is the same for the whole life of a flow
)

func connOf(s uint64) State    { return State(s >> connShift & 15) }
func openerOf(s uint64) uint64 { return s >> openerShift & 1 }

// ageOf returns the seconds since the last frame, below 0 when the clock was set back.
func ageOf(s uint64, second uint32) int32 { return int32(second - uint32(s)) }

// expired says whether the flow has been silent for too long.
func expired(s uint64, second uint32) bool { return ageOf(s, second) >= timeouts[connOf(s)] }

// entry is one place of the table: a cache line.
type entry struct {
	key   [keyWords]atomic.Uint64
	state atomic.Uint64
	owner atomic.Uint64
	_     uint64 // for the decisions of services and policies, with 48 bits of owner
}

// Table is the connection table of a switch, all VNIs together. All methods may be called from any goroutine at
// any time; none takes a lock or waits. A Table must not be copied.
type Table struct {
	tags    []atomic.Uint64 // by bucket
	entries []entry         // ways of a bucket are neighbours
	mask    uint64          // of bucket numbers
	seeds   [5]uint64       // random, so that nobody can aim at a bucket
	owned   []atomic.Int32  // live flows by owner
	sweep   atomic.Uint64   // which part is the next one for Expire

	// Of the slow cases only. A hit counts nothing.
	created, doubled, ended, evicted, dropped, refused atomic.Uint64
}

// New returns an empty table with room for at least capacity flows, which may belong to owners 0 to owners-1.
func New(capacity, owners int) *Table {
	buckets := 1 << bits.Len(uint(max(capacity, 2*ways)-1)/ways)
	t := &Table{tags: make([]atomic.Uint64, buckets), entries: make([]entry, buckets*ways),
		mask: uint64(buckets - 1), owned: make([]atomic.Int32, owners)}
	for i := range t.seeds {
		t.seeds[i] = rand.Uint64()
	}
	return t
}

// Owner is the port that a flow's first frame came from, and how many flows it may have at once, at least 1.
type Owner struct {
	ID    uint16
	Share int
}

// Track notes that the batch's frames were seen, in their order, at Unix time now in nanoseconds, and empties the
// batch. A flow that is unknown, has expired, or begins anew becomes the owner's. It allocates nothing, and where
// nothing is new to the second it writes nothing.
func (t *Table) Track(b *Batch, now int64, owner Owner) {
	items, second := b.items[:b.n], uint32(now/1e9)
	t.hash(items)
	for i := range items {
		it := &items[i]
		way := uint64(bits.TrailingZeros64(equalBytes(it.seen, it.tag()))) / 8 % ways // without an equal one, 0 is as good as any
		it.slot = it.hash&t.mask*ways + way
		it.seen = t.entries[it.slot].state.Load()
	}
	for i := range items {
		it := &items[i]
		// What follows says of nearly all frames that the entry is theirs and has nothing to learn from them.
		e := &t.entries[it.slot]
		if it.seen&kindMask == it.kind && e.holds(it) {
			if s := e.state.Load(); (s^it.seen)&identity == 0 && s == after(s, it, second) {
				continue
			}
		}
		t.track(it, second, owner)
	}
	b.n = 0
}

// hash finds the buckets and tags of all items, and has the tags' words on their way.
func (t *Table) hash(items []item) {
	for i := range items {
		it := &items[i]
		h := fold(it.key[0]^t.seeds[0], it.key[1]^t.seeds[1])
		if it.kind == live6 {
			h = fold(h^fold(it.key[2]^t.seeds[2], it.key[3]^t.seeds[3]), it.key[4]^t.seeds[4])
		}
		it.hash = fold(h^t.seeds[2], t.seeds[3]|1)
		it.seen = t.tags[it.hash&t.mask].Load()
	}
}

// holds compares keys. The answer counts if the entry's state has the same identity before and after.
func (e *entry) holds(it *item) bool {
	return (e.key[0].Load()^it.key[0])|(e.key[1].Load()^it.key[1]) == 0 && (it.kind == live4 || e.holdsRest(it))
}

// holdsRest compares what only keys of IPv6 have.
func (e *entry) holdsRest(it *item) bool {
	return (e.key[2].Load()^it.key[2])|(e.key[3].Load()^it.key[3])|(e.key[4].Load()^it.key[4]) == 0
}

// after returns the state of a live entry behind the frame.
func after(s uint64, it *item, second uint32) uint64 {
	direction := uint64(it.side) ^ openerOf(s)
	conn := next[s>>connShift&15][direction*numClasses+uint64(it.class)]
	return s&^(1<<openerShift-1) | uint64(conn)<<connShift | uint64(second)
}

// track is Track for a frame that changes something.
func (t *Table) track(it *item, second uint32, owner Owner) {
	slot, s, known := t.find(it)
	switch {
	case !known:
		t.insert(it, second, owner)
	case expired(s, second) || connOf(s).restarts(it.class):
		if t.removeExact(slot, s) {
			t.ended.Add(1)
		}
		t.insert(it, second, owner)
	default:
		t.advance(slot, s, it, second)
	}
}

// advance brings the entry, whose state was s, behind the frame, unless its life ends meanwhile.
func (t *Table) advance(slot, s uint64, it *item, second uint32) {
	e := &t.entries[slot]
	for identified := s; (s^identified)&identity == 0; s = e.state.Load() {
		if n := after(s, it, second); n == s || e.state.CompareAndSwap(s, n) {
			return
		}
	}
}

// find returns the place of the frame's flow and its state. Of two doubles it is the first one.
func (t *Table) find(it *item) (slot, state uint64, known bool) {
	for _, bucket := range t.bucketsOf(it) {
		for m := equalBytes(t.tags[bucket].Load(), it.tag()); m != 0; m &= m - 1 {
			slot = bucket*ways + uint64(bits.TrailingZeros64(m))/8
			if state, known = t.stateOf(slot, it); known {
				return slot, state, true
			}
		}
	}
	return 0, 0, false
}

// stateOf returns the state of the entry if it is live and the frame's.
func (t *Table) stateOf(slot uint64, it *item) (state uint64, is bool) {
	e := &t.entries[slot]
	before := e.state.Load()
	if before&kindMask != it.kind || !e.holds(it) {
		return 0, false
	}
	s := e.state.Load()
	return s, (s^before)&identity == 0
}

// fold multiplies and folds the product: wyhash's mixing step.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// tag is never 0.
func (it *item) tag() uint64 { return max(it.hash>>56, 1) }

// bucketsOf returns both buckets of a key, which differ.
func (t *Table) bucketsOf(it *item) [2]uint64 {
	one := it.hash & t.mask
	two := it.hash >> 28 & t.mask
	if one == two {
		two ^= 1
	}
	return [2]uint64{one, two}
}

// equalBytes sets the high bit of each byte of the word that equals b, and no other bit.
func equalBytes(word, b uint64) uint64 {
	const low7 = 0x7f7f7f7f7f7f7f7f
	x := word ^ b*0x0101010101010101
	return ^((x&low7 + low7) | x | low7)
}

// Stats are a table's figures. Live = Created - Ended - Evicted - Dropped; read while workers run, they may be
// off by those that are being counted.
type Stats struct {
	Capacity, Live int
	Created        uint64
	Ended          uint64 // forgotten after silence, or replaced by a new connection after their end
	Evicted        uint64 // forgotten before their time for a new one, as no place was free
	Dropped        uint64 // with their owner
	Refused        uint64 // frames that would have begun a flow, but the owner had its share or no place was to be had
}

// Stats returns the table's figures.
func (t *Table) Stats() Stats {
	s := Stats{Capacity: len(t.entries), Ended: t.ended.Load(), Evicted: t.evicted.Load(), Dropped: t.dropped.Load(), Refused: t.refused.Load()}
	s.Created = t.created.Load() - t.doubled.Load()
	for i := range t.owned {
		s.Live += int(t.owned[i].Load())
	}
	return s
}

// String describes the table for people.
func (t *Table) String() string {
	s := t.Stats()
	return fmt.Sprintf("%d of %d flows", s.Live, s.Capacity)
}
