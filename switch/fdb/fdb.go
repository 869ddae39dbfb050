// Package fdb is the MAC learning table (IEEE 802.1Q section 8.8): (VNI, MAC) → port.Dest. Entries are learned
// from the source addresses of frames, in a bounded number, or inserted by the control plane, which knows the
// MACs of this node's pods. What is learned never displaces what was inserted, so a pod can neither take over
// another one's MAC nor push it out by sending from many addresses.
package fdb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"tapyard/switch/cowmap"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// ErrConflict is what Insert's error wraps when the MAC is already a static entry of another destination.
var ErrConflict = errors.New("two stations must not share a MAC in one VNI; detach one of them or give it another MAC")

// Outcome says what Learn did. The zero value is none.
type Outcome uint8

// RefusedGroup also stands for the zero address: neither is a station's.
const (
	_             Outcome = iota
	Added                 // the MAC was unknown
	Moved                 // it was learned behind another destination
	Unchanged             // it was learned, or inserted, behind this one
	RefusedStatic         // it was inserted behind another destination
	RefusedFull           // it is unknown, and no more may be learned
	RefusedGroup          // the source is a group address (IEEE 802.3 section 3.2.3) or zero
)

var outcomeNames = [...]string{"invalid", "added", "moved", "unchanged", "refused_static", "refused_full", "refused_group"}

// String returns the outcome in snake_case.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "invalid"
}

type key struct {
	vni uint32
	mac wire.MAC
}

type record struct {
	dest   port.Dest
	static bool
}

// Table is the learning table of a switch, all VNIs together. All methods may be called from any goroutine:
// Lookup and Entries take no lock, writers take turns on a mutex.
type Table struct {
	entries    *cowmap.Map[key, record]
	maxLearned int

	mu      sync.Mutex // held by the one writer
	learned int        // entries that are not static
}

// New returns an empty table that learns at most maxEntries MACs, at least 1. Static entries are not counted:
// there are as many as the control plane inserts, and a table that strangers have filled must still take them.
func New(maxEntries int) *Table {
	return &Table{entries: cowmap.New[key, record](maxEntries), maxLearned: maxEntries}
}

// Lookup returns where frames for mac go, and whether that is known. It takes no lock, never retries and
// allocates nothing.
func (t *Table) Lookup(vni uint32, mac wire.MAC) (port.Dest, bool) {
	r, ok := t.entries.Load(key{vni, mac})
	return r.dest, ok
}

// Learn notes that mac was seen as a source at d. It takes no lock when the table says so already.
func (t *Table) Learn(vni uint32, mac wire.MAC, d port.Dest) Outcome {
	if !isStation(mac) {
		return RefusedGroup
	}
	k := key{vni, mac}
	if r, ok := t.entries.Load(k); ok && r.dest == d {
		return Unchanged
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.entries.Load(k)
	switch {
	case known && r.dest == d:
		return Unchanged
	case known && r.static:
		return RefusedStatic
	case !known && t.learned >= t.maxLearned:
		return RefusedFull
	}
	t.entries.Store(k, record{dest: d})
	if known {
		return Moved
	}
	t.learned++
	return Added
}

// Insert makes mac a static entry behind d, replacing a learned one. Inserting the same again changes nothing;
// a static entry of another destination stays, and the error, which wraps ErrConflict, names both.
func (t *Table) Insert(vni uint32, mac wire.MAC, d port.Dest) error {
	if !isStation(mac) {
		return fmt.Errorf("insert MAC %v in VNI %d: not a station's address: a group address or zero", mac, vni)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{vni, mac}
	r, known := t.entries.Load(k)
	if known && r.static && r.dest != d {
		return fmt.Errorf("insert MAC %v in VNI %d for port %d (peer %d): it belongs to port %d (peer %d): %w",
			mac, vni, d.Port, d.Peer, r.dest.Port, r.dest.Peer, ErrConflict)
	}
	if known && !r.static {
		t.learned--
	}
	t.entries.Store(k, record{d, true})
	return nil
}

// isStation says whether mac can be the address of one station.
func isStation(mac wire.MAC) bool { return !mac.IsMulticast() && !mac.IsZero() }

// Delete removes the entry, static or learned, and says whether there was one.
func (t *Table) Delete(vni uint32, mac wire.MAC) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{vni, mac}
	r, known := t.entries.Load(k)
	if known && !r.static {
		t.learned--
	}
	return t.entries.Delete(k)
}

// DeletePort removes all entries behind the port, static and learned, and returns their number. A Learn that
// comes later brings entries back: call it once no frame of the port is under way.
func (t *Table) DeletePort(id port.ID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries.DeleteFunc(func(_ key, r record) bool {
		if r.dest.Port != id {
			return false
		}
		if !r.static {
			t.learned--
		}
		return true
	})
}

// Entry is one line of the table.
type Entry struct {
	VNI    uint32
	MAC    wire.MAC
	Dest   port.Dest
	Static bool // inserted, not learned
}

// Entries returns the table's contents sorted by VNI and MAC. Of what is changed meanwhile, some may be in it.
func (t *Table) Entries() []Entry {
	var list []Entry
	for k, r := range t.entries.All() {
		list = append(list, Entry{k.vni, k.mac, r.dest, r.static})
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return list
}
