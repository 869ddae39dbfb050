package wire

// Neighbour discovery: RFC 4861 sections 4.1, 4.3, 4.4 (formats), 4.6 (options),
// 6.1.1, 7.1 (validation); RFC 2464 sections 6, 7 (link-layer option, multicast mapping).

import (
	"fmt"
	"net/netip"
)

// RouterSolicit is a view over a router solicitation, from the ICMPv6 type to the
// end of the message. Getters may be called only after IsValid said true.
type RouterSolicit []byte

// NeighborSolicit is a view over a neighbour solicitation, from the ICMPv6 type
// to the end of the message. Getters may be called only after IsValid said true.
type NeighborSolicit []byte

// NeighborAdvert is a view over a neighbour advertisement, from the ICMPv6 type to
// the end of the message. Getters may be called only after IsValid said true.
type NeighborAdvert []byte

const (
	ndFlags   = 4 // advertisements only
	ndTarget  = 8
	ndOptions = 24

	ndFlagRouter    = 0x80
	ndFlagSolicited = 0x40
	ndFlagOverride  = 0x20

	ndOptionUnit = 8 // option lengths count these

	rsOptions = 8

	// NDMinLen is the length of a message without options.
	NDMinLen = ndOptions

	// NDLen is the length of a message with a link-layer address.
	NDLen = NDMinLen + ndOptionUnit
)

// Types of ND options.
const (
	NDOptionSource uint8 = 1 // source link-layer address
	NDOptionTarget uint8 = 2 // target link-layer address
)

// IsValid checks what the message alone shows of RFC 4861 section 6.1.1: type,
// code, length, option lengths. Hop limit 255, the checksum and the rule about an
// unspecified source are for the caller, who has the IP header.
func (r RouterSolicit) IsValid() bool {
	return len(r) >= rsOptions && r[icmpType] == ICMPv6RouterSolicit && r[icmpCode] == 0 && r.Options().IsValid()
}

// IsValid checks what the message alone shows of RFC 4861 section 7.1.1: type,
// code, length, a unicast target, option lengths. Hop limit 255, the checksum and
// the rules about an unspecified source are for the caller, who has the IP header.
func (n NeighborSolicit) IsValid() bool { return ndValid(n, ICMPv6NeighborSolicit) }

// IsValid checks what the message alone shows of RFC 4861 section 7.1.2: type,
// code, length, a unicast target, option lengths. Hop limit 255, the checksum and
// the rule about multicast destinations are for the caller, who has the IP header.
func (n NeighborAdvert) IsValid() bool { return ndValid(n, ICMPv6NeighborAdvert) }

func ndValid(b []byte, icmpv6Type uint8) bool {
	return len(b) >= NDMinLen && b[icmpType] == icmpv6Type && b[icmpCode] == 0 &&
		b[ndTarget] != 0xff && // multicast
		NDOptions(b[ndOptions:]).IsValid()
}

// NDOptions is a view over the options behind a message's fixed part, perhaps none.
// Next may be called only after IsValid said true, which a valid message includes.
type NDOptions []byte

// IsValid says whether each option's length is above zero and inside the message.
func (o NDOptions) IsValid() bool {
	for len(o) > 0 {
		if len(o) < 2 || o[1] == 0 || int(o[1])*ndOptionUnit > len(o) {
			return false
		}
		o = o[int(o[1])*ndOptionUnit:]
	}
	return true
}

// Next returns the first option, its type and what follows the length, at least 6
// bytes, and the options behind it. There must be one.
func (o NDOptions) Next() (kind uint8, value []byte, rest NDOptions) {
	n := int(o[1]) * ndOptionUnit
	return o[0], o[2:n], o[n:]
}

// Options returns the message's options.
func (r RouterSolicit) Options() NDOptions { return NDOptions(r[rsOptions:]) }

// Options returns the message's options.
func (n NeighborSolicit) Options() NDOptions { return NDOptions(n[ndOptions:]) }

// Options returns the message's options.
func (n NeighborAdvert) Options() NDOptions { return NDOptions(n[ndOptions:]) }

// Target returns the address asked for.
func (n NeighborSolicit) Target() netip.Addr { return ndTargetOf(n) }

// Target returns the address that the advertisement speaks of.
func (n NeighborAdvert) Target() netip.Addr { return ndTargetOf(n) }

func ndTargetOf(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[ndTarget:ndOptions])) }

// Router returns the R flag: the sender is a router.
func (n NeighborAdvert) Router() bool { return n[ndFlags]&ndFlagRouter != 0 }

// Solicited returns the S flag: this answers a solicitation.
func (n NeighborAdvert) Solicited() bool { return n[ndFlags]&ndFlagSolicited != 0 }

// Override returns the O flag: a cached address shall be replaced.
func (n NeighborAdvert) Override() bool { return n[ndFlags]&ndFlagOverride != 0 }

// LinkLayer returns the first source link-layer address option, if there is one.
func (r RouterSolicit) LinkLayer() (MAC, bool) { return ndLinkLayer(r.Options(), NDOptionSource) }

// LinkLayer returns the first source link-layer address option, if there is one.
func (n NeighborSolicit) LinkLayer() (MAC, bool) { return ndLinkLayer(n.Options(), NDOptionSource) }

// LinkLayer returns the first target link-layer address option, if there is one.
func (n NeighborAdvert) LinkLayer() (MAC, bool) { return ndLinkLayer(n.Options(), NDOptionTarget) }

func ndLinkLayer(options NDOptions, want uint8) (MAC, bool) {
	for len(options) > 0 {
		kind, value, rest := options.Next()
		if kind == want && len(value) == len(MAC{}) { // longer ones are not Ethernet's
			return MAC(value), true
		}
		options = rest
	}
	return MAC{}, false
}

// NeighborSolicitFields are the fields of a neighbour solicitation. Target is
// IPv6. A zero LinkLayer leaves the option out, as a solicitation from the
// unspecified address must.
type NeighborSolicitFields struct {
	Target    netip.Addr
	LinkLayer MAC
}

// Len returns the length of the encoded message: NDMinLen or NDLen.
func (f *NeighborSolicitFields) Len() int { return ndLen(f.LinkLayer) }

// NeighborAdvertFields are the fields of a neighbour advertisement. Target is
// IPv6. A zero LinkLayer leaves the option out.
type NeighborAdvertFields struct {
	Router, Solicited, Override bool
	Target                      netip.Addr
	LinkLayer                   MAC
}

// Len returns the length of the encoded message: NDMinLen or NDLen.
func (f *NeighborAdvertFields) Len() int { return ndLen(f.LinkLayer) }

func ndLen(linkLayer MAC) int {
	if linkLayer.IsZero() {
		return NDMinLen
	}
	return NDLen
}

// Encode writes the message; n must have f.Len() bytes. The checksum is zero until
// ICMPv6(n).UpdateChecksum.
func (n NeighborSolicit) Encode(f *NeighborSolicitFields) {
	ndEncode(n, ICMPv6NeighborSolicit, 0, f.Target, NDOptionSource, f.LinkLayer)
}

// Encode writes the message; n must have f.Len() bytes. The checksum is zero until
// ICMPv6(n).UpdateChecksum.
func (n NeighborAdvert) Encode(f *NeighborAdvertFields) {
	var flags uint8
	if f.Router {
		flags |= ndFlagRouter
	}
	if f.Solicited {
		flags |= ndFlagSolicited
	}
	if f.Override {
		flags |= ndFlagOverride
	}
	ndEncode(n, ICMPv6NeighborAdvert, flags, f.Target, NDOptionTarget, f.LinkLayer)
}

func ndEncode(b []byte, icmpv6Type, flags uint8, target netip.Addr, option uint8, linkLayer MAC) {
	ICMPv6(b).Encode(&ICMPv6Fields{Type: icmpv6Type, Rest: uint32(flags) << 24})
	*(*[16]byte)(b[ndTarget:]) = target.As16()
	if !linkLayer.IsZero() {
		b[ndOptions], b[ndOptions+1] = option, 1
		*(*MAC)(b[ndOptions+2:]) = linkLayer
	}
}

// String describes the message for people.
func (r RouterSolicit) String() string {
	if !r.IsValid() {
		return invalid("router_solicit", r)
	}
	mac, _ := r.LinkLayer()
	return fmt.Sprintf("router_solicit link layer %v", mac)
}

// String describes the message for people.
func (n NeighborSolicit) String() string {
	if !n.IsValid() {
		return invalid("neighbor_solicit", n)
	}
	mac, _ := n.LinkLayer()
	return fmt.Sprintf("neighbor_solicit target %v link layer %v", n.Target(), mac)
}

// String describes the message for people.
func (n NeighborAdvert) String() string {
	if !n.IsValid() {
		return invalid("neighbor_advert", n)
	}
	mac, _ := n.LinkLayer()
	return fmt.Sprintf("neighbor_advert target %v link layer %v router %t solicited %t override %t",
		n.Target(), mac, n.Router(), n.Solicited(), n.Override())
}

// SolicitedNode returns the multicast address ff02::1:ffXX:XXXX whose last 24 bits
// are those of the IPv6 address a (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// MulticastMAC returns the Ethernet group address of a multicast IP address: for
// IPv4 01:00:5e and the last 23 bits (RFC 1112 section 6.4), for IPv6 33:33 and the
// last 32 (RFC 2464 section 7).
func MulticastMAC(a netip.Addr) MAC {
	b := a.As16() // an IPv4 address stands at the end
	if a.Is4() {
		return MAC{0x01, 0x00, 0x5e, b[13] & 0x7f, b[14], b[15]}
	}
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
