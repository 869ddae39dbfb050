package vswitch

import (
	"net/netip"
	"slices"

	"tapyard/switch/drop"
	"tapyard/switch/wire"
)

// Read RFC 2827 and RFC 3704 (source validation), RFC 5227 (ARP), RFC 4862 section 5.4 (duplicate address
// detection), RFC 6105 (RA guard) and RFC 6980 (fragmented ND) first.

// Station is what the control plane gave to whoever is behind an access port.
type Station struct {
	MAC   wire.MAC
	Addrs []netip.Addr
}

// guard holds what a port sends against what its station was given.
type guard struct {
	mac wire.MAC
	v4  [][4]byte
	v6  [][16]byte
}

// newGuard allows the station's MAC, its addresses, and the link-local address that is made of the MAC.
func newGuard(s *Station) *guard {
	if s == nil {
		return nil
	}
	g := &guard{mac: s.MAC, v6: [][16]byte{wire.LinkLocal(s.MAC).As16()}}
	for _, a := range s.Addrs {
		if a.Is4() {
			g.v4 = append(g.v4, a.As4())
		} else {
			g.v6 = append(g.v6, a.As16())
		}
	}
	return g
}

// check returns why the frame can't be the station's own, or drop.None. claimed is the address that it
// claims in that case, if it claims one.
func (g *guard) check(b []byte, p *wire.Parsed) (reason drop.Reason, claimed netip.Addr) {
	if wire.Ethernet(b).Src() != g.mac {
		return drop.SpoofedMAC, claimed
	}
	switch p.Kind {
	case wire.KindARP:
		return g.checkARP(wire.ARP(b[p.L3:p.End]), p)
	case wire.KindIPv4:
		if !slices.Contains(g.v4, [4]byte(p.Src[:4])) {
			return drop.SpoofedIP, srcAddr(p)
		}
	case wire.KindIPv6:
		if !slices.Contains(g.v6, p.Src) && !unspecifiedAllowed(p) {
			return drop.SpoofedIP, srcAddr(p)
		}
		if p.ND {
			return g.checkND(wire.ICMPv6(b[p.L4:p.End]), p)
		}
	}
	return drop.None, claimed
}

// unspecifiedAllowed lets a station without an address look for duplicates of the one that it wants, for
// routers, and join groups.
func unspecifiedAllowed(p *wire.Parsed) bool {
	return p.Src == [16]byte{} && p.Proto == wire.ProtoICMPv6 && p.Dst[0] == 0xff
}

// checkARP lets the station ask and answer for its own addresses, and probe for any (RFC 5227 section 2.1).
func (g *guard) checkARP(arp wire.ARP, p *wire.Parsed) (drop.Reason, netip.Addr) {
	sender := [4]byte(p.Src[:4])
	probe := sender == [4]byte{} && arp.Op() == wire.ARPRequest
	if arp.SenderMAC() != g.mac || !probe && !slices.Contains(g.v4, sender) {
		return drop.SpoofedARP, arp.SenderIP()
	}
	return drop.None, netip.Addr{}
}

// checkND lets the station solicit, and advertise its own addresses with its own MAC.
func (g *guard) checkND(m wire.ICMPv6, p *wire.Parsed) (drop.Reason, netip.Addr) {
	if m.Type() == wire.ICMPv6RouterAdvert || m.Type() == wire.ICMPv6Redirect {
		return drop.RouterAdvert, netip.Addr{}
	}
	options, ok := wire.NDOptionsOf(m)
	if p.Fragment || !ok || !options.OnlyOf(g.mac) { // of a fragment, the rest can't be seen
		return drop.SpoofedND, srcAddr(p)
	}
	if m.Type() == wire.ICMPv6NeighborAdvert {
		if target := wire.NeighborAdvert(m).Target(); !slices.Contains(g.v6, target.As16()) {
			return drop.SpoofedND, target
		}
	}
	return drop.None, netip.Addr{}
}
