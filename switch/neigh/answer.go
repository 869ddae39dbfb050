package neigh

import (
	"net/netip"

	"tapyard/switch/wire"
)

// Read RFC 826 (packet reception), RFC 5227 sections 1.1 and 2.1 (probes, announcements) and RFC 4861 sections
// 7.1.1 (validation) and 7.2.4 (answers) first.

const (
	// ARPAnswerLen is the length of the frames that AnswerARP and Announce4 build.
	ARPAnswerLen = wire.EthernetLen + wire.ARPLen
	// NDAnswerLen is the length of the frames that AnswerND and Announce6 build: 14 + 40 + 32 bytes.
	NDAnswerLen = wire.EthernetLen + wire.IPv6Len + wire.NDLen

	// ndHopLimit shows that no router has forwarded the message (RFC 4861 section 3.1).
	ndHopLimit = 255
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = wire.MulticastMAC(allNodes)
)

// AnswerARP builds in out the frame that answers the request with mac, the address of the station that it asks
// for, and returns its length: ARPAnswerLen, or 0 when no answer is due. That is so for anything but a valid
// request for a unicast address, for announcements (sender and target are the same), and when the request
// comes from mac itself, which would take the answer for a conflict. Whether the station is behind the port
// that asks, and must not be answered for, only the caller can see. out has at least ARPAnswerLen bytes.
func AnswerARP(req wire.ARP, mac wire.MAC, out []byte) (n int) {
	if !answerable(req) || req.SenderMAC() == mac {
		return 0
	}
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: req.SenderMAC(), Src: mac, EtherType: wire.EtherTypeARP})
	// The sender 0.0.0.0 of a probe goes back as the target (RFC 826: the fields are swapped).
	wire.ARP(out[wire.EthernetLen:]).Encode(&wire.ARPFields{
		Op:        wire.ARPReply,
		SenderMAC: mac, SenderIP: req.TargetIP(),
		TargetMAC: req.SenderMAC(), TargetIP: req.SenderIP(),
	})
	return ARPAnswerLen
}

func answerable(req wire.ARP) bool {
	return req.IsValid() && req.Op() == wire.ARPRequest && isStation(req.SenderMAC()) &&
		isUnicast(req.TargetIP()) && req.TargetIP() != req.SenderIP() &&
		(isUnicast(req.SenderIP()) || req.SenderIP().IsUnspecified())
}

// AnswerND builds in out the frame that answers the neighbour solicitation in reqFrame with mac, the address of
// the station that it asks for, and returns its length: NDAnswerLen, or 0 when no answer is due. That is so
// for an invalid solicitation (hop limit, checksum, fragmented (RFC 6980), cut short, and the others of RFC
// 4861 section 7.1.1), and when it comes from mac itself. router is the answer's R flag. The answer goes to
// the frame's source MAC, not to the one in the option, because that is what the source guard has seen; it goes
// to all nodes when the sender is still looking for duplicates of its address, and then only the caller can
// see whether that is the sender's own. p is Parse's result without a fault; reqFrame may be a copy that ends
// early. out has at least NDAnswerLen bytes.
func AnswerND(reqFrame []byte, p *wire.Parsed, mac wire.MAC, router bool, out []byte) (n int) {
	ns := solicitation(reqFrame, p)
	sender := wire.Ethernet(reqFrame).Src()
	if ns == nil || !isStation(sender) || sender == mac {
		return 0
	}
	dst := netip.AddrFrom16(p.Src)
	advert := wire.NeighborAdvertFields{
		Router: router, Solicited: true, Override: true, Target: ns.Target(), LinkLayer: mac,
	}
	if dst.IsUnspecified() {
		dst, sender, advert.Solicited = allNodes, allNodesMAC, false
	}
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: sender, Src: mac, EtherType: wire.EtherTypeIPv6})
	encodeAdvert(out[wire.EthernetLen:], dst, &advert)
	return NDAnswerLen
}

func encodeAdvert(ip wire.IPv6, dst netip.Addr, advert *wire.NeighborAdvertFields) {
	ip.Encode(&wire.IPv6Fields{
		PayloadLen: wire.NDLen, NextHeader: wire.ProtoICMPv6, HopLimit: ndHopLimit,
		Src: advert.Target, Dst: dst,
	})
	message := ip.Payload()
	wire.NeighborAdvert(message).Encode(advert)
	wire.ICMPv6(message).UpdateChecksum(wire.PseudoHeader(ip, true, wire.ProtoICMPv6, wire.NDLen))
}

// solicitation returns the frame's neighbour solicitation, or nil if it has no valid one.
func solicitation(frame []byte, p *wire.Parsed) wire.NeighborSolicit {
	if !p.ND || p.Fragment || p.TTL != ndHopLimit || int(p.End) > len(frame) {
		return nil
	}
	message := frame[p.L4:p.End]
	ns := wire.NeighborSolicit(message)
	pseudo := wire.PseudoHeader(frame[p.L3:], true, wire.ProtoICMPv6, len(message))
	if !ns.IsValid() || !isUnicast(ns.Target()) || !wire.ICMPv6(message).ChecksumOK(pseudo) || !fromStation(ns, p) {
		return nil
	}
	return ns
}

// fromStation checks the source address: unicast, or unspecified, which goes to the solicited-node address
// and without a link-layer address only.
func fromStation(ns wire.NeighborSolicit, p *wire.Parsed) bool {
	src := netip.AddrFrom16(p.Src)
	if !src.IsUnspecified() {
		return isUnicast(src)
	}
	_, hasLinkLayer := ns.LinkLayer()
	return !hasLinkLayer && netip.AddrFrom16(p.Dst) == wire.SolicitedNode(ns.Target())
}
