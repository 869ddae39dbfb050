package flow

import (
	"encoding/binary"

	"tapyard/switch/wire"
)

// Batch collects the frames of a burst for Table.Track. It belongs to one goroutine.
type Batch struct {
	items []item
	n     int
}

// NewBatch returns a batch with room for size frames.
func NewBatch(size int) *Batch { return &Batch{items: make([]item, size)} }

// item is a frame to be tracked.
type item struct {
	key  [keyWords]uint64 // of IPv4 the first two words
	kind uint64           // live4 or live6: phase and family that its entry must have
	side uint8            // 0 if the key's first end has sent it, otherwise 1
	class

	// Filled by Track.
	hash uint64 // the first bucket from its low bits, the second from bit 28 on, the tag from its high byte
	slot uint64 // the place in the first bucket whose tag fits, or any
	seen uint64 // its state
}

// The key of a flow, with low and high its ends in order, each (address, port):
//
//	IPv4   low address 32, low port 16, VNI 16 upper   | high address 32, high port 16, VNI 8 lower, protocol 8
//	IPv6   low address 128 | high address 128 | low port 16, high port 16, VNI 24, protocol 8
const keyWords = 5

// Add takes a frame that was parsed without a fault, unless it is none that is tracked, and says whether it did.
// It keeps neither. There must be room: one Add for each frame of a burst.
func (b *Batch) Add(vni uint32, frame []byte, p *wire.Parsed) bool {
	it := &b.items[b.n]
	src, dst := p.SrcPort, p.DstPort
	switch {
	case p.Fragment:
		return false
	case p.Proto == wire.ProtoTCP:
		it.class = classes[p.TCPFlags&31]
	case p.Proto == wire.ProtoUDP:
		it.class = datagram
	default:
		id, is := echoID(frame, p)
		if !is {
			return false
		}
		it.class, src, dst = echo, id, id
	}
	switch p.Kind {
	case wire.KindIPv4:
		it.fill4(vni, p, src, dst)
	case wire.KindIPv6:
		it.fill6(vni, p, src, dst)
	default:
		return false
	}
	b.n++
	return true
}

// echoID returns the identifier of an echo request or reply, which both directions share.
func echoID(frame []byte, p *wire.Parsed) (id uint16, is bool) {
	switch {
	case p.Proto == wire.ProtoICMPv4 && p.Kind == wire.KindIPv4:
		m := wire.ICMPv4(frame[p.L4:p.End])
		if t := m.Type(); t != wire.ICMPv4Echo && t != wire.ICMPv4EchoReply {
			return 0, false
		}
		return m.ID(), true
	case p.Proto == wire.ProtoICMPv6 && p.Kind == wire.KindIPv6:
		m := wire.ICMPv6(frame[p.L4:p.End])
		if t := m.Type(); len(m) < wire.ICMPv6Len || t != wire.ICMPv6Echo && t != wire.ICMPv6EchoReply {
			return 0, false
		}
		return m.ID(), true
	}
	return 0, false
}

func (it *item) fill4(vni uint32, p *wire.Parsed, srcPort, dstPort uint16) {
	src := uint64(binary.BigEndian.Uint32(p.Src[:]))<<16 | uint64(srcPort)
	dst := uint64(binary.BigEndian.Uint32(p.Dst[:]))<<16 | uint64(dstPort)
	it.side = 0
	if src > dst {
		it.side = 1
	}
	it.key[0] = min(src, dst)<<16 | uint64(vni)>>8&0xffff
	it.key[1] = max(src, dst)<<16 | uint64(vni)&0xff<<8 | uint64(p.Proto)
	it.kind = live4
}

func (it *item) fill6(vni uint32, p *wire.Parsed, srcPort, dstPort uint16) {
	be := binary.BigEndian.Uint64
	srcHi, srcLo, dstHi, dstLo := be(p.Src[:8]), be(p.Src[8:]), be(p.Dst[:8]), be(p.Dst[8:])
	it.side = 0
	if srcHi > dstHi || srcHi == dstHi && (srcLo > dstLo || srcLo == dstLo && srcPort > dstPort) {
		it.side = 1
		srcHi, srcLo, dstHi, dstLo, srcPort, dstPort = dstHi, dstLo, srcHi, srcLo, dstPort, srcPort
	}
	it.key = [keyWords]uint64{srcHi, srcLo, dstHi, dstLo,
		uint64(srcPort)<<48 | uint64(dstPort)<<32 | uint64(vni)&0xffffff<<8 | uint64(p.Proto)}
	it.kind = live6
}
