package wire_test

import (
	"fmt"
	"net/netip"

	"tapyard/switch/wire"
)

// A datagram is written from the outside in, then parsed as the switch does it.
func Example() {
	const payload = "hello"
	frame := make([]byte, wire.EthernetLen+wire.IPv4MinLen+wire.UDPLen+len(payload))
	eth := wire.Ethernet(frame)
	eth.Encode(&wire.EthernetFields{
		Dst: wire.RouterMAC("node-b"), Src: wire.RouterMAC("node-a"), EtherType: wire.EtherTypeIPv4,
	})
	ip := wire.IPv4(eth.Payload())
	ip.Encode(&wire.IPv4Fields{
		TotalLen: uint16(len(ip)), TTL: 64, Protocol: wire.ProtoUDP,
		Src: netip.MustParseAddr("10.244.1.3"), Dst: netip.MustParseAddr("10.244.2.3"),
	})
	udp := wire.UDP(ip.Payload())
	udp.Encode(&wire.UDPFields{SrcPort: 40000, DstPort: 53, Length: uint16(len(udp))})
	copy(udp.Payload(), payload)
	udp.UpdateChecksum(wire.PseudoHeader(ip, false, wire.ProtoUDP, len(udp)))

	var p wire.Parsed
	if fault := wire.Parse(frame, false, &p); fault != wire.FaultNone {
		fmt.Println("refused:", fault)
		return
	}
	fmt.Println(wire.IPv4(frame[p.L3:]))
	fmt.Println(wire.UDP(frame[p.L4:p.End]))
	fmt.Printf("%s\n", frame[p.Payload:p.End])
	fmt.Println("cut short:", wire.Parse(frame[:40], false, &p))
	// Output:
	// ipv4 10.244.1.3 > 10.244.2.3 protocol 17 len 33 ttl 64 id 0 df false mf false offset 0
	// udp 40000 > 53 len 13 checksum 0x069f
	// hello
	// cut short: ipv4_total_len
}
