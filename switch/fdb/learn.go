package fdb

import (
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Sighting is what Seen says of a frame's source. The zero value is none.
type Sighting uint8

// Only NeedsLearn asks for something.
const (
	_               Sighting = iota
	NeedsLearn               // unknown, or learned behind another destination: call Learn
	Known                    // static or learned behind this destination
	StaticElsewhere          // static behind another destination: a spoofed source, or one that came back in a loop
	FrozenElsewhere          // held behind another destination, because it moved too often
)

var sightingNames = [...]string{"invalid", "needs_learn", "known", "static_elsewhere", "frozen_elsewhere"}

// String returns the sighting in snake_case.
func (s Sighting) String() string {
	if int(s) < len(sightingNames) {
		return sightingNames[s]
	}
	return "invalid"
}

// Seen is the hot path's one question about the source mac of a frame from d. It keeps a learned entry from
// ageing, at most once a second; otherwise it changes nothing. It takes no lock, never retries and allocates
// nothing.
func (t *Table) Seen(now int64, vni uint32, mac wire.MAC, d port.Dest) Sighting {
	r, ok := t.entries.Load(key{vni, mac})
	switch {
	case !ok:
		return NeedsLearn
	case r.dest == d:
		if !r.static() {
			r.life.touch(now)
		}
		return Known
	case r.static():
		return StaticElsewhere
	case r.life.moves.frozen(now):
		return FrozenElsewhere
	}
	return NeedsLearn
}

// Outcome says what Learn did. The zero value is none.
type Outcome uint8

// RefusedGroup also stands for the zero address: neither is a station's.
const (
	_               Outcome = iota
	Added                   // the MAC was unknown
	Moved                   // it was learned behind another destination
	Froze                   // the same, but that was a move too many: now it stays where it is for FreezeTime
	Unchanged               // it was learned, or inserted, behind this one
	RefusedStatic           // it was inserted behind another destination
	RefusedFlapping         // it is frozen behind another destination
	RefusedPortFull         // the port may not learn more, neither a new MAC nor one that moves to it
	RefusedFull             // it is unknown, and no more may be learned
	RefusedGroup            // the source is a group address (IEEE 802.3 section 3.2.3) or zero
)

var outcomeNames = [...]string{"invalid", "added", "moved", "froze", "unchanged", "refused_static",
	"refused_flapping", "refused_port_full", "refused_full", "refused_group"}

// String returns the outcome in snake_case.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "invalid"
}

// Learn notes that mac was seen as a source at d. was is where the table had it before, zero if nowhere: to be
// logged with Moved, once per freeze with Froze, and with the refusals. A station that moves to a port which may
// not learn more stays where it was until it has aged there; one may always move away from such a port.
func (t *Table) Learn(now int64, vni uint32, mac wire.MAC, d port.Dest) (o Outcome, was port.Dest) {
	if !isStation(mac) {
		return RefusedGroup, was
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{vni, mac}
	r, known := t.entries.Load(k)
	if !known {
		return t.add(now, k, d), was
	}
	return t.move(now, k, r, d), r.dest
}

func (t *Table) add(now int64, k key, d port.Dest) Outcome {
	if t.full(d) {
		return RefusedPortFull
	}
	if t.learned >= t.cfg.MaxLearned {
		return RefusedFull
	}
	t.count(d)
	t.entries.Store(k, record{d, newLife(now, &never)})
	return Added
}

func (t *Table) move(now int64, k key, r record, d port.Dest) Outcome {
	switch {
	case r.dest == d && r.static():
		return Unchanged
	case r.dest == d:
		r.life.touch(now)
		return Unchanged
	case r.static():
		return RefusedStatic
	case r.life.moves.frozen(now):
		return RefusedFlapping
	case t.full(d):
		return RefusedPortFull
	}
	moves := r.life.moves.with(now)
	t.discount(r)
	t.count(d)
	t.entries.Store(k, record{d, newLife(now, moves)})
	if moves.frozen(now) {
		return Froze
	}
	return Moved
}

func (t *Table) full(d port.Dest) bool {
	limit, own := t.portLimits[d.Port]
	if !own {
		limit = t.cfg.MaxLearnedPerPort
	}
	return t.learnedBy[d] >= limit
}
