package frame

import (
	"encoding/binary"

	"tapyard/switch/wire"
)

// Read virtio 1.2 section 5.1.6.2 (what the metadata mean), RFC 9293 section 3.1 and RFC 3168 section
// 6.1.2 (which flags belong to which segment) and RFC 768 first.

// MaxHeaderLen is the most bytes from the Ethernet header to the end of the L4 header that a Segmenter
// repeats before each segment: 14 + 40 + 60 B of Ethernet, IPv6 and TCP leave 142 B for IPv6 extension
// headers, such as a segment routing header with 8 segments (8 + 8 × 16 B). IPv4 needs 134 B at most.
const MaxHeaderLen = 256

// Segmenter cuts a super-frame into the frames that it stands for on the wire, without changing or
// copying the super-frame. It is an iterator: Start, then Next or AppendTo until they have no more. The
// zero value has no segments. It doesn't allocate; it serves one worker at a time.
type Segmenter struct {
	f      *Frame
	super  []byte
	v6     bool
	udp    bool
	l4     int    // offset of the TCP or UDP header
	hdrLen int    // offset of the L4 payload
	size   int    // bytes of payload in each segment but the last
	pos    int    // offset of the next segment's payload
	todo   int    // segments not yet returned
	index  uint16 // of the next segment
	pseudo uint32 // partial sum of the pseudo header without its length
}

// Start begins on f, which must stay as it is until the last segment has been taken. It needs only f's
// bytes and Meta, and returns false, with no segments to come, when the two don't fit together: a frame
// that isn't a super-frame, a HdrLen or CsumStart that isn't where the headers end, a length in the IP
// header that isn't the frame's, or headers longer than MaxHeaderLen. As for the kernel, the checksum
// field holds the pseudo header's sum for the whole super-frame; if it doesn't, the segments' checksums
// are wrong too.
func (s *Segmenter) Start(f *Frame) bool {
	*s = Segmenter{f: f, super: f.buf, l4: int(f.CsumStart), hdrLen: int(f.HdrLen), size: int(f.GSOSize)}
	if !f.NeedsCsum || s.size == 0 || s.hdrLen > min(MaxHeaderLen, len(f.buf)) || s.l4 > s.hdrLen {
		return false
	}
	if !s.networkFits() || !s.transportFits() {
		return false
	}
	partial := binary.BigEndian.Uint16(s.super[s.l4+int(f.CsumOffset):])
	length := uint16(len(s.super) - s.l4)
	s.pseudo = uint32(partial) + uint32(^length) // adding the complement subtracts (RFC 1071 section 2)
	s.pos = s.hdrLen
	s.todo = f.Wire()
	return true
}

// networkFits says whether an IP packet that ends where the frame ends has its payload, behind any
// extension headers, at s.l4.
func (s *Segmenter) networkFits() bool {
	if s.l4 < wire.EthernetLen {
		return false
	}
	packet := s.super[wire.EthernetLen:]
	l4 := s.l4 - wire.EthernetLen
	switch wire.Ethernet(s.super).EtherType() {
	case wire.EtherTypeIPv4:
		ip := wire.IPv4(packet)
		return ip.IsValid() && int(ip.TotalLen()) == len(ip) && l4 == ip.HeaderLen()
	case wire.EtherTypeIPv6:
		s.v6 = true
		ip := wire.IPv6(packet)
		return ip.IsValid() && wire.IPv6Len+int(ip.PayloadLen()) == len(ip) && l4 >= wire.IPv6Len
	}
	return false
}

// transportFits says whether the header at s.l4 is of the GSO type's protocol and ends at s.hdrLen.
func (s *Segmenter) transportFits() bool {
	switch s.f.GSOType &^ wire.GSOECN {
	case wire.GSOTCPv4:
		return !s.v6 && s.tcpFits()
	case wire.GSOTCPv6:
		return s.v6 && s.tcpFits()
	case wire.GSOUDPL4:
		s.udp = true
		return s.hdrLen == s.l4+wire.UDPLen && s.f.CsumOffset == wire.UDPChecksumOffset
	}
	return false
}

func (s *Segmenter) tcpFits() bool {
	tcp := wire.TCP(s.super[s.l4:])
	return tcp.IsValid() && s.hdrLen == s.l4+tcp.DataOffset() && s.f.CsumOffset == wire.TCPChecksumOffset
}

// Next writes the next segment's headers, Ethernet to TCP or UDP with complete checksums, to hdr and
// returns their length and the payload, which is a part of the super-frame. hdr must have the frame's HdrLen
// bytes, for which MaxHeaderLen is enough. ok is false, and nothing written, behind the last segment.
func (s *Segmenter) Next(hdr []byte) (hdrLen int, payload []byte, ok bool) {
	if s.todo == 0 {
		return 0, nil, false
	}
	payload = s.super[s.pos : s.pos+s.payloadLen()]
	hdr = hdr[:s.hdrLen]
	copy(hdr, s.super)
	s.fixNetwork(hdr[wire.EthernetLen:], len(payload))
	if s.udp {
		s.fixUDP(wire.UDP(hdr[s.l4:]), payload)
	} else {
		s.fixTCP(wire.TCP(hdr[s.l4:]), payload)
	}
	s.todo--
	s.index++
	s.pos += len(payload)
	return s.hdrLen, payload, true
}

// payloadLen returns the length of the next segment's payload.
func (s *Segmenter) payloadLen() int { return min(s.size, len(s.super)-s.pos) }

// fixNetwork sets the length of an IP packet with n bytes of L4 payload. Each IPv4 packet gets an
// identification of its own, as from the kernel (RFC 6864 lets it be anything where DF is set).
func (s *Segmenter) fixNetwork(hdr []byte, n int) {
	if s.v6 {
		wire.IPv6(hdr).SetPayloadLen(uint16(len(hdr) - wire.IPv6Len + n))
		return
	}
	ip := wire.IPv4(hdr)
	ip.SetTotalLen(uint16(len(hdr) + n))
	ip.SetID(ip.ID() + s.index)
	ip.UpdateChecksum()
}

// fixTCP makes tcp the header of one segment: FIN and PSH belong to the last byte, hence to the last
// segment, and CWR answers once, on the first.
func (s *Segmenter) fixTCP(tcp wire.TCP, payload []byte) {
	tcp.SetSeq(tcp.Seq() + uint32(s.pos-s.hdrLen))
	flags := tcp.Flags()
	if s.todo > 1 {
		flags &^= wire.TCPFin | wire.TCPPsh
	}
	if s.index > 0 {
		flags &^= wire.TCPCwr
	}
	tcp.SetFlags(flags)
	tcp.SetChecksum(0)
	tcp.SetChecksum(s.checksum(tcp, payload))
}

func (s *Segmenter) fixUDP(udp wire.UDP, payload []byte) {
	udp.SetLength(uint16(len(udp) + len(payload)))
	udp.SetChecksum(0)
	udp.SetChecksum(notZero(s.checksum(udp, payload)))
}

// checksum returns the segment's checksum. The header's length is even, so the sums may be chained.
func (s *Segmenter) checksum(hdr, payload []byte) uint16 {
	return wire.Checksum(payload, wire.Sum(hdr, s.pseudo+uint32(len(hdr)+len(payload))))
}

// notZero is a computed UDP checksum as it is sent: 0 would mean none (RFC 768).
func notZero(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}

// AppendTo copies segments into frames of p, complete and with the super-frame's Meta but for offloads,
// and appends them to out until one of the three is used up. It reports whether segments are left, for a
// further call. The super-frame stays the caller's, to release behind the last segment.
func (s *Segmenter) AppendTo(out *Burst, p *Pool) (more bool) {
	for s.todo > 0 && !out.Full() {
		buf := p.Reserve(0, s.hdrLen+s.payloadLen())
		if buf == nil {
			break
		}
		n, payload, _ := s.Next(buf)
		n += copy(buf[n:], payload)
		segment := p.Commit(n)
		segment.Meta = Meta{In: s.f.In, VNI: s.f.VNI, Peer: s.f.Peer, Hash: s.f.Hash}
		out.Append(segment)
	}
	return s.todo > 0
}

// FinalChecksum returns the checksum that a frame with NeedsCsum, not a super-frame, would have on the
// wire, and the offset in the frame of the two bytes it belongs to. It covers the bytes from CsumStart to
// the end of the IP packet, so no Ethernet padding. ok is false when CsumStart and CsumOffset don't lie
// inside the packet. The frame isn't changed, so a clone of it may be asked too.
func FinalChecksum(f *Frame) (at int, sum uint16, ok bool) {
	start, end := int(f.CsumStart), packetEnd(f.buf)
	at = start + int(f.CsumOffset)
	if at+2 > end {
		return 0, 0, false
	}
	sum = wire.Checksum(f.buf[start:end], 0) // the field is among them: it holds the pseudo header's sum
	if f.CsumOffset == wire.UDPChecksumOffset {
		sum = notZero(sum)
	}
	return at, sum, true
}

// CompleteChecksum writes FinalChecksum into the frame and clears NeedsCsum. It changes the bytes, so the
// frame must have no clone, which would take the sum for a partial one. It returns false, with the frame
// as it was, where FinalChecksum does.
func CompleteChecksum(f *Frame) bool {
	at, sum, ok := FinalChecksum(f)
	if ok {
		binary.BigEndian.PutUint16(f.buf[at:], sum)
		f.NeedsCsum, f.CsumStart, f.CsumOffset = false, 0, 0
	}
	return ok
}

// packetEnd returns the offset behind the IP packet by its own length, or behind the frame if it is no IP.
func packetEnd(b []byte) int {
	if !wire.Ethernet(b).IsValid() {
		return len(b)
	}
	packet := wire.Ethernet(b).Payload()
	switch wire.Ethernet(b).EtherType() {
	case wire.EtherTypeIPv4:
		if ip := wire.IPv4(packet); ip.IsValid() {
			return wire.EthernetLen + int(ip.TotalLen())
		}
	case wire.EtherTypeIPv6:
		if ip := wire.IPv6(packet); ip.IsValid() {
			return wire.EthernetLen + wire.IPv6Len + int(ip.PayloadLen())
		}
	}
	return len(b)
}
