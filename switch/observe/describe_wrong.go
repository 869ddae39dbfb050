package observe

import (
	"encoding/binary"
	"fmt"

	"tapyard/switch/drop"
	"tapyard/switch/wire"
)

// malformed says whether the reason is one of those that Parse finds.
func malformed(r drop.Reason) bool {
	return r >= drop.ShortEthernet && r <= drop.UDPLength && r != drop.MulticastSource && r != drop.VLANTagged
}

// wrong says which of the packet's fields lies, and shows the bytes of the header that it is in. The
// headers that it looks into are those whose fixed part is there: their lengths were held against the
// frame before the fault was found.
func (s sample) wrong(f wire.Fault, p *wire.Parsed) string {
	l3 := s.b[wire.EthernetLen:]
	show := func(from int32, format string, args ...any) string {
		return fmt.Sprintf(format, args...) + ": " + hexOf(s.b[min(int(from), s.kept):s.kept])
	}
	switch f {
	case wire.FaultShortARP:
		return show(wire.EthernetLen, "ARP needs %d bytes, %d are there", wire.ARPLen, len(l3))
	case wire.FaultARPFields:
		return show(wire.EthernetLen, "ARP for hardware type %d and protocol 0x%04x with addresses of %d and %d bytes",
			binary.BigEndian.Uint16(l3), binary.BigEndian.Uint16(l3[2:]), l3[4], l3[5])
	case wire.FaultShortIPv4:
		return show(wire.EthernetLen, "IPv4 needs %d bytes, %d are there", wire.IPv4MinLen, len(l3))
	case wire.FaultShortIPv6:
		return show(wire.EthernetLen, "IPv6 needs %d bytes, %d are there", wire.IPv6Len, len(l3))
	case wire.FaultIPv4Version, wire.FaultIPv6Version:
		return show(wire.EthernetLen, "IP version %d in a frame of EtherType 0x%04x", l3[0]>>4, wire.Ethernet(s.b).EtherType())
	case wire.FaultIPv4HeaderLen:
		return show(wire.EthernetLen, "IPv4 says its header has %d bytes, of %d that are there", wire.IPv4(l3).HeaderLen(), len(l3))
	case wire.FaultIPv4TotalLen:
		return show(wire.EthernetLen, "IPv4 says %d bytes, %d are there", wire.IPv4(l3).TotalLen(), len(l3))
	case wire.FaultIPv4Checksum:
		return show(wire.EthernetLen, "IPv4 header checksum is 0x%04x, 0x%04x would be right", wire.IPv4(l3).Checksum(), rightChecksum(l3))
	case wire.FaultIPv6PayloadLen:
		return show(wire.EthernetLen, "IPv6 says %d bytes of payload, %d are there", wire.IPv6(l3).PayloadLen(), len(l3)-wire.IPv6Len)
	}
	return s.wrongInside(f, p)
}

// wrongInside is for what stands behind an IP header that is in order.
func (s sample) wrongInside(f wire.Fault, p *wire.Parsed) string {
	src, dst := addrs(p)
	there := int(p.End - p.L4)
	what := fmt.Sprintf("%s %v > %v", protoName(p), src, dst)
	if p.FirstFragment {
		what = "first fragment of " + what
	}
	bytes := hexOf(s.b[min(int(p.L4), s.kept):min(int(p.End), max(int(p.L4), s.kept))])
	switch l4 := s.b[p.L4:p.End]; {
	case f == wire.FaultIPv6Extension:
		return fmt.Sprintf("IPv6 %v > %v, extension header %d at byte %d is cut short, repeated or one too many, %d bytes are left: %s",
			src, dst, p.Proto, p.L4-p.L3, there, bytes)
	case f == wire.FaultTCPDataOffset && s.known(p.L4, wire.TCPMinLen):
		return fmt.Sprintf("%s, data offset says %d bytes, %d are there: %s", what, wire.TCP(l4).DataOffset(), there, bytes)
	case f == wire.FaultUDPLength && s.known(p.L4, wire.UDPLen):
		return fmt.Sprintf("%s, UDP length says %d bytes, %d are there: %s", what, wire.UDP(l4).Length(), there, bytes)
	}
	return fmt.Sprintf("%s, %d bytes are left for its header: %s", what, there, bytes)
}

// rightChecksum returns the checksum that an IPv4 header, whose length is in order, should have.
func rightChecksum(l3 []byte) uint16 {
	header := wire.IPv4(append([]byte(nil), l3[:wire.IPv4(l3).HeaderLen()]...))
	header.UpdateChecksum()
	return header.Checksum()
}
