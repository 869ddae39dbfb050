package encap

import (
	"net/netip"
	"unsafe"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"

	"golang.org/x/sys/unix"
)

const (
	// rxSlots is how many datagrams one recvmmsg takes: of a system call's fixed 300 ns, 20 ns are left for
	// each.
	rxSlots = 16
	// slotLen holds the longest datagram (IPv6's 65,535 B less the UDP header's 8), so that none is ever
	// cut: a vxlan device of the same host may deliver that much at once. Pages that small datagrams don't
	// reach are never touched.
	slotLen = 65535
)

// rxQueue receives from one socket for one worker. It implements port.RxQueue.
//
// Datagrams are received into slots and copied: only then is known how long each frame is, and those in
// a pool lie one behind the other. What the burst or the pool has no room for waits in its slot for the
// next Recv, which the worker calls although the socket may be empty: Recv said that there is more.
type rxQueue struct {
	fd    int
	peers *VTEPTable
	slots [rxSlots][]byte
	iovs  [rxSlots]unix.Iovec // of slots
	from  [rxSlots]sockaddr
	tos   [rxSlots]tosMessage
	msgs  [rxSlots]mmsg.Message // of iovs, from and tos
	next  int                   // the slots from next to got-1 hold datagrams
	got   int
}

var _ port.RxQueue = (*rxQueue)(nil)

func newRxQueue(fd int, peers *VTEPTable) *rxQueue {
	q := &rxQueue{fd: fd, peers: peers}
	for i := range q.slots {
		q.slots[i] = make([]byte, slotLen)
		mmsg.SetBuffer(&q.iovs[i], q.slots[i])
		hdr := &q.msgs[i].Hdr
		hdr.Name = &q.from[i][0]
		hdr.Iov = &q.iovs[i]
		hdr.SetIovlen(1)
		q.tos[i].attach(hdr)
	}
	return q
}

// FD implements port.RxQueue.
func (q *rxQueue) FD() int { return q.fd }

// Recv implements port.RxQueue. It looks at no more datagrams than a burst has frames, or a flood of
// invalid ones would hold the worker for as long as it lasts.
func (q *rxQueue) Recv(b *frame.Burst, p *frame.Pool, st *port.Stats) (more bool) {
	more = true
	for budget := frame.BurstSize - b.Len(); more && budget > 0; {
		if q.next == q.got {
			more = q.receive(min(budget, rxSlots))
		}
		budget -= q.got - q.next
		if !q.deliver(b, p, st) {
			return true
		}
	}
	return more
}

// receive fills up to n empty slots and reports whether more datagrams may be waiting.
func (q *rxQueue) receive(n int) (more bool) {
	for i := range q.msgs[:n] {
		// The kernel has set the lengths to those of what it wrote.
		q.msgs[i].Hdr.Namelen = uint32(len(q.from[i]))
		q.msgs[i].Hdr.SetControllen(int(unsafe.Sizeof(q.tos[i])))
	}
	q.next, q.got = 0, 0
	got, errno := mmsg.Recv(q.fd, q.msgs[:n])
	if errno != 0 {
		return false // EAGAIN; an unconnected socket without IP_RECVERR reports nothing else
	}
	q.got = got
	return got == n
}

// deliver turns received datagrams into frames. It returns false when b or p is full before the last.
func (q *rxQueue) deliver(b *frame.Burst, p *frame.Pool, st *port.Stats) bool {
	peers := q.peers.load()
	for ; q.next < q.got; q.next++ {
		datagram := wire.VXLAN(q.slots[q.next][:q.msgs[q.next].Len])
		from := q.from[q.next].addr()
		peer, reason := peers.sender(datagram, from)
		if reason == drop.None {
			reason = decapsulateECN(q.tos[q.next].tos(), datagram.Payload())
		}
		if reason != drop.None {
			st.RxDropped(reason, datagram, from)
			continue
		}
		if b.Full() {
			return false
		}
		buf := p.Reserve(0, len(datagram.Payload()))
		if buf == nil {
			return false
		}
		f := p.Commit(copy(buf, datagram.Payload()))
		f.VNI, f.Peer = datagram.VNI(), peer.Index
		b.Append(f)
	}
	return true
}

// sender returns the peer that a datagram came from, or why it is dropped. Whether this node has the VNI
// is for the switch to say.
func (v *vteps) sender(datagram wire.VXLAN, outer netip.Addr) (*Peer, drop.Reason) {
	if !datagram.IsValid() {
		return nil, drop.NotVXLAN
	}
	p := v.bySource[outer]
	if p == nil {
		return nil, drop.UnknownPeer
	}
	return p, drop.None
}
