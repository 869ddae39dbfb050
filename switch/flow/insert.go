package flow

import "math/bits"

// insert makes an entry for the frame's flow, if the frame may begin one and there is room.
func (t *Table) insert(it *item, second uint32, owner Owner) {
	conn := first[it.class]
	if conn == 0 {
		return
	}
	opener := uint64(it.side)
	if it.class == synAck {
		opener ^= 1
	}
	t.begin(it, conn, opener, second, owner)
}

// begin makes an entry with that state and opener, and says whether there was room.
func (t *Table) begin(it *item, conn State, opener uint64, second uint32, owner Owner) bool {
	if t.owned[owner.ID].Add(1) > int32(owner.Share) {
		t.owned[owner.ID].Add(-1)
		t.refused.Add(1)
		return false
	}
	slot, version, ok := t.claim(it, second)
	if !ok {
		t.owned[owner.ID].Add(-1)
		t.refused.Add(1)
		return false
	}
	e := &t.entries[slot]
	words := keyWords
	if it.kind == live4 {
		words = 2
	}
	for i := range words {
		e.key[i].Store(it.key[i])
	}
	e.owner.Store(uint64(owner.ID))
	s := version + 1<<versionShift | it.kind | opener<<openerShift | uint64(conn)<<connShift | uint64(second)
	t.setTag(slot, it.tag())
	e.state.Store(s)
	t.created.Add(1)
	t.settle(it, slot, s, second)
	return true
}

// crowded is how many free places are few for the first bucket: then the emptier one of both takes the flow, so
// that neither overflows (Mitzenmacher, "The power of two choices"). Up to there, hits are all in the first.
const crowded = 2

// claim makes a place in the frame's buckets busy: a free one or, if there is none, that of the flow that is
// missed least. It returns the version of the place's last life.
func (t *Table) claim(it *item, second uint32) (slot, version uint64, ok bool) {
	buckets := t.bucketsOf(it)
	if n := t.freeIn(buckets[0]); n <= crowded && n < t.freeIn(buckets[1]) {
		buckets[0], buckets[1] = buckets[1], buckets[0]
	}
	for _, bucket := range buckets {
		for m := equalBytes(t.tags[bucket].Load(), 0); m != 0; m &= m - 1 {
			slot = bucket*ways + uint64(bits.TrailingZeros64(m))/8
			s := t.entries[slot].state.Load()
			if s&phaseMask == free && t.entries[slot].state.CompareAndSwap(s, s|busy) {
				return slot, s & versionMask, true
			}
		}
	}
	return t.evict(buckets, second)
}

func (t *Table) freeIn(bucket uint64) int {
	return bits.OnesCount64(equalBytes(t.tags[bucket].Load(), 0))
}

// evict makes a place of the buckets busy whose flow has expired or, of those that are not settled, has been
// silent for longest.
func (t *Table) evict(buckets [2]uint64, second uint32) (slot, version uint64, ok bool) {
	var victim uint64
	var over bool
	oldest := int32(-1)
	for _, bucket := range buckets {
		for at := bucket * ways; at < (bucket+1)*ways && !over; at++ {
			s := t.entries[at].state.Load()
			if s&phaseMask != live {
				continue
			}
			age := max(0, ageOf(s, second))
			over = expired(s, second)
			if over || !connOf(s).settled() && age > oldest {
				slot, victim, oldest = at, s, age
			}
		}
	}
	if oldest < 0 || !t.entries[slot].state.CompareAndSwap(victim, victim&^phaseMask|busy) {
		return 0, 0, false // all are settled, or somebody was faster: the next frame tries again
	}
	t.owned[t.entries[slot].owner.Load()].Add(-1)
	if over {
		t.ended.Add(1)
	} else {
		t.evicted.Add(1)
	}
	return slot, victim & versionMask, true
}

// settle removes the double that another worker may have published meanwhile: ours, whose state was s, if that
// one comes first in the order of find, and then has that one learn of the frame; otherwise that one.
func (t *Table) settle(it *item, own, s uint64, second uint32) {
	ownFirst := false
	for _, bucket := range t.bucketsOf(it) {
		for m := equalBytes(t.tags[bucket].Load(), it.tag()); m != 0; m &= m - 1 {
			slot := bucket*ways + uint64(bits.TrailingZeros64(m))/8
			if slot == own {
				ownFirst = true
				continue
			}
			other, double := t.stateOf(slot, it)
			switch {
			case !double:
			case ownFirst:
				t.removeDouble(slot, other)
			default:
				t.removeDouble(own, s)
				t.advance(slot, other, it, second)
				return
			}
		}
	}
}

// removeDouble ends the life of the entry that s was a state of, whatever it is now.
func (t *Table) removeDouble(slot, s uint64) {
	for identified := s; (s^identified)&identity == 0; s = t.entries[slot].state.Load() {
		if t.removeExact(slot, s) {
			t.doubled.Add(1)
			return
		}
	}
}

// removeExact empties the place if its state still is s, and says whether it was.
func (t *Table) removeExact(slot, s uint64) bool {
	e := &t.entries[slot]
	if !e.state.CompareAndSwap(s, s&^phaseMask|busy) {
		return false
	}
	t.owned[e.owner.Load()].Add(-1)
	t.setTag(slot, 0)
	e.state.Store(s&versionMask | free)
	return true
}

// setTag sets the tag of a place that the caller has made busy. Those of the others may change meanwhile.
func (t *Table) setTag(slot, tag uint64) {
	word, shift := &t.tags[slot/ways], slot%ways*8
	for {
		w := word.Load()
		if word.CompareAndSwap(w, w&^(0xff<<shift)|tag<<shift) {
			return
		}
	}
}
