package frame

import (
	"encoding/binary"

	"tapyard/switch/wire"
)

// RestoreOffload recognises a TCP or UDP packet that left its sender with work still to be done, and notes
// that work in f's Meta, which has no offloads so far. It reports whether it did. The bytes aren't changed.
//
// The kernel's vxlan device puts a pod's packet into a datagram as it is: with a partial checksum, and TCP
// up to 64 KiB at once. That is finished by the network card that the datagram leaves through, with the
// segmentation of what is inside the tunnel; if it never meets one, because the device is on this host or
// on one behind a veth pair, a tunnel's socket gets it unfinished. So this is for frames from tunnels only,
// and p is what Parse found in f, without a fault; mtu is the overlay's, in bytes from the IP header on.
//
// A packet counts as partial when its checksum field holds the pseudo header's sum. If a complete checksum
// is equal to that by chance, then completing it gives the same value again: the sum over pseudo header and
// segment being 0xffff, the segment's alone is the complement of the field. So nothing needs to be summed,
// and a wrong checksum stays wrong. What is no match:
//   - fragments, which hold a part of what the checksum covers;
//   - packets with IPv4 options or IPv6 extension headers: a source route there means that the checksum is
//     that of another destination;
//   - a UDP length that isn't the packet's.
//
// A partial TCP packet larger than mtu becomes a super-frame with segments of mtu. One whose checksum is
// complete was sent so large, and its sender must be told by ICMP. So must the sender of UDP, whose
// datagrams have limits of their own; for a train of them there is RestoreUSO.
func RestoreOffload(f *Frame, p *wire.Parsed, mtu int) bool {
	offset, ok := checksumField(p)
	if !ok {
		return false
	}
	segment := f.buf[p.L4:p.End]
	if p.Proto == wire.ProtoUDP && int(wire.UDP(segment).Length()) != len(segment) {
		return false
	}
	pseudo := wire.PseudoHeader(f.buf[p.L3:], p.Kind == wire.KindIPv6, p.Proto, len(segment))
	if binary.BigEndian.Uint16(segment[offset:]) != wire.Fold(pseudo) {
		return false
	}
	f.NeedsCsum, f.CsumStart, f.CsumOffset = true, uint16(p.L4), offset
	if p.Proto == wire.ProtoTCP {
		restoreTSO(f, p, mtu)
	}
	return true
}

// RestoreUSO is RestoreOffload for what the kernel's vxlan device made of a train of UDP datagrams (UDP_SEGMENT) and a
// socket with UDP_GRO gets uncut: f is one UDP packet, size the payload of each datagram but the last. It
// reports whether f, which has no offloads so far, looks like that and is a super-frame now.
func RestoreUSO(f *Frame, size int) bool {
	var p wire.Parsed
	if size <= 0 || wire.Parse(f.buf, true, &p) != wire.FaultNone || p.Proto != wire.ProtoUDP || int(p.End) != len(f.buf) {
		return false
	}
	if int(p.Payload)+size >= len(f.buf) || !RestoreOffload(f, &p, MaxLen) {
		return false
	}
	f.GSOType, f.HdrLen, f.GSOSize = wire.GSOUDPL4, uint16(p.Payload), uint16(size)
	return true
}

// checksumField returns where in its header a packet of one whole TCP or UDP segment has the checksum.
func checksumField(p *wire.Parsed) (offset uint16, ok bool) {
	bare := p.Kind == wire.KindIPv4 && p.L4-p.L3 == wire.IPv4MinLen || p.Kind == wire.KindIPv6 && p.L4-p.L3 == wire.IPv6Len
	switch {
	case !bare || p.Fragment:
		return 0, false
	case p.Proto == wire.ProtoTCP:
		return wire.TCPChecksumOffset, true
	case p.Proto == wire.ProtoUDP:
		return wire.UDPChecksumOffset, true
	}
	return 0, false
}

// restoreTSO makes f a super-frame if it is larger than mtu.
func restoreTSO(f *Frame, p *wire.Parsed, mtu int) {
	size := mtu - int(p.Payload-p.L3)
	if int(p.End-p.L3) <= mtu || size <= 0 || int(p.End) != len(f.buf) {
		return
	}
	f.GSOType = wire.GSOTCPv4
	if p.Kind == wire.KindIPv6 {
		f.GSOType = wire.GSOTCPv6
	}
	if p.TCPFlags&wire.TCPCwr != 0 {
		f.GSOType |= wire.GSOECN
	}
	f.HdrLen, f.GSOSize = uint16(p.Payload), uint16(size)
}
