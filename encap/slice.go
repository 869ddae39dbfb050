package encap

import (
	"encoding/binary"

	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// Read README.md, the format's definition, first.

const (
	// sliceLen is the length of the header of a slice, and offloadLen that of what follows the first one.
	sliceLen   = 8
	offloadLen = wire.VirtioNetLen
	maxSlices  = 256
	// maxMessageLen is the longest message in bytes, with all headers.
	maxMessageLen = maxSlices*sliceLen + offloadLen + frame.MaxLen
	// maxPrefix is the longest prefix of a message that this node sends: of 90 slices, which is what the longest frame takes
	// in the smallest datagrams that hold as long a one.
	maxPrefix = 730

	// The first byte of a datagram that is no VXLAN: wherever VXLAN or one of its extensions is understood, it is dropped,
	// since VXLAN's flag I (0x08) is clear.
	sliceFlags = 0x51
	testFlags  = 0x52 // a slice of a message that tests the way
	helloFlags = 0x54
)

// sliceHeader is the header of a slice as a number: flags 8 | message 16 | index 8 | VNI 24 | last index 8. That of the
// following slice is larger by nextSlice.
type sliceHeader uint64

const nextSlice sliceHeader = 1 << 32

// prefixLen returns the length of what stands before the frame in a message whose last slice has index last: slice
// header, offload header, and what of the frame is where the other slices' headers are.
func prefixLen(last int) int { return sliceLen + offloadLen + last*sliceLen }

// frameIn puts back into a message what its slices' headers have displaced, and returns the frame. The first slice has
// size bytes, and its prefix whole; the last one has more than a header.
func frameIn(message []byte, last, size int) []byte {
	table := message[sliceLen+offloadLen:]
	for n := range last {
		copy(message[(n+1)*size:][:sliceLen], table[n*sliceLen:])
	}
	return message[prefixLen(last):]
}

func makeSliceHeader(flags uint8, message uint16, vni uint32, last uint8) sliceHeader {
	return sliceHeader(flags)<<56 | sliceHeader(message)<<40 | sliceHeader(vni&(1<<24-1))<<8 | sliceHeader(last)
}

// sliceHeaderOf returns the header of a datagram, or 0, which is none, if that is no slice. A slice isn't empty, and the
// first one of a message has the prefix whole.
func sliceHeaderOf(datagram []byte) sliceHeader {
	if len(datagram) <= sliceLen || datagram[0] != sliceFlags && datagram[0] != testFlags {
		return 0
	}
	h := sliceHeader(binary.BigEndian.Uint64(datagram))
	if h.index() > h.last() || h.index() == 0 && len(datagram) < prefixLen(h.last()) {
		return 0
	}
	return h
}

func (h sliceHeader) put(b []byte) { binary.BigEndian.PutUint64(b, uint64(h)) }

func (h sliceHeader) index() int  { return int(uint8(h >> 32)) }
func (h sliceHeader) last() int   { return int(uint8(h)) }
func (h sliceHeader) vni() uint32 { return uint32(h) >> 8 }
func (h sliceHeader) test() bool  { return h>>56 == testFlags }

// sameMessage says whether both are of one message.
func (h sliceHeader) sameMessage(other sliceHeader) bool { return (h^other)&^(0xff<<32) == 0 }

// putOffload writes the virtio-net header of a frame to b, in little-endian order (virtio 1.2 section 1.4).
func putOffload(b []byte, m *frame.Meta) {
	b[0] = 0
	if m.NeedsCsum {
		b[0] = wire.NeedsCsum
	}
	b[1] = m.GSOType
	binary.LittleEndian.PutUint16(b[2:], m.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], m.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], m.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], m.CsumOffset)
}

// getOffload reads what putOffload wrote. What it says may be a lie: the switch's parse holds it against the frame.
func getOffload(b []byte, m *frame.Meta) {
	m.NeedsCsum = b[0]&wire.NeedsCsum != 0
	m.GSOType = b[1]
	m.HdrLen = binary.LittleEndian.Uint16(b[2:])
	m.GSOSize = binary.LittleEndian.Uint16(b[4:])
	m.CsumStart = binary.LittleEndian.Uint16(b[6:])
	m.CsumOffset = binary.LittleEndian.Uint16(b[8:])
}
