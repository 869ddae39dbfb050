package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"tapyard/cniplugin/ipam"
	"tapyard/cniplugin/podapi"
)

// Network is a further network of the node, beside the one that Config itself describes: an L2 segment,
// without gateway and routes, that a conflist selects by its key "network".
type Network struct {
	Name    string
	VNI     uint32
	Subnets []netip.Prefix // at most one per address family; none: pods bring addresses of their own
	Ranges  []netip.Prefix // of Subnets, in their order: what this node gives out; nil: all of them
	MTU     int            // of its pods, in bytes, when no tunnel limits it; 0 is Config.MTU's
}

// network is what pods of one VNI get.
type network struct {
	name   string
	vni    uint32
	pools  []*ipam.Pool
	routed bool // the pools' first address is a gateway
	mtu    int  // 0 is Config.MTU's

	mu    sync.Mutex
	parts map[netip.Prefix]*ipam.Pool // of the pools, for configurations with ranges of their own
}

// makeNetworks makes the node's own network, which has no name, and the further ones.
func (m *Manager) makeNetworks() error {
	if m.cfg.L2 != (len(m.cfg.Subnets) == 0) {
		return fmt.Errorf("pod subnets %v: routed mode needs at least one, L2 mode none ('podSubnets', 'mode')", m.cfg.Subnets)
	}
	own := &network{vni: m.cfg.VNI, routed: !m.cfg.L2}
	if err := own.makePools(m.cfg.Subnets, nil); err != nil {
		return err
	}
	m.networks = []*network{own}
	for _, cfg := range m.cfg.Networks {
		n := &network{name: cfg.Name, vni: cfg.VNI, mtu: cfg.MTU}
		if err := n.makePools(cfg.Subnets, cfg.Ranges); err != nil {
			return fmt.Errorf("network %s: %w", cfg.Name, err)
		}
		m.networks = append(m.networks, n)
	}
	return nil
}

func (n *network) makePools(subnets, ranges []netip.Prefix) error {
	if ranges != nil && len(ranges) != len(subnets) {
		return fmt.Errorf("ranges %v: want one for each of subnets %v, in their order", ranges, subnets)
	}
	for i, subnet := range subnets {
		part := subnet
		if ranges != nil {
			part = ranges[i]
		}
		p, err := ipam.NewRange(subnet, part)
		if err != nil {
			return err
		}
		if same := n.pool(p.Gateway()); same != nil {
			return fmt.Errorf("pod subnets %v and %v are of one address family; a node has one of each", same.Subnet(), subnet)
		}
		n.pools = append(n.pools, p)
	}
	return nil
}

// pool returns the pool of the address's family, or nil.
func (n *network) pool(a netip.Addr) *ipam.Pool {
	for _, p := range n.pools {
		if p.Gateway().Is4() == a.Is4() {
			return p
		}
	}
	return nil
}

// allocate gives the attachment an address out of each pool, or of its configuration's own part of it: those
// that are wanted, or any.
func (m *Manager) allocate(a *Attachment, wanted []netip.Addr) error {
	n := m.networkOf(a.VNI)
	others, err := m.othersRanges(a)
	if err != nil {
		return err
	}
	for _, pool := range n.pools {
		p, err := n.part(pool, a.Ranges)
		if err != nil {
			return err
		}
		addr, err := take(p, a.Key(), wanted, others)
		if err != nil {
			return err
		}
		a.Addresses = append(a.Addresses, addr)
		if n.routed {
			a.Gateways = append(a.Gateways, p.Gateway())
		}
	}
	return nil
}

// take takes the wanted address of the pool's family, or one that no other configuration has for itself.
func take(p *ipam.Pool, key string, wanted []netip.Addr, others []netip.Prefix) (netip.Prefix, error) {
	for _, a := range wanted {
		if a.Is4() == p.Gateway().Is4() {
			return netip.PrefixFrom(a, p.Subnet().Bits()), refusedClaim(p.Claim(a, key))
		}
	}
	addr, err := p.Allocate(key, others...)
	if errors.Is(err, ipam.ErrExhausted) {
		err = errors.Join(&podapi.Error{Code: podapi.CodeTryAgain, Msg: "try again later"}, err)
	}
	return addr, err
}

// refusedClaim gives the error of a claim its code: a holder may go, the pool's bounds stay.
func refusedClaim(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ipam.ErrTaken):
		return errors.Join(&podapi.Error{Code: podapi.CodeTryAgain, Msg: "try again when it is free, or want another address"}, err)
	}
	return errors.Join(&podapi.Error{Code: podapi.CodeInvalidConf, Msg: "want another address"}, err)
}

// othersRanges returns the ranges that other configurations with pods here have for themselves. One that
// overlaps the attachment's own would make two pools of one.
func (m *Manager) othersRanges(a *Attachment) (others []netip.Prefix, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.a.VNI != a.VNI || e.a.Conflist == a.Conflist {
			continue
		}
		for _, theirs := range e.a.Ranges {
			for _, ours := range a.Ranges {
				if ours.Overlaps(theirs) {
					return nil, wrong("ranges", ours.String(), fmt.Sprintf("it overlaps %v of configuration %q, which pod %s is in; give %q another range",
						theirs, e.a.Conflist, e.a.Name, a.Conflist))
				}
			}
			if !slices.Contains(others, theirs) {
				others = append(others, theirs)
			}
		}
	}
	return others, nil
}

// part returns the pool, or the part of it that one of the ranges is.
func (n *network) part(pool *ipam.Pool, ranges []netip.Prefix) (*ipam.Pool, error) {
	for _, r := range ranges {
		if r.Addr().Is4() != pool.Gateway().Is4() || r == pool.Subnet() {
			continue
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if p := n.parts[r]; p != nil {
			return p, nil
		}
		p, err := pool.Within(r)
		if err != nil {
			return nil, podapi.Errorf(podapi.CodeInvalidConf, "key \"ranges\" or \"subnet\": %v", err)
		}
		if n.parts == nil {
			n.parts = map[netip.Prefix]*ipam.Pool{}
		}
		n.parts[r] = p
		return p, nil
	}
	return pool, nil
}

// checkConf refuses what a configuration can't have in this network.
func (n *network) checkConf(c *Conf) error {
	for _, r := range c.Ranges {
		if n.pool(r.Addr()) == nil {
			return wrong("ranges", r.String(), fmt.Sprintf("the network has subnets %v, none of that family; leave it out, or add one in tapyard.yaml", n.subnets()))
		}
	}
	for _, a := range c.IPs {
		if n.pool(a) == nil {
			return wrong("ips", a.String(), fmt.Sprintf("the network has subnets %v, none of that family; leave it out, or add one in tapyard.yaml", n.subnets()))
		}
	}
	if len(c.PortMappings) > 0 && !n.routed {
		return wrong("runtimeConfig.portMappings", c.PortMappings[0].String(), "the host reaches pods of the node's own routed network only; map ports there")
	}
	for i, r := range c.Routes {
		if err := n.checkRoute(c, r); err != nil {
			return err
		}
		if p := n.pool(r.Dst.Addr()); !r.GW.IsValid() && p != nil && n.routed {
			c.Routes[i].GW = p.Gateway()
		}
	}
	return nil
}

// checkRoute wants a gateway that the pod can have as a neighbour, as far as its addresses are ours to give.
func (n *network) checkRoute(c *Conf, r Route) error {
	p := n.pool(r.Dst.Addr())
	if c.IPAM != nil {
		return nil
	}
	if p == nil {
		return wrong("routes", r.Dst.String(), fmt.Sprintf("the network has subnets %v, so that pods have no address of that family", n.subnets()))
	}
	if r.GW.IsValid() && !p.Subnet().Contains(r.GW) {
		return wrong("routes.gw", r.GW.String(), fmt.Sprintf("want an address of the network's subnet %v", p.Subnet()))
	}
	return nil
}

// networkNamed returns the network that a conflist asks for.
func (m *Manager) networkNamed(name string) (*network, error) {
	var names []string
	for _, n := range m.networks {
		if n.name == name {
			return n, nil
		}
		names = append(names, n.name)
	}
	return nil, podapi.Errorf(podapi.CodeInvalidConf, "key \"network\" is %q: this node has %q ('networks' in tapyard.yaml); without the key, pods join the node's own",
		name, names[1:])
}

// networkOf returns the network of a recorded attachment, or nil.
func (m *Manager) networkOf(vni uint32) *network {
	for _, n := range m.networks {
		if n.vni == vni {
			return n
		}
	}
	return nil
}

// claim takes an attachment's recorded addresses out of the pools.
func (m *Manager) claim(a Attachment) error {
	n := m.networkOf(a.VNI)
	if n == nil {
		return fmt.Errorf("this node has no network with its VNI %d any more: create the pod anew, or set 'vni' or 'networks' back", a.VNI)
	}
	for _, addr := range a.Addresses {
		p := n.pool(addr.Addr())
		if a.IPAM != nil && (p == nil || !p.Subnet().Contains(addr.Addr())) {
			continue // a plugin's, and no pool's
		}
		if p == nil || p.Subnet() != addr.Masked() {
			return fmt.Errorf("its address %v is in none of the pod subnets %v: create the pod anew, or set 'podSubnets' back", addr, n.subnets())
		}
		if part, err := n.part(p, a.Ranges); err == nil && part.Claim(addr.Addr(), a.Key()) == nil {
			continue // and its configuration goes on behind it
		}
		if err := p.Claim(addr.Addr(), a.Key()); err != nil {
			return err
		}
	}
	return nil
}

func (n *network) subnets() (subnets []netip.Prefix) {
	for _, p := range n.pools {
		subnets = append(subnets, p.Subnet())
	}
	return subnets
}

func (m *Manager) release(key string) {
	for _, n := range m.networks {
		for _, p := range n.pools {
			p.Release(key)
		}
	}
}
