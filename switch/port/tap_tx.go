package port

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/uring"
	"tapyard/switch/wire"
)

// minWrites is how many frames are worth a batch: a call of one costs 110 ns more than a write, each further write in it
// 45 ns less.
const minWrites = 4

// tapTx sends on a TAP for one worker.
type tapTx struct {
	tap  *TAP
	fd   int // of one of its queues
	st   *Stats
	ring *uring.Ring // the worker's, or nil
}

// Send implements TxQueue. A write runs the receiver's network stack in this thread, which is most of what
// a frame costs.
func (q *tapTx) Send(b *frame.Burst) {
	var sum sent
	if frames := b.Frames(); q.ring != nil && len(frames) >= minWrites {
		q.writeBatch(frames, &sum)
	} else {
		q.writeEach(frames, &sum)
	}
	q.st.Tx.Add(sum.frames, sum.wire)
	q.st.TxBytes.Add(sum.bytes)
}

// Flush implements TxQueue; Send has left nothing behind.
func (q *tapTx) Flush() {}

// sent is what the counters of a burst will gain.
type sent struct{ frames, wire, bytes uint64 }

// account counts a frame as sent, or as dropped if the kernel refused it.
func (q *tapTx) account(f *frame.Frame, errno unix.Errno, sum *sent) {
	if errno != 0 {
		q.st.Drop(q.refused(errno), f.Wire(), f.Bytes(), &f.Meta)
		return
	}
	sum.frames++
	sum.wire += uint64(f.Wire())
	sum.bytes += uint64(f.Len())
}

func (q *tapTx) writeEach(frames []*frame.Frame, sum *sent) {
	for _, f := range frames {
		q.account(f, write(q.fd, withVirtio(f)), sum)
	}
}

// writeBatch writes all frames by one system call, in their order. The headers of all stand in the headroom at
// once, which is why no two clones of a frame may be among them.
func (q *tapTx) writeBatch(frames []*frame.Frame, sum *sent) {
	for i, f := range frames {
		q.ring.Write(q.fd, withVirtio(f), i)
	}
	left, _ := q.ring.Submit() // it fails when memory is short, and single writes need none of the ring's
	done := frames[:len(frames)-left]
	var refused [frame.BurstSize]int32 // negative errnos
	for i, res, ok := q.ring.Next(); ok; i, res, ok = q.ring.Next() {
		refused[i] = res // which don't come in order: Linux 6.0 to 6.8 tell of the last one first
	}
	for i, f := range done {
		q.account(f, unix.Errno(-refused[i]), sum)
	}
	q.writeEach(frames[len(done):], sum)
}

func withVirtio(f *frame.Frame) []byte {
	buf := f.WithHeadroom(wire.VirtioNetLen)
	EncodeVirtio(wire.VirtioNet(buf), &f.Meta)
	return buf
}

func write(fd int, buf []byte) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// refused maps an errno of tun_get_user to a reason: EIO is a device that is down, EBADFD one that is
// gone, EINVAL metadata that the kernel finds inconsistent.
func (q *tapTx) refused(errno unix.Errno) drop.Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return drop.TxFull
	case unix.EIO, unix.EBADFD:
		return drop.PortGone
	}
	q.tap.lastError.Store(uint32(errno))
	return drop.TxError
}
