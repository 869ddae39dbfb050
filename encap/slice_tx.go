package encap

import (
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/wire"
)

// What stands before a slice's part of the frame fits where a segment's headers do.
const _ = uint(wire.VXLANLen + frame.MaxHeaderLen - sliceLen - offloadLen)

// takesSlices says whether a frame of n bytes makes a message of slices in datagrams of size bytes; size 0 is a peer that
// takes none.
func takesSlices(n, size int) bool {
	return size != 0 && offloadLen+n <= maxSlices*(size-sliceLen)
}

// gatherSlices adds a frame as the slices of a message, in datagrams of size bytes but for the last, until the kernel
// refuses one of them. They aren't spread over two calls without need.
func (q *txQueue) gatherSlices(i int, f *frame.Frame, peer *Peer, flags uint8, size int) {
	body := f.Bytes()
	last := (offloadLen + len(body) - 1) / (size - sliceLen)
	if q.n+last+1 > batch {
		q.transmit()
	}
	q.message++
	if flags == sliceFlags {
		peer.link.sent.Add(1)
	}
	h := makeSliceHeader(flags, q.message, f.VNI, uint8(last))
	n := sliceLen + offloadLen // what stands before the slice's part of the frame
	for ; len(body) > 0 && q.reasons[i] == drop.None; h += nextSlice {
		hdr, parts := q.begin(i, f)
		h.put(hdr)
		if n > sliceLen {
			putOffload(hdr[sliceLen:], &f.Meta)
		}
		part := body[:min(size-n, len(body))]
		body = body[len(part):]
		mmsg.SetBuffer(&parts[0], hdr[:n])
		mmsg.SetBuffer(&parts[1], part)
		q.commit(f, peer, 2, n+len(part))
		n = sliceLen
	}
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
