// Package control compiles what the control plane wants, a State, into the switch's tables, and puts pods
// into them as they come and go.
package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

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
	MTU        int      // of pods and of the host's device
	TunnelMTU  int      // what a tunnel carries: the underlay's MTU less the encapsulation
	Stretched  []uint32 // VNIs of the networks that are one segment with the peers'
	Guard      bool     // pods may only send from what they were given
	BUM        int      // broadcast, unknown-destination and multicast frames a second that a port may send
}

// claim is an address range with its owner's name, for messages that name both sides.
type claim struct {
	owner  string
	prefix netip.Prefix
}

// Validate checks the state as a whole, as this node sees it. The error lists everything that is wrong.
func (s *State) Validate(n *Node) error {
	var errs []error
	names := map[string]bool{}
	underlay := map[netip.Addr]string{}
	subnets := []claim{}
	for _, prefix := range n.PodSubnets {
		subnets = append(subnets, claim{n.Name + " (this node)", prefix})
		if len(s.ClusterCIDRs) > 0 && !s.inCluster(prefix) {
			errs = append(errs, fmt.Errorf("clusterCIDRs: %v don't contain this node's pod subnet %s", s.ClusterCIDRs, prefix))
		}
	}
	for _, a := range n.Underlay {
		errs = append(errs, s.validateUnderlay(claim{n.Name, single(a)}, underlay))
	}
	for _, cidr := range s.ClusterCIDRs {
		if cidr != cidr.Masked() {
			errs = append(errs, fmt.Errorf("clusterCIDRs: %s has host bits set; write %s", cidr, cidr.Masked()))
		}
	}
	if len(s.ClusterCIDRs) == 0 && len(s.Peers) > 0 {
		errs = append(errs, errors.New("clusterCIDRs is missing; it holds the pod subnets of all nodes, for example [10.244.0.0/16]"))
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Name == "" {
			errs = append(errs, fmt.Errorf("peers[%d]: it has no name", i))
			continue
		}
		if names[p.Name] {
			errs = append(errs, fmt.Errorf("peer %s: the name occurs twice; names identify nodes", p.Name))
		}
		names[p.Name] = true
		if p.Name == n.Name {
			errs = append(errs, p.matches(n))
			continue
		}
		errs = append(errs, p.validate(n))
		for _, a := range p.Underlay {
			errs = append(errs, s.validateUnderlay(claim{p.Name, single(a)}, underlay))
		}
		for _, prefix := range p.PodSubnets {
			errs = append(errs, s.validateSubnet(claim{p.Name, prefix}, subnets))
			subnets = append(subnets, claim{p.Name, prefix})
		}
	}
	return errors.Join(errs...)
}

// matches holds this node's own entry against its configuration: the other nodes go by the entry.
func (p *Peer) matches(n *Node) error {
	for _, a := range p.Underlay {
		if !slices.Contains(n.Underlay, a) {
			return fmt.Errorf("peer %s is this node, but underlay %s is none of its own %v", p.Name, a, n.Underlay)
		}
	}
	for _, prefix := range p.PodSubnets {
		if !slices.Contains(n.PodSubnets, prefix) {
			return fmt.Errorf("peer %s is this node, but pod subnet %s is none of its own %v", p.Name, prefix, n.PodSubnets)
		}
	}
	return nil
}

func (p *Peer) validate(n *Node) error {
	if len(p.Underlay) == 0 {
		return fmt.Errorf("peer %s: underlay is missing", p.Name)
	}
	if _, ok := p.VTEP(n.Underlay[0]); !ok {
		return fmt.Errorf("peer %s: no underlay address of the tunnels' family (this node's is %s)", p.Name, n.Underlay[0])
	}
	if p.MAC.IsMulticast() {
		return fmt.Errorf("peer %s: mac %s is a group address", p.Name, p.MAC)
	}
	return nil
}

// validateUnderlay refuses what is no node's address, somebody else's, or a pod's: the route to it would
// take over the pod's, or lead tunnels through themselves.
func (s *State) validateUnderlay(c claim, taken map[netip.Addr]string) error {
	a := c.prefix.Addr()
	if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("node %s: underlay %s is no unicast address of a node", c.owner, a)
	}
	if other, dup := taken[a]; dup {
		return fmt.Errorf("node %s: underlay %s is that of %s already", c.owner, a, other)
	}
	taken[a] = c.owner
	if s.inCluster(c.prefix) {
		return fmt.Errorf("node %s: underlay %s lies inside of clusterCIDRs %v, which are the pods'", c.owner, a, s.ClusterCIDRs)
	}
	return nil
}

func (s *State) validateSubnet(c claim, others []claim) error {
	if c.prefix != c.prefix.Masked() {
		return fmt.Errorf("peer %s: podSubnets: %s has host bits set; write %s", c.owner, c.prefix, c.prefix.Masked())
	}
	if !s.inCluster(c.prefix) {
		return fmt.Errorf("peer %s: podSubnets: %s lies outside of clusterCIDRs %v", c.owner, c.prefix, s.ClusterCIDRs)
	}
	for _, o := range others {
		if o.prefix.Overlaps(c.prefix) {
			return fmt.Errorf("peer %s: podSubnets: %s overlaps %s of %s", c.owner, c.prefix, o.prefix, o.owner)
		}
	}
	return nil
}

func (s *State) inCluster(p netip.Prefix) bool {
	for _, c := range s.ClusterCIDRs {
		if c.Bits() <= p.Bits() && c.Contains(p.Addr()) {
			return true
		}
	}
	return false
}
