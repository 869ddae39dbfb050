package vswitch

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"tapyard/fib"
	"tapyard/switch/fdb"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// RouteChange sets a route, or deletes it when Adjacency is nil.
type RouteChange struct {
	Prefix    netip.Prefix
	Adjacency *Adjacency
}

// UpdateRoutes applies the changes to a VNI's table all or nothing; the frames of a burst that follow each
// other in one VNI see all of them or none.
func (sw *Switch) UpdateRoutes(vni uint32, changes []RouteChange) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	net := sw.snapshot.Load().network(vni)
	if net == nil {
		return fmt.Errorf("routes of VNI %d: not configured", vni)
	}
	routes := sw.routes[vni]
	staged := make(map[netip.Prefix]fib.NextHop, len(changes))
	undo := func(err error) error {
		sw.release(slices.Collect(maps.Values(staged)))
		return fmt.Errorf("routes of VNI %d: %w", vni, err)
	}
	edits := make([]fib.Change, 0, len(changes))
	for _, c := range changes {
		if _, twice := staged[c.Prefix]; twice {
			return undo(fmt.Errorf("%s occurs twice in one change", c.Prefix))
		}
		nh := fib.None
		if c.Adjacency != nil {
			var err error
			if nh, err = sw.adjacencies.acquire(*c.Adjacency); err != nil {
				return undo(err)
			}
		}
		staged[c.Prefix] = nh
		edits = append(edits, fib.Change{Prefix: c.Prefix, NextHop: nh, Delete: nh == fib.None})
	}
	if err := net.fib.Apply(edits); err != nil {
		return undo(err)
	}
	sw.commit(routes, staged)
	return nil
}

// commit notes the staged next hops, None for a deleted route, and lets go of those that they replace.
func (sw *Switch) commit(routes, staged map[netip.Prefix]fib.NextHop) {
	var replaced []fib.NextHop
	for prefix, nh := range staged {
		replaced = append(replaced, routes[prefix])
		if nh == fib.None {
			delete(routes, prefix)
		} else {
			routes[prefix] = nh
		}
	}
	sw.release(replaced)
}

// release lets go of next hops. What the domain then runs is ours alone, under the mutex that every user
// of the domain holds.
func (sw *Switch) release(hops []fib.NextHop) {
	for _, nh := range hops {
		sw.adjacencies.release(nh, sw.domain.Retire)
	}
	sw.domain.Reclaim()
}

// AddStation makes a station known: its MAC and addresses, static, behind the port. What is another one's
// already is refused with the names of both ports, and fdb.ErrConflict or neigh.ErrConflict.
func (sw *Switch) AddStation(vni uint32, id port.ID, mac wire.MAC, addrs []netip.Addr) error {
	if err := sw.fdb.Insert(vni, mac, port.Dest{Port: id}); err != nil {
		return sw.nameBoth(id, err)
	}
	return sw.AddNeighbors(vni, id, mac, addrs)
}

// AddNeighbors has the switch answer ARP and neighbour solicitations for the addresses with mac, except
// to the port that they are behind, and announce them. Errors are AddStation's.
func (sw *Switch) AddNeighbors(vni uint32, id port.ID, mac wire.MAC, addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := sw.neighbors.Insert(vni, a, neigh.Neighbor{MAC: mac, Port: id}); err != nil {
			return sw.nameBoth(id, err)
		}
		select {
		case sw.slow.arrivals <- arrival{vni, id, mac, a}:
		default: // more at once than a node has pods: their neighbours' entries mend themselves
		}
	}
	return nil
}

// RemoveNeighbor ends what AddNeighbors began for one address. Of a port that is detached it isn't needed.
func (sw *Switch) RemoveNeighbor(vni uint32, addr netip.Addr) { sw.neighbors.Delete(vni, addr) }

// nameBoth says whose a MAC or an address is already; the tables know ports by number.
func (sw *Switch) nameBoth(claimant port.ID, err error) error {
	if c := (*fdb.ConflictError)(nil); errors.As(err, &c) {
		return fmt.Errorf("MAC %s of %s: it is that of %s already, in VNI %d: %w", c.MAC, sw.nameOf(claimant), sw.nameOf(c.Owner.Port), c.VNI, fdb.ErrConflict)
	}
	if c := (*neigh.ConflictError)(nil); errors.As(err, &c) {
		return fmt.Errorf("address %s of %s: it is that of %s already, in VNI %d: %w", c.Addr, sw.nameOf(claimant), sw.nameOf(c.Owner.Port), c.VNI, neigh.ErrConflict)
	}
	return fmt.Errorf("%s: %w", sw.nameOf(claimant), err)
}

// nameOf returns the name of a port, for messages.
func (sw *Switch) nameOf(id port.ID) string {
	ps := sw.snapshot.Load().port(id)
	switch {
	case id == port.Local:
		return "the switch"
	case ps == nil:
		return "a port that is gone"
	}
	return ps.port.Name()
}

// ForgetPeer removes what was learned behind a peer of a tunnel.
func (sw *Switch) ForgetPeer(tunnel port.ID, peer uint32) { sw.fdb.DeletePeer(tunnel, peer) }
