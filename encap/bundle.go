package encap

import (
	"encoding/binary"
	"math/bits"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// Read README.md, the format's definition, first.

const (
	bundleFlags = 0x53
	// bundleLen is the length of a bundle's header, and entryLen that of what precedes each frame.
	bundleLen, entryLen = 8, 2
	// minBundle is from how many frames on a bundle is worth a system call of its own.
	minBundle = 4
	// bundleShare is how many entries a full datagram has at least, so that what is left empty behind them is less than a
	// quarter: VXLAN's headers of as many datagrams take no less.
	bundleShare = 4
	// maxBundled is the longest frame in a bundle, bytes: what bundleShare allows in a datagram of 1,472.
	maxBundled = (1472-bundleLen)/bundleShare - entryLen
	// maxBundle holds a burst: of each full datagram, at least three quarters are frames.
	maxBundle = frame.BurstSize*(entryLen+maxBundled)*bundleShare/(bundleShare-1) + frame.BurstSize*bundleLen
)

// A bundle is one message: its bytes are fewer than the kernel cuts at once, in the smallest datagrams too.
var _ [maxSegments*737 - maxBundle]struct{}

// bundler gathers the small frames of a lane that go to one peer, in one VNI and with one ECN field, for as long as they
// follow each other.
type bundler struct {
	frames uint64 // bit i: txQueue.frames[i] is in it
	peer   *Peer
	vni    uint32
	tos    uint8
	size   int // of its datagrams but the last, bytes
	n      int // of buf
	room   int // bytes left in the last datagram
	buf    [maxBundle]byte
}

// bundle takes frame i, which is no super-frame, if its peer takes bundles and it is small.
func (q *txQueue) bundle(i int, f *frame.Frame, peer *Peer) bool {
	size := peer.link.bundleSize()
	if size == 0 || f.Len() > min((size-bundleLen)/bundleShare-entryLen, maxBundled) || f.Len() < wire.EthernetLen {
		return false
	}
	at, sum, ok := 0, uint16(0), true
	if f.NeedsCsum {
		if at, sum, ok = frame.FinalChecksum(f); !ok {
			return false // and dropped where it is gathered
		}
	}
	o := &q.bundler
	tos := outerTOS(f.Bytes())
	if o.frames != 0 && (peer != o.peer || f.VNI != o.vni || tos != o.tos || size != o.size) {
		q.sendBundle()
	}
	if o.frames == 0 {
		o.peer, o.vni, o.tos, o.size, o.n, o.room = peer, f.VNI, tos, size, 0, 0
	}
	b := o.add(f.Bytes())
	if f.NeedsCsum {
		binary.BigEndian.PutUint16(b[at:], sum)
	}
	o.frames |= 1 << i
	return true
}

// add appends a frame, in a further datagram if there is no room for it in the last one, and returns the copy.
func (o *bundler) add(b []byte) []byte {
	n := entryLen + len(b)
	if n > o.room {
		clear(o.buf[o.n:][:o.room])
		o.n += o.room
		clear(o.buf[o.n:][:bundleLen])
		wire.VXLAN(o.buf[o.n:]).Encode(&wire.VXLANFields{VNI: o.vni})
		o.buf[o.n] = bundleFlags
		o.n += bundleLen
		o.room = o.size - bundleLen
	}
	entry := o.buf[o.n:][:n]
	binary.BigEndian.PutUint16(entry, uint16(len(b)))
	copy(entry[entryLen:], b)
	o.n += n
	o.room -= n
	return entry[entryLen:]
}

// sendBundle sends what was bundled, behind what was gathered before, or gathers it when it is too little.
func (q *txQueue) sendBundle() {
	o := &q.bundler
	frames := o.frames
	if o.frames = 0; bits.OnesCount64(frames) < minBundle {
		for ; frames != 0; frames &= frames - 1 {
			i := bits.TrailingZeros64(frames)
			q.gatherOne(i, q.frames[i], o.peer)
		}
		return
	}
	q.transmit()
	o.peer.link.sent.Add(1)
	reason := q.sendMessage(nil, o.buf[:o.n], o.tos, o.peer, o.size)
	for ; frames != 0; frames &= frames - 1 {
		q.reasons[bits.TrailingZeros64(frames)] = reason
	}
}

// isBundle says whether a datagram is a bundle.
func isBundle(b []byte) bool { return len(b) > bundleLen && b[0] == bundleFlags }

// unbundle appends the frames of a bundle, those that it has appended already excepted, and returns the bundle's length, or
// -1 when b or p is full.
func (q *rxQueue) unbundle(b *frame.Burst, p *frame.Pool, st *port.Stats, bundle []byte) int {
	if q.unbundled == 0 {
		q.unbundled = bundleLen
		q.rest.peer.link.rxWhole.Add(1)
	}
	for {
		f, ok := entryAt(bundle, q.unbundled)
		if !ok {
			st.RxDropped(drop.BadBundle, bundle, q.rest.from)
		}
		if len(f) == 0 {
			q.unbundled = 0
			return len(bundle)
		}
		if reason := decapsulateECN(q.rest.tos, f); reason != drop.None {
			st.RxDropped(reason, f, q.rest.from)
		} else if !q.append(b, p, wire.VXLAN(bundle).VNI(), f) {
			return -1
		}
		q.unbundled += entryLen + len(f)
	}
}

// entryAt returns the frame in the entry at an offset of a bundle, or nothing behind the last one. ok is false if it is
// shorter than an Ethernet header, or than it says.
func entryAt(bundle []byte, at int) (f []byte, ok bool) {
	rest := bundle[at:]
	if len(rest) < entryLen {
		return nil, true
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[entryLen:]; n == 0 {
		return nil, true
	}
	if n < wire.EthernetLen || n > len(rest) {
		return nil, false
	}
	return rest[:n], true
}
