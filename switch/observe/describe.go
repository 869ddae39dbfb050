package observe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"tapyard/switch/drop"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

const (
	// maxDescription bounds a description, in bytes. The longest ones have two IPv6 addresses (39 B each),
	// four MACs (17 B each), the names of eight extension headers and the bytes of hexLen.
	maxDescription = 500
	// hexLen is how many bytes a description of something malformed shows: an IPv4 header and four more.
	hexLen = 24
)

// describe says in words what an example is, for somebody who reads a terminal. The bytes are whatever a
// pod or a stranger sent; of them only numbers, addresses and names of our own get into the text, which is
// printable ASCII of at most maxDescription bytes.
func describe(r drop.Reason, e *port.Example) string {
	switch {
	case e.From.IsValid():
		return describeDatagram(r, e)
	case e.Len == 0: // an empty frame, or the kernel kept it to itself
		return "no bytes were delivered"
	case r == drop.ShortRead:
		return fmt.Sprintf("the device delivered %d bytes: %s", e.Len, hexOf(e.Head))
	}
	return newSample(r, e.Head, e.Len).describe(r)
}

// describeClaim says what a frame that the source guard stopped claims to be, and what its pod is; nothing
// for other reasons.
func describeClaim(r drop.Reason, e *port.Example, mac wire.MAC, own []netip.Addr) string {
	claim := newSample(r, e.Head, e.Len).claim(r)
	switch {
	case claim == "":
		return ""
	case len(own) == 0: // mode l2 gives out none
		return fmt.Sprintf("; it claims %s, but this pod is %v", claim, mac)
	}
	return fmt.Sprintf("; it claims %s, but this pod is %s at %v", claim, list(own), mac)
}

// describeDatagram is for what arrived at the tunnel's socket.
func describeDatagram(r drop.Reason, e *port.Example) string {
	vxlan := wire.VXLAN(e.Head)
	from := "datagram from " + e.From.WithZone("").String()
	if !vxlan.IsValid() {
		return fmt.Sprintf("%s, %d bytes, not VXLAN: %s", from, e.Len, hexOf(e.Head))
	}
	inner := newSample(r, vxlan.Payload(), e.Len-wire.VXLANLen)
	return fmt.Sprintf("%s: VXLAN VNI %d, inside: %s", from, vxlan.VNI(), inner.describe(r))
}

// sample is a frame of which the first kept bytes are known. b has its full length, or Parse would find it
// cut short; behind the known bytes it is zero.
type sample struct {
	b    []byte
	kept int
}

// newSample makes a sample out of a frame's head. length is the frame's, or that of the slow path's copy:
// the frame is as long as its IP header says then, unless that is what it was dropped for.
func newSample(r drop.Reason, head []byte, length int) sample {
	if !malformed(r) {
		length = max(length, saidLength(head))
	}
	b := make([]byte, length)
	return sample{b, copy(b, head)}
}

// saidLength returns the length that a frame has by its IP header, or 0.
func saidLength(b []byte) int {
	switch eth := wire.Ethernet(b); {
	case len(b) >= wire.EthernetLen+wire.IPv4MinLen && eth.EtherType() == wire.EtherTypeIPv4:
		return wire.EthernetLen + int(wire.IPv4(eth.Payload()).TotalLen())
	case len(b) >= wire.EthernetLen+wire.IPv6Len && eth.EtherType() == wire.EtherTypeIPv6:
		return wire.EthernetLen + wire.IPv6Len + int(wire.IPv6(eth.Payload()).PayloadLen())
	}
	return 0
}

// describe returns what the frame carries, its length and its MACs.
func (s sample) describe(r drop.Reason) string {
	eth := wire.Ethernet(s.b)
	if !eth.IsValid() {
		return fmt.Sprintf("%d bytes, an Ethernet header has %d: %s", len(s.b), wire.EthernetLen, hexOf(s.b[:s.kept]))
	}
	return fmt.Sprintf("%s, %d bytes, from %v to %v", s.content(r), len(s.b), eth.Src(), eth.Dst())
}

// content returns what the frame carries.
func (s sample) content(r drop.Reason) string {
	switch eth := wire.Ethernet(s.b); eth.EtherType() {
	case wire.EtherTypeVLAN, wire.EtherTypeQinQ:
		return s.tagged(r)
	case wire.EtherTypeARP, wire.EtherTypeIPv4, wire.EtherTypeIPv6:
		var p wire.Parsed
		fault := wire.Parse(s.b, true, &p) // lengths of super-frames are right as well
		if fault != wire.FaultNone && (malformed(r) || p.Kind == wire.KindOther) {
			return s.wrong(fault, &p)
		}
		return s.packet(&p) // a fault behind the IP header is none of the packet's, but of what was kept of it
	default:
		return etherTypeName(eth.EtherType())
	}
}

// vlanTagLen is the length of an 802.1Q tag: the type and 16 bits, 12 of them the VLAN's.
const vlanTagLen = 4

// tagged describes the frame without its first tag.
func (s sample) tagged(r drop.Reason) string {
	const macs = wire.EthernetLen - 2 // the tag follows
	if s.kept < wire.EthernetLen+vlanTagLen {
		return "VLAN tag cut short: " + hexOf(s.b[macs:s.kept])
	}
	inner := sample{append(append([]byte(nil), s.b[:macs]...), s.b[macs+vlanTagLen:]...), s.kept - vlanTagLen}
	vlan := binary.BigEndian.Uint16(s.b[wire.EthernetLen:]) & 0xfff
	if t := wire.Ethernet(inner.b).EtherType(); t == wire.EtherTypeVLAN || t == wire.EtherTypeQinQ {
		return fmt.Sprintf("VLAN %d, inside: another VLAN tag %s", vlan, hexOf(inner.b[macs:inner.kept]))
	}
	return fmt.Sprintf("VLAN %d, inside: %s", vlan, inner.content(r))
}

// hexOf returns the first bytes as "45 00 05 dc ...".
func hexOf(b []byte) string {
	if len(b) == 0 {
		return "(none)"
	}
	text := fmt.Sprintf("% x", b[:min(len(b), hexLen)])
	if len(b) > hexLen {
		text += " ..."
	}
	return text
}

var etherTypes = map[uint16]string{
	0x0806: "ARP", 0x8035: "RARP", 0x8847: "MPLS", 0x8863: "PPPoE discovery", 0x8864: "PPPoE", 0x888e: "802.1X",
	0x8809: "LACP", 0x88cc: "LLDP", 0x88e5: "MACsec", 0x88f7: "PTP", 0x9000: "loopback test",
}

// etherTypeName names a frame that is neither ARP nor IP.
func etherTypeName(t uint16) string {
	switch name, known := etherTypes[t]; {
	case t < 0x0600: // a length, IEEE 802.3 3.2.6
		return fmt.Sprintf("802.3 frame with length %d (STP or another LLC protocol)", t)
	case known:
		return fmt.Sprintf("%s (EtherType 0x%04x)", name, t)
	}
	return fmt.Sprintf("EtherType 0x%04x", t)
}

// list joins values as "a, b and c".
func list[T any](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
