package encap

import (
	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
)

// direct is how a message is received when it is likely to be a whole one of slices, as the last one was: its prefix into
// a slot, and the rest to where the frame will be. So 64 KiB aren't copied once more. What turns out to be something else
// is put into the slot, too, and then one like any other.
type direct struct {
	prefix int // bytes; 0 if nothing of the kind is expected
	iovs   [2]unix.Iovec
}

// receiveDirect receives one message into slot 0 and room, which was reserved last. It reports whether there was one; slot
// 0 holds it if it is not what was expected.
func (q *rxQueue) receiveDirect(b *frame.Burst, p *frame.Pool, st *port.Stats, room []byte) bool {
	n := q.direct.prefix
	mmsg.SetBuffer(&q.direct.iovs[0], q.slots[0][:n])
	mmsg.SetBuffer(&q.direct.iovs[1], room[:slotLen-n])
	q.prepare(0)
	hdr := &q.msgs[0].Hdr
	hdr.Iov = &q.direct.iovs[0]
	hdr.SetIovlen(2)
	q.next, q.got = 0, 0
	_, errno := mmsg.Recv(q.fd, q.msgs[:1])
	hdr.Iov = &q.iovs[0]
	hdr.SetIovlen(1)
	if errno != 0 {
		return false
	}
	q.settle(b, p, st, room[:max(int(q.msgs[0].Len)-n, 0)])
	return true
}

// settle makes of a received message, of which room has what is behind the prefix, the frame that is there, or slot 0.
func (q *rxQueue) settle(b *frame.Burst, p *frame.Pool, st *port.Stats, room []byte) {
	if len(room) > 0 && q.accept(b, p, st, room) {
		return
	}
	copy(q.slots[0][q.direct.prefix:], room)
	q.direct.prefix = 0
	q.got = 1
	q.open()
}

// accept appends the frame that lies in room if it and the prefix in slot 0 are a whole message of slices.
func (q *rxQueue) accept(b *frame.Burst, p *frame.Pool, st *port.Stats, room []byte) bool {
	prefix := q.slots[0][:q.direct.prefix]
	h := sliceHeaderOf(prefix)
	tos, size := q.control[0].parse(int(q.msgs[0].Hdr.Controllen))
	n, last := len(prefix)+len(room), h.last()
	if size == 0 {
		size = n
	}
	peer := q.peers.load().bySource[q.from[0].addr()]
	if peer == nil || h == 0 || h.test() || h.index() != 0 || prefixLen(last) != len(prefix) || size < len(prefix) ||
		n <= last*size || n > (last+1)*size {
		return false
	}
	for k, next := 1, h; k <= last; k++ {
		if next += nextSlice; sliceHeaderOf(room[k*size-len(prefix):]) != next {
			return false
		}
	}
	for k := 1; k <= last; k++ {
		copy(room[k*size-len(prefix):][:sliceLen], prefix[offloadLen+k*sliceLen:])
	}
	q.partials.abandon(&q.from[0], st)
	if reason := decapsulateECN(tos, room); reason != drop.None {
		dropSlices(reason, last+1, room, q.from[0].addr(), st)
		return true
	}
	q.commit(b, p, h, len(room), prefix, peer)
	return true
}
