package encap

import (
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
	"tapyard/switch/wire"

	"golang.org/x/sys/unix"
)

const (
	// rxSlots is how many messages one recvmmsg takes. A full one is 64 KiB, several datagrams of one sender that
	// the kernel has put into one (UDP_GRO), and 8 of them stay in an L2 cache of 1 MiB until they are copied; of
	// small ones, a system call's 80 to 300 ns are shared by 8.
	rxSlots = 8
	// slotLen holds the longest datagram (IPv6's 65,535 B less the UDP header's 8), so that none is ever
	// cut: a vxlan device of the same host may deliver that much at once. Pages that small datagrams don't
	// reach are never touched.
	slotLen = 65535
)

// rxQueue receives from one socket for one worker. It implements port.RxQueue.
//
// Messages are received into slots and copied (but see direct): only then is known how long each frame is, and those in
// a pool lie one behind the other. What goes on where the frame before it ended is joined to that while it is
// copied, so that what a peer's pod sent in one piece crosses this switch in one. What the burst or the pool has no
// room for waits in its slot for the next Recv, which the worker calls although the socket may be empty: Recv said
// that there is more.
type rxQueue struct {
	fd        int
	peers     *VTEPTable
	slots     [rxSlots][]byte
	iovs      [rxSlots]unix.Iovec // of slots
	from      [rxSlots]sockaddr
	control   [rxSlots]receiveControl
	msgs      [rxSlots]mmsg.Message // of iovs, from and control
	next      int                   // the slots from next to got-1 hold messages
	got       int
	rest      message // of slot next
	direct    direct
	joiner    frame.Joiner
	partials  partials
	unbundled int          // bytes of the next datagram, a bundle, that were delivered; 0 if it wasn't begun on
	hellos    chan<- heard // nil in a plain Tunnel
	drain     bool
	drained   int // messages that were received since, for the rest of incomplete ones
}

// message is what is left of a received message.
type message struct {
	bytes []byte
	size  int // of its datagrams but the last, bytes; not 0
	from  netip.Addr
	peer  *Peer // nil if from is none's
	tos   uint8
	train int // if not 0, this is one datagram with a super-frame of UDP, which has that much payload in each segment
}

var _ port.Drainer = (*rxQueue)(nil)

func newRxQueue(fd int, peers *VTEPTable) *rxQueue {
	q := &rxQueue{fd: fd, peers: peers}
	for i := range q.slots {
		q.slots[i] = make([]byte, slotLen)
		mmsg.SetBuffer(&q.iovs[i], q.slots[i])
		hdr := &q.msgs[i].Hdr
		hdr.Name = &q.from[i][0]
		hdr.Iov = &q.iovs[i]
		hdr.SetIovlen(1)
	}
	return q
}

// FD implements port.RxQueue.
func (q *rxQueue) FD() int { return q.fd }

// maxDrained is how many messages Drain still receives to complete others: a burst of super-frames that came in pieces.
const maxDrained = 256

// Drain implements port.Drainer. Of a message of which slices are here, the others are taken as well, if they are there:
// nobody else could do anything with them.
func (q *rxQueue) Drain() (held bool) {
	q.drain = true
	return q.next < q.got || q.completing()
}

func (q *rxQueue) completing() bool { return q.partials.open > 0 && q.drained < maxDrained }

// Recv implements port.RxQueue. It looks at no more messages than a burst has frames, or a flood of
// invalid ones would hold the worker for as long as it lasts.
func (q *rxQueue) Recv(_ int, b *frame.Burst, p *frame.Pool, st *port.Stats) (more bool) {
	more = true
	for budget := frame.BurstSize - b.Len(); more && budget > 0; {
		switch {
		case q.next < q.got:
		case q.drain && !q.completing():
			q.finish(b)
			return false
		case q.drain:
			q.drained++
			if more = q.receive(1); !more {
				q.drained = maxDrained // the rest is still on its way, or lost
			}
		case q.direct.prefix == 0:
			more = q.receive(min(budget, rxSlots))
		default:
			q.finish(b)
			room := p.Reserve(0, slotLen)
			if b.Full() || room == nil {
				return true
			}
			more = q.receiveDirect(b, p, st, room)
			budget--
			continue
		}
		budget -= q.got - q.next
		if !q.deliver(b, p, st) {
			return true
		}
	}
	q.finish(b)
	return more
}

// receive fills up to n empty slots and reports whether more messages may be waiting.
func (q *rxQueue) receive(n int) (more bool) {
	for i := range q.msgs[:n] {
		q.prepare(i)
	}
	q.next, q.got = 0, 0
	got, errno := mmsg.Recv(q.fd, q.msgs[:n])
	if errno != 0 {
		return false // EAGAIN; an unconnected socket without IP_RECVERR reports nothing else
	}
	q.got = got
	if got > 0 {
		q.open()
	}
	return got == n
}

// prepare makes slot i ready: the kernel has set the lengths to those of what it wrote.
func (q *rxQueue) prepare(i int) {
	q.msgs[i].Hdr.Namelen = uint32(len(q.from[i]))
	q.control[i].attach(&q.msgs[i].Hdr)
}

// open begins on slot next.
func (q *rxQueue) open() {
	msg := &q.msgs[q.next]
	m := message{bytes: q.slots[q.next][:msg.Len], from: q.from[q.next].addr()}
	m.tos, m.size = q.control[q.next].parse(int(msg.Hdr.Controllen))
	switch {
	case m.size == 0:
		m.size = slotLen
	case wire.VXLAN(m.bytes).IsValid() && holdsTrain(m.bytes, m.size):
		m.size, m.train = slotLen, m.size
	}
	m.peer = q.peers.load().bySource[m.from]
	q.rest = m
}

// holdsTrain says whether a message of several datagrams, the first of size bytes, is rather one datagram with one packet
// in it, whose segments have size bytes of payload: what a vxlan device behind a veth pair sends makes the
// kernel tell of the inner segments (seen with Linux 6.18).
func holdsTrain(b []byte, size int) bool {
	if len(b) < wire.VXLANLen+wire.EthernetLen+wire.IPv6Len || size >= len(b) {
		return false
	}
	inner := b[wire.VXLANLen:]
	packet := inner[wire.EthernetLen:]
	switch wire.Ethernet(inner).EtherType() {
	case wire.EtherTypeIPv4:
		return int(wire.IPv4(packet).TotalLen()) == len(packet)
	case wire.EtherTypeIPv6:
		return wire.IPv6Len+int(wire.IPv6(packet).PayloadLen()) == len(packet)
	}
	return false
}

// deliver turns received datagrams into frames. It returns false when b or p is full before the last.
func (q *rxQueue) deliver(b *frame.Burst, p *frame.Pool, st *port.Stats) bool {
	for q.next < q.got {
		n := q.take(b, p, st)
		if n < 0 {
			return false
		}
		if q.rest.bytes = q.rest.bytes[n:]; len(q.rest.bytes) > 0 {
			continue
		}
		if q.next++; q.next < q.got {
			q.open()
		}
	}
	return true
}

// take handles the next datagram, or several, and returns their length; it is negative when b or p is full.
func (q *rxQueue) take(b *frame.Burst, p *frame.Pool, st *port.Stats) int {
	datagram := wire.VXLAN(q.rest.bytes[:min(q.rest.size, len(q.rest.bytes))])
	if q.rest.peer != nil && !datagram.IsValid() {
		if h := sliceHeaderOf(datagram); h != 0 {
			return q.slices(b, p, st, h)
		}
		if isBundle(datagram) {
			return q.unbundle(b, p, st, datagram)
		}
		if isHello(datagram) {
			q.hear(datagram, st)
			return len(datagram)
		}
	}
	if reason := q.rest.judge(datagram); reason != drop.None {
		st.RxDropped(reason, datagram, q.rest.from)
	} else if !q.append(b, p, datagram.VNI(), datagram.Payload()) {
		return -1
	}
	return len(datagram)
}

// hear hands a hello to the negotiator, if there is one. It is no frame, and counted only if the negotiator's door is full.
func (q *rxQueue) hear(datagram []byte, st *port.Stats) {
	if q.hellos == nil {
		return
	}
	select {
	case q.hellos <- heard{q.rest.peer, parseHello(datagram)}:
	default:
		st.RxDropped(drop.PuntFull, datagram, q.rest.from)
	}
}

// judge says why a datagram is dropped, and gives its packet the ECN field that it has from here on. Whether this node
// has the VNI is for the switch to say.
func (m *message) judge(datagram wire.VXLAN) drop.Reason {
	if !datagram.IsValid() {
		return drop.NotVXLAN
	}
	if m.peer == nil {
		return drop.UnknownPeer
	}
	return decapsulateECN(m.tos, datagram.Payload())
}

// append makes a frame that was received a part of the one before it, or the next of b. It returns false
// when b or p is full.
func (q *rxQueue) append(b *frame.Burst, p *frame.Pool, vni uint32, received []byte) bool {
	m := frame.Meta{VNI: vni, Peer: q.rest.peer.Index}
	if q.joiner.Add(received, m) {
		return true
	}
	q.finish(b)
	if b.Full() || !q.joiner.Begin(p, received, m) {
		return false
	}
	if q.rest.train != 0 {
		q.finish(b)
		frame.RestoreUSO(b.Frames()[b.Len()-1], q.rest.train) // where it can't, the switch's parse judges the frame as it is
	}
	return true
}

// finish appends the frame to which others might have been joined; there is room for it since it was begun.
func (q *rxQueue) finish(b *frame.Burst) {
	if q.joiner.Open() {
		b.Append(q.joiner.Finish())
	}
}
