package encap

import (
	"net/netip"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
)

// slices takes those of one message off the rest of what was received, which begins with one that has header h: all of
// them if they are there, or the first. It returns how many bytes
// that is, negative when b or p is full.
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
	slices, size := q.rest.bytes[:n], q.rest.size
	room := p.Reserve(0, n-(h.last()+1)*sliceLen-offloadLen)
	if room == nil {
		return -1
	}
	q.partials.abandon(&q.from[q.next], st)
	at := copy(room, slices[sliceLen+offloadLen:min(size, n)])
	for from := size; from < n; from += size {
		at += copy(room[at:], slices[from+sliceLen:min(from+size, n)])
	}
	if reason := decapsulateECN(q.rest.tos, room); reason != drop.None {
		dropSlices(reason, h.last()+1, slices, q.rest.from, st)
		return n
	}
	q.commit(b, p, h, len(room), slices[sliceLen:])
	return n
}

// commit appends the frame whose n bytes are in what was last reserved of p.
func (q *rxQueue) commit(b *frame.Burst, p *frame.Pool, h sliceHeader, n int, offload []byte) {
	f := p.Commit(n)
	f.VNI, f.Peer = h.vni(), q.rest.peer.Index
	getOffload(offload, &f.Meta)
	b.Append(f)
	q.rest.peer.link.rxWhole.Add(1)
}

// collect adds one slice to what there is of its message, and appends the frame if it is the last one. It returns the
// slice's length, or -1 when p is full.
func (q *rxQueue) collect(b *frame.Burst, p *frame.Pool, st *port.Stats, h sliceHeader) int {
	slice := q.rest.bytes[:min(q.rest.size, len(q.rest.bytes))]
	part := q.partials.take(&q.from[q.next], q.rest.peer, h, len(slice)-sliceLen, st)
	switch {
	case part == nil:
		st.RxDropped(drop.SliceLost, slice, q.rest.from)
	case h.index() < h.last():
		part.add(slice, q.rest.tos)
	case h.test():
		part.add(slice, q.rest.tos)
		q.partials.close(part)
		part.peer.link.verify(part.buf[:part.n])
	default:
		room := p.Reserve(0, part.n+len(slice)-sliceLen-offloadLen)
		if room == nil {
			return -1
		}
		part.add(slice, q.rest.tos)
		q.partials.close(part)
		copy(room, part.buf[offloadLen:part.n])
		if reason := decapsulateECN(part.tos, room); reason != drop.None {
			dropSlices(reason, part.slices, room, q.rest.from, st)
		} else {
			q.commit(b, p, h, len(room), part.buf)
		}
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
