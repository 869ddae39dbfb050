package wire

// gopacket as the second opinion: it decodes what our encoders wrote and, with the
// lengths and checksums that it computes itself, writes the same bytes.

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/bench/seed"
)

// TestGopacketRewritesOurs builds random frames with our encoders. The ICMPv6 echo is
// empty because gopacket loses an echo's data.
func TestGopacketRewritesOurs(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(2000) {
		for _, c := range []struct {
			name  string
			frame []byte
		}{
			{"arp", randomARP(r)},
			{"udp over ipv4", overIPv4(r, ProtoUDP, randomUDP(r))},
			{"udp over ipv6", overIPv6(r, ProtoUDP, randomUDP(r))},
			{"tcp over ipv4", overIPv4(r, ProtoTCP, randomTCP(r))},
			{"tcp over ipv6", overIPv6(r, ProtoTCP, randomTCP(r))},
			{"icmpv4", overIPv4(r, ProtoICMPv4, randomEcho(r, ICMPv4Echo, r.IntN(100)))},
			{"icmpv6", overIPv6(r, ProtoICMPv6, randomEcho(r, ICMPv6Echo, 0))},
			{"neighbor_solicit", overIPv6(r, ProtoICMPv6, randomSolicit(r))},
			{"neighbor_advert", overIPv6(r, ProtoICMPv6, randomAdvert(r))},
			{"vxlan around arp", overIPv4(r, ProtoUDP, overVXLAN(r, randomARP(r)))},
			{"vxlan around ipv6", overIPv6(r, ProtoUDP, overVXLAN(r, overIPv6(r, ProtoTCP, randomTCP(r))))},
		} {
			name, frame := c.name, c.frame
			var p Parsed
			if fault := Parse(frame, false, &p); fault != FaultNone {
				t.Fatalf("%s: fault %v in % x", name, fault, frame)
			}
			again := rewrite(t, frame)
			if udp := UDP(again[p.L4:]); p.Proto == ProtoUDP && udp.Checksum() == 0 {
				udp.SetChecksum(0xffff) // RFC 768; gopacket 1.1.19 forgets it
			}
			if !bytes.Equal(again, frame) {
				t.Fatalf("%s: we wrote\n% x, gopacket\n% x", name, frame, again)
			}
			compare(t, frame, &p)
		}
	}
}

// rewrite lets gopacket decode the frame and encode it, lengths and checksums anew.
func rewrite(t *testing.T, frame []byte) []byte {
	t.Helper()
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if fail := packet.ErrorLayer(); fail != nil {
		t.Fatalf("gopacket: %v in % x", fail.Error(), frame)
	}
	var network gopacket.NetworkLayer
	var all []gopacket.SerializableLayer
	for _, layer := range packet.Layers() {
		if n, ok := layer.(gopacket.NetworkLayer); ok {
			network = n
		}
		if l, ok := layer.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(network); err != nil {
				t.Fatal(err)
			}
		}
		serializable, ok := layer.(gopacket.SerializableLayer)
		if !ok {
			t.Fatalf("gopacket can't encode its %v", layer.LayerType())
		}
		all = append(all, serializable)
	}
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, all...); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// compare fails unless gopacket found in the frame what p says.
func compare(t *testing.T, frame []byte, p *Parsed) {
	t.Helper()
	if got, want := *p, expected(t, frame); got != want {
		t.Errorf("parsed  %+v\ngopacket %+v\nof % x", got, want, frame)
	}
}

// expected is Parsed as gopacket sees it, for the outermost packet in the frame.
func expected(t *testing.T, frame []byte) Parsed {
	t.Helper()
	p := Parsed{L3: EthernetLen, L4: EthernetLen, Payload: EthernetLen, End: int32(len(frame))}
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	for _, layer := range packet.Layers()[1:] {
		length := int32(len(layer.LayerContents()))
		switch l := layer.(type) {
		case *layers.ARP:
			p.Kind, p.End = KindARP, EthernetLen+length
			copy(p.Src[:], l.SourceProtAddress)
			copy(p.Dst[:], l.DstProtAddress)
			p.L4, p.Payload = p.End, p.End
			return p
		case *layers.IPv4:
			p.Kind, p.Proto, p.TTL = KindIPv4, uint8(l.Protocol), l.TTL
			copy(p.Src[:], l.SrcIP.To4())
			copy(p.Dst[:], l.DstIP.To4())
			p.End = p.L3 + int32(l.Length)
			p.Fragment = l.FragOffset > 0 || l.Flags&layers.IPv4MoreFragments != 0
			p.FirstFragment = p.Fragment && l.FragOffset == 0
		case *layers.IPv6:
			p.Kind, p.Proto, p.TTL = KindIPv6, uint8(l.NextHeader), l.HopLimit
			copy(p.Src[:], l.SrcIP)
			copy(p.Dst[:], l.DstIP)
			p.End = p.L3 + IPv6Len + int32(l.Length)
		case *layers.IPv6HopByHop:
			p.Proto = uint8(l.NextHeader)
		case *layers.IPv6Fragment:
			p.Proto = uint8(l.NextHeader)
			p.Fragment, p.FirstFragment = true, l.FragmentOffset == 0
			p.L4 += length
			p.Payload = p.L4
			return p
		case *layers.ICMPv6:
			p.ND = l.TypeCode.Type() >= layers.ICMPv6TypeRouterSolicitation &&
				l.TypeCode.Type() <= layers.ICMPv6TypeRedirect
			return p
		case *layers.UDP:
			p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			p.Payload += length
			return p
		case *layers.TCP:
			p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			for i, set := range []bool{l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR} {
				if set {
					p.TCPFlags |= 1 << i
				}
			}
			p.Payload += length
			return p
		default:
			return p
		}
		p.L4 += length
		p.Payload = p.L4
	}
	return p
}

func randomMAC(r *rand.Rand) MAC {
	m := MAC(randomBytes(r, 6))
	m[0] &^= 1
	m[5] |= 1 // not zero
	return m
}

func randomIPv4(r *rand.Rand) netip.Addr { return netip.AddrFrom4([4]byte(randomBytes(r, 4))) }

// randomIPv6 is an address in fc00::/7: neither multicast nor 4-in-6.
func randomIPv6(r *rand.Rand) netip.Addr {
	b := [16]byte(randomBytes(r, 16))
	b[0] = 0xfc | b[0]&1
	return netip.AddrFrom16(b)
}

// onEthernet puts 14 dirty bytes before the packet, writes a header there, and pads
// to the 60 bytes of the shortest Ethernet frame, as gopacket does.
func onEthernet(r *rand.Rand, etherType uint16, packet []byte) []byte {
	frame := append(dirty(EthernetLen), packet...)
	frame = append(frame, make([]byte, max(0, 60-len(frame)))...)
	Ethernet(frame).Encode(&EthernetFields{Dst: randomMAC(r), Src: randomMAC(r), EtherType: etherType})
	return frame
}

func randomARP(r *rand.Rand) []byte {
	arp := ARP(dirty(ARPLen))
	arp.Encode(&ARPFields{
		Op:        uint16(1 + r.IntN(2)),
		SenderMAC: randomMAC(r), SenderIP: randomIPv4(r),
		TargetMAC: randomMAC(r), TargetIP: randomIPv4(r),
	})
	return onEthernet(r, EtherTypeARP, arp)
}

func overIPv4(r *rand.Rand, proto uint8, l4 []byte) []byte {
	ip := IPv4(append(dirty(IPv4MinLen), l4...))
	ip.Encode(&IPv4Fields{
		TOS: uint8(r.Uint32()), TotalLen: uint16(len(ip)), ID: uint16(r.Uint32()), DontFragment: r.IntN(2) == 0,
		TTL: uint8(r.Uint32()), Protocol: proto, Src: randomIPv4(r), Dst: randomIPv4(r),
	})
	updateL4(ip.Payload(), proto, PseudoHeader(ip, false, proto, len(l4)))
	return onEthernet(r, EtherTypeIPv4, ip)
}

func overIPv6(r *rand.Rand, proto uint8, l4 []byte) []byte {
	ip := IPv6(append(dirty(IPv6Len), l4...))
	ip.Encode(&IPv6Fields{
		TrafficClass: uint8(r.Uint32()), FlowLabel: r.Uint32N(1 << 20), PayloadLen: uint16(len(l4)),
		NextHeader: proto, HopLimit: uint8(r.Uint32()), Src: randomIPv6(r), Dst: randomIPv6(r),
	})
	updateL4(ip.Payload(), proto, PseudoHeader(ip, true, proto, len(l4)))
	return onEthernet(r, EtherTypeIPv6, ip)
}

func updateL4(l4 []byte, proto uint8, pseudo uint32) {
	switch proto {
	case ProtoUDP:
		UDP(l4).UpdateChecksum(pseudo)
	case ProtoTCP:
		TCP(l4).UpdateChecksum(pseudo)
	case ProtoICMPv4:
		ICMPv4(l4).UpdateChecksum()
	case ProtoICMPv6:
		ICMPv6(l4).UpdateChecksum(pseudo)
	default:
		panic(fmt.Sprintf("protocol %d", proto))
	}
}

// randomPort avoids the ports behind which gopacket decodes an application.
func randomPort(r *rand.Rand) uint16 { return uint16(40000 + r.IntN(1000)) }

func randomUDP(r *rand.Rand) []byte {
	udp := UDP(append(dirty(UDPLen), randomBytes(r, r.IntN(100))...))
	udp.Encode(&UDPFields{SrcPort: randomPort(r), DstPort: randomPort(r), Length: uint16(len(udp))})
	return udp
}

func randomTCP(r *rand.Rand) []byte {
	options := bytes.Repeat([]byte{1}, 4*r.IntN(11)) // no-operations
	tcp := TCP(append(append(dirty(TCPMinLen), options...), randomBytes(r, r.IntN(100))...))
	tcp.Encode(&TCPFields{
		SrcPort: randomPort(r), DstPort: randomPort(r), Seq: r.Uint32(), Ack: r.Uint32(),
		DataOffset: TCPMinLen + len(options), Flags: uint8(r.Uint32()),
		Window: uint16(r.Uint32()), Urgent: uint16(r.Uint32()),
	})
	return tcp
}

// randomEcho is an echo request of either ICMP: the layouts are the same.
func randomEcho(r *rand.Rand, icmpType uint8, payload int) []byte {
	m := append(dirty(ICMPv4Len), randomBytes(r, payload)...)
	ICMPv4(m).Encode(&ICMPv4Fields{Type: icmpType, Rest: r.Uint32()})
	return m
}

func randomSolicit(r *rand.Rand) []byte {
	fields := NeighborSolicitFields{Target: randomIPv6(r), LinkLayer: randomMAC(r)}
	n := NeighborSolicit(dirty(fields.Len()))
	n.Encode(&fields)
	return n
}

func randomAdvert(r *rand.Rand) []byte {
	fields := NeighborAdvertFields{
		Router: r.IntN(2) == 0, Solicited: r.IntN(2) == 0, Override: r.IntN(2) == 0,
		Target: randomIPv6(r), LinkLayer: randomMAC(r),
	}
	n := NeighborAdvert(dirty(fields.Len()))
	n.Encode(&fields)
	return n
}

// overVXLAN is a UDP datagram to port 4789 around the inner frame.
func overVXLAN(r *rand.Rand, inner []byte) []byte {
	udp := UDP(append(dirty(UDPLen+VXLANLen), inner...))
	udp.Encode(&UDPFields{SrcPort: randomPort(r), DstPort: 4789, Length: uint16(len(udp))})
	VXLAN(udp.Payload()).Encode(&VXLANFields{VNI: r.Uint32N(1 << 24)})
	return udp
}
