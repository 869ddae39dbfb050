package flow

// sweepParts is in how many calls Expire has been through the table: 16 MiB at once would take the workers' cache.
const sweepParts = 8

// Expire forgets flows that have been silent for too long and returns their number. Call it once a second: it looks
// at an eighth of the table, so a dead flow may keep its place 8 s longer, but Track takes it for dead at once.
// After the clock was set back, now in Unix nanoseconds, flows count as heard when Expire comes by.
func (t *Table) Expire(now int64) (removed int) {
	second := uint32(now / 1e9)
	part := uint64(len(t.tags)) / sweepParts
	if part == 0 {
		part = 1
	}
	from := t.sweep.Add(part) - part
	for bucket := from; bucket < from+part; bucket++ {
		removed += t.each(bucket&t.mask, func(slot, s uint64) bool {
			if ageOf(s, second) < 0 {
				t.entries[slot].state.CompareAndSwap(s, s&^(1<<connShift-1)|uint64(second)) // if not: just heard
			}
			return expired(s, second)
		})
	}
	t.ended.Add(uint64(removed))
	return removed
}

// DropOwner forgets all flows of an owner that is gone and returns their number, so that the next one of that
// number starts with an empty share. It looks at the whole table.
func (t *Table) DropOwner(id uint16) (removed int) {
	if t.owned[id].Load() == 0 {
		return 0
	}
	for bucket := range t.tags {
		removed += t.each(uint64(bucket), func(slot, _ uint64) bool { return t.entries[slot].owner.Load() == uint64(id) })
	}
	t.dropped.Add(uint64(removed))
	return removed
}

// each removes those of a bucket's live entries that remove holds for and returns their number. It asks again about
// one that changes meanwhile: the other side's frames go on when an owner is gone.
func (t *Table) each(bucket uint64, remove func(slot, state uint64) bool) (removed int) {
	if t.tags[bucket].Load() == 0 {
		return 0
	}
	for slot := bucket * ways; slot < (bucket+1)*ways; slot++ {
		for s := t.entries[slot].state.Load(); s&phaseMask == live && remove(slot, s); s = t.entries[slot].state.Load() {
			if t.removeExact(slot, s) {
				removed++
				break
			}
		}
	}
	return removed
}
