package frame

import (
	"bytes"
	"encoding/binary"

	"tapyard/switch/wire"
)

// train is a super-frame to be.
type train struct {
	v6, udp bool
	closed  bool   // it has its last frame
	flags   uint8  // TCP's of its last frame
	l4      int    // offset of the TCP or UDP header
	hdrLen  int    // offset of the L4 payload
	size    int    // of the super-frame, bytes
	seq     uint32 // that TCP goes on with
	pseudo  uint32 // partial sum of the pseudo header without its length
}

// join takes f, behind the n frames that the train has, the first being h, or says that it may not. Checksums are
// summed last, and that of the first frame only when there is a second one, so that what can't be merged costs
// little. Both show their flow, and it is the same but for ports.
func (t *train) join(h, f *Frame, n int) bool {
	first := n == 1
	if !sameNetwork(h.buf, f.buf, uint16(n)) || first && !t.begin(h) {
		return false
	}
	if t.closed || !t.fits(f) || !t.follows(h.buf, f.buf) || first && !t.checksumsOK(h) || !t.checksumsOK(f) {
		return false
	}
	payload := len(f.buf) - t.hdrLen
	t.closed = len(f.buf) < len(h.buf)
	if !t.udp {
		t.flags = wire.TCP(f.buf[t.l4:]).Flags()
		t.closed = t.closed || t.flags&wire.TCPPsh != 0
	}
	t.seq += uint32(payload)
	t.size += payload
	return true
}

// sameNetwork says whether Ethernet and IP headers of two frames for which flowOf isn't 0 are what the same
// super-frame puts before its first and its segment n. Copies of group traffic are left alone: kernels hand a
// super-frame to several sockets by a path that few use.
func sameNetwork(h, f []byte, n uint16) bool {
	if h[0]&1 != 0 || le64(h) != le64(f) || le64(h[6:]) != le64(f[6:]) {
		return false
	}
	v6 := wire.Ethernet(h).EtherType() == wire.EtherTypeIPv6
	h, f = h[wire.EthernetLen:], f[wire.EthernetLen:]
	if v6 {
		return le32(h) == le32(f) && h[6] == f[6] && h[7] == f[7] && // version, class, label; next header, hop limit
			le64(h[8:]) == le64(f[8:]) && le64(h[16:]) == le64(f[16:]) &&
			le64(h[24:]) == le64(f[24:]) && le64(h[32:]) == le64(f[32:])
	}
	a, b := wire.IPv4(h), wire.IPv4(f)
	return (a.DontFragment() || b.ID() == a.ID()+n) &&
		h[0] == f[0] && a.TOS() == b.TOS() && h[6] == f[6] && h[7] == f[7] && // version, class, flags
		a.TTL() == b.TTL() && a.Protocol() == b.Protocol() && le64(h[12:]) == le64(f[12:])
}

// begin makes a train of one frame for which flowOf isn't 0, or says that it may be none.
func (t *train) begin(h *Frame) bool {
	packet := h.buf[wire.EthernetLen:]
	*t = train{v6: wire.Ethernet(h.buf).EtherType() == wire.EtherTypeIPv6, size: len(h.buf)}
	t.l4 = wire.EthernetLen + wire.IPv4MinLen
	proto := wire.IPv4(packet).Protocol()
	if t.v6 {
		t.l4 = wire.EthernetLen + wire.IPv6Len
		proto = wire.IPv6(packet).NextHeader()
	}
	t.hdrLen = t.l4 + wire.UDPLen
	if t.udp = proto == wire.ProtoUDP; !t.udp {
		tcp := wire.TCP(h.buf[t.l4:])
		if !tcp.IsValid() {
			return false
		}
		t.hdrLen = t.l4 + tcp.DataOffset()
		t.seq = tcp.Seq() + uint32(len(h.buf)-t.hdrLen)
		t.flags = tcp.Flags()
		t.closed = t.flags&wire.TCPPsh != 0
	}
	if !t.fits(h) {
		return false
	}
	t.pseudo = wire.PseudoHeader(packet, t.v6, proto, 0)
	return true
}

// fits says whether f, whose headers up to IP's are those of the train, may be in one: a whole packet with payload,
// no super-frame, with a checksum, and of TCP no flags but ACK and PSH.
func (t *train) fits(f *Frame) bool {
	if f.GSOType != wire.GSONone || len(f.buf) <= t.hdrLen || !t.networkFits(f.buf[wire.EthernetLen:]) {
		return false
	}
	if t.udp {
		udp := wire.UDP(f.buf[t.l4:])
		return int(udp.Length()) == len(udp) && (f.NeedsCsum || udp.Checksum() != 0)
	}
	tcp := wire.TCP(f.buf[t.l4:])
	return tcp.Flags()&^wire.TCPPsh == wire.TCPAck && tcp[12]&0x0f == 0 // the bits between offset and flags
}

// networkFits says whether the packet is valid and ends where the frame does: a Segmenter makes no padding.
func (t *train) networkFits(packet []byte) bool {
	if t.v6 {
		ip := wire.IPv6(packet)
		return ip.IsValid() && wire.IPv6Len+int(ip.PayloadLen()) == len(packet)
	}
	ip := wire.IPv4(packet)
	return ip.IsValid() && int(ip.TotalLen()) == len(packet)
}

// follows says whether f, which fits, goes on where the train that began with h ends: with the same ports (two flows
// may have the same number) and other fields, and no longer than h.
func (t *train) follows(h, f []byte) bool {
	if len(f) > len(h) || t.size+len(f)-t.hdrLen > MaxLen || le32(h[t.l4:]) != le32(f[t.l4:]) {
		return false
	}
	if t.udp {
		return true
	}
	a, b := wire.TCP(h[t.l4:]), wire.TCP(f[t.l4:])
	return b.Seq() == t.seq && a.Ack() == b.Ack() && a.DataOffset() == b.DataOffset() && a.Window() == b.Window() &&
		a.Urgent() == b.Urgent() && bytes.Equal(a.Options(), b[wire.TCPMinLen:b.DataOffset()])
}

// checksumsOK verifies the checksums of f, which fits.
func (t *train) checksumsOK(f *Frame) bool {
	if !t.v6 && !wire.IPv4(f.buf[wire.EthernetLen:]).ChecksumOK() {
		return false
	}
	segment := f.buf[t.l4:]
	pseudo := t.pseudo + uint32(len(segment))
	if !f.NeedsCsum {
		return wire.Fold(wire.Sum(segment, pseudo)) == 0xffff
	}
	offset := t.checksumOffset()
	return int(f.CsumStart) == t.l4 && f.CsumOffset == offset &&
		binary.BigEndian.Uint16(segment[offset:]) == wire.Fold(pseudo)
}

func (t *train) checksumOffset() uint16 {
	if t.udp {
		return wire.UDPChecksumOffset
	}
	return wire.TCPChecksumOffset
}

func (t *train) gsoType() uint8 {
	switch {
	case t.udp:
		return wire.GSOUDPL4
	case t.v6:
		return wire.GSOTCPv6
	}
	return wire.GSOTCPv4
}

// finish makes the first frame's headers in b, which has the super-frame's length, those of the super-frame, and m,
// which is the first frame's, its metadata. PSH comes from the last frame, if it is there.
func (t *train) finish(b []byte, m *Meta, first int) {
	m.GSOType, m.HdrLen, m.GSOSize = t.gsoType(), uint16(t.hdrLen), uint16(first-t.hdrLen)
	m.NeedsCsum, m.CsumStart, m.CsumOffset = true, uint16(t.l4), t.checksumOffset()
	segment := b[t.l4:]
	if t.v6 {
		wire.IPv6(b[wire.EthernetLen:]).SetPayloadLen(uint16(len(segment)))
	} else {
		ip := wire.IPv4(b[wire.EthernetLen:])
		ip.SetTotalLen(uint16(len(ip)))
		ip.UpdateChecksum()
	}
	partial := wire.Fold(t.pseudo + uint32(len(segment)))
	if t.udp {
		udp := wire.UDP(segment)
		udp.SetLength(uint16(len(segment)))
		udp.SetChecksum(partial)
		return
	}
	tcp := wire.TCP(segment)
	tcp.SetFlags(t.flags)
	tcp.SetChecksum(partial)
}
