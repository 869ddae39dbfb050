// Package neigh is the neighbour table: (VNI, IP address) → MAC and port of every address that the switch knows,
// which are those of this node's pods, the gateway's and its own. With it the switch answers ARP requests and
// neighbour solicitations itself, so that they are neither flooded nor sent to other nodes (ARP proxying in
// the sense of RFC 9161 section 3.2: for known addresses only). AnswerARP and AnswerND build the answers,
// Announce4 and Announce6 what is said unasked, and ReadClaim reads what others say about who has an address.
package neigh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"tapyard/switch/cowmap"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// buckets is the number of addresses for which lookups are fastest: one /24 of pods with an IPv4 address, an IPv6
// address and a link-local one each is 254 × 3 = 762. More fit; 8 KiB is what it costs.
const buckets = 1024

// Neighbor is the station that has an address.
type Neighbor struct {
	MAC  wire.MAC
	Port port.ID
}

type key struct {
	vni  uint32
	addr netip.Addr
}

// Table is the neighbour table of a switch, all VNIs together. All methods may be called from any goroutine:
// Lookup and Entries take no lock, writers take turns on a mutex. Only the control plane writes, so the
// number of entries is what it inserts.
type Table struct {
	entries *cowmap.Map[key, Neighbor]
	mu      sync.Mutex // held by the one writer
}

// New returns an empty table.
func New() *Table { return &Table{entries: cowmap.New[key, Neighbor](buckets)} }

// Lookup returns who has the address, and whether that is known. It takes no lock, never retries and allocates
// nothing. An IPv4-mapped IPv6 address is never known.
func (t *Table) Lookup(vni uint32, addr netip.Addr) (Neighbor, bool) {
	return t.entries.Load(key{vni, addr})
}

// Insert notes that n has the address, which must be a unicast one, without a zone and not IPv4-mapped. Inserting
// the same again changes nothing; an address of another neighbour stays, and the error is a *ConflictError,
// which wraps ErrConflict.
func (t *Table) Insert(vni uint32, addr netip.Addr, n Neighbor) error {
	if !isUnicast(addr) || addr.Is4In6() || addr.Zone() != "" {
		return fmt.Errorf("insert neighbor %v in VNI %d: want a unicast address without a zone, IPv4 written as IPv4", addr, vni)
	}
	if !isStation(n.MAC) {
		return fmt.Errorf("insert neighbor %v in VNI %d: MAC %v is not a station's address: a group address or zero", addr, vni, n.MAC)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{vni, addr}
	if owner, known := t.entries.Load(k); known && owner != n {
		return &ConflictError{VNI: vni, Addr: addr, Owner: owner, Claimant: n}
	}
	t.entries.Store(k, n)
	return nil
}

// limitedBroadcast is 255.255.255.255.
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// isUnicast says whether the address can be that of one station.
func isUnicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != limitedBroadcast
}

func isStation(mac wire.MAC) bool { return !mac.IsMulticast() && !mac.IsZero() }

// Delete removes the address and says whether it was known.
func (t *Table) Delete(vni uint32, addr netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries.Delete(key{vni, addr})
}

// DeletePort removes all addresses behind the port and returns their number.
func (t *Table) DeletePort(id port.ID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries.DeleteFunc(func(_ key, n Neighbor) bool { return n.Port == id })
}

// Entry is one line of the table.
type Entry struct {
	VNI  uint32
	Addr netip.Addr
	Neighbor
}

// Entries returns the table's contents sorted by VNI and address, IPv4 first. Of what is changed meanwhile, some
// may be in it.
func (t *Table) Entries() []Entry {
	var list []Entry
	for k, n := range t.entries.All() {
		list = append(list, Entry{k.vni, k.addr, n})
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), a.Addr.Compare(b.Addr))
	})
	return list
}
