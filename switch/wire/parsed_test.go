package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"tapyard/bench/seed"
)

// Each of the kernel's frames parses as gopacket sees it, padded or not; none of
// them can lose its last byte unnoticed.
func TestParseRealFrames(t *testing.T) {
	for name, frame := range realFrames {
		t.Run(name, func(t *testing.T) {
			var p Parsed
			if fault := Parse(frame, false, &p); fault != FaultNone {
				t.Fatalf("fault %v", fault)
			}
			compare(t, frame, &p)
			for padding := range 64 {
				var padded Parsed
				if fault := Parse(append(bytes.Clone(frame), make([]byte, padding)...), false, &padded); fault != FaultNone || padded != p {
					t.Errorf("%d bytes of padding: fault %v, parsed %+v, want %+v", padding, fault, padded, p)
				}
			}
			for n := range frame {
				cut := frame[:n:n]
				if fault := Parse(cut, false, &p); fault == FaultNone {
					t.Errorf("no fault in %d of %d bytes: %+v", n, len(frame), p)
				}
				checkOrder(t, cut, &p)
			}
		})
	}
}

// checkOrder fails unless the offsets are ordered and inside the frame.
func checkOrder(t *testing.T, frame []byte, p *Parsed) {
	t.Helper()
	if p.L3 < 0 || p.L4 < p.L3 || p.Payload < p.L4 || p.End < p.Payload || int(p.End) > len(frame) {
		t.Errorf("offsets out of order: %+v in a frame of %d bytes", p, len(frame))
	}
}

// set returns a copy of the named frame with b at offset, and a right IPv4
// checksum.
func set(name string, offset int, b ...byte) []byte {
	frame := bytes.Clone(realFrames[name])
	copy(frame[offset:], b)
	if ip := IPv4(frame[EthernetLen:]); Ethernet(frame).EtherType() == EtherTypeIPv4 && ip.IsValid() {
		ip.UpdateChecksum()
	}
	return frame
}

// Offsets in frames for set.
const (
	atIPv4 = EthernetLen
	atIPv6 = EthernetLen
)

// One frame, and one reason, for each fault; the list is complete.
func TestParseFaults(t *testing.T) {
	wrongChecksum := set("udpv4", 0)
	wrongChecksum[atIPv4+ipv4TTL]--
	cases := []struct {
		name  string
		frame []byte
		want  Fault
	}{
		{"nothing", nil, FaultShortEthernet},
		{"13 bytes", realFrames["udpv4"][:13], FaultShortEthernet},
		{"802.1Q", set("udpv4", ethernetType, 0x81, 0x00), FaultVLANTagged},
		{"802.1ad", set("udpv4", ethernetType, 0x88, 0xa8), FaultVLANTagged},
		{"27 bytes of ARP", realFrames["arpRequest"][:EthernetLen+27], FaultShortARP},
		{"ARP for IEEE 802 networks", set("arpRequest", EthernetLen, 0, 6), FaultARPFields},
		{"ARP for IPv6", set("arpRequest", EthernetLen+arpProtocol, 0x86, 0xdd), FaultARPFields},
		{"ARP with MACs of 8 bytes", set("arpRequest", EthernetLen+arpHLen, 8), FaultARPFields},
		{"ARP with addresses of 16 bytes", set("arpRequest", EthernetLen+arpPLen, 16), FaultARPFields},
		{"19 bytes of IPv4", realFrames["udpv4"][:atIPv4+19], FaultShortIPv4},
		{"version 6 in IPv4", set("udpv4", atIPv4, 0x65), FaultIPv4Version},
		{"header of 16 bytes", set("udpv4", atIPv4, 0x44), FaultIPv4HeaderLen},
		{"header of 60 bytes in 35", set("udpv4", atIPv4, 0x4f), FaultIPv4HeaderLen},
		{"total length under the header's", set("udpv4", atIPv4+ipv4TotalLen, 0, 19), FaultIPv4TotalLen},
		{"total length zero", set("udpv4", atIPv4+ipv4TotalLen, 0, 0), FaultIPv4TotalLen},
		{"total length beyond the frame", set("udpv4", atIPv4+ipv4TotalLen, 0, 36), FaultIPv4TotalLen},
		{"TTL changed, checksum not", wrongChecksum, FaultIPv4Checksum},
		{"39 bytes of IPv6", realFrames["udpv6"][:atIPv6+39], FaultShortIPv6},
		{"version 4 in IPv6", set("udpv6", atIPv6, 0x40), FaultIPv6Version},
		{"payload length beyond the frame", set("udpv6", atIPv6+ipv6PayloadLen, 0, 16), FaultIPv6PayloadLen},
		{"jumbogram", set("mldReport", atIPv6+ipv6PayloadLen, 0, 0), FaultIPv6PayloadLen},
		{"hop-by-hop header beyond the packet", set("mldReport", l4v6+1, 7), FaultIPv6Extension},
		{"7 bytes of fragment header", set("icmpv6LastFragment", atIPv6+ipv6PayloadLen, 0, 7), FaultIPv6Extension},
		{"fragment of a fragment", set("icmpv6LastFragment", l4v6, ProtoFragment, 0, 0, 1), FaultIPv6Extension},
		{"7 bytes of UDP", set("udpv4", atIPv4+ipv4TotalLen, 0, 27), FaultShortL4},
		{"19 bytes of TCP", set("tcpv4", atIPv4+ipv4TotalLen, 0, 39), FaultShortL4},
		{"7 bytes of ICMP", set("icmpv4Echo", atIPv4+ipv4TotalLen, 0, 27), FaultShortL4},
		{"3 bytes of ICMPv6", set("icmpv6Echo", atIPv6+ipv6PayloadLen, 0, 3), FaultShortL4},
		{"no L4 at all", set("udpv6", atIPv6+ipv6PayloadLen, 0, 0), FaultShortL4},
		{"TCP header of 16 bytes", set("tcpv4", l4v4+tcpDataOffset, 0x40), FaultTCPDataOffset},
		{"TCP header of 44 bytes in 40", set("tcpv4", l4v4+tcpDataOffset, 0xb0), FaultTCPDataOffset},
		// RFC 1858: a fragment too small for its TCP header hides it from filters.
		{"tiny first fragment", set("tcpv4", atIPv4+ipv4TotalLen, 0, 28, 0, 0, 0x20, 0), FaultShortL4},
		{"UDP length 0", set("udpv4", l4v4+udpLength, 0, 0), FaultUDPLength},
		{"UDP length 7", set("udpv4", l4v4+udpLength, 0, 7), FaultUDPLength},
		{"UDP length 7 in a first fragment", set("udpv4", atIPv4+ipv4Fragment, 0x20, 0, 64, ProtoUDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 7), FaultUDPLength},
		{"UDP length beyond the packet", set("udpv4", l4v4+udpLength, 0, 16), FaultUDPLength},
	}
	seen := make(map[Fault]bool)
	for _, c := range cases {
		var p Parsed
		if got := Parse(c.frame, false, &p); got != c.want {
			t.Errorf("%s: fault %v, want %v", c.name, got, c.want)
		}
		checkOrder(t, c.frame, &p)
		seen[c.want] = true
	}
	names := map[string]bool{FaultNone.String(): true}
	for fault := FaultNone + 1; int(fault) < NumFaults; fault++ {
		if !seen[fault] || names[fault.String()] {
			t.Errorf("fault %d %q: no case, or a name used twice", fault, fault)
		}
		names[fault.String()] = true
	}
}

// What is unusual and right all the same.
func TestParseTolerates(t *testing.T) {
	for _, c := range []struct {
		name       string
		frame      []byte
		superFrame bool
		want       Parsed // of the fields below; addresses, TTL and L3 are gopacket's to check
	}{
		{"STP, in an 802.3 frame", set("udpv4", ethernetType, 0, 38), false,
			Parsed{L4: 14, Payload: 14, End: 49}},
		{"UDP length under the payload's", set("udpv4", l4v4+udpLength, 0, 8), false,
			Parsed{Kind: KindIPv4, Proto: ProtoUDP, L4: 34, Payload: 42, End: 49, SrcPort: 40000, DstPort: 53}},
		{"UDP length 0 in a super-frame", set("udpv4", l4v4+udpLength, 0, 0), true,
			Parsed{Kind: KindIPv4, Proto: ProtoUDP, L4: 34, Payload: 42, End: 49, SrcPort: 40000, DstPort: 53}},
		{"first fragment, UDP length of the whole", set("udpv4", atIPv4+ipv4Fragment, 0x20, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 53, 9, 9), false,
			Parsed{Kind: KindIPv4, Proto: ProtoUDP, L4: 34, Payload: 42, End: 49, SrcPort: 40000, DstPort: 53, Fragment: true, FirstFragment: true}},
		{"last fragment: no ports", set("udpv4", atIPv4+ipv4Fragment, 0, 1), false,
			Parsed{Kind: KindIPv4, Proto: ProtoUDP, L4: 34, Payload: 34, End: 49, Fragment: true}},
		{"UDP behind options", set("tcpv4", atIPv4, 0x47, 0, 0, 60, 0, 0, 0, 0, 64, ProtoTCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, TCPAck), false,
			Parsed{Kind: KindIPv4, Proto: ProtoTCP, L4: 42, Payload: 62, End: 74, SrcPort: 80, DstPort: 81, TCPFlags: TCPAck}},
		{"ESP", set("udpv4", atIPv4+ipv4Protocol, ProtoESP), false,
			Parsed{Kind: KindIPv4, Proto: ProtoESP, L4: 34, Payload: 34, End: 49}},
		{"no next header, no payload", set("udpv6", atIPv6+ipv6PayloadLen, 0, 0, ProtoNoNext), false,
			Parsed{Kind: KindIPv6, Proto: ProtoNoNext, L4: 54, Payload: 54, End: 54}},
		{"an unknown next header", set("udpv6", atIPv6+ipv6NextHeader, 253), false,
			Parsed{Kind: KindIPv6, Proto: 253, L4: 54, Payload: 54, End: 69}},
		{"ICMPv6 in IPv4 is not ICMPv6", set("icmpv4Echo", atIPv4+ipv4Protocol, ProtoICMPv6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, ICMPv6NeighborSolicit), false,
			Parsed{Kind: KindIPv4, Proto: ProtoICMPv6, L4: 34, Payload: 34, End: 50}},
		{"atomic fragment (RFC 6946)", set("icmpv6LastFragment", l4v6, ProtoICMPv6, 0, 0, 0), false,
			Parsed{Kind: KindIPv6, Proto: ProtoICMPv6, L4: 62, Payload: 62, End: 222, Fragment: true, FirstFragment: true}},
		{"later fragment of destination options", set("icmpv6LastFragment", l4v6, ProtoDestOptions), false,
			Parsed{Kind: KindIPv6, Proto: ProtoDestOptions, L4: 62, Payload: 62, End: 222, Fragment: true}},
	} {
		var got Parsed
		if fault := Parse(c.frame, c.superFrame, &got); fault != FaultNone {
			t.Errorf("%s: fault %v", c.name, fault)
		}
		c.want.Src, c.want.Dst, c.want.TTL, c.want.L3 = got.Src, got.Dst, got.TTL, EthernetLen
		if got != c.want {
			t.Errorf("%s: parsed %+v, want %+v", c.name, got, c.want)
		}
	}
}

// RFC 4861 section 4: router solicitation (133) to redirect (137).
func TestParseND(t *testing.T) {
	for icmpv6Type := range 256 {
		var p Parsed
		fault := Parse(set("icmpv6Echo", l4v6, byte(icmpv6Type)), false, &p)
		if want := icmpv6Type >= 133 && icmpv6Type <= 137; fault != FaultNone || p.ND != want {
			t.Errorf("type %d: fault %v, ND %t", icmpv6Type, fault, p.ND)
		}
	}
}

// Frames as long as IP allows: 65,549 bytes and 65,589.
func TestParseLongest(t *testing.T) {
	v4 := append(bytes.Clone(realFrames["udpv4"]), make([]byte, 65535-35)...)
	binary.BigEndian.PutUint16(v4[atIPv4+ipv4TotalLen:], 65535)
	binary.BigEndian.PutUint16(v4[l4v4+udpLength:], 65515)
	IPv4(v4[atIPv4:]).UpdateChecksum()
	v6 := append(bytes.Clone(realFrames["udpv6"]), make([]byte, 65535-15)...)
	binary.BigEndian.PutUint16(v6[atIPv6+ipv6PayloadLen:], 65535)
	binary.BigEndian.PutUint16(v6[l4v6+udpLength:], 65535)
	for _, frame := range [][]byte{v4, v6} {
		for _, padding := range []int{0, 1, 1000} {
			var p Parsed
			padded := append(bytes.Clone(frame), make([]byte, padding)...)
			if fault := Parse(padded, true, &p); fault != FaultNone || int(p.End) != len(frame) {
				t.Errorf("frame of %d bytes: fault %v, end %d", len(padded), fault, p.End)
			}
		}
	}
}

// randomChain returns n extension headers, the type of the first, and behind them
// 20 bytes of TCP.
func randomChain(r *rand.Rand, n int) (first uint8, chain []byte) {
	first, chain = ProtoTCP, dirty(TCPMinLen)
	TCP(chain).Encode(&TCPFields{SrcPort: 1, DstPort: 2, DataOffset: TCPMinLen, Flags: TCPSyn})
	fragmented := false
	for range n {
		var header []byte
		kind := []uint8{ProtoHopByHop, ProtoRouting, ProtoDestOptions, ProtoAH, ProtoFragment}[r.IntN(5)]
		if kind == ProtoFragment && fragmented {
			kind = ProtoRouting
		}
		switch kind {
		case ProtoFragment:
			fragmented = true
			header = []byte{first, 0xff, 0, byte(r.IntN(8)), 1, 2, 3, 4} // offset 0, reserved byte set
		case ProtoAH:
			words := 1 + r.IntN(6)
			header = append([]byte{first, byte(words)}, randomBytes(r, (words+2)*4-2)...)
		default:
			units := r.IntN(3)
			header = append([]byte{first, byte(units)}, randomBytes(r, (units+1)*8-2)...)
		}
		first, chain = kind, append(header, chain...)
	}
	return first, chain
}

// Chains of extension headers whose length the builder knows: up to 8 are walked,
// and no cut goes unnoticed.
func TestParseExtensions(t *testing.T) {
	r := seed.Rand(t)
	for range rounds(2000) {
		n := r.IntN(maxExtensions + 2)
		first, chain := randomChain(r, n)
		frame := append(bytes.Clone(realFrames["udpv6"][:l4v6]), chain...)
		frame[atIPv6+ipv6NextHeader] = first
		for cut := 1; cut <= len(chain); cut++ {
			IPv6(frame[atIPv6:]).SetPayloadLen(uint16(cut))
			var p Parsed
			fault := Parse(frame[:l4v6+cut], false, &p)
			checkOrder(t, frame, &p)
			if ok := cut == len(chain) && n <= maxExtensions; (fault == FaultNone) != ok {
				t.Fatalf("%d headers, %d of %d bytes: fault %v\n% x", n, cut, len(chain), fault, chain)
			}
			if fault == FaultNone && (p.Proto != ProtoTCP || p.DstPort != 2 || int(p.L4) != len(frame)-TCPMinLen) {
				t.Fatalf("%d headers: parsed %+v\n% x", n, p, chain)
			}
		}
	}
}

// Parsed says that it fits a cache line.
func TestParsedSize(t *testing.T) {
	if size := unsafe.Sizeof(Parsed{}); size > 64 {
		t.Errorf("Parsed has %d bytes", size)
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	var p Parsed
	for name, frame := range realFrames {
		if n := testing.AllocsPerRun(100, func() { Parse(frame, false, &p) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, frame := range realFrames {
		f.Add(frame, false)
		f.Add(frame, true)
	}
	f.Fuzz(func(t *testing.T, frame []byte, superFrame bool) {
		p := Parsed{SrcPort: 0xa5a5, L4: -1, TCPFlags: 0xa5, ND: true, Src: [16]byte{15: 0xa5}}
		fault := Parse(frame, superFrame, &p)
		checkOrder(t, frame, &p)
		var again Parsed
		if Parse(frame, superFrame, &again); again != p {
			t.Errorf("what p held before shows through: %+v, %+v", p, again)
		}
		if fault == FaultNone {
			checkParsed(t, frame, superFrame, &p)
		}
	})
}

// checkParsed holds p, parsed without a fault, against the views and the frame's bytes.
func checkParsed(t *testing.T, frame []byte, superFrame bool, p *Parsed) {
	t.Helper()
	l3 := frame[p.L3:]
	var src, dst []byte
	switch p.Kind {
	case KindARP:
		src, dst = l3[14:18], l3[24:28]
	case KindIPv4:
		src, dst = l3[12:16], l3[16:20]
		if !IPv4(l3).IsValid() || slowSum(l3[:p.L4-p.L3], 0) != 0xffff {
			t.Errorf("invalid IPv4 taken: % x", l3)
		}
	case KindIPv6:
		src, dst = l3[8:24], l3[24:40]
		if !IPv6(l3).IsValid() {
			t.Errorf("invalid IPv6 taken: % x", l3)
		}
	}
	if !bytes.HasPrefix(p.Src[:], src) || !bytes.HasPrefix(p.Dst[:], dst) {
		t.Errorf("addresses % x, % x; want % x, % x", p.Src, p.Dst, src, dst)
	}
	l4 := frame[p.L4:p.End]
	var ports []byte
	if p.Kind >= KindIPv4 && p.HasL4() && (p.Proto == ProtoTCP || p.Proto == ProtoUDP) {
		ports = l4[:4]
	}
	if got := fmt.Sprintf("%04x%04x", p.SrcPort, p.DstPort); ports != nil && got != fmt.Sprintf("%x", ports) || ports == nil && got != "00000000" {
		t.Errorf("ports %s, want %x", got, ports)
	}
	if ports != nil && p.Proto == ProtoUDP && !p.FirstFragment && !superFrame && !UDP(l4).IsValid() {
		t.Errorf("invalid UDP taken: % x", l4)
	}
}

func BenchmarkParse(b *testing.B) {
	udp64 := append(bytes.Clone(realFrames["udpv4"]), make([]byte, 64-len(realFrames["udpv4"]))...)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"udp64", udp64}, {"tcpv4", realFrames["tcpv4"]}, {"tcpv6", realFrames["tcpv6"]},
		{"extension", realFrames["mldReport"]}, {"arp", realFrames["arpRequest"]},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.frame)))
			var p Parsed
			for b.Loop() {
				if Parse(c.frame, false, &p) != FaultNone {
					b.Fatal("fault")
				}
			}
		})
	}
}
