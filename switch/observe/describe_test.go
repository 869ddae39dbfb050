package observe

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/drop"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

var (
	podMAC    = wire.MAC{0x0a, 0, 0, 0, 0, 3}
	routerMAC = wire.MAC{2, 0, 0, 0, 0, 1}
)

const macs = ", from 0a:00:00:00:00:03 to 02:00:00:00:00:01"

// example is what a port keeps of a frame.
func example(b []byte) *port.Example {
	return &port.Example{Len: len(b), Head: b[:min(len(b), 96)]}
}

// packet is what gopacket, which doesn't know our code, makes of the layers behind an Ethernet header.
func packet(t testing.TB, typ layers.EthernetType, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var network gopacket.NetworkLayer
	for _, layer := range l {
		switch v := layer.(type) {
		case gopacket.NetworkLayer:
			network = v
		case interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}:
			_ = v.SetNetworkLayerForChecksum(network)
		}
	}
	eth := &layers.Ethernet{SrcMAC: podMAC[:], DstMAC: routerMAC[:], EthernetType: typ}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, append([]gopacket.SerializableLayer{eth}, l...)...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func v4(proto layers.IPProtocol, src, dst string) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

func v6(next layers.IPProtocol, src, dst string) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: next, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

func tcp(t testing.TB) []byte {
	return packet(t, layers.EthernetTypeIPv4, v4(layers.IPProtocolTCP, "10.244.1.3", "10.244.9.9"),
		&layers.TCP{SrcPort: 40112, DstPort: 80, SYN: true}, gopacket.Payload(make([]byte, 20)))
}

func udp6(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	return packet(t, layers.EthernetTypeIPv6, append(l, &layers.UDP{SrcPort: 4000, DstPort: 53}, gopacket.Payload("question"))...)
}

func arp(t testing.TB, op uint16, sender, target string) []byte {
	return packet(t, layers.EthernetTypeARP, &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4,
		HwAddressSize: 6, ProtAddressSize: 4, Operation: op, SourceHwAddress: podMAC[:], DstHwAddress: make([]byte, 6),
		SourceProtAddress: net.ParseIP(sender).To4(), DstProtAddress: net.ParseIP(target).To4()})
}

func icmp6(t testing.TB, src, dst string, kind uint8, body gopacket.SerializableLayer) []byte {
	return packet(t, layers.EthernetTypeIPv6, v6(layers.IPProtocolICMPv6, src, dst), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, body)
}

// with returns b with the byte at the offset changed.
func with(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

func TestDescribe(t *testing.T) {
	link := layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: podMAC[:]}}
	solicit := &layers.ICMPv6NeighborSolicitation{TargetAddress: net.ParseIP("fd00:1::4"), Options: link}
	fragment := v4(layers.IPProtocolUDP, "10.244.1.3", "10.244.1.4")
	fragment.FragOffset = 185
	first := v4(layers.IPProtocolUDP, "10.244.1.3", "10.244.1.4")
	first.Flags = layers.IPv4MoreFragments
	vlan := packet(t, layers.EthernetTypeDot1Q, &layers.Dot1Q{VLANIdentifier: 100, Type: layers.EthernetTypeIPv4},
		v4(layers.IPProtocolICMPv4, "10.244.1.3", "10.244.9.9"), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)})
	double := packet(t, layers.EthernetTypeQinQ, &layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeDot1Q}, &layers.Dot1Q{VLANIdentifier: 9, Type: layers.EthernetTypeIPv4})
	options := &layers.IPv6HopByHop{}
	options.NextHeader = layers.IPProtocolUDP
	options.Options = []*layers.IPv6HopByHopOption{{OptionType: 1, OptionLength: 4, OptionData: make([]byte, 4), ActualLength: 6}}
	// 40 bytes of padding options: the UDP header behind them was not kept.
	long := &layers.IPv6HopByHop{}
	long.NextHeader = layers.IPProtocolUDP
	long.Options = []*layers.IPv6HopByHopOption{{OptionType: 1, OptionLength: 44, OptionData: make([]byte, 44), ActualLength: 46}}
	fragment6 := packet(t, layers.EthernetTypeIPv6, v6(layers.IPProtocolIPv6Fragment, "fd00::3", "fd00::4"),
		gopacket.Payload("\x11\x00\x05\xa8\x00\x00\x00\x01 the rest"))
	huge := packet(t, layers.EthernetTypeIPv4, v4(layers.IPProtocolTCP, "10.244.1.3", "10.244.9.9"),
		&layers.TCP{SrcPort: 1, DstPort: 2, ACK: true, FIN: true}, gopacket.Payload(make([]byte, 60000)))

	for name, c := range map[string]struct {
		reason drop.Reason
		frame  []byte
		want   string
	}{
		"tcp":           {drop.NoRoute, tcp(t), "TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes" + macs},
		"udp6":          {drop.TxFull, udp6(t, v6(layers.IPProtocolUDP, "fd00::3", "fd00::4")), "UDP [fd00::3]:4000 > [fd00::4]:53, 70 bytes" + macs},
		"extension":     {drop.TooBig, udp6(t, v6(0, "fd00::3", "fd00::4"), options), "UDP [fd00::3]:4000 > [fd00::4]:53, behind hop-by-hop options, 78 bytes" + macs},
		"far transport": {drop.NoRoute, udp6(t, v6(0, "fd00::3", "fd00::4"), long), "UDP fd00::3 > fd00::4, behind hop-by-hop options, 118 bytes" + macs},
		"arp":           {drop.SpoofedARP, arp(t, 1, "10.244.1.9", "10.244.1.4"), "ARP who-has 10.244.1.4 tell 10.244.1.9 (0a:00:00:00:00:03), 60 bytes" + macs},
		"arp reply":     {drop.Hairpin, arp(t, 2, "10.244.1.9", "10.244.1.4"), "ARP 10.244.1.9 is-at 0a:00:00:00:00:03 tell 10.244.1.4 (00:00:00:00:00:00), 60 bytes" + macs},
		"arp probe":     {drop.NoFloodTarget, arp(t, 1, "0.0.0.0", "10.244.1.4"), "ARP probe for 10.244.1.4 (0a:00:00:00:00:03), 60 bytes" + macs},
		"announcement":  {drop.NoFloodTarget, arp(t, 1, "10.244.1.4", "10.244.1.4"), "ARP announcement of 10.244.1.4 (0a:00:00:00:00:03), 60 bytes" + macs},
		"rarp":          {drop.NotIP, packet(t, 0x8035, gopacket.Payload("x")), "RARP (EtherType 0x8035), 60 bytes" + macs},
		"solicitation":  {drop.NoFloodTarget, icmp6(t, "fd00:1::3", "ff02::1:ff00:4", 135, solicit), "ND who-has fd00:1::4 tell fd00:1::3 (0a:00:00:00:00:03), 86 bytes" + macs},
		"dad": {drop.NoFloodTarget, icmp6(t, "::", "ff02::1:ff00:4", 135, &layers.ICMPv6NeighborSolicitation{TargetAddress: net.ParseIP("fd00:1::4")}),
			"ND probe for fd00:1::4, 78 bytes" + macs},
		"advertisement": {drop.SpoofedND, icmp6(t, "fd00:1::3", "ff02::1", 136, &layers.ICMPv6NeighborAdvertisement{TargetAddress: net.ParseIP("fd00:1::4"),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: podMAC[:]}}}), "ND advertisement of fd00:1::4 (0a:00:00:00:00:03) by fd00:1::3, 86 bytes" + macs},
		"router": {drop.RouterAdvert, icmp6(t, "fe80::3", "ff02::1", 134, &layers.ICMPv6RouterAdvertisement{}),
			"ICMPv6 router advertisement fe80::3 > ff02::1, 70 bytes" + macs},
		"unreachable": {drop.NoRoute, packet(t, layers.EthernetTypeIPv4, v4(layers.IPProtocolICMPv4, "10.244.1.3", "10.244.9.9"),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}), "ICMP host unreachable 10.244.1.3 > 10.244.9.9, 60 bytes" + macs},
		"gre": {drop.NoRoute, packet(t, layers.EthernetTypeIPv4, v4(47, "10.244.1.3", "10.244.9.9"), gopacket.Payload(make([]byte, 40))),
			"GRE 10.244.1.3 > 10.244.9.9, 74 bytes" + macs},
		"later fragment": {drop.NoRoute, packet(t, layers.EthernetTypeIPv4, fragment, gopacket.Payload(make([]byte, 40))),
			"UDP fragment at byte 1480 10.244.1.3 > 10.244.1.4, 74 bytes" + macs},
		"first fragment": {drop.NoRoute, packet(t, layers.EthernetTypeIPv4, first, &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload(make([]byte, 40))),
			"first fragment of UDP 10.244.1.3:1 > 10.244.1.4:2, 82 bytes" + macs},
		"later fragment 6": {drop.NoRoute, fragment6, "UDP fragment at byte 1448 fd00::3 > fd00::4, 71 bytes" + macs},
		"vlan":             {drop.VLANTagged, vlan, "VLAN 100, inside: ICMP echo request 10.244.1.3 > 10.244.9.9, 60 bytes" + macs},
		"two tags":         {drop.VLANTagged, double, "VLAN 7, inside: another VLAN tag 81 00 00 09 08 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 ..., 60 bytes" + macs},
		"super-frame":      {drop.NoRoute, huge[:1536], "TCP FIN ACK 10.244.1.3:1 > 10.244.9.9:2, 60054 bytes" + macs}, // the slow path keeps 1,536 B
		"stp": {drop.ReservedMulticast, packet(t, 38, gopacket.Payload("\x42\x42\x03"+strings.Repeat("\x00", 35))),
			"802.3 frame with length 38 (STP or another LLC protocol), 60 bytes" + macs},
		"short":         {drop.ShortEthernet, []byte{1, 2, 3}, "3 bytes, an Ethernet header has 14: 01 02 03"},
		"empty":         {drop.ShortEthernet, nil, "no bytes were delivered"},
		"short read":    {drop.ShortRead, []byte{1, 2, 3}, "the device delivered 3 bytes: 01 02 03"},
		"short ipv4":    {drop.ShortIPv4, tcp(t)[:16], "IPv4 needs 20 bytes, 2 are there: 45 00, 16 bytes" + macs},
		"total length":  {drop.IPv4TotalLen, with(tcp(t)[:60], 16, 5), "IPv4 says 1340 bytes, 46 are there: 45 00 05 3c 00 00 00 00 40 06 5a c9 0a f4 01 03 0a f4 09 09 9c b0 00 50 ..., 60 bytes" + macs},
		"header length": {drop.IPv4HeaderLen, with(tcp(t), 14, 0x42), "IPv4 says its header has 8 bytes, of 60 that are there: 42 00 00 3c 00 00 00 00 40 06 5a c9 0a f4 01 03 0a f4 09 09 9c b0 00 50 ..., 74 bytes" + macs},
		"version":       {drop.IPv4Version, with(tcp(t), 14, 0x65), "IP version 6 in a frame of EtherType 0x0800: 65 00 00 3c 00 00 00 00 40 06 5a c9 0a f4 01 03 0a f4 09 09 9c b0 00 50 ..., 74 bytes" + macs},
		"checksum":      {drop.IPv4Checksum, with(tcp(t), 25, 0), "IPv4 header checksum is 0x5a00, 0x5ac9 would be right: 45 00 00 3c 00 00 00 00 40 06 5a 00 0a f4 01 03 0a f4 09 09 9c b0 00 50 ..., 74 bytes" + macs},
		"tcp offset":    {drop.TCPDataOffset, with(tcp(t), 46, 0x20), "TCP 10.244.1.3 > 10.244.9.9, data offset says 8 bytes, 40 are there: 9c b0 00 50 00 00 00 00 00 00 00 00 20 02 00 00 f2 da 00 00 00 00 00 00 ..., 74 bytes" + macs},
		"payload length": {drop.IPv6PayloadLen, with(udp6(t, v6(layers.IPProtocolUDP, "fd00::3", "fd00::4")), 19, 200),
			"IPv6 says 200 bytes of payload, 16 are there: 60 00 00 00 00 c8 11 ff fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03 ..., 70 bytes" + macs},
		"udp length": {drop.UDPLength, with(udp6(t, v6(layers.IPProtocolUDP, "fd00::3", "fd00::4")), 59, 200),
			"UDP fd00::3 > fd00::4, UDP length says 200 bytes, 16 are there: 0f a0 00 35 00 c8 3b 30 71 75 65 73 74 69 6f 6e, 70 bytes" + macs},
		"extension length": {drop.IPv6Extension, with(udp6(t, v6(0, "fd00::3", "fd00::4"), options), 55, 9),
			"IPv6 fd00::3 > fd00::4, extension header 0 at byte 40 is cut short, repeated or one too many, 24 bytes are left: 11 09 01 04 00 00 00 00 0f a0 00 35 00 10 3b 30 71 75 65 73 74 69 6f 6e, 78 bytes" + macs},
		"arp fields": {drop.ARPFields, with(arp(t, 1, "10.244.1.9", "10.244.1.4"), 15, 6),
			"ARP for hardware type 6 and protocol 0x0800 with addresses of 6 and 4 bytes: 00 06 08 00 06 04 00 01 0a 00 00 00 00 03 0a f4 01 09 00 00 00 00 00 00 ..., 60 bytes" + macs},
	} {
		if got := describe(c.reason, example(c.frame)); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s\n%s", name, got, c.want, hex.EncodeToString(c.frame))
		}
	}
}

func TestDescribeDatagram(t *testing.T) {
	from := netip.MustParseAddr("192.0.2.7")
	inner := tcp(t)
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, 77, 0}, inner...)
	for want, e := range map[string]*port.Example{
		"datagram from 192.0.2.7: VXLAN VNI 77, inside: TCP SYN 10.244.1.3:40112 > 10.244.9.9:80, 74 bytes" + macs: {From: from, Len: len(vxlan), Head: vxlan},
		"datagram from 192.0.2.7: VXLAN VNI 77, inside: 0 bytes, an Ethernet header has 14: (none)":                {From: from, Len: 8, Head: vxlan[:8]},
		"datagram from 192.0.2.7, 12 bytes, not VXLAN: 00 11 22 33 44 55 66 77 88 99 aa bb":                        {From: from, Len: 12, Head: []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb")},
	} {
		if got := describe(drop.UnknownPeer, e); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
	}
}

func TestDescribeClaim(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00:1::3")}
	const pod = ", but this pod is 10.244.1.3 and fd00:1::3 at 0a:00:00:00:00:07"
	advert := icmp6(t, "fd00:1::3", "ff02::1", 136, &layers.ICMPv6NeighborAdvertisement{TargetAddress: net.ParseIP("fd00:1::4"),
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: podMAC[:]}}})
	for _, c := range []struct {
		reason drop.Reason
		frame  []byte
		want   string
	}{
		{drop.SpoofedMAC, tcp(t), "; it claims MAC 0a:00:00:00:00:03" + pod},
		{drop.SpoofedIP, tcp(t), "; it claims 10.244.1.3" + pod},
		{drop.SpoofedIP, udp6(t, v6(layers.IPProtocolUDP, "fd00::3", "fd00::4")), "; it claims fd00::3" + pod},
		{drop.SpoofedARP, arp(t, 2, "10.244.1.9", "10.244.1.4"), "; it claims 10.244.1.9 at 0a:00:00:00:00:03" + pod},
		{drop.SpoofedND, advert, "; it claims fd00:1::4 at 0a:00:00:00:00:03" + pod},
		{drop.NoRoute, tcp(t), ""},
	} {
		if got := describeClaim(c.reason, example(c.frame), wire.MAC{10, 0, 0, 0, 0, 7}, own); got != c.want {
			t.Errorf("%v: %q, want %q", c.reason, got, c.want)
		}
	}
}

// The bytes are hostile and end on a terminal. gopacket, as a second opinion, names the addresses of what
// is in order.
func FuzzDescribe(f *testing.F) {
	for _, b := range [][]byte{
		tcp(f), arp(f, 1, "10.244.1.9", "10.244.1.4"), udp6(f, v6(layers.IPProtocolUDP, "fd00::3", "fd00::4")),
		icmp6(f, "fd00:1::3", "ff02::1:ff00:4", 135, &layers.ICMPv6NeighborSolicitation{TargetAddress: net.ParseIP("fd00:1::4")}),
		append([]byte{8, 0, 0, 0, 0, 0, 77, 0}, tcp(f)...), {}, []byte("\x1b[2J\x07"),
	} {
		for r := range drop.Count {
			f.Add(uint8(r), false, b)
		}
		f.Add(uint8(drop.UnknownPeer), true, b)
	}
	f.Fuzz(func(t *testing.T, r uint8, datagram bool, b []byte) {
		e := example(b)
		if datagram {
			e.From = netip.MustParseAddr("fe80::1%\x1b[2J")
		}
		text := describe(drop.Reason(r), e)
		if len(text) == 0 || len(text) > maxDescription {
			t.Errorf("%d bytes: %q", len(text), text)
		}
		text += describeClaim(drop.Reason(r), e, podMAC, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
		if i := strings.IndexFunc(text, func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
			t.Errorf("unprintable: %q", text)
		}
		if malformed(drop.Reason(r)) || datagram || drop.Reason(r) == drop.ShortRead || len(b) > 1500 {
			return
		}
		decoded := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
		if n := decoded.NetworkLayer(); n != nil && decoded.ErrorLayer() == nil && decoded.Layer(layers.LayerTypeDot1Q) == nil {
			ours := wire.Parse(b, true, new(wire.Parsed)) == wire.FaultNone
			src, dst := n.NetworkFlow().Endpoints()
			// Of neighbour discovery the target matters; its destination is a group made from it, and a probe has
			// no source.
			names := strings.Contains(text, addr(src)) && (strings.Contains(text, addr(dst)) || strings.HasPrefix(text, "ND "))
			if ours && !names && !strings.HasPrefix(text, "ND probe ") {
				t.Errorf("%q doesn't name %v and %v", text, src, dst)
			}
		}
	})
}

func addr(e gopacket.Endpoint) string {
	a, _ := netip.AddrFromSlice(e.Raw())
	return a.String()
}
