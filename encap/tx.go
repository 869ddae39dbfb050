package encap

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many datagrams one sendmmsg takes at most: two full super-frames (64 KiB are 45 segments of an MTU
	// of 1,500), or all of a burst of plain frames in one lane.
	batch = 96
	// maxParts is how many buffers make up a datagram: VXLAN header, frame up to its checksum, checksum,
	// rest of the frame.
	maxParts = 4
	// maxSegments is how many datagrams all kernels cut one message into (UDP_MAX_SEGMENTS before Linux 6.9).
	maxSegments = 64
	// maxMessage is the most bytes that the kernel cuts: what fits an IPv4 packet of 65,535 bytes.
	maxMessage = 65535 - wire.IPv4MinLen - wire.UDPLen
)

// A lane's frames are the bits of a word.
var _ [64 - frame.BurstSize]struct{}

// txQueue sends for one worker. It implements port.TxQueue.
//
// A burst goes out lane by lane, a lane being a source socket and its share of the flows, so that one
// sendmmsg takes many datagrams. They are gathered from their parts in place; the frames' own bytes are
// never changed, since clones may share them. Neighbours of one size to one peer, of which the last may be shorter,
// are one message that the kernel, or the underlay's device, cuts into datagrams (UDP_SEGMENT): they cross the
// underlay's stack in one.
type txQueue struct {
	t      *Tunnel
	st     *port.Stats
	source [lanes]int // descriptors

	// The burst being sent.
	peers   *vteps
	frames  []*frame.Frame
	lanes   [lanes]uint64                // bit i: frames[i] goes out there
	reasons [frame.BurstSize]drop.Reason // why frames[i] wasn't sent, wholly
	segs    frame.Segmenter
	message uint16 // of the last frame that went in slices
	slicer  slicer
	bundler bundler

	// The datagrams of the next sendmmsg, all in one lane, and the messages that they make up.
	fd      int
	n       int
	owner   [batch]uint8                                    // index in frames
	hdrs    [batch][wire.VXLANLen + frame.MaxHeaderLen]byte // what isn't in the frame: VXLAN and a segment's headers
	parts   int
	iovs    [batch * maxParts]unix.Iovec
	first   [batch + 1]uint16 // datagram i has iovs from first[i] to first[i+1]
	m       int
	trains  [batch]train
	to      [batch]sockaddr
	control [batch]sendControl
	msgs    [batch]mmsg.Message // of iovs, to and control
}

// train is the datagrams of one message.
type train struct {
	first, count int
	peer         uint32
	tos          uint8
	size         int  // of its datagrams but the last, bytes
	total        int  // bytes
	closed       bool // it has its last datagram
}

var _ port.TxQueue = (*txQueue)(nil)

func newTxQueue(t *Tunnel, source [lanes]int) *txQueue {
	q := &txQueue{t: t, source: source, message: uint16(rand.Uint32())} // another one than before a restart, of which parts may lie about
	for i := range q.msgs {
		q.control[i] = newSendControl(t.cfg.Local)
		q.msgs[i].Hdr.Name = &q.to[i][0]
	}
	return q
}

// Send implements port.TxQueue.
func (q *txQueue) Send(b *frame.Burst) {
	q.peers = q.t.cfg.Peers.load()
	q.frames = b.Frames()
	for i, f := range q.frames {
		q.lanes[f.Hash%lanes] |= 1 << i
	}
	for lane, members := range q.lanes {
		q.fd = q.source[lane]
		for ; members != 0; members &= members - 1 {
			q.gather(bits.TrailingZeros64(members))
		}
		q.sendBundle()
		q.transmit()
		q.lanes[lane] = 0
	}
	q.count()
	q.frames = nil
}

// Flush implements port.TxQueue; Send has left nothing behind.
func (q *txQueue) Flush() {}

// gather adds the datagrams of frame i.
func (q *txQueue) gather(i int) {
	f := q.frames[i]
	peer := q.peers.byIndex[f.Peer]
	switch {
	case peer == nil:
		q.reasons[i] = drop.UnknownPeer
		return
	case !f.IsSuper() && q.bundle(i, f, peer):
		return
	}
	q.sendBundle() // a lane's frames stay in order
	q.gatherOne(i, f, peer)
}

// gatherOne adds the datagrams of frame i to a peer.
func (q *txQueue) gatherOne(i int, f *frame.Frame, peer *Peer) {
	switch {
	case f.IsSuper():
		if size := q.t.wire(peer, true); takesSlices(f.Len(), size) {
			peer.link.sent.Add(1)
			q.sendSlices(i, f, peer, sliceFlags, size)
			return
		}
		q.gatherSegments(i, f, peer)
	case f.NeedsCsum:
		q.gatherCompleted(i, f, peer)
	default:
		hdr, parts := q.begin(i, f)
		mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen])
		mmsg.SetBuffer(&parts[1], f.Bytes())
		q.commit(f, peer, 2, wire.VXLANLen+f.Len())
	}
}

// gatherCompleted adds a frame with its checksum in place of the partial one.
func (q *txQueue) gatherCompleted(i int, f *frame.Frame, peer *Peer) {
	at, sum, ok := frame.FinalChecksum(f)
	if !ok {
		q.reasons[i] = drop.BadOffload
		return
	}
	hdr, parts := q.begin(i, f)
	field := hdr[wire.VXLANLen:][:2]
	binary.BigEndian.PutUint16(field, sum)
	mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen])
	mmsg.SetBuffer(&parts[1], f.Bytes()[:at])
	mmsg.SetBuffer(&parts[2], field)
	mmsg.SetBuffer(&parts[3], f.Bytes()[at+len(field):])
	q.commit(f, peer, 4, wire.VXLANLen+f.Len())
}

// gatherSegments adds the segments of a super-frame, until the kernel refuses one of them. They aren't spread over two
// calls without need.
func (q *txQueue) gatherSegments(i int, f *frame.Frame, peer *Peer) {
	if !q.segs.Start(f) {
		q.reasons[i] = drop.BadOffload
		return
	}
	if q.n+f.Wire() > batch {
		q.transmit()
	}
	for {
		hdr, parts := q.begin(i, f)
		n, payload, ok := q.segs.Next(hdr[wire.VXLANLen:])
		if !ok || q.reasons[i] != drop.None {
			return
		}
		mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen+n])
		mmsg.SetBuffer(&parts[1], payload)
		q.commit(f, peer, 2, wire.VXLANLen+n+len(payload))
	}
}

// begin returns room for the headers, VXLAN's being there already, and the parts of a further datagram for
// frame i. It counts only with commit.
func (q *txQueue) begin(i int, f *frame.Frame) (hdr []byte, parts []unix.Iovec) {
	if q.n == batch {
		q.transmit()
	}
	q.owner[q.n] = uint8(i)
	hdr = q.hdrs[q.n][:]
	wire.VXLAN(hdr).Encode(&wire.VXLANFields{VNI: f.VNI})
	return hdr, q.iovs[q.parts:][:maxParts]
}

// commit adds the datagram of the last begin, which has n parts and size bytes, to the last message if it fits there, or
// to a new one.
func (q *txQueue) commit(f *frame.Frame, peer *Peer, n, size int) {
	tos := outerTOS(f.Bytes())
	if q.m == 0 || !q.t.segmenting() || !q.trains[q.m-1].add(peer.Index, tos, size) {
		q.trains[q.m] = train{first: q.n, count: 1, peer: peer.Index, tos: tos, size: size, total: size}
		q.msgs[q.m].Hdr.Namelen = q.to[q.m].encode(netip.AddrPortFrom(peer.Underlay, q.t.cfg.Port))
		q.m++
	}
	q.parts += n
	q.n++
	q.first[q.n] = uint16(q.parts)
}

// add takes a datagram as the train's next, or says that it may not.
func (t *train) add(peer uint32, tos uint8, size int) bool {
	if t.closed || peer != t.peer || tos != t.tos || size > t.size || t.count == maxSegments || t.total+size > maxMessage {
		return false
	}
	t.closed = size < t.size
	t.count++
	t.total += size
	return true
}

// transmit sends what was gathered. sendmmsg stops at the first message that the kernel refuses.
func (q *txQueue) transmit() {
	for i := range q.m {
		q.describe(i, q.trains[i])
	}
	for at := 0; at < q.m; {
		sent, errno := mmsg.Send(q.fd, q.msgs[at:q.m])
		if errno != 0 {
			sent = q.refused(at, errno)
		}
		at += sent
	}
	q.n, q.m, q.parts = 0, 0, 0
}

// describe makes message i that of a train.
func (q *txQueue) describe(i int, t train) {
	first, last := q.first[t.first], q.first[t.first+t.count]
	hdr := &q.msgs[i].Hdr
	hdr.Iov = &q.iovs[first]
	hdr.SetIovlen(int(last - first))
	size := 0
	if t.count > 1 {
		size = t.size
	}
	q.control[i].attach(hdr, size, t.tos)
}

// refused notes why messages from the one at `at` on were not sent, and returns how many are done with:
// all when the socket's buffer is full, which it will be for the next one too.
func (q *txQueue) refused(at int, errno unix.Errno) (n int) {
	if reasonOf(errno) == drop.TxFull {
		for _, i := range q.owner[q.trains[at].first:q.n] {
			q.reasons[i] = drop.TxFull
		}
		return q.m - at
	}
	t := q.trains[at]
	if t.count > 1 && q.oneByOne(at) {
		q.t.refuseSegments(errno)
	} else if t.count == 1 {
		q.note(t, errno)
	}
	for n = 1; at+n < q.m && q.lost(q.trains[at+n]); n++ {
	}
	return n
}

// lost says that all frames with datagrams in t are given up.
func (q *txQueue) lost(t train) bool {
	for _, i := range q.owner[t.first:][:t.count] {
		if q.reasons[i] == drop.None {
			return false
		}
	}
	return true
}

// oneByOne sends the datagrams of message i, which the kernel refused, on their own: those of a frame until one of them is
// refused. It reports whether all were taken, so that it wasn't they that the kernel didn't like.
func (q *txQueue) oneByOne(i int) bool {
	all := true
	for n := range q.trains[i].count {
		t := q.trains[i]
		t.first, t.count = t.first+n, 1
		if q.reasons[q.owner[t.first]] != drop.None {
			continue
		}
		q.describe(i, t)
		if _, errno := mmsg.Send(q.fd, q.msgs[i:i+1]); errno != 0 {
			q.note(t, errno)
			all = false
		}
	}
	return all
}

// note notes why a train of one datagram wasn't sent.
func (q *txQueue) note(t train, errno unix.Errno) {
	reason := reasonOf(errno)
	q.reasons[q.owner[t.first]] = reason
	if reason != drop.TxFull {
		q.t.refusal.note(t.peer, q.datagramLen(t.first), errno)
	}
}

// datagramLen returns the bytes of a gathered datagram, without the UDP header.
func (q *txQueue) datagramLen(i int) (n int) {
	for _, part := range q.iovs[q.first[i]:q.first[i+1]] {
		n += int(part.Len)
	}
	return n
}

func reasonOf(errno unix.Errno) drop.Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return drop.TxFull
	case unix.EMSGSIZE:
		return drop.TooBig
	}
	return drop.TxError
}

// count counts the burst: a super-frame was sent when all its segments were.
func (q *txQueue) count() {
	var frames, wireFrames, bytes uint64
	for i, f := range q.frames {
		if reason := q.reasons[i]; reason != drop.None {
			q.st.Drop(reason, f.Wire(), f.Bytes(), &f.Meta)
			q.reasons[i] = drop.None
			continue
		}
		frames++
		wireFrames += uint64(f.Wire())
		bytes += uint64(f.Len())
	}
	q.st.Tx.Add(frames, wireFrames)
	q.st.TxBytes.Add(bytes)
}
