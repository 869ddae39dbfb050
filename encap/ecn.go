package encap

import (
	"tapyard/switch/drop"
	"tapyard/switch/wire"
)

// Read RFC 6040 section 4 (ECN in tunnels) and RFC 2983 (DSCP in tunnels) first.

// outerTOS returns the TOS or traffic class for the datagram around a frame: the packet's ECN field, copied
// as normal mode says (RFC 6040 section 4.1), and no DSCP. It is 0 for what isn't IP.
func outerTOS(b []byte) uint8 {
	if len(b) < wire.EthernetLen+wire.IPv4MinLen { // so the first bytes of either IP header are there
		return 0
	}
	switch wire.Ethernet(b).EtherType() {
	case wire.EtherTypeIPv4:
		return wire.IPv4(b[wire.EthernetLen:]).TOS() & wire.ECNMask
	case wire.EtherTypeIPv6:
		return wire.IPv6(b[wire.EthernetLen:]).TrafficClass() & wire.ECNMask
	}
	return 0
}

// noECN stands in decapsulated for a packet that must be dropped.
const noECN uint8 = 0xff

// decapsulated is figure 4 of RFC 6040: the ECN field of a packet after decapsulation, by the inner and the
// outer one.
var decapsulated = [4][4]uint8{
	wire.ECNNotECT: {wire.ECNNotECT: wire.ECNNotECT, wire.ECNECT0: wire.ECNNotECT, wire.ECNECT1: wire.ECNNotECT, wire.ECNCE: noECN},
	wire.ECNECT0:   {wire.ECNNotECT: wire.ECNECT0, wire.ECNECT0: wire.ECNECT0, wire.ECNECT1: wire.ECNECT1, wire.ECNCE: wire.ECNCE},
	wire.ECNECT1:   {wire.ECNNotECT: wire.ECNECT1, wire.ECNECT0: wire.ECNECT1, wire.ECNECT1: wire.ECNECT1, wire.ECNCE: wire.ECNCE},
	wire.ECNCE:     {wire.ECNNotECT: wire.ECNCE, wire.ECNECT0: wire.ECNCE, wire.ECNECT1: wire.ECNCE, wire.ECNCE: wire.ECNCE},
}

// decapsulateECN gives the packet in the frame b the ECN field that it has after a way in a datagram with
// the TOS or traffic class outer, or says that the packet is to be dropped. It may be called again for the
// same frame. What isn't a whole IP packet is left as it is, for the switch's parse to judge.
func decapsulateECN(outer uint8, b []byte) drop.Reason {
	outer &= wire.ECNMask
	if outer == wire.ECNNotECT || outer == wire.ECNECT0 || len(b) < wire.EthernetLen {
		return drop.None // these columns of the table change nothing
	}
	packet := b[wire.EthernetLen:]
	switch wire.Ethernet(b).EtherType() {
	case wire.EtherTypeIPv4:
		return decapsulateIPv4(outer, packet)
	case wire.EtherTypeIPv6:
		return decapsulateIPv6(outer, packet)
	}
	return drop.None
}

func decapsulateIPv4(outer uint8, ip wire.IPv4) drop.Reason {
	if !ip.IsValid() {
		return drop.None
	}
	inner := ip.TOS() & wire.ECNMask
	ecn := decapsulated[inner][outer]
	if ecn == noECN {
		return drop.ECNNotCapable
	}
	if ecn != inner {
		ip.SetECN(ecn)
	}
	return drop.None
}

func decapsulateIPv6(outer uint8, ip wire.IPv6) drop.Reason {
	if !ip.IsValid() {
		return drop.None
	}
	ecn := decapsulated[ip.TrafficClass()&wire.ECNMask][outer]
	if ecn == noECN {
		return drop.ECNNotCapable
	}
	ip.SetECN(ecn)
	return drop.None
}
