// Package control compiles what the control plane wants, a State, into the switch's tables, and puts pods
// into them as they come and go.
package control

import (
	"net/netip"
	"slices"

	"tapyard/switch/attach"
	"tapyard/switch/wire"
)

// State is what a source (a file, gossip, Kubernetes) says about the cluster.
type State struct {
	ClusterCIDRs []netip.Prefix // all pods of the cluster; what in them is nobody's subnet is unreachable
	Peers        []Peer         // the other nodes; this node's own entry is ignored
}

// Peer is another node that runs a switch.
type Peer struct {
	Name       string
	Underlay   []netip.Addr // the first one of the tunnels' family ends the tunnel
	PodSubnets []netip.Prefix
	MAC        wire.MAC // router MAC; zero means the one derived from the name
}

// RouterMAC returns the MAC that frames into the tunnel are addressed to.
func (p *Peer) RouterMAC() wire.MAC {
	if p.MAC.IsZero() {
		return wire.RouterMAC(p.Name)
	}
	return p.MAC
}

// VTEP returns the peer's address in the family of local.
func (p *Peer) VTEP(local netip.Addr) (netip.Addr, bool) {
	for _, a := range p.Underlay {
		if a.Is4() == local.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Node is this node, from its configuration.
type Node struct {
	Name       string
	VNI        uint32
	PodSubnets []netip.Prefix
	Underlay   []netip.Addr // the first one is the tunnels' end
	RouterMAC  wire.MAC
	MTU        int            // of pods and of the host's device
	TunnelMTU  int            // what a tunnel carries: the underlay's MTU less the encapsulation
	Stretched  []uint32       // VNIs of the networks that are one segment with the peers'
	Guard      bool           // pods may only send from what they were given
	BUM        int            // broadcast, unknown-destination and multicast frames a second that a port may send
	Flows      bool           // track connections
	Segments   []Segment      // addresses of the further networks, which must not be those of the cluster's pods
	Networks   []LocalNetwork // that pods' addresses must not overlap; see LocalNetworks
}

// Segment is a subnet of one of the node's further networks.
type Segment struct {
	Network string
	Prefix  netip.Prefix
}

// LocalNetwork is the network of an address that an interface of this node has.
type LocalNetwork struct {
	Device string
	Prefix netip.Prefix
}

// LocalNetworks returns the networks of this node's interfaces, in the network namespace of the caller's
// thread, except those of the devices that are named: the switch's own.
func LocalNetworks(except ...string) (networks []LocalNetwork, err error) {
	assigned, err := attach.InterfaceAddresses()
	for _, a := range assigned {
		if !slices.Contains(except, a.Device) {
			networks = append(networks, LocalNetwork{a.Device, a.Prefix.Masked()})
		}
	}
	return networks, err
}
