package neigh

import (
	"net/netip"

	"tapyard/switch/wire"
)

// Read RFC 826 (packet reception), RFC 5227 section 1.1 (probes), RFC 4861 sections 6.1.1 and 7.1 (validation),
// RFC 4862 section 5.4 (duplicate address detection) and RFC 6980 (fragments) first.

// Claim is what a frame says about who has an address.
type Claim struct {
	// Addr is a unicast address, IPv4 written as IPv4.
	Addr netip.Addr
	// MAC is zero in an ND message without a link-layer address option: who hears that looks no further than
	// what it knows. ARP always names one.
	MAC wire.MAC
	// Probe says that the sender doesn't have Addr yet: it wants it, and asks whether anybody else does.
	Probe bool
}

// Finding is the kind of frame that ReadClaim met. The zero value is none.
type Finding uint8

const (
	_          Finding = iota
	NoClaim            // neither ARP nor ND; or a router solicitation from ::, which says nothing
	Claimed            // ARP, a router or neighbour solicitation, or an advertisement: the Claim is filled
	RouterOnly         // a router advertisement or a redirect: not looked into, since no pod may send one
	Malformed          // ARP or ND that a receiver must discard, or that two receivers could understand differently
)

var findingNames = [...]string{"invalid", "no_claim", "claimed", "router_only", "malformed"}

// String returns the finding in snake_case.
func (f Finding) String() string {
	if int(f) < len(findingNames) {
		return findingNames[f]
	}
	return "invalid"
}

// ReadClaim returns what the frame makes its receivers believe, for whoever guards a port and for reports of
// conflicts: the sender of ARP, whatever its operation (but in a probe, from 0.0.0.0, the target); the source
// of a solicitation (but in a probe, from ::, the target); and the target of an advertisement. The checksum is
// not looked at, since a pod's kernel may leave it to us. p is Parse's result without a fault. It reads hostile
// bytes and allocates nothing.
func ReadClaim(frame []byte, p *wire.Parsed) (c Claim, f Finding) {
	switch {
	case p.Kind == wire.KindARP:
		return arpClaim(wire.ARP(frame[p.L3:]))
	case !p.ND:
		return Claim{}, NoClaim
	case p.Fragment || p.TTL != ndHopLimit || int(p.End) > len(frame):
		return Claim{}, Malformed
	}
	message := frame[p.L4:p.End]
	switch wire.ICMPv6(message).Type() {
	case wire.ICMPv6RouterSolicit:
		return routerSolicitClaim(wire.RouterSolicit(message), p)
	case wire.ICMPv6NeighborSolicit:
		return solicitClaim(wire.NeighborSolicit(message), p)
	case wire.ICMPv6NeighborAdvert:
		return advertClaim(wire.NeighborAdvert(message), p)
	}
	return Claim{}, RouterOnly
}

func arpClaim(arp wire.ARP) (Claim, Finding) {
	if !arp.IsValid() { // a copy that was cut short
		return Claim{}, Malformed
	}
	c := Claim{Addr: arp.SenderIP(), MAC: arp.SenderMAC()}
	if c.Addr.IsUnspecified() {
		c.Addr, c.Probe = arp.TargetIP(), true
	}
	return checked(c, isStation(c.MAC) && (!c.Probe || arp.Op() == wire.ARPRequest))
}

// checked returns the claim if it is valid and that of one address.
func checked(c Claim, valid bool) (Claim, Finding) {
	if !valid || !isUnicast(c.Addr) {
		return Claim{}, Malformed
	}
	return c, Claimed
}

func routerSolicitClaim(rs wire.RouterSolicit, p *wire.Parsed) (Claim, Finding) {
	if !rs.IsValid() {
		return Claim{}, Malformed
	}
	src := netip.AddrFrom16(p.Src)
	mac, ok := linkLayer(rs.Options(), wire.NDOptionSource)
	if src.IsUnspecified() && ok && mac.IsZero() {
		return Claim{}, NoClaim
	}
	return checked(Claim{Addr: src, MAC: mac}, ok)
}

func solicitClaim(ns wire.NeighborSolicit, p *wire.Parsed) (Claim, Finding) {
	if !ns.IsValid() || !fromStation(ns, p) {
		return Claim{}, Malformed
	}
	c := Claim{Addr: netip.AddrFrom16(p.Src)}
	if c.Addr.IsUnspecified() {
		c.Addr, c.Probe = ns.Target(), true
	}
	mac, ok := linkLayer(ns.Options(), wire.NDOptionSource)
	c.MAC = mac
	return checked(c, ok)
}

func advertClaim(na wire.NeighborAdvert, p *wire.Parsed) (Claim, Finding) {
	if !na.IsValid() {
		return Claim{}, Malformed
	}
	mac, ok := linkLayer(na.Options(), wire.NDOptionTarget)
	toMany := netip.AddrFrom16(p.Dst).IsMulticast()
	return checked(Claim{Addr: na.Target(), MAC: mac}, ok && !(na.Solicited() && toMany))
}

// linkLayer returns the link-layer address of a message, zero for none. ok is false for a length that isn't
// Ethernet's (RFC 2464 section 6), an address that isn't a station's, and two different addresses, of which
// receivers may take either.
func linkLayer(options wire.NDOptions, want uint8) (mac wire.MAC, ok bool) {
	for len(options) > 0 {
		kind, value, rest := options.Next()
		options = rest
		if kind != want {
			continue
		}
		if len(value) != len(mac) || !isStation(wire.MAC(value)) || !mac.IsZero() && mac != wire.MAC(value) {
			return wire.MAC{}, false
		}
		mac = wire.MAC(value)
	}
	return mac, true
}
