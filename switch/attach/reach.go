package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Read arp(7), rtnetlink(7) and RFC 4861 section 7.3 (neighbour unreachability detection) first.

// Underlay knows what of the nodes' network can't be reached from here. It believes this node's kernel alone: a route,
// a device's carrier, and a next hop that doesn't answer. Whoever is silent further away may be up and filtered, or
// a VXLAN device that never answers anything, so of those it says nothing. The zero value is ready. Its methods
// may be called from any goroutine.
type Underlay struct {
	mu     sync.Mutex
	silent map[netip.Addr]bool // next hops that haven't answered when they were asked last
}

// Blocked says why nothing that is sent from this node's address local arrives at to, or nil if it may. It has the
// kernel ask for the next hop, so that of a silent one a call some seconds later knows.
func (u *Underlay) Blocked(local, to netip.Addr) error {
	if err := checkOwn(local); err != nil {
		return err
	}
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice()})
	if err != nil {
		return fmt.Errorf("this node's routes have no way there ('ip route get %v from %v'): %w", to, local, err)
	}
	if len(routes) == 0 {
		return nil
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("the device of the route from %v: %w", local, err)
	}
	if link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return fmt.Errorf("device %s, which the route there leads to, has no carrier", link.Attrs().Name)
	}
	hop := to
	if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		hop = gw.Unmap()
	}
	return u.ask(link, hop)
}

// checkOwn says that the node has lost the address that its tunnels end at.
func checkOwn(local netip.Addr) error {
	addrs, err := netlink.AddrList(nil, familyOf(local))
	if err != nil {
		return nil // not known; the next call may
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(local.AsSlice()) }) {
		return fmt.Errorf("underlay %v is on no interface of this node any more ('ip address')", local)
	}
	return nil
}

// InterfaceAddress is an address of an interface of this node, with the length of its network.
type InterfaceAddress struct {
	Device string
	Prefix netip.Prefix
}

// InterfaceAddresses returns all of them, in the network namespace of the caller's thread. It asks the kernel three times,
// however many interfaces there are.
func InterfaceAddresses() (all []InterfaceAddress, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the node's interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := netlink.AddrList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list the addresses of the node's interfaces: %w", err)
		}
		for _, a := range addrs {
			all = append(all, InterfaceAddress{names[a.LinkIndex], prefixOf(a.IPNet)})
		}
	}
	return all, nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ask looks the next hop up in the kernel's neighbour table. While the kernel is asking, what was known before holds.
func (u *Underlay) ask(link netlink.Link, hop netip.Addr) error {
	state, err := neighborState(link, hop)
	if err != nil {
		return nil // not known
	}
	const surely = netlink.NUD_REACHABLE | netlink.NUD_PERMANENT | netlink.NUD_NOARP
	if state&surely == 0 && state != netlink.NUD_INCOMPLETE {
		if err := use(link, hop); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("have the kernel ask for %v on %s: %w", hop, link.Attrs().Name, err)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if state == netlink.NUD_FAILED {
		if u.silent == nil {
			u.silent = map[netip.Addr]bool{}
		}
		u.silent[hop] = true
	} else if state != netlink.NUD_INCOMPLETE {
		delete(u.silent, hop)
	}
	if u.silent[hop] {
		return fmt.Errorf("the next hop %v on device %s doesn't answer ('ip neigh')", hop, link.Attrs().Name)
	}
	return nil
}

// neighborState returns the NUD state of the neighbour, or NUD_NONE if the kernel has none.
func neighborState(link netlink.Link, hop netip.Addr) (int, error) {
	list, err := netlink.NeighList(link.Attrs().Index, familyOf(hop))
	for _, n := range list {
		if n.IP.Equal(hop.AsSlice()) {
			return n.State, nil
		}
	}
	return netlink.NUD_NONE, err
}

// use does what a packet to the neighbour would: it has the kernel ask for one that is not known, or not for sure.
func use(link netlink.Link, hop netip.Addr) error {
	if link.Attrs().RawFlags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) != 0 {
		return nil
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: familyOf(hop), IP: hop.AsSlice(),
		Flags: netlink.NTF_USE})
}
