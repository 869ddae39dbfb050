package wire

import "encoding/binary"

// Kind is the network layer that Parse found.
type Kind uint8

// KindOther is every EtherType that Parse doesn't look into: such a frame is
// forwarded by its MAC addresses alone.
const (
	KindOther Kind = iota
	KindARP
	KindIPv4
	KindIPv6
)

var kindNames = [...]string{KindOther: "other", KindARP: "arp", KindIPv4: "ipv4", KindIPv6: "ipv6"}

// String returns the kind in snake_case.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "invalid"
}

// Parsed is what one pass over a frame found: offsets, addresses and ports. It
// is filled once by Parse and read many times; it points to nothing and fits one
// cache line of 64 bytes.
//
// Offsets count bytes from the frame's first and are ordered:
// L3 <= L4 <= Payload <= End <= len(frame).
type Parsed struct {
	// Src and Dst are the IP addresses (ARP: sender's and target's), IPv4 as 4
	// bytes at the front and the rest zero.
	Src, Dst [16]byte

	L3      int32 // the network header
	L4      int32 // end of the IP header, and of IPv6 extension headers
	Payload int32 // behind the TCP or UDP header; otherwise equal to L4
	End     int32 // end of the packet by its own length; Ethernet padding lies behind

	SrcPort, DstPort uint16 // TCP and UDP with HasL4, otherwise 0

	Kind     Kind
	Proto    uint8 // IPv4 protocol, or the type of what stands at L4 behind IPv6 extension headers
	TTL      uint8 // or hop limit
	TCPFlags uint8 // TCP with HasL4, otherwise 0

	Fragment      bool // IPv4 with MF or an offset, IPv6 with a fragment header
	FirstFragment bool // a Fragment with offset 0: the L4 header is here
	ND            bool // ICMPv6 types 133 to 137 (RFC 4861)
}

// HasL4 says whether the L4 header is in this frame: false for later fragments.
func (p *Parsed) HasL4() bool { return !p.Fragment || p.FirstFragment }

// maxExtensions bounds the walk over IPv6 extension headers. RFC 8200 section 4.1
// lists six that should occur once each, and destination options twice.
const maxExtensions = 8

// extensionMinLen is the length of the shortest extension header (RFC 8200
// section 4), and of every fragment header.
const extensionMinLen = 8

// Parse checks the frame's headers from Ethernet to TCP, UDP and ICMP and fills p,
// overwriting every field. L4 checksums are left to whoever needs them.
// superFrame says that virtio GSO metadata stands beside the frame: then a UDP
// length of 0 is allowed.
//
// After a fault the offsets are still ordered and inside the frame, and p
// describes the layers before the one that the fault names, which is good for
// traces only. Without a fault the views at L3 and L4 are valid, with one
// exception: the UDP length of a first fragment exceeds what is there.
// Frames are shorter than 2 GiB. Parse doesn't allocate or keep the frame.
func Parse(frame []byte, superFrame bool, p *Parsed) Fault {
	*p = Parsed{}
	if len(frame) < EthernetLen {
		return FaultShortEthernet
	}
	p.L3, p.L4, p.Payload, p.End = EthernetLen, EthernetLen, EthernetLen, int32(len(frame))
	switch Ethernet(frame).EtherType() {
	case EtherTypeIPv4:
		return parseIPv4(frame, superFrame, p)
	case EtherTypeIPv6:
		return parseIPv6(frame, superFrame, p)
	case EtherTypeARP:
		return parseARP(frame, p)
	case EtherTypeVLAN, EtherTypeQinQ:
		return FaultVLANTagged
	}
	return FaultNone
}

func parseARP(frame []byte, p *Parsed) Fault {
	arp := ARP(frame[EthernetLen:])
	if f := arp.fault(); f != FaultNone {
		return f
	}
	p.Kind = KindARP
	p.End = EthernetLen + ARPLen
	p.L4, p.Payload = p.End, p.End
	*(*[4]byte)(p.Src[:]) = [4]byte(arp[arpSenderIP:])
	*(*[4]byte)(p.Dst[:]) = [4]byte(arp[arpTargetIP:])
	return FaultNone
}

func parseIPv4(frame []byte, superFrame bool, p *Parsed) Fault {
	ip := IPv4(frame[EthernetLen:])
	if f := ip.fault(); f != FaultNone {
		return f
	}
	if !ip.ChecksumOK() {
		return FaultIPv4Checksum
	}
	p.Kind = KindIPv4
	p.Proto = ip.Protocol()
	p.TTL = ip.TTL()
	*(*[4]byte)(p.Src[:]) = [4]byte(ip[ipv4Src:])
	*(*[4]byte)(p.Dst[:]) = [4]byte(ip[ipv4Dst:])
	p.L4 = EthernetLen + int32(ip.HeaderLen())
	p.Payload = p.L4
	p.End = EthernetLen + int32(ip.TotalLen())
	offset := ip.FragmentOffset()
	p.Fragment = offset != 0 || ip.MoreFragments()
	p.FirstFragment = p.Fragment && offset == 0
	return parseL4(frame[p.L4:p.End], superFrame, p)
}

func parseIPv6(frame []byte, superFrame bool, p *Parsed) Fault {
	ip := IPv6(frame[EthernetLen:])
	if f := ip.fault(); f != FaultNone {
		return f
	}
	p.Kind = KindIPv6
	p.Proto = ip.NextHeader()
	p.TTL = ip.HopLimit()
	p.Src = [16]byte(ip[ipv6Src:ipv6Dst])
	p.Dst = [16]byte(ip[ipv6Dst:IPv6Len])
	p.L4 = EthernetLen + IPv6Len
	p.Payload = p.L4
	p.End = p.L4 + int32(ip.PayloadLen())
	if f := skipExtensions(frame[:p.End], p); f != FaultNone {
		return f
	}
	return parseL4(frame[p.L4:p.End], superFrame, p)
}

// skipExtensions moves p.L4 behind the extension headers. Behind the fragment
// header of a later fragment there are none, whatever its next header says.
func skipExtensions(frame []byte, p *Parsed) Fault {
	for n := 0; isExtension(p.Proto) && p.HasL4(); n++ {
		rest := frame[p.L4:]
		if n == maxExtensions || len(rest) < extensionMinLen || extensionLen(p.Proto, rest) > len(rest) {
			return FaultIPv6Extension
		}
		if p.Proto == ProtoFragment {
			if p.Fragment { // a fragment of a fragment: no host sends it
				return FaultIPv6Extension
			}
			p.Fragment = true
			p.FirstFragment = binary.BigEndian.Uint16(rest[2:])&^7 == 0 // the upper 13 bits
		}
		p.L4 += int32(extensionLen(p.Proto, rest))
		p.Payload = p.L4
		p.Proto = rest[0]
	}
	return FaultNone
}

// isExtension says whether Parse walks over a header of that type. ESP hides what
// follows, "no next header" ends the chain, and unknown types are upper layers.
func isExtension(proto uint8) bool {
	switch proto {
	case ProtoHopByHop, ProtoRouting, ProtoDestOptions, ProtoFragment, ProtoAH:
		return true
	}
	return false
}

// extensionLen returns the length in bytes of an extension header that starts
// with ext[0].
func extensionLen(proto uint8, ext []byte) int {
	switch proto {
	case ProtoFragment:
		return extensionMinLen // RFC 8200 section 4.5: the second byte is reserved
	case ProtoAH:
		return (int(ext[1]) + 2) * 4 // RFC 4302 section 2.2
	}
	return (int(ext[1]) + 1) * 8 // RFC 8200 sections 4.3, 4.4, 4.6
}

// parseL4 looks at the header at p.L4, given the bytes from there to p.End.
func parseL4(l4 []byte, superFrame bool, p *Parsed) Fault {
	if !p.HasL4() {
		return FaultNone
	}
	switch {
	case p.Proto == ProtoTCP:
		return parseTCP(l4, p)
	case p.Proto == ProtoUDP:
		return parseUDP(l4, superFrame, p)
	case p.Proto == ProtoICMPv4 && p.Kind == KindIPv4:
		if !ICMPv4(l4).IsValid() {
			return FaultShortL4
		}
	case p.Proto == ProtoICMPv6 && p.Kind == KindIPv6:
		if !ICMPv6(l4).IsValid() {
			return FaultShortL4
		}
		p.ND = l4[icmpType] >= ICMPv6RouterSolicit && l4[icmpType] <= ICMPv6Redirect
	}
	return FaultNone
}

func parseTCP(l4 []byte, p *Parsed) Fault {
	tcp := TCP(l4)
	if len(tcp) < TCPMinLen {
		return FaultShortL4
	}
	if !tcp.IsValid() {
		return FaultTCPDataOffset
	}
	p.SrcPort, p.DstPort = tcp.SrcPort(), tcp.DstPort()
	p.TCPFlags = tcp.Flags()
	p.Payload += int32(tcp.DataOffset())
	return FaultNone
}

func parseUDP(l4 []byte, superFrame bool, p *Parsed) Fault {
	udp := UDP(l4)
	if len(udp) < UDPLen {
		return FaultShortL4
	}
	if !udp.IsValid() && !udpLengthExcused(udp, superFrame, p) {
		return FaultUDPLength
	}
	p.SrcPort, p.DstPort = udp.SrcPort(), udp.DstPort()
	p.Payload += UDPLen
	return FaultNone
}

// udpLengthExcused says whether a length field that is not inside the datagram is
// right all the same.
func udpLengthExcused(udp UDP, superFrame bool, p *Parsed) bool {
	length := int(udp.Length())
	return superFrame && length == 0 || p.FirstFragment && length > len(udp)
}
