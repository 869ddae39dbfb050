package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapyard/switch/wire"
)

// Validate checks the state as a whole, as this node sees it. The error lists everything that is wrong, and
// names both sides of what can't stand side by side. It takes O(n log n) time in the number of peers.
func (s *State) Validate(n *Node) error {
	v := validator{state: s, node: n, names: map[string]int{}, macs: map[wire.MAC]string{}, underlay: map[netip.Addr]string{}}
	v.checkNode()
	v.checkClusterCIDRs()
	for i := range s.Peers {
		v.checkPeer(i, &s.Peers[i])
	}
	v.checkRanges()
	return errors.Join(v.errs...)
}

type validator struct {
	state    *State
	node     *Node
	errs     []error
	names    map[string]int // index into state.Peers, by the name in lower case
	macs     map[wire.MAC]string
	underlay map[netip.Addr]string
	ranges   []claim
}

func (v *validator) bad(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

// thisNode is how messages call it.
func (v *validator) thisNode() string { return v.node.Name + " (this node)" }

func (v *validator) checkNode() {
	n := v.node
	if !n.RouterMAC.IsZero() {
		v.macs[n.RouterMAC] = v.thisNode()
	}
	for _, p := range n.PodSubnets {
		v.claim(claimSubnet, v.thisNode(), p)
	}
	for _, a := range n.Underlay {
		v.checkUnderlay(v.thisNode(), a)
	}
	for _, s := range n.Segments {
		v.claim(claimSegment, s.Network, s.Prefix)
	}
	for _, l := range n.Networks {
		v.claim(claimNetwork, "the network of this node's interface "+l.Device, l.Prefix)
	}
	for _, p := range nowhere {
		v.claim(claimNetwork, "which no router forwards to", p)
	}
}

func (v *validator) checkClusterCIDRs() {
	if len(v.state.ClusterCIDRs) == 0 && len(v.state.Peers) > 0 {
		v.bad("clusterCIDRs is missing; it holds the pod subnets of all nodes, for example [10.244.0.0/16]")
	}
	for _, p := range v.state.ClusterCIDRs {
		if v.checkPrefix("clusterCIDRs", p) {
			v.claim(claimCIDR, "", p)
		}
	}
}

func (v *validator) checkPeer(i int, p *Peer) {
	if !v.checkName(i, p.Name) {
		return
	}
	if p.Name == v.node.Name {
		v.checkOwnEntry(p)
		return
	}
	v.checkMAC(p)
	if len(p.Underlay) == 0 {
		v.bad("peer %s: underlay is missing; write the address where its tunnels end", p.Name)
	} else if local := v.node.Underlay[0]; !p.hasFamily(local) {
		v.bad("peer %s: no underlay address of the tunnels' family (this node's is %s)", p.Name, local)
	}
	for _, a := range p.Underlay {
		v.checkUnderlay(p.Name, a)
	}
	for _, prefix := range p.PodSubnets {
		if v.checkPrefix("peer "+p.Name+": podSubnets", prefix) {
			v.claim(claimSubnet, p.Name, prefix)
		}
	}
}

func (p *Peer) hasFamily(local netip.Addr) bool {
	_, ok := p.VTEP(local)
	return ok
}

// checkName reports whether the entry is to be looked at any further. Names that differ by case only are
// refused: their router MACs differ, so they would be two nodes, and whoever wrote them meant one.
func (v *validator) checkName(i int, name string) bool {
	if name == "" {
		v.bad("peers[%d]: it has no name; names identify nodes", i)
		return false
	}
	lower := strings.ToLower(name)
	if name != v.node.Name && lower == strings.ToLower(v.node.Name) {
		v.bad("peers[%d]: %s differs from this node's name, %s, by case only; write one of them as the other", i, name, v.node.Name)
		return false
	}
	switch first, taken := v.names[lower]; {
	case !taken:
		v.names[lower] = i
		return true
	case v.state.Peers[first].Name == name:
		v.bad("peers[%d]: %s is the name of peers[%d] already; names identify nodes", i, name, first)
	default:
		v.bad("peers[%d]: %s differs from %s, the name of peers[%d], by case only; names identify nodes", i, name, v.state.Peers[first].Name, first)
	}
	return false
}

// checkOwnEntry holds this node's own entry against its configuration: the other nodes go by the entry.
func (v *validator) checkOwnEntry(p *Peer) {
	for _, a := range p.Underlay {
		if !slices.Contains(v.node.Underlay, a) {
			v.bad("peer %s is this node, but underlay %s is none of its own %v", p.Name, a, v.node.Underlay)
		}
	}
	for _, prefix := range p.PodSubnets {
		if !slices.Contains(v.node.PodSubnets, prefix) {
			v.bad("peer %s is this node, but pod subnet %s is none of its own %v", p.Name, prefix, v.node.PodSubnets)
		}
	}
	if !p.MAC.IsZero() && p.MAC != v.node.RouterMAC {
		v.bad("peer %s is this node, but mac %s is not its router MAC %s; remove it", p.Name, p.MAC, v.node.RouterMAC)
	}
}

func (v *validator) checkMAC(p *Peer) {
	mac := p.RouterMAC()
	if mac.IsMulticast() {
		v.bad("peer %s: mac %s is a group address; write the one that the peer's router has", p.Name, mac)
		return
	}
	if other, taken := v.macs[mac]; taken {
		v.bad("peer %s: router MAC %s is that of %s already; set mac: to another one, or rename a node whose MAC comes from its name", p.Name, mac, other)
		return
	}
	v.macs[mac] = p.Name
}

// checkUnderlay refuses what is no node's address, or somebody else's.
func (v *validator) checkUnderlay(owner string, a netip.Addr) {
	other, taken := v.underlay[a]
	switch {
	case a.Is4In6():
		v.bad("node %s: underlay %s is an IPv4 address; write %s", owner, a, a.Unmap())
	case !a.IsGlobalUnicast() || a.Zone() != "":
		v.bad("node %s: underlay %s is no unicast address that other nodes can reach", owner, a)
	case taken && other == owner:
		v.bad("node %s: underlay %s is listed twice", owner, a)
	case taken:
		v.bad("node %s: underlay %s is that of %s already", owner, a, other)
	default:
		v.underlay[a] = owner
		v.claim(claimUnderlay, owner, single(a))
	}
}

// checkPrefix reports whether the prefix is one.
func (v *validator) checkPrefix(where string, p netip.Prefix) bool {
	switch {
	case !p.IsValid():
		v.bad("%s: an entry is empty", where)
	case p != p.Masked():
		v.bad("%s: %s has host bits set; write %s", where, p, p.Masked())
	default:
		return true
	}
	return false
}

// claimKind says what an address range is.
type claimKind uint8

const (
	claimCIDR     claimKind = iota // of the cluster's pods
	claimNetwork                   // of hosts, or of nobody
	claimSegment                   // of a further network: hosts may be in it, but no pod of the cluster
	claimSubnet                    // of one node's pods
	claimUnderlay                  // one node's address
)

// claim is an address range with its owner's name, for messages that name both sides.
type claim struct {
	kind   claimKind
	owner  string
	prefix netip.Prefix
}

func (v *validator) claim(kind claimKind, owner string, p netip.Prefix) {
	v.ranges = append(v.ranges, claim{kind, owner, p})
}

// checkRanges finds all claims that overlap in one pass. Two prefixes either nest or have nothing in
// common: sorted by address, the larger first, those that enclose a claim are the ones that are still open.
func (v *validator) checkRanges() {
	slices.SortStableFunc(v.ranges, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.kind, b.kind))
	})
	var open []claim
	for _, c := range v.ranges {
		for len(open) > 0 && !open[len(open)-1].prefix.Contains(c.prefix.Addr()) {
			open = open[:len(open)-1]
		}
		v.checkNesting(open, c)
		// Of 5,000 equal claims each is held against one.
		if n := len(open); n == 0 || open[n-1].kind != c.kind || open[n-1].prefix != c.prefix {
			open = append(open, c)
		}
	}
}

// checkNesting reports the innermost of the open claims that c can't stand beside. A subnet of the cluster
// isn't held against networks of hosts: clusterCIDRs, which enclose it, are, and once is enough.
func (v *validator) checkNesting(open []claim, c claim) {
	inCluster := slices.ContainsFunc(open, func(o claim) bool { return o.kind == claimCIDR })
	if c.kind == claimSubnet && !inCluster && len(v.state.ClusterCIDRs) > 0 {
		v.bad("node %s: pod subnet %s lies outside of clusterCIDRs %v; they hold the pod subnets of all nodes", c.owner, c.prefix, v.state.ClusterCIDRs)
	}
	for _, o := range slices.Backward(open) {
		if (o.kind == claimNetwork || o.kind == claimSegment) && c.kind == claimSubnet && inCluster {
			continue
		}
		if text := conflict(o, c); text != "" {
			v.bad("%s", text)
			return
		}
	}
}

// conflict says why outer, which encloses inner, can't stand beside it, or "".
func conflict(outer, inner claim) string {
	switch pair := [2]claimKind{outer.kind, inner.kind}; pair {
	case [2]claimKind{claimCIDR, claimCIDR}:
		if inner.prefix == outer.prefix {
			return fmt.Sprintf("clusterCIDRs: %s is listed twice; remove one", inner.prefix)
		}
		return fmt.Sprintf("clusterCIDRs: %s lies inside of %s; remove it", inner.prefix, outer.prefix)
	case [2]claimKind{claimCIDR, claimNetwork}:
		return fmt.Sprintf("clusterCIDRs: %s covers %s, %s; pods need addresses of their own", outer.prefix, inner.prefix, inner.owner)
	case [2]claimKind{claimNetwork, claimCIDR}:
		return fmt.Sprintf("clusterCIDRs: %s lies inside of %s, %s; pods need addresses of their own", inner.prefix, outer.prefix, outer.owner)
	case [2]claimKind{claimCIDR, claimSegment}:
		return segmentConflict(inner, "clusterCIDRs "+outer.prefix.String())
	case [2]claimKind{claimSegment, claimCIDR}:
		return segmentConflict(outer, "clusterCIDRs "+inner.prefix.String())
	case [2]claimKind{claimSubnet, claimSegment}:
		return segmentConflict(inner, "pod subnet "+outer.prefix.String()+" of "+outer.owner)
	case [2]claimKind{claimSegment, claimSubnet}:
		return segmentConflict(outer, "pod subnet "+inner.prefix.String()+" of "+inner.owner)
	case [2]claimKind{claimCIDR, claimUnderlay}:
		return fmt.Sprintf("node %s: underlay %s lies inside of clusterCIDRs %s, which is the pods'", inner.owner, inner.prefix.Addr(), outer.prefix)
	case [2]claimKind{claimSubnet, claimSubnet}:
		return fmt.Sprintf("node %s: pod subnet %s overlaps %s of %s", inner.owner, inner.prefix, outer.prefix, outer.owner)
	case [2]claimKind{claimSubnet, claimNetwork}:
		return fmt.Sprintf("node %s: pod subnet %s covers %s, %s; pods need addresses of their own", outer.owner, outer.prefix, inner.prefix, inner.owner)
	case [2]claimKind{claimNetwork, claimSubnet}:
		return fmt.Sprintf("node %s: pod subnet %s lies inside of %s, %s; pods need addresses of their own", inner.owner, inner.prefix, outer.prefix, outer.owner)
	case [2]claimKind{claimSubnet, claimUnderlay}:
		return fmt.Sprintf("node %s: underlay %s lies inside of pod subnet %s of %s", inner.owner, inner.prefix.Addr(), outer.prefix, outer.owner)
	}
	return ""
}

func segmentConflict(segment claim, other string) string {
	return fmt.Sprintf("network %s of this node: subnet %s overlaps %s; a pod in both could not tell them apart", segment.owner, segment.prefix, other)
}
