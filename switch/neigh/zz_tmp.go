package neigh

import (
	"net/netip"

	"tapyard/switch/wire"
)

func Announce4(addr netip.Addr, mac wire.MAC, out []byte) int {
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: wire.Broadcast, Src: mac, EtherType: wire.EtherTypeARP})
	wire.ARP(out[14:]).Encode(&wire.ARPFields{Op: wire.ARPRequest, SenderMAC: mac, SenderIP: addr, TargetIP: addr})
	return ARPAnswerLen
}
func Announce6(addr netip.Addr, mac wire.MAC, router bool, out []byte) int {
	wire.Ethernet(out).Encode(&wire.EthernetFields{Dst: allNodesMAC, Src: mac, EtherType: wire.EtherTypeIPv6})
	encodeAdvert(out[14:], allNodes, &wire.NeighborAdvertFields{Override: true, Target: addr, LinkLayer: mac})
	return NDAnswerLen
}
