package bench

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many frames one system call sends or receives. A call costs about 300 ns on the machine
// of DATAPATH.md, so that 64 make it 5 ns per frame; more would only make the bursts longer.
const batchSize = 64

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is a set of buffers of one length for sendmmsg and recvmmsg.
type batch struct {
	bufs [batchSize][]byte
	iovs [batchSize]unix.Iovec
	hdrs [batchSize]mmsghdr
}

// newBatch returns a batch whose buffers have size bytes each.
func newBatch(size int) *batch {
	b := new(batch)
	for i := range b.bufs {
		b.bufs[i] = make([]byte, size)
		b.iovs[i].Base = &b.bufs[i][0]
		b.iovs[i].SetLen(size)
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
	}
	return b
}

// send sends the first n buffers without blocking and returns how many the kernel took before one failed.
func (b *batch) send(fd, n int) (int, unix.Errno) {
	// RawSyscall: the call never blocks, and Go's scheduler need not hear of it.
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.hdrs)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sent), 0
}

// receive waits for a datagram, or the socket's timeout, and takes what else is there.
func (b *batch) receive(fd int) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.hdrs)), batchSize, unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// received returns the i-th datagram of the last receive, cut to the buffer's size.
func (b *batch) received(i int) []byte {
	return b.bufs[i][:min(int(b.hdrs[i].n), len(b.bufs[i]))]
}
