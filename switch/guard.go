package vswitch

import (
	"net/netip"
	"slices"

	"tapyard/switch/drop"
	"tapyard/switch/neigh"
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
		return g.checkClaim(b, p, drop.SpoofedARP)
	case wire.KindIPv4:
		if !slices.Contains(g.v4, [4]byte(p.Src[:4])) && !asksDHCP(p) {
			return drop.SpoofedIP, srcAddr(p)
		}
	case wire.KindIPv6:
		if !slices.Contains(g.v6, p.Src) && !unspecifiedAllowed(b, p) {
			return drop.SpoofedIP, srcAddr(p)
		}
		if p.ND {
			return g.checkClaim(b, p, drop.SpoofedND)
		}
	}
	return drop.None, claimed
}

// asksDHCP lets a station without an address ask for one (RFC 2131 section 4.1). Some clients renew a lease that way,
// too. Such a packet is never routed.
func asksDHCP(p *wire.Parsed) bool {
	return [4]byte(p.Src[:4]) == [4]byte{} && p.Proto == wire.ProtoUDP && !p.Fragment && p.SrcPort == 68 && p.DstPort == 67
}

// unspecifiedAllowed lets a station without an address look for duplicates of the one that it wants, for
// routers, and join groups (RFC 4861 section 4, RFC 3590, RFC 3810 section 5.2.13).
func unspecifiedAllowed(b []byte, p *wire.Parsed) bool {
	if p.Src != [16]byte{} || p.Proto != wire.ProtoICMPv6 || p.Fragment || p.Dst[0] != 0xff {
		return false
	}
	switch wire.ICMPv6(b[p.L4:]).Type() {
	case wire.ICMPv6MLDReport, wire.ICMPv6MLDDone, wire.ICMPv6MLDv2Report:
		return true
	}
	return p.ND
}

// checkClaim lets the station speak for its own addresses with its own MAC, and probe for any address. What
// can't be understood in one way only is dropped for the reason, too.
func (g *guard) checkClaim(b []byte, p *wire.Parsed, reason drop.Reason) (drop.Reason, netip.Addr) {
	c, finding := neigh.ReadClaim(b, p)
	switch finding {
	case neigh.NoClaim:
		return drop.None, netip.Addr{}
	case neigh.RouterOnly:
		return drop.RouterAdvert, netip.Addr{}
	case neigh.Claimed:
		if (c.Probe || g.owns(c.Addr)) && (c.MAC.IsZero() || c.MAC == g.mac) {
			return drop.None, netip.Addr{}
		}
		return reason, c.Addr
	}
	return reason, netip.Addr{}
}

func (g *guard) owns(a netip.Addr) bool {
	if a.Is4() {
		return slices.Contains(g.v4, a.As4())
	}
	return slices.Contains(g.v6, a.As16())
}
