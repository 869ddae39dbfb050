package neigh

import (
	"net/netip"

	"tapyard/switch/wire"
)

// Read RFC 5227 section 1.1 (probes) and RFC 4861 sections 4.3 and 7.2.2 (unicast solicitations) first.

// AskLen is the length of the longer of the frames that Ask builds.
const AskLen = NDAnswerLen

// Ask builds in out the frame by which asker asks the station with the MAC to for its address addr, and returns the
// frame's length, or 0 if addr is not a unicast address or a MAC not a station's. The frame goes to that station
// alone, and the answer comes to asker. ARP asks as one without an address, whom the station answers and
// forgets; neighbour discovery asks from asker's link-local address. out has at least AskLen bytes.
func Ask(addr netip.Addr, to, asker wire.MAC, out []byte) (n int) {
	if !isUnicast(addr) || addr.Is4In6() || !isStation(to) || !isStation(asker) {
		return 0
	}
	if addr.Is4() {
		wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: to, Src: asker, EtherType: wire.EtherTypeARP})
		wire.ARP(out[wire.EthernetLen:]).Encode(&wire.ARPFields{
			Op: wire.ARPRequest, SenderMAC: asker, SenderIP: netip.IPv4Unspecified(), TargetIP: addr,
		})
		return wire.EthernetLen + wire.ARPLen
	}
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: to, Src: asker, EtherType: wire.EtherTypeIPv6})
	ip := wire.IPv6(out[wire.EthernetLen:])
	ip.Encode(&wire.IPv6Fields{
		PayloadLen: wire.NDLen, NextHeader: wire.ProtoICMPv6, HopLimit: ndHopLimit, Src: wire.LinkLocal(asker), Dst: addr,
	})
	message := ip.Payload()
	wire.NeighborSolicit(message).Encode(&wire.NeighborSolicitFields{Target: addr, LinkLayer: asker})
	wire.ICMPv6(message).UpdateChecksum(wire.PseudoHeader(ip, true, wire.ProtoICMPv6, wire.NDLen))
	return wire.EthernetLen + wire.IPv6Len + wire.NDLen
}

// ReadAnswer returns the address that a frame answers for, an ARP reply or a neighbour advertisement, and whether it
// is one. p is Parse's result without a fault. It reads hostile bytes and allocates nothing.
func ReadAnswer(frame []byte, p *wire.Parsed) (addr netip.Addr, ok bool) {
	c, finding := ReadClaim(frame, p)
	if finding != Claimed || c.Probe {
		return addr, false
	}
	if p.Kind == wire.KindARP {
		return c.Addr, wire.ARP(frame[p.L3:]).Op() == wire.ARPReply
	}
	return c.Addr, wire.ICMPv6(frame[p.L4:]).Type() == wire.ICMPv6NeighborAdvert
}
