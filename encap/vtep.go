package encap

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"tapyard/switch/wire"
)

// Peer is another node at the far end of tunnels.
type Peer struct {
	// Index is what frame.Meta and FDB entries call the peer, from 1. VTEPTable.Set assigns it.
	Index uint32
	// Name is the node's, unique among the peers.
	Name string
	// Underlay is the address that the peer sends from and receives at, unique among the peers.
	Underlay netip.Addr
	// MAC is the peer's router MAC.
	MAC wire.MAC

	link *link // the wire to it, which stays as long as the index
}

// VTEPTable holds the peers. Workers look them up without a lock while Set replaces them all at once. The
// zero value is an empty table.
type VTEPTable struct {
	now  atomic.Pointer[vteps] // nil before the first Set
	mu   sync.Mutex            // held by Set
	last uint32                // the highest index ever assigned, guarded by mu
}

// vteps is one state of the table; nothing in it changes after it was published.
type vteps struct {
	byIndex  map[uint32]*Peer
	byName   map[string]*Peer
	bySource map[netip.Addr]*Peer
}

// load never returns nil: reading nil maps is allowed.
func (t *VTEPTable) load() *vteps {
	if v := t.now.Load(); v != nil {
		return v
	}
	return &vteps{}
}

// Set replaces the peers; their Index fields are ignored. A peer keeps its index as long as it stays in
// the table with the same name and underlay address. No index is used again in the life of the process,
// so that a stale one, in a frame on its way or in an FDB entry, finds nobody instead of somebody else.
// After an error, which names the peer, the table is as before.
func (t *VTEPTable) Set(peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, last := t.load(), t.last
	next := &vteps{
		byIndex:  make(map[uint32]*Peer, len(peers)),
		byName:   make(map[string]*Peer, len(peers)),
		bySource: make(map[netip.Addr]*Peer, len(peers)),
	}
	for _, p := range peers {
		p.Underlay = p.Underlay.Unmap()
		if err := next.refuse(&p); err != nil {
			return err
		}
		if was := old.byName[p.Name]; was != nil && was.Underlay == p.Underlay {
			p.Index, p.link = was.Index, was.link
		} else {
			last++
			p.Index, p.link = last, newLink()
		}
		next.byIndex[p.Index], next.byName[p.Name], next.bySource[p.Underlay] = &p, &p, &p
	}
	t.last = last
	t.now.Store(next)
	return nil
}

// refuse says why p can't stand beside the peers that are already in v.
func (v *vteps) refuse(p *Peer) error {
	if p.Name == "" {
		return fmt.Errorf("peer with underlay address %v has no name", p.Underlay)
	}
	if err := checkUnderlay(p.Underlay); err != nil {
		return fmt.Errorf("peer %s: %w", p.Name, err)
	}
	if v.byName[p.Name] != nil {
		return fmt.Errorf("peer %s is listed twice; names are unique", p.Name)
	}
	if other := v.bySource[p.Underlay]; other != nil {
		return fmt.Errorf("peers %s and %s have the same underlay address %v", other.Name, p.Name, p.Underlay)
	}
	return nil
}

// checkUnderlay refuses what can't be one node's address on a routed network.
func checkUnderlay(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("underlay address is missing")
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("underlay address %v is not one node's; give a unicast address", a)
	case a.IsLinkLocalUnicast() && a.Is6() || a.Zone() != "":
		return fmt.Errorf("underlay address %v holds on one link only; give a routable address", a)
	}
	return nil
}

// Lookup returns the peer with that index, or nil when there is none, or no more. The Peer must not be
// changed.
func (t *VTEPTable) Lookup(index uint32) *Peer { return t.load().byIndex[index] }

// LookupName returns the peer of that name, or nil. The Peer must not be changed.
func (t *VTEPTable) LookupName(name string) *Peer { return t.load().byName[name] }

// Peers returns all peers, ordered by index, for operators.
func (t *VTEPTable) Peers() []Peer {
	var peers []Peer
	for _, p := range t.load().byIndex {
		peers = append(peers, *p)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.Index, b.Index) })
	return peers
}
