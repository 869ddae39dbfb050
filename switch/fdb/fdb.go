// Package fdb is the MAC learning table (IEEE 802.1Q section 8.8): (VNI, MAC) → port.Dest. Entries are learned
// from the source addresses of frames, in a bounded number per port and in all, and age; or they are inserted
// by the control plane, which knows the MACs of this node's pods. What is learned never displaces what was
// inserted, so a pod can neither take over another one's MAC nor push it out by sending from many addresses.
// A MAC that keeps moving is held where it is for a while (RFC 7432 section 15.1).
//
// Time is an argument everywhere: Unix time in nanoseconds. A clock that is set back makes no entry older or
// immortal.
package fdb

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapyard/switch/cowmap"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Config bounds what a Table learns. Static entries are not counted: there are as many as the control plane
// inserts, and a table that strangers have filled must still take them.
type Config struct {
	// MaxLearned is how many learned entries there may be in all, at least 1.
	MaxLearned int
	// MaxLearnedPerPort is the same behind one port, or each peer of a tunnel, at least 1. SetPortLimit makes
	// exceptions.
	MaxLearnedPerPort int
	// Ageing is how long a learned entry stays after its station's last frame; 0 is for ever. IEEE 802.1Q table
	// 8-6 recommends 300 s and allows 10 s to 1,000,000 s. Ages are kept to the second, so under 2 s stations
	// come and go that are talking.
	Ageing time.Duration
}

type key struct {
	vni uint32
	mac wire.MAC
}

type record struct {
	dest port.Dest
	life *life // nil: a static entry
}

func (r record) static() bool { return r.life == nil }

// Table is the learning table of a switch, all VNIs together. All methods may be called from any goroutine:
// Seen, Lookup and Entries take no lock, writers take turns on a mutex. A Table must not be copied.
type Table struct {
	entries *cowmap.Map[key, record]
	cfg     Config
	ageing  atomic.Int64 // Config.Ageing, until SetAgeing

	mu         sync.Mutex // held by the one writer
	learned    int        // entries that are not static
	learnedBy  map[port.Dest]int
	portLimits map[port.ID]int
}

// New returns an empty table.
func New(cfg Config) *Table {
	t := &Table{
		entries: cowmap.New[key, record](cfg.MaxLearned), cfg: cfg,
		learnedBy: map[port.Dest]int{}, portLimits: map[port.ID]int{},
	}
	t.SetAgeing(cfg.Ageing)
	return t
}

// Ageing returns how long a silent station is remembered.
func (t *Table) Ageing() time.Duration { return time.Duration(t.ageing.Load()) }

// SetAgeing changes that, as Config.Ageing says, for what is learned already as well.
func (t *Table) SetAgeing(d time.Duration) { t.ageing.Store(int64(d)) }

// SetPortLimit has the port, or each peer behind it, learn up to limit MACs, at least 0, instead of
// Config.MaxLearnedPerPort, until DeletePort. What it has learned already stays.
func (t *Table) SetPortLimit(id port.ID, limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.portLimits[id] = limit
}

// Lookup returns where frames for mac go, and whether that is known. It takes no lock, never retries and
// allocates nothing.
func (t *Table) Lookup(vni uint32, mac wire.MAC) (port.Dest, bool) {
	r, ok := t.entries.Load(key{vni, mac})
	return r.dest, ok
}

// Insert makes mac a static entry behind d, replacing a learned one. Inserting the same again changes nothing;
// a static entry of another destination stays, and the error is a *ConflictError, which wraps ErrConflict.
func (t *Table) Insert(vni uint32, mac wire.MAC, d port.Dest) error {
	if !isStation(mac) {
		return notStation(vni, mac)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{vni, mac}
	r, known := t.entries.Load(k)
	switch {
	case known && r.static() && r.dest != d:
		return &ConflictError{VNI: vni, MAC: mac, Owner: r.dest, Claimant: d}
	case known:
		t.discount(r)
	}
	t.entries.Store(k, record{dest: d})
	return nil
}

// isStation says whether mac can be the address of one station.
func isStation(mac wire.MAC) bool { return !mac.IsMulticast() && !mac.IsZero() }

// Delete removes the entry, static or learned, and says whether there was one.
func (t *Table) Delete(vni uint32, mac wire.MAC) bool {
	return t.deleteIf(key{vni, mac}, func(record) bool { return true })
}

// deleteIf removes the entry if there is one that del holds for, and says whether that was so.
func (t *Table) deleteIf(k key, del func(record) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.entries.Load(k)
	if !known || !del(r) {
		return false
	}
	t.discount(r)
	return t.entries.Delete(k)
}

// DeletePort removes all entries behind the port, static and learned, and returns their number; a limit of its
// own is forgotten. A Learn that comes later brings entries back: call it once no frame of the port is under
// way.
func (t *Table) DeletePort(id port.ID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.portLimits, id)
	return t.deleteFunc(func(d port.Dest) bool { return d.Port == id })
}

// DeletePeer does the same for the entries behind one peer of a tunnel. The port keeps its limit.
func (t *Table) DeletePeer(id port.ID, peer uint32) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.deleteFunc(func(d port.Dest) bool { return d == port.Dest{Port: id, Peer: peer} })
}

func (t *Table) deleteFunc(del func(port.Dest) bool) int {
	return t.entries.DeleteFunc(func(_ key, r record) bool {
		if !del(r.dest) {
			return false
		}
		t.discount(r)
		return true
	})
}

// count notes a learned entry behind the destination.
func (t *Table) count(d port.Dest) {
	t.learned++
	t.learnedBy[d]++
}

// discount notes that the entry goes, or moves, if it is a learned one.
func (t *Table) discount(r record) {
	if r.static() {
		return
	}
	t.learned--
	if t.learnedBy[r.dest]--; t.learnedBy[r.dest] == 0 {
		delete(t.learnedBy, r.dest)
	}
}

// Entry is one line of the table. The fields behind Static are zero in a static one.
type Entry struct {
	VNI         uint32
	MAC         wire.MAC
	Dest        port.Dest
	Static      bool   // inserted, not learned
	LastSeen    int64  // Unix time in nanoseconds, up to a second too early
	Moves       uint32 // how often the station has moved since it was learned
	FrozenUntil int64  // Unix time in nanoseconds, perhaps past; 0 if its last move froze nothing
}

// Entries returns the table's contents sorted by VNI and MAC. Of what is changed meanwhile, some may be in it.
func (t *Table) Entries() []Entry {
	var list []Entry
	for k, r := range t.entries.All() {
		e := Entry{VNI: k.vni, MAC: k.mac, Dest: r.dest, Static: r.static()}
		if !e.Static {
			e.LastSeen = r.life.lastSeen.Load()
			e.Moves, e.FrozenUntil = r.life.moves.total, r.life.moves.frozenUntil()
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return list
}
