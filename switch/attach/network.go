package attach

import (
	"errors"
	"fmt"
	"net/netip"

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

// allocate gives the attachment an address out of each pool.
func (n *network) allocate(a *Attachment) error {
	for _, p := range n.pools {
		addr, err := p.Allocate(a.Key())
		if errors.Is(err, ipam.ErrExhausted) {
			return errors.Join(&podapi.Error{Code: podapi.CodeTryAgain, Msg: "try again later"}, err)
		}
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
		if p == nil || p.Subnet() != addr.Masked() {
			return fmt.Errorf("its address %v is in none of the pod subnets %v: create the pod anew, or set 'podSubnets' back", addr, n.subnets())
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
