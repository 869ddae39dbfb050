package flow

import (
	"iter"

	"tapyard/switch/wire"
)

// All returns the flows that haven't expired at Unix time now in nanoseconds, in no order. Of what changes meanwhile,
// some may be in it.
func (t *Table) All(now int64) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for slot := range t.entries {
			if e, ok := t.entries[slot].read(uint32(now / 1e9)); ok && !yield(e) {
				return
			}
		}
	}
}

// Restore makes a flow known that a process before has tracked, and says whether it could: it is one that has not
// expired at Unix time now in nanoseconds, its owner has less than its share, and there is room. Call it before the first
// Track.
func (t *Table) Restore(now int64, e *Entry, share int) bool {
	var items [1]item
	it := &items[0]
	opener, ok := it.be(e)
	if !ok || int(e.Owner) >= len(t.owned) {
		return false
	}
	t.hash(items[:])
	second := uint32(now / 1e9)
	if _, _, known := t.find(it); known || int32(second-uint32(e.LastSeen)) >= timeouts[e.State] {
		return false
	}
	return t.begin(it, e.State, opener, uint32(e.LastSeen), Owner{ID: e.Owner, Share: share})
}

// be makes the item that of a frame of the flow's opener, and returns the opener's side.
func (it *item) be(e *Entry) (opener uint64, ok bool) {
	from, to := e.From.Addr(), e.To.Addr()
	if e.State == 0 || e.State >= numStates || !from.IsValid() || from.Is4() != to.Is4() || from.Is4In6() || to.Is4In6() {
		return 0, false
	}
	p := wire.Parsed{Proto: e.Proto}
	if from.Is4() {
		a, b := from.As4(), to.As4()
		copy(p.Src[:], a[:])
		copy(p.Dst[:], b[:])
		it.fill4(e.VNI, &p, e.From.Port(), e.To.Port())
	} else {
		p.Src, p.Dst = from.As16(), to.As16()
		it.fill6(e.VNI, &p, e.From.Port(), e.To.Port())
	}
	return uint64(it.side), true
}
