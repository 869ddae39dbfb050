package vswitch

import (
	"fmt"
	"sync/atomic"

	"tapyard/fib"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// AdjKind says what a route leads to.
type AdjKind uint8

// The kinds. The zero value leads nowhere, so that a missing route, next hop 0, needs no special case.
const (
	AdjNoRoute    AdjKind = iota // unreachable: ICMP net unreachable, no route
	AdjNoNeighbor                // a connected subnet without that station: ICMP host unreachable
	AdjLocal                     // the switch itself
	AdjForward                   // Dest, after the rewrite
)

var adjKindNames = [...]string{"no_route", "no_neighbor", "local", "forward"}

// String returns the kind's name in snake_case.
func (k AdjKind) String() string { return adjKindNames[k] }

// Adjacency is a next hop resolved: where a packet leaves and how its frame is rewritten. Values are
// comparable; routes with the same Adjacency share one entry.
type Adjacency struct {
	Kind   AdjKind
	Tunnel bool // Dest.Port is a tunnel, Dest.Peer the peer
	Own    bool // the destination is this node, so the TTL is left alone
	MTU    uint16
	DstMAC wire.MAC
	SrcMAC wire.MAC
	Dest   port.Dest
}

// adjacencies hands out next hops for Adjacency values. Workers read view; everything else is under the
// switch's mutex. An entry is written while no route leads to it, and written again only after a grace
// period, so readers see it whole.
type adjacencies struct {
	list  atomic.Pointer[[]Adjacency]
	index map[Adjacency]fib.NextHop
	refs  []int // routes per entry
	free  []fib.NextHop
}

func newAdjacencies() *adjacencies {
	a := &adjacencies{index: map[Adjacency]fib.NextHop{}, refs: make([]int, 1, 64)}
	list := make([]Adjacency, 1, 64) // entry 0 is what a missing route leads to
	a.list.Store(&list)
	return a
}

func (a *adjacencies) view() []Adjacency { return *a.list.Load() }

// acquire returns the next hop of adj for one more route.
func (a *adjacencies) acquire(adj Adjacency) (fib.NextHop, error) {
	nh, ok := a.index[adj]
	if !ok {
		var err error
		if nh, err = a.add(adj); err != nil {
			return 0, err
		}
		a.index[adj] = nh
	}
	a.refs[nh]++
	return nh, nil
}

func (a *adjacencies) add(adj Adjacency) (fib.NextHop, error) {
	list := a.view()
	if n := len(a.free); n > 0 {
		nh := a.free[n-1]
		a.free = a.free[:n-1]
		list[nh] = adj
		return nh, nil
	}
	nh := fib.NextHop(len(list))
	if nh > fib.MaxNextHop {
		return 0, fmt.Errorf("all %d next hops are in use", fib.MaxNextHop)
	}
	// append may write behind the end of the published slice, where no reader looks, or move it.
	list = append(list, adj)
	a.refs = append(a.refs, 0)
	a.list.Store(&list)
	return nh, nil
}

// release gives back one route's hold; the entry is free after the grace period that d gives.
func (a *adjacencies) release(nh fib.NextHop, retire func(func())) {
	if nh == fib.None {
		return
	}
	if a.refs[nh]--; a.refs[nh] > 0 {
		return
	}
	delete(a.index, a.view()[nh])
	retire(func() { a.free = append(a.free, nh) })
}
