package frame

import (
	"bytes"
	"encoding/binary"

	"tapyard/switch/wire"
)

// Read virtio 1.2 section 5.1.6.2 (what the metadata mean), RFC 6864 (IPv4 identifications), RFC 9293
// section 3.1 and RFC 768 first, and segment.go, whose inverse this is.

// openFlows is how many places there are for open trains, by the upper bits of the flow's number: of 8 flows, two
// share a place in one of 37 cases, and are then merged only where they don't alternate.
const (
	openBits  = 10
	openFlows = 1 << openBits
)

// A train has no more frames than a burst, which must not be more than what all kernels take as one super-frame
// of UDP (UDP_MAX_SEGMENTS, 64 before Linux 6.9).
const _ = uint(64 - BurstSize)

// Coalescer makes one super-frame of the frames of a burst that follow each other in a flow, so that one system call
// carries them. A Segmenter gives back the same frames with complete checksums. Only the identifications of IPv4
// packets with DF may differ: they mean nothing (RFC 6864 section 4.1), and kernels number segments anew.
//
// Merged are plain TCP and UDP frames to one station, without IPv4 options, IPv6 extension headers or padding, with
// payload, and with headers that are equal but for lengths, checksums, sequence and identification. TCP has the
// flag ACK, and PSH on the last frame at most. All have the same size, but the last may be shorter. A complete
// checksum, IPv4's included, is verified before; a partial one must hold the pseudo header's sum: no wrong checksum
// becomes right. UDP without a checksum would get one, so it is left alone.
//
// The order within a flow doesn't change, and a frame that doesn't show its flow (a fragment) keeps its place among
// all. A super-frame stands where its first frame stood.
//
// The zero value is ready. It doesn't allocate; it serves one worker at a time.
type Coalescer struct {
	burst  *Burst
	pos    int               // index of the next frame to be handed on
	open   [openFlows]uint8  // by flow: 1 + index of the frame that heads the flow's last train
	flows  [BurstSize]uint64 // of frames that head a train
	count  [BurstSize]uint8  // frames in the train that a frame heads: 1 is itself alone, 0 is none
	next   [BurstSize]uint8  // index of the frame behind it in its train
	trains [BurstSize]train  // by head; valid if count > 1
}

// train is a super-frame to be.
type train struct {
	v6, udp bool
	closed  bool   // it has its last frame
	last    uint8  // index of its last frame
	l4      int    // offset of the TCP or UDP header
	hdrLen  int    // offset of the L4 payload
	size    int    // of the super-frame, bytes
	seq     uint32 // that TCP goes on with
	pseudo  uint32 // partial sum of the pseudo header without its length
}

// Start finds out what can be merged in b, and returns how many frames fewer it will be then. If that is 0,
// the burst stays as it is. Otherwise AppendTo must be called until it has no more.
func (c *Coalescer) Start(b *Burst) (saved int) {
	if !hasPair(b.Frames()) {
		return 0
	}
	c.burst, c.pos = b, 0
	clear(c.open[:])
	hidden := -1 // the last frame that doesn't show its flow, and closed all trains
	for i, f := range b.Frames() {
		c.count[i] = 1
		flow := flowOf(f.buf)
		if flow == 0 {
			hidden = i
			continue
		}
		at := &c.open[flow>>(64-openBits)]
		if head := int(*at) - 1; head > hidden && c.flows[head] == flow && c.join(head, i) {
			saved++
			continue
		}
		*at, c.flows[i] = uint8(i+1), flow
	}
	return saved
}

// hasPair says whether any frame looks as if it went on with the one before it or the one before that. It costs
// 2.5 ns a frame where nothing can be merged, a quarter of looking for trains. It misses what could be merged in
// a burst where three or more flows take strict turns.
func hasPair(frames []*Frame) bool {
	var before, last uint64
	for i, f := range frames {
		expected, own := pairing(f.buf)
		if expected == last && i > 0 || expected == before && i > 1 {
			return true
		}
		before, last = last, own
	}
	return false
}

// pairing returns numbers of a frame and of one that it may go on with: the ports of plain IP, and with them the
// identification where that must be contiguous.
func pairing(b []byte) (expected, own uint64) {
	const l4v4, l4v6 = wire.EthernetLen + wire.IPv4MinLen, wire.EthernetLen + wire.IPv6Len
	if len(b) >= l4v6+4 && wire.Ethernet(b).EtherType() == wire.EtherTypeIPv6 {
		own = uint64(le32(b[l4v6:]))
		return own, own
	}
	if len(b) < l4v4+4 {
		return 0, 0
	}
	own = uint64(le32(b[l4v4:]))
	if ip := wire.IPv4(b[wire.EthernetLen:]); !ip.DontFragment() {
		return own | uint64(ip.ID()-1)<<32, own | uint64(ip.ID())<<32
	}
	return own, own
}

// flowOf returns a number that is equal for all frames of a flow, and hardly ever for others, whose order would
// then be kept needlessly. It is 0 where a frame doesn't show its flow: no TCP or UDP, a fragment, IPv4
// options, IPv6 extension headers. The header behind IP may be cut short.
func flowOf(b []byte) uint64 {
	const spread = 0x9e3779b97f4a7c15 // the 64-bit golden ratio
	if len(b) < wire.EthernetLen+wire.IPv4MinLen+wire.UDPLen {
		return 0
	}
	var proto uint8
	var h uint64
	switch wire.Ethernet(b).EtherType() {
	case wire.EtherTypeIPv4:
		ip := wire.IPv4(b[wire.EthernetLen:])
		if ip.HeaderLen() != wire.IPv4MinLen || ip.MoreFragments() || ip.FragmentOffset() != 0 {
			return 0
		}
		proto = ip.Protocol()
		h = le64(ip[12:]) ^ // the addresses, then the ports
			uint64(le32(ip[wire.IPv4MinLen:]))*spread
	case wire.EtherTypeIPv6:
		if len(b) < wire.EthernetLen+wire.IPv6Len+wire.UDPLen {
			return 0
		}
		ip := wire.IPv6(b[wire.EthernetLen:])
		proto = ip.NextHeader()
		h = (le64(ip[8:])*spread ^ le64(ip[16:])) * spread
		h = (h^le64(ip[24:]))*spread ^ le64(ip[32:])
		h = h*spread ^ uint64(le32(ip[wire.IPv6Len:]))
	}
	if proto != wire.ProtoTCP && proto != wire.ProtoUDP {
		return 0
	}
	return (h^uint64(proto))*spread | 1
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// join adds frame i to the train that the frame head leads, if it may. Checksums are summed last, and that of the
// head only when there is a second frame, so that what can't be merged costs little.
func (c *Coalescer) join(head, i int) bool {
	h, f, t := c.burst.frames[head], c.burst.frames[i], &c.trains[head]
	first := c.count[head] == 1
	if !sameNetwork(h.buf, f.buf, uint16(c.count[head])) || first && !t.begin(h) {
		return false
	}
	if t.closed || !t.fits(f) || !t.follows(h.buf, f.buf) || first && !t.checksumsOK(h) || !t.checksumsOK(f) {
		return false
	}
	if first {
		t.last = uint8(head)
	}
	payload := len(f.buf) - t.hdrLen
	t.closed = payload < len(h.buf)-t.hdrLen || t.pushes(f.buf)
	t.seq += uint32(payload)
	t.size += payload
	c.next[t.last], t.last = uint8(i), uint8(i)
	c.count[head]++
	c.count[i] = 0
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
		t.closed = t.pushes(h.buf)
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

// pushes says whether b is of TCP with PSH.
func (t *train) pushes(b []byte) bool { return !t.udp && wire.TCP(b[t.l4:]).Flags()&wire.TCPPsh != 0 }

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

// AppendTo appends the burst's frames to out, those of a train as one super-frame of p with the first one's Meta but
// for offloads, until p is used up. It reports whether frames are left, for a further call. out was empty; p has room
// for a frame of MaxLen when all of its frames are released. Frames pass from the burst, which is empty in
// the end, to out; those that are merged are released.
func (c *Coalescer) AppendTo(out *Burst, p *Pool) (more bool) {
	for ; c.pos < c.burst.n; c.pos++ {
		f := c.burst.frames[c.pos]
		switch {
		case c.count[c.pos] == 0:
			continue
		case c.count[c.pos] > 1:
			if f = c.merge(c.pos, p); f == nil {
				return true
			}
		}
		out.Append(f)
	}
	c.burst.Reset()
	return false
}

// merge makes the super-frame of a train, or returns nil if p has no room. Payloads are copied into one piece: a
// vectored write of 64 costs 32 ns a frame where copy and write cost 14, of 18 bytes each, and the same of 1,400.
func (c *Coalescer) merge(head int, p *Pool) *Frame {
	t := &c.trains[head]
	b := p.Reserve(0, t.size)
	if b == nil {
		return nil
	}
	h := c.burst.frames[head]
	meta := h.Meta
	meta.GSOType, meta.HdrLen, meta.GSOSize = t.gsoType(), uint16(t.hdrLen), uint16(h.Len()-t.hdrLen)
	meta.NeedsCsum, meta.CsumStart, meta.CsumOffset = true, uint16(t.l4), t.checksumOffset()
	n := copy(b, h.buf[:t.hdrLen])
	t.fixHeaders(b, c.burst.frames[t.last].buf)
	for i := head; n < t.size; i = int(c.next[i]) {
		f := c.burst.frames[i]
		n += copy(b[n:], f.buf[t.hdrLen:])
		f.Release()
	}
	super := p.Commit(n)
	super.Meta = meta
	return super
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

// fixHeaders makes the first frame's headers in b, which has the super-frame's length, those of the super-frame. From
// the last frame comes PSH, if it is there.
func (t *train) fixHeaders(b, last []byte) {
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
	tcp.SetFlags(wire.TCP(last[t.l4:]).Flags())
	tcp.SetChecksum(partial)
}
