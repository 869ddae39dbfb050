package frame

import (
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
	last   [BurstSize]uint8  // by head: index of the train's last frame; valid if count > 1
	trains [BurstSize]train  // by head; valid if count > 1
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

// join adds frame i to the train that the frame head leads, if it may.
func (c *Coalescer) join(head, i int) bool {
	if !c.trains[head].join(c.burst.frames[head], c.burst.frames[i], int(c.count[head])) {
		return false
	}
	if c.count[head] == 1 {
		c.last[head] = uint8(head)
	}
	c.next[c.last[head]], c.last[head] = uint8(i), uint8(i)
	c.count[head]++
	c.count[i] = 0
	return true
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
	n := copy(b, h.buf[:t.hdrLen])
	t.finish(b, &meta, h.Len())
	for i := head; n < t.size; i = int(c.next[i]) {
		f := c.burst.frames[i]
		n += copy(b[n:], f.buf[t.hdrLen:])
		f.Release()
	}
	super := p.Commit(n)
	super.Meta = meta
	return super
}
