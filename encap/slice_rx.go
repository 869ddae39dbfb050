package encap

import (
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

// slices takes those of one message off the rest of what was received, which begins with one that has header h: all of
// them if they are there, or the first. It returns how many bytes that is, negative when b or p is full.
func (q *rxQueue) slices(b *frame.Burst, p *frame.Pool, st *port.Stats, h sliceHeader) int {
	q.finish(b)
	if b.Full() {
		return -1
	}
	if n := q.rest.whole(h); n > 0 && !h.test() {
		return q.assemble(b, p, st, h, n)
	}
	return q.collect(b, p, st, h)
}

// whole returns the bytes of a message's slices if what is left of m begins with all of them, or 0. The first one has
// header h.
func (m *message) whole(h sliceHeader) int {
	if h.index() != 0 || len(m.bytes) <= h.last()*m.size {
		return 0
	}
	n := min(len(m.bytes), (h.last()+1)*m.size)
	for at := m.size; at < n; at += m.size {
		if h += nextSlice; sliceHeaderOf(m.bytes[at:n]) != h {
			return 0
		}
	}
	return n
}

// assemble appends the frame of a message that is there whole, in n bytes of slices. It returns n, or -1 when p is full.
func (q *rxQueue) assemble(b *frame.Burst, p *frame.Pool, st *port.Stats, h sliceHeader, n int) int {
	message := q.rest.bytes[:n]
	room := p.Reserve(0, n-prefixLen(h.last()))
	if room == nil {
		return -1
	}
	q.partials.abandon(&q.from[q.next], st)
	q.deliverFrame(b, p, st, h, message, q.rest.size, q.rest.tos, room)
	q.direct.prefix = prefixLen(h.last())
	return n
}

// deliverFrame appends the frame of a message, for which room was reserved last.
func (q *rxQueue) deliverFrame(b *frame.Burst, p *frame.Pool, st *port.Stats, h sliceHeader, message []byte, size int, tos uint8, room []byte) {
	copy(room, frameIn(message, h.last(), size))
	if reason := decapsulateECN(tos, room); reason != drop.None {
		dropSlices(reason, h.last()+1, room, q.rest.from, st)
		return
	}
	q.commit(b, p, h, len(room), message, q.rest.peer)
}

// commit appends the frame whose n bytes are in what was last reserved of p.
func (q *rxQueue) commit(b *frame.Burst, p *frame.Pool, h sliceHeader, n int, prefix []byte, from *Peer) {
	f := p.Commit(n)
	f.VNI, f.Peer = h.vni(), from.Index
	getOffload(prefix[sliceLen:], &f.Meta)
	b.Append(f)
	from.link.rxWhole.Add(1)
}

// collect adds one slice to what there is of its message, and appends the frame if it is the last one. It returns the
// slice's length, or -1 when p is full.
func (q *rxQueue) collect(b *frame.Burst, p *frame.Pool, st *port.Stats, h sliceHeader) int {
	slice := q.rest.bytes[:min(q.rest.size, len(q.rest.bytes))]
	part := q.partials.take(&q.from[q.next], q.rest.peer, h, len(slice), st)
	switch {
	case part == nil:
		st.RxDropped(drop.SliceLost, slice, q.rest.from)
	case h.index() < h.last():
		part.add(slice, q.rest.tos)
	case h.test():
		part.add(slice, q.rest.tos)
		q.partials.close(part)
		part.peer.link.verify(part.buf[sliceLen:], frameIn(part.buf[:part.n], h.last(), part.size))
	default:
		room := p.Reserve(0, part.n+len(slice)-prefixLen(h.last()))
		if room == nil {
			return -1
		}
		part.add(slice, q.rest.tos)
		q.partials.close(part)
		q.deliverFrame(b, p, st, h, part.buf[:part.n], part.size, part.tos, room)
	}
	return len(slice)
}

// dropSlices counts n slices as dropped, each as a frame: about as many as it stands for on the wire.
func dropSlices(r drop.Reason, n int, b []byte, from netip.Addr, st *port.Stats) {
	st.RxDropped(r, b, from)
	more := uint64(n - 1)
	st.Rx.Add(more, more)
	st.Drops[r].Add(more, more)
}
