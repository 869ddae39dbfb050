package encap

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/port"
)

// takesSlices says whether a frame of n bytes makes a message of slices in datagrams of size bytes; size 0 is a peer that
// takes none.
func takesSlices(n, size int) bool {
	return size > sliceLen && prefixLen(lastSlice(n, size)) <= min(size, maxPrefix)
}

// lastSlice returns the index of the last slice of a message with a frame of n bytes.
func lastSlice(n, size int) int { return (offloadLen + n - 1) / (size - sliceLen) }

// slicer sends one message: the prefix and then the frame's own bytes, in which the slices' headers stand for as long as
// that takes. So the kernel copies two buffers instead of two for each of 45 slices, which took it 2 us of 7 (Linux 6.18).
type slicer struct {
	prefix [maxPrefix]byte
	iovs   [batch][2]unix.Iovec
}

// sendSlices sends a frame as a message of slices, in datagrams of size bytes but for the last, after what was gathered
// before it.
func (q *txQueue) sendSlices(i int, f *frame.Frame, peer *Peer, flags uint8, size int) {
	q.transmit()
	q.message++
	body, last := f.Bytes(), lastSlice(f.Len(), size)
	h := makeSliceHeader(flags, q.message, f.VNI, uint8(last))
	prefix := q.slicer.prefix[:prefixLen(last)]
	h.put(prefix)
	putOffload(prefix[sliceLen:], &f.Meta)
	table := prefix[sliceLen+offloadLen:]
	at := size - len(prefix)
	for n := range last {
		h += nextSlice
		word := body[at+n*size:][:sliceLen]
		copy(table[n*sliceLen:][:sliceLen], word)
		h.put(word)
	}
	q.reasons[i] = q.sendMessage(prefix, body, outerTOS(body), peer, size)
	for n := range last {
		copy(body[at+n*size:][:sliceLen], table[n*sliceLen:])
	}
}

// sendMessage sends a then b in datagrams of size bytes, as many at once as the kernel takes, and returns why not all of
// them were sent.
func (q *txQueue) sendMessage(a, b []byte, tos uint8, peer *Peer, size int) drop.Reason {
	total := len(a) + len(b)
	most, refused := size, unix.Errno(0)
	if q.t.segmenting() {
		most = min(maxSegments, maxMessage/size) * size
	}
	for from := 0; from < total; {
		n := 0
		for at := from; at < total && n < batch; at += most {
			hdr, v, to := &q.msgs[n].Hdr, q.slicer.iovs[n][:], min(at+most, total)
			cut := size
			if to-at <= size {
				cut = 0
			}
			hdr.Namelen = q.to[n].encode(netip.AddrPortFrom(peer.Underlay, q.t.cfg.Port))
			hdr.Iov = &v[0]
			hdr.SetIovlen(window(v, a, b, at, to))
			q.control[n].attach(hdr, cut, tos)
			n++
		}
		switch sent, errno := mmsg.Send(q.fd, q.msgs[:n]); {
		case errno == 0:
			from += sent * most
		case reasonOf(errno) == drop.TxFull:
			return drop.TxFull
		case min(most, total-from) > size:
			most, refused = size, errno // one by one; was it that which the kernel didn't like?
		default:
			return q.refusedSlice(peer, min(most, total-from), errno)
		}
	}
	if refused != 0 {
		q.t.refuseSegments(refused)
	}
	return drop.None
}

// window makes v describe the bytes from one offset to another of a followed by b, and returns how many buffers that are.
func window(v []unix.Iovec, a, b []byte, from, to int) (n int) {
	if from < len(a) {
		mmsg.SetBuffer(&v[0], a[from:min(to, len(a))])
		n++
	}
	if to > len(a) {
		mmsg.SetBuffer(&v[n], b[max(from-len(a), 0):to-len(a)])
		n++
	}
	return n
}

// refusedSlice notes that the kernel refused a datagram of n bytes. If that was for its size, the peer gets VXLAN until
// the way was tested again.
func (q *txQueue) refusedSlice(peer *Peer, n int, errno unix.Errno) drop.Reason {
	reason := reasonOf(errno)
	if reason == drop.TooBig {
		peer.link.size.Store(0)
		peer.link.tooBig.Store(true)
	}
	q.t.refusal.note(peer.Index, n, errno)
	return reason
}

// mergeFrom is how many frames of a burst to one tunnel make it worth asking their peers for another wire.
const mergeFrom = 4

// Joins implements port.JoinedTx: a peer that takes super-frames in slices costs the less, the fewer there are.
func (q *txQueue) Joins(b *frame.Burst) bool {
	if q.t.cfg.Plain || b.Len() < 2 {
		return false
	}
	peers, last := q.t.cfg.Peers.load(), uint32(0)
	for _, f := range b.Frames() {
		if f.Peer == last {
			continue
		}
		last = f.Peer
		if peer := peers.byIndex[last]; peer != nil && q.t.wire(peer, b.Len() >= mergeFrom) != 0 {
			return true
		}
	}
	return false
}

var _ port.JoinedTx = (*txQueue)(nil)
