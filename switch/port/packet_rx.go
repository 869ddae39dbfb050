package port

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/wire"
)

const (
	// packetSlots is how many frames one recvmmsg takes. 8 super-frames of 64 KiB stay in a 1 MiB L2 cache
	// until they are copied; of a system call's fixed 300 ns, 40 ns are left for each.
	packetSlots = 8
	slotLen     = wire.VirtioNetLen + frame.MaxLen
	// tagLen is the length of a VLAN tag, which stands where the EtherType of an untagged frame does.
	tagLen = 4
)

// packetRx is the only receive queue of a Packet.
//
// Frames are received into slots and copied: only then is known how long each one is, and those in a pool
// lie one behind the other. What the burst or the pool has no room for waits in its slot for the next
// Recv, which the worker calls although the socket may be empty: Recv said that there is more.
type packetRx struct {
	p     *Packet
	slots [packetSlots][]byte
	iovs  [packetSlots]unix.Iovec // of slots
	aux   [packetSlots]auxdata
	msgs  [packetSlots]mmsg.Message // of iovs and aux
	next  int                       // the slots from next to got-1 hold frames
	got   int
	drain bool
}

var _ Drainer = (*packetRx)(nil)

func newPacketRx(p *Packet) *packetRx {
	q := &packetRx{p: p}
	for i := range q.slots {
		q.slots[i] = make([]byte, slotLen)
		mmsg.SetBuffer(&q.iovs[i], q.slots[i])
		hdr := &q.msgs[i].Hdr
		hdr.Iov = &q.iovs[i]
		hdr.SetIovlen(1)
		hdr.Control = (*byte)(unsafe.Pointer(&q.aux[i]))
	}
	return q
}

// FD implements RxQueue.
func (q *packetRx) FD() int { return q.p.fd }

// Drain implements Drainer.
func (q *packetRx) Drain() (held bool) {
	q.drain = true
	return q.next < q.got
}

// Recv implements RxQueue. It looks at no more frames than a burst has, or a flood of invalid ones would
// hold the worker for as long as it lasts.
func (q *packetRx) Recv(_ int, b *frame.Burst, p *frame.Pool, st *Stats) (more bool) {
	more = true
	for budget := frame.BurstSize - b.Len(); more && budget > 0; {
		if q.next == q.got {
			if q.drain {
				return false
			}
			if more = q.receive(min(budget, packetSlots), st); q.got == 0 {
				budget--
				continue
			}
		}
		budget -= q.got - q.next
		if !q.deliver(b, p, st) {
			return true
		}
	}
	return more
}

// receive fills up to n empty slots and reports whether more frames may be waiting.
func (q *packetRx) receive(n int, st *Stats) (more bool) {
	for i := range q.msgs[:n] {
		q.msgs[i].Hdr.SetControllen(int(unsafe.Sizeof(q.aux[i]))) // the kernel has set it to the length of what it wrote
	}
	q.next, q.got = 0, 0
	got, errno := mmsg.Recv(q.p.fd, q.msgs[:n])
	switch errno {
	case 0:
		q.got = got
		return got == n
	case unix.EINVAL: // a frame, which is lost, whose kind of super-frame has no virtio-net header (SCTP)
		st.RxDropped(drop.BadOffload, nil, netip.Addr{})
		return true
	case unix.ENETDOWN: // reported once when the device goes down; frames may have come before
		return true
	}
	return false
}

// deliver turns received frames into a pool's. It returns false when b or p is full before the last.
func (q *packetRx) deliver(b *frame.Burst, p *frame.Pool, st *Stats) bool {
	for ; q.next < q.got; q.next++ {
		msg := &q.msgs[q.next]
		in := q.slots[q.next][:msg.Len]
		if reason := broken(msg); reason != drop.None {
			st.RxDropped(reason, in, netip.Addr{})
			continue
		}
		if b.Full() {
			return false
		}
		content := in[wire.VirtioNetLen:]
		buf := p.Reserve(0, len(content)+tagLen)
		if buf == nil {
			return false
		}
		tpid, tci, tagged := q.aux[q.next].vlanTag(msg.Hdr.Controllen)
		var f *frame.Frame
		if tagged && len(content) >= wire.EthernetLen {
			f = p.Commit(copyTagged(buf, content, tpid, tci))
			decodeVirtio(wire.VirtioNet(in), &f.Meta)
			f.HdrLen, f.CsumStart = f.HdrLen+tagLen, f.CsumStart+tagLen
		} else {
			f = p.Commit(copy(buf, content))
			decodeVirtio(wire.VirtioNet(in), &f.Meta)
		}
		b.Append(f)
	}
	return true
}

// broken says why a message holds no frame: a device whose super-frames are longer than IP packets can
// be (BIG TCP) has them cut.
func broken(m *mmsg.Message) drop.Reason {
	switch {
	case m.Len < wire.VirtioNetLen:
		return drop.ShortRead
	case m.Hdr.Flags&unix.MSG_TRUNC != 0:
		return drop.BadOffload
	}
	return drop.None
}

// copyTagged copies a frame with its VLAN tag put back and returns its length.
func copyTagged(dst, src []byte, tpid, tci uint16) int {
	const at = wire.EthernetLen - 2 // of the EtherType
	copy(dst, src[:at])
	binary.BigEndian.PutUint16(dst[at:], tpid)
	binary.BigEndian.PutUint16(dst[at+2:], tci)
	return at + tagLen + copy(dst[at+tagLen:], src[at:])
}
