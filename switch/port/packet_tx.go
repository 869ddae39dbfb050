package port

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/wire"
)

// packetTx sends on a Packet for one worker: one sendmmsg per burst.
type packetTx struct {
	p    *Packet
	st   *Stats
	hdrs [frame.BurstSize][wire.VirtioNetLen]byte // not in the frames' headroom, which clones share
	iovs [frame.BurstSize][2]unix.Iovec           // of hdrs and of the frames
	msgs [frame.BurstSize]mmsg.Message            // of iovs
}

var _ TxQueue = (*packetTx)(nil)

func newPacketTx(p *Packet, st *Stats) *packetTx {
	q := &packetTx{p: p, st: st}
	for i := range q.msgs {
		mmsg.SetBuffer(&q.iovs[i][0], q.hdrs[i][:])
		q.msgs[i].Hdr.Iov = &q.iovs[i][0]
		q.msgs[i].Hdr.SetIovlen(len(q.iovs[i]))
	}
	return q
}

// Send implements TxQueue. sendmmsg stops at the first frame that the kernel refuses, which is dropped;
// when the socket's buffer is full, so are those behind it.
func (q *packetTx) Send(b *frame.Burst) {
	frames := b.Frames()
	for i, f := range frames {
		EncodeVirtio(wire.VirtioNet(q.hdrs[i][:]), &f.Meta)
		mmsg.SetBuffer(&q.iovs[i][1], f.Bytes())
	}
	for at := 0; at < len(frames); {
		sent, errno := mmsg.Send(q.p.fd, q.msgs[at:len(frames)])
		if errno == 0 {
			q.count(frames[at : at+sent])
			at += sent
			continue
		}
		lost := 1
		if errno == unix.EAGAIN {
			lost = len(frames) - at
		}
		q.drop(errno, frames[at:at+lost])
		at += lost
	}
}

// Flush implements TxQueue; Send has left nothing behind.
func (q *packetTx) Flush() {}

func (q *packetTx) count(frames []*frame.Frame) {
	var wireFrames, bytes uint64
	for _, f := range frames {
		wireFrames += uint64(f.Wire())
		bytes += uint64(f.Len())
	}
	q.st.Tx.Add(uint64(len(frames)), wireFrames)
	q.st.TxBytes.Add(bytes)
}

func (q *packetTx) drop(errno unix.Errno, frames []*frame.Frame) {
	reason := q.refused(errno)
	for _, f := range frames {
		q.st.Drop(reason, f.Wire(), f.Bytes(), &f.Meta)
	}
}

// refused maps an errno of packet_sendmsg to a reason: ENOBUFS is a device's queue that is full, for a
// veth that of the other end; ENETDOWN a device that is down, ENXIO and ENODEV one that is gone.
func (q *packetTx) refused(errno unix.Errno) drop.Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return drop.TxFull
	case unix.ENETDOWN, unix.ENXIO, unix.ENODEV:
		return drop.PortGone
	case unix.EMSGSIZE:
		return drop.TooBig
	}
	q.p.lastError.Store(uint32(errno))
	return drop.TxError
}
