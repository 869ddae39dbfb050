package neigh

import (
	"net/netip"

	"tapyard/switch/wire"
)

// Announcements make whoever knows an address forget the MAC that it had before: a pod was attached with an address
// that another one used a moment ago, or came from another node. Read RFC 5227 sections 1.1 and 2.3 and RFC 4861
// section 7.2.6 first.

// Announce4 builds in out the broadcast ARP announcement that mac has addr, and returns its length: ARPAnswerLen,
// or 0 if addr is not a unicast IPv4 address or mac not a station's. It has the form of a request, which RFC 5227
// section 3 prefers to that of a reply. out has at least ARPAnswerLen bytes.
func Announce4(addr netip.Addr, mac wire.MAC, out []byte) (n int) {
	if !addr.Is4() || !isUnicast(addr) || !isStation(mac) {
		return 0
	}
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: wire.Broadcast, Src: mac, EtherType: wire.EtherTypeARP})
	wire.ARP(out[wire.EthernetLen:]).Encode(&wire.ARPFields{
		Op: wire.ARPRequest, SenderMAC: mac, SenderIP: addr, TargetIP: addr,
	})
	return ARPAnswerLen
}

// Announce6 builds in out the unsolicited neighbour advertisement to all nodes that mac has addr, and returns its
// length: NDAnswerLen, or 0 if addr is not a unicast IPv6 address or mac not a station's. router is its R flag, by
// which receivers know whether they may go on using addr as a router. out has at least NDAnswerLen bytes.
func Announce6(addr netip.Addr, mac wire.MAC, router bool, out []byte) (n int) {
	if !addr.Is6() || addr.Is4In6() || !isUnicast(addr) || !isStation(mac) {
		return 0
	}
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: allNodesMAC, Src: mac, EtherType: wire.EtherTypeIPv6})
	encodeAdvert(out[wire.EthernetLen:], allNodes, &wire.NeighborAdvertFields{
		Router: router, Override: true, Target: addr, LinkLayer: mac,
	})
	return NDAnswerLen
}
