package vswitch

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"tapyard/fib"
	"tapyard/switch/flow"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Role says what a port is to the switch.
type Role uint8

// The roles. Zero is invalid.
const (
	_          Role = iota
	RoleAccess      // a station's port: part of its VNI's L2 segment, and routed
	RoleHost        // the node's own TAP: only routed, never part of a segment
	RoleTunnel      // leads to peers: only routed; its frames bring their VNI
	roleLocal       // the switch itself
)

// Network is what a VNI is on this node. Without a RouterMAC it is a plain L2 segment.
type Network struct {
	VNI uint32
	// Stretched makes the segment one with those of the peers (SetFlood): frames are flooded into tunnels,
	// and stations behind peers are learned. Otherwise L2 ends at the node.
	Stretched bool
	RouterMAC wire.MAC
	// Gateways are .1 and ::1, the source of ICMP errors; Locals are .2 and ::2, the source of errors
	// towards the host, which drops errors that claim its own address (measured).
	Gateways, Locals []netip.Addr
}

// network is a Network with its tables.
type network struct {
	Network
	fib    *fib.Table
	flood  []*portState // its access ports
	tunnel *portState   // of a stretched network
	peers  []uint32     // of a stretched network: whom floods are replicated to
}

func (n *network) routes() bool { return !n.RouterMAC.IsZero() }

// source returns the address of the family of to that ICMP messages carry.
func (n *network) source(to netip.Addr, in Role) (netip.Addr, bool) {
	from := n.Gateways
	if in == RoleHost {
		from = n.Locals
	}
	for _, a := range from {
		if a.Is4() == to.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// PortConfig says how a port takes part in the switch.
type PortConfig struct {
	Role Role
	VNI  uint32 // of an access or host port; a tunnel's frames bring their own
	// Guard, of an access port, drops whatever the station was not given (RFC 2827). Nil lets everything in.
	Guard *Station
	// Segment says that many stations are behind an access port that nobody was given, as with an uplink: it
	// may learn them all, and isn't read less because some of them misbehave.
	Segment bool
	// BUM is how many broadcast, unknown-destination and multicast frames the port, or each peer behind a
	// tunnel, may send in a second, to each worker that receives from it; 0 is no limit.
	BUM int
	SYN int // TCP connections that an access port may open in a second; 0 is no limit
	// Sent and Received are what a station may send and be sent.
	Sent, Received Rate
}

// portState is a port and what the switch keeps about it. It is written at attach, except for the
// counters, the limits, and who polls its queues.
type portState struct {
	id      port.ID
	port    port.Port
	role    Role
	vni     uint32
	polled  int // receive queues that are registered with their workers; for set-up only
	rx      []port.RxQueue
	polling []polling             // of the queues in rx
	tx      []port.TxQueue        // by worker, the slow worker last
	stats   []port.Stats          // likewise
	guard   atomic.Pointer[guard] // nil lets everything in; it may be changed
	single  bool                  // one station is behind the port
	limits  []limits              // by worker
	quota   puntQuota

	sent, received *meter // nil has no limit

	// Of the ICMP errors that frames of this port cause; the slow worker's. Without the second kind, path
	// MTU discovery would wait for a timeout, so it is apart (Linux's icmp_ratemask leaves it out as well).
	errors, tooBig *bucket
	claimed        int64 // when it last was reported for claiming another one's address; the slow worker's
}

// Snapshot is what workers load once per burst: it never changes after it is published. The tables live
// on beside it: the FIB of each network, and the switch's Adjacencies, FDB and Neighbors.
type Snapshot struct {
	Generation uint64
	ports      []*portState // by port.ID; nil where none is attached
	networks   []*network   // few: one per VNI of the node
	mtu        int          // of pods
	flows      *flow.Table  // nil: connections are not tracked
}

func (s *Snapshot) port(id port.ID) *portState {
	if int(id) >= len(s.ports) {
		return nil
	}
	return s.ports[id]
}

// network scans: a node has one VNI per tenant network on it, and lookup asks once per change of VNI in
// a burst.
func (s *Snapshot) network(vni uint32) *network {
	for _, n := range s.networks {
		if n.VNI == vni {
			return n
		}
	}
	return nil
}

// clone returns a copy to change and publish, with the next generation.
func (s *Snapshot) clone() *Snapshot {
	c := &Snapshot{Generation: s.Generation + 1, mtu: s.mtu, flows: s.flows, ports: append([]*portState(nil), s.ports...)}
	for _, n := range s.networks {
		cn := *n
		c.networks = append(c.networks, &cn)
	}
	return c
}

// compile fills what the snapshot derives from its ports.
func (s *Snapshot) compile() {
	for _, n := range s.networks {
		n.flood, n.tunnel = nil, nil
		for _, ps := range s.ports {
			switch {
			case ps == nil:
			case ps.role == RoleAccess && ps.vni == n.VNI:
				n.flood = append(n.flood, ps)
			case ps.role == RoleTunnel && n.Stretched:
				n.tunnel = ps
			}
		}
	}
}

// freeID returns the lowest ID that no port has.
func (sw *Switch) freeID(s *Snapshot) (port.ID, error) {
	for id, ps := range s.ports {
		if ps == nil && sw.leaving[port.ID(id)] == nil {
			return port.ID(id), nil
		}
	}
	if len(s.ports) == maxPorts {
		return 0, fmt.Errorf("all %d ports of the switch are in use; detach some first", maxPorts)
	}
	return port.ID(len(s.ports)), nil
}

// maxPorts bounds what a flood costs and the workers' transmit tables; a Kubernetes node has 110 pods by
// default and 250 to 500 where administrators raised it.
const maxPorts = 4096
