package control

import (
	"net/netip"
	"slices"

	"tapyard/cniplugin/podapi"
	"tapyard/switch/attach"
	"tapyard/switch/port"
)

// An IPAM plugin may give a pod of the node's own network an address outside of the node's pod subnets. Peers
// have no route to it; on this node it is reached like any other, by pods, and by the host through a route of
// its own. The gateway that comes with it, which no device has, is answered for by the switch.

// checkPod refuses a MAC that is the node's, and an address that other nodes or the underlay have.
func (c *Controller) checkPod(a *attach.Attachment) error {
	if a.MAC == c.node.RouterMAC || a.MAC == c.links.HostMAC {
		return podapi.Errorf(podapi.CodeInvalidConf, "MAC %v is the node's own; want another one", a.MAC)
	}
	for _, addr := range c.ForeignOf(a) {
		c.mu.Lock()
		owner := c.ownerOf(addr)
		c.mu.Unlock()
		if owner != "" {
			return podapi.Errorf(podapi.CodeInvalidConf, "address %v belongs to %s; have the IPAM plugin give out addresses of this node's pod subnets %v, or such as nobody else in the cluster has",
				addr, owner, c.node.PodSubnets)
		}
	}
	return nil
}

// ownerOf says who else has the address, or "".
func (c *Controller) ownerOf(addr netip.Addr) string {
	inside := func(p netip.Prefix) bool { return p.Contains(addr) }
	if slices.Contains(c.node.Underlay, addr) {
		return "this node's underlay"
	}
	for i := range c.state.Peers {
		p := &c.state.Peers[i]
		if p.Name != c.node.Name && (slices.ContainsFunc(p.PodSubnets, inside) || slices.Contains(p.Underlay, addr)) {
			return "peer " + p.Name
		}
	}
	if i := slices.IndexFunc(c.state.ClusterCIDRs, inside); i >= 0 {
		return "the cluster's " + c.state.ClusterCIDRs[i].String() + ", which other nodes' pods are in"
	}
	return ""
}

// ForeignOf returns those of the pod's addresses that are in none of the node's pod subnets, in the network with
// routes.
func (c *Controller) ForeignOf(a *attach.Attachment) []netip.Addr {
	if len(c.node.PodSubnets) == 0 || a.VNI != c.node.VNI {
		return nil
	}
	return slices.DeleteFunc(a.Addrs(), c.isOwn)
}

func (c *Controller) isOwn(addr netip.Addr) bool {
	return slices.ContainsFunc(c.node.PodSubnets, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Foreign returns the addresses of this node's pods that are in none of its pod subnets, in no order.
func (c *Controller) Foreign() (addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pods {
		if !p.leaving {
			addrs = append(addrs, c.ForeignOf(&p.a)...)
		}
	}
	return addrs
}

// gateways returns those of the pod's gateways that only the switch can answer for.
func (c *Controller) gateways(a *attach.Attachment) []netip.Addr {
	if a.IPAM == nil || len(c.ForeignOf(a)) == 0 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(a.IPAM.Gateways), func(gw netip.Addr) bool { return !gw.IsValid() || c.isOwn(gw) })
}

// answerFor has the switch answer for the pod's gateways.
func (c *Controller) answerFor(a *attach.Attachment) error {
	return c.sw.AddNeighbors(a.VNI, port.Local, c.node.RouterMAC, c.gateways(a))
}

// forgetGateways ends that for those that no other pod has.
func (c *Controller) forgetGateways(a *attach.Attachment) {
	for _, gw := range c.gateways(a) {
		used := false
		for _, p := range c.pods {
			used = used || slices.Contains(c.gateways(&p.a), gw)
		}
		if !used {
			c.sw.RemoveNeighbor(a.VNI, gw)
		}
	}
}
