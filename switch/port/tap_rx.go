package port

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/uring"
	"tapyard/switch/wire"
)

const (
	// firstBatch is how many frames a queue reads at once when it begins to. A read that finds nothing costs 110 ns,
	// and one that finds a frame saves 60 ns in a batch (Linux 6.18, a Xeon where a system call costs 83 ns),
	// so a batch pays when two thirds of it are full.
	firstBatch = 16
	// maxBatchBytes is what the frames of a batch may have had for another one to be read: as much as an arena holds,
	// and for the same reason.
	maxBatchBytes = frame.DefaultArena
)

// tapRx is a receive queue of a TAP.
type tapRx struct {
	fd    int
	rings *Rings
	batch int // how many frames are read at once; 0 is one by one, without a ring
}

// FD implements RxQueue.
func (q *tapRx) FD() int { return q.fd }

// Recv implements RxQueue. Frame by frame is how it begins, since most devices have one or two, and then a read too
// many costs most; after a full burst of small frames, which says that many are waiting, it reads in batches. Long
// frames, of which few fit a cache between read and write, it leaves to single reads.
func (q *tapRx) Recv(worker int, b *frame.Burst, p *frame.Pool, st *Stats) (more bool) {
	ring := q.rings.of(worker)
	if ring == nil || q.batch == 0 {
		more = q.readEach(b, p, st)
		if b.Full() { // no arena holds that many long ones
			q.batch = firstBatch
		}
		return more
	}
	for more = true; q.batch > 0 && !b.Full(); {
		more = q.readBatch(ring, b, p, st)
	}
	return more
}

func (q *tapRx) readEach(b *frame.Burst, p *frame.Pool, st *Stats) (more bool) {
	for more = true; more && !b.Full(); {
		buf := p.Reserve(wire.VirtioNetLen, frame.MaxLen)
		if buf == nil {
			break
		}
		// RawSyscall: the descriptor never blocks, and telling Go's scheduler costs a tenth of the read.
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		if errno != 0 {
			more = errno == unix.EINTR
			continue
		}
		if n < wire.VirtioNetLen {
			st.RxDropped(drop.ShortRead, buf[:n], netip.Addr{})
			continue
		}
		f := p.Commit(int(n) - wire.VirtioNetLen)
		decodeVirtio(wire.VirtioNet(buf), &f.Meta)
		b.Append(f)
	}
	return more
}

// readBatch reads up to a batch of frames by one system call, and sets the size of the next: the burst's rest after a
// full one, and none after one that found the device empty, long frames or a pool that has no room.
func (q *tapRx) readBatch(r *uring.Ring, b *frame.Burst, p *frame.Pool, st *Stats) (more bool) {
	first, n := p.Windows(min(q.batch, frame.BurstSize-b.Len()))
	for i := first; i < first+n; i++ {
		r.Read(q.fd, p.Window(i, wire.VirtioNetLen), i)
	}
	left, _ := r.Submit() // it fails when memory is short, as a read may, and then the next is no batch
	got, bytes := 0, 0
	for i, res, ok := r.Next(); ok; i, res, ok = r.Next() {
		if res < 0 {
			continue // EAGAIN, but for a device that is gone
		}
		got++
		buf := p.Window(i, wire.VirtioNetLen)
		if res < wire.VirtioNetLen {
			st.RxDropped(drop.ShortRead, buf[:res], netip.Addr{})
			continue
		}
		f := p.CommitWindow(i, int(res)-wire.VirtioNetLen)
		decodeVirtio(wire.VirtioNet(buf), &f.Meta)
		b.Append(f)
		bytes += int(res)
	}
	if q.batch = frame.BurstSize; n == 0 || got < n || bytes > maxBatchBytes {
		q.batch = 0
	}
	return got == n || left > 0
}
