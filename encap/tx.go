package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many datagrams one sendmmsg takes at most: all of a burst of plain frames in one lane, or
	// one full super-frame (64 KiB are 45 segments of an MTU of 1,500).
	batch = 64
	// maxParts is how many buffers make up a datagram: VXLAN header, frame up to its checksum, checksum,
	// rest of the frame.
	maxParts = 4
)

// A lane's frames are the bits of a word.
var _ [64 - frame.BurstSize]struct{}

// txQueue sends for one worker. It implements port.TxQueue.
//
// A burst goes out lane by lane, a lane being a source socket and its share of the flows, so that one
// sendmmsg takes many datagrams. They are gathered from their parts in place; the frames' own bytes are
// never changed, since clones may share them.
type txQueue struct {
	t      *Tunnel
	st     *port.Stats
	source [lanes]int                   // descriptors
	tos    [wire.ECNMask + 1]tosMessage // by the ECN field that they set, without a DSCP

	// The burst being sent.
	peers   *vteps
	frames  []*frame.Frame
	lanes   [lanes]uint64                // bit i: frames[i] goes out there
	reasons [frame.BurstSize]drop.Reason // why frames[i] wasn't sent, wholly
	segs    frame.Segmenter

	// The datagrams of the next sendmmsg, all in one lane.
	fd    int
	n     int
	owner [batch]uint8                                    // index in frames
	hdrs  [batch][wire.VXLANLen + frame.MaxHeaderLen]byte // what isn't in the frame: VXLAN and a segment's headers
	iovs  [batch][maxParts]unix.Iovec
	to    [batch]sockaddr
	msgs  [batch]mmsg.Message // of iovs and to
}

var _ port.TxQueue = (*txQueue)(nil)

func newTxQueue(t *Tunnel, source [lanes]int) *txQueue {
	q := &txQueue{t: t, source: source}
	for ecn := range q.tos {
		q.tos[ecn] = newTOSMessage(t.cfg.Local, uint8(ecn))
	}
	for i := range q.msgs {
		q.msgs[i].Hdr.Name = &q.to[i][0]
		q.msgs[i].Hdr.Iov = &q.iovs[i][0]
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
	case f.IsSuper():
		q.gatherSegments(i, f, peer.Underlay)
	case f.NeedsCsum:
		q.gatherCompleted(i, f, peer.Underlay)
	default:
		hdr, parts := q.begin(i, f, peer.Underlay)
		mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen])
		mmsg.SetBuffer(&parts[1], f.Bytes())
		q.commit(2)
	}
}

// gatherCompleted adds a frame with its checksum in place of the partial one.
func (q *txQueue) gatherCompleted(i int, f *frame.Frame, to netip.Addr) {
	at, sum, ok := frame.FinalChecksum(f)
	if !ok {
		q.reasons[i] = drop.BadOffload
		return
	}
	hdr, parts := q.begin(i, f, to)
	field := hdr[wire.VXLANLen:][:2]
	binary.BigEndian.PutUint16(field, sum)
	mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen])
	mmsg.SetBuffer(&parts[1], f.Bytes()[:at])
	mmsg.SetBuffer(&parts[2], field)
	mmsg.SetBuffer(&parts[3], f.Bytes()[at+len(field):])
	q.commit(4)
}

// gatherSegments adds the segments of a super-frame, until the kernel refuses one of them.
func (q *txQueue) gatherSegments(i int, f *frame.Frame, to netip.Addr) {
	if !q.segs.Start(f) {
		q.reasons[i] = drop.BadOffload
		return
	}
	for {
		hdr, parts := q.begin(i, f, to)
		n, payload, ok := q.segs.Next(hdr[wire.VXLANLen:])
		if !ok || q.reasons[i] != drop.None {
			return
		}
		mmsg.SetBuffer(&parts[0], hdr[:wire.VXLANLen+n])
		mmsg.SetBuffer(&parts[1], payload)
		q.commit(2)
	}
}

// begin returns room for the headers, VXLAN's being there already, and the parts of a further datagram for
// frame i. It counts only with commit.
func (q *txQueue) begin(i int, f *frame.Frame, to netip.Addr) (hdr []byte, parts *[maxParts]unix.Iovec) {
	if q.n == batch {
		q.transmit()
	}
	q.owner[q.n] = uint8(i)
	msg := &q.msgs[q.n].Hdr
	msg.Namelen = q.to[q.n].encode(netip.AddrPortFrom(to, q.t.cfg.Port))
	msg.Controllen = 0
	if tos := outerTOS(f.Bytes()); tos != 0 {
		q.tos[tos].attach(msg)
	}
	hdr = q.hdrs[q.n][:]
	wire.VXLAN(hdr).Encode(&wire.VXLANFields{VNI: f.VNI})
	return hdr, &q.iovs[q.n]
}

// commit adds the datagram of the last begin, which has n parts.
func (q *txQueue) commit(n int) {
	q.msgs[q.n].Hdr.SetIovlen(n)
	q.n++
}

// transmit sends what was gathered. sendmmsg stops at the first datagram that the kernel refuses.
func (q *txQueue) transmit() {
	for at := 0; at < q.n; {
		sent, errno := mmsg.Send(q.fd, q.msgs[at:q.n])
		if errno != 0 {
			sent = q.refused(at, errno)
		}
		at += sent
	}
	q.n = 0
}

// refused notes why the datagrams from the one at `at` on were not sent and returns how many are given up:
// all when the socket's buffer is full, which it will be for the next one too, otherwise those of the
// same frame.
func (q *txQueue) refused(at int, errno unix.Errno) (n int) {
	reason := reasonOf(errno)
	if reason != drop.TxFull {
		q.t.refusal.note(q.frames[q.owner[at]].Peer, q.datagramLen(at), errno)
	}
	for at+n < q.n && (reason == drop.TxFull || q.owner[at+n] == q.owner[at]) {
		q.reasons[q.owner[at+n]] = reason
		n++
	}
	return n
}

// datagramLen returns the bytes of a gathered datagram, without the UDP header.
func (q *txQueue) datagramLen(i int) (n int) {
	for _, part := range q.iovs[i][:q.msgs[i].Hdr.Iovlen] {
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
