// Package uring reads and writes many frames per system call on descriptors that never block, such as TAP devices,
// for which Linux has no recvmmsg and sendmmsg.
//
// Every request is one that the kernel carries out, or refuses, before the call returns: nothing is ever pending, so
// a ring needs no draining, holds no memory between calls, and leaves waiting to epoll.
package uring

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read io_uring(7), io_uring_setup(2) and io_uring_enter(2) first.

// ErrUnavailable is returned by New where the kernel, or who runs us, doesn't let us have a ring.
var ErrUnavailable = errors.New("io_uring is not available")

// The layouts and numbers of linux/io_uring.h.
type (
	sqe struct {
		opcode, flags uint8
		ioprio        uint16
		fd            int32
		off           uint64
		addr          uint64
		len           uint32
		rwFlags       uint32
		userData      uint64
		bufIndex      uint16
		_             [11]uint16
	}
	cqe struct {
		userData uint64
		res      int32
		flags    uint32
	}
	sqOffsets struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		userAddr                                                    uint64
	}
	cqOffsets struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		userAddr                                                    uint64
	}
	params struct {
		sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
		_                                                                      [3]uint32
		sq                                                                     sqOffsets
		cq                                                                     cqOffsets
	}
)

const (
	offRings, offSQEs = 0, 0x10000000 // IORING_OFF_SQ_RING, IORING_OFF_SQES

	setupSubmitAll   = 1 << 7 // a wrong request doesn't stop those behind it
	setupCoopTaskrun = 1 << 8 // no interrupt to have completions run: they do before the call returns
	featSingleMmap   = 1 << 0

	registerBuffers = 0

	opRead, opWrite  = 22, 23
	opReadFixed      = 4 // IORING_OP_READ_FIXED: into registered memory
	opWriteFixed     = 5
	sqeSkipSuccess   = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS
	rwfNowait        = 0x8    // of linux/fs.h: what can't be done now is EAGAIN, and goes to no other thread
	minKernelVersion = "5.19" // has all of these; TAP devices have known rwfNowait since 6.4
)

// Ring is one pair of submission and completion queues. One goroutine at a time may use it, from any thread.
//
// It has no registered descriptors, which would save 12 ns a request (Linux 6.18): after kill -9 the kernel lets go of
// them 20 to 36 ms late, and nobody else can attach to a TAP as long.
type Ring struct {
	fd          int
	rings, sqeb []byte // the mappings
	sqes        []sqe
	cqes        []cqe
	sqHead      *uint32 // written by the kernel
	sqTail      *uint32
	cqHead      *uint32
	cqTail      *uint32  // written by the kernel
	tail, head  uint32   // ours: of submissions, of completions
	reads       int      // added and not yet submitted
	memory      [][]byte // registered
}

// New returns a ring for up to entries requests per Submit, a power of two. Its error is an ErrUnavailable that says
// why and what would help, or that descriptors or memory are used up.
func New(entries int) (*Ring, error) {
	p := params{flags: setupSubmitAll | setupCoopTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, unavailable(errno)
	}
	r := &Ring{fd: int(fd)}
	if err := r.mmap(&p); err != nil {
		return nil, errors.Join(fmt.Errorf("map the queues of a ring of %d entries: %w", entries, err), r.Close())
	}
	// A seccomp profile may forbid this call alone; then each Submit would fail, which users of a ring take for a short memory.
	if _, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, fd, 0, 0, 0, 0, 0); errno != 0 {
		return nil, errors.Join(unavailable(errno), r.Close())
	}
	return r, nil
}

func unavailable(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("%w: this kernel has none, or an older one than that of Linux %s (io_uring_setup: %w)", ErrUnavailable, minKernelVersion, errno)
	case unix.EPERM:
		const sysctl = "/proc/sys/kernel/io_uring_disabled"
		if text, err := os.ReadFile(sysctl); err == nil && strings.TrimSpace(string(text)) != "0" {
			return fmt.Errorf("%w: %s is %s; 'sysctl kernel.io_uring_disabled=0' allows it", ErrUnavailable, sysctl, strings.TrimSpace(string(text)))
		}
		return fmt.Errorf("%w: seccomp or a security module forbids it; a container's seccomp profile must allow io_uring_setup and io_uring_enter", ErrUnavailable)
	}
	return fmt.Errorf("io_uring_setup: %w", errno)
}

func (r *Ring) mmap(p *params) (err error) {
	if p.features&featSingleMmap == 0 { // all kernels with the flags above have it
		return unix.EINVAL
	}
	const access, how = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	if r.rings, err = unix.Mmap(r.fd, offRings, int(size), access, how); err != nil {
		return err
	}
	if r.sqeb, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), access, how); err != nil {
		return err
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail, r.cqHead, r.cqTail = word(p.sq.head), word(p.sq.tail), word(p.cq.head), word(p.cq.tail)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeb[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	array := unsafe.Slice(word(p.sq.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i) // entry i is always in place i
	}
	return nil
}

// Close gives the ring back.
func (r *Ring) Close() error {
	errs := []error{unix.Close(r.fd)}
	for _, m := range [][]byte{r.rings, r.sqeb} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(errs...)
}

// Cap returns how many requests fit between two calls of Submit.
func (r *Ring) Cap() int { return len(r.sqes) }

// Read adds a read of one message into b, which is not on a stack, is not empty, and is the kernel's until Submit
// returns. It completes with its length or with a negative errno.
func (r *Ring) Read(fd int, b []byte, id int) {
	r.reads++
	if i := r.region(b); i >= 0 {
		*r.next() = request(opReadFixed, 0, fd, b, i, id)
		return
	}
	*r.next() = request(opRead, 0, fd, b, 0, id)
}

// Write adds a write of one message, with the same conditions. It completes only when it fails, with a negative errno.
func (r *Ring) Write(fd int, b []byte, id int) {
	if i := r.region(b); i >= 0 {
		*r.next() = request(opWriteFixed, sqeSkipSuccess, fd, b, i, id)
		return
	}
	*r.next() = request(opWrite, sqeSkipSuccess, fd, b, 0, id)
}

func (r *Ring) next() *sqe {
	e := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	r.tail++
	return e
}

func request(op, flags uint8, fd int, b []byte, region, id int) sqe {
	return sqe{opcode: op, flags: flags, fd: int32(fd), addr: uint64(address(b)), len: uint32(len(b)),
		rwFlags: rwfNowait, userData: uint64(id), bufIndex: uint16(region)}
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Submit has the kernel carry out what was added, in order. Without an error all of it is done, and Next tells how.
// With one, the last left of the requests were not begun, and are forgotten.
func (r *Ring) Submit() (left int, err error) {
	// A store is a locked instruction of 8 ns, so there is one of each kind per call, not per request.
	atomic.StoreUint32(r.cqHead, r.head)
	atomic.StoreUint32(r.sqTail, r.tail)
	for n := r.added(); n > 0; n = r.added() {
		// RawSyscall: the call never sleeps, and telling Go's scheduler costs a tenth of a microsecond.
		_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			left, err = int(r.added()), errno
			r.tail -= uint32(left)
			atomic.StoreUint32(r.sqTail, r.tail)
			break
		}
	}
	if completed := int(atomic.LoadUint32(r.cqTail) - r.head); completed < r.reads-left {
		// It would write into memory that has another use by then.
		panic(fmt.Sprintf("uring: the kernel keeps %d of %d reads pending, although they have RWF_NOWAIT; io: readwrite does without", r.reads-left-completed, r.reads))
	}
	r.reads = 0
	return left, err
}

// added returns how many requests the kernel has not taken yet.
func (r *Ring) added() uint32 { return r.tail - atomic.LoadUint32(r.sqHead) }

// Next returns the next completion: which request it is of, and its result. Reads that succeed complete in their order;
// what fails completes in any order, since Linux 6.0 to 6.8 turn it round.
func (r *Ring) Next() (id int, res int32, ok bool) {
	if r.head == atomic.LoadUint32(r.cqTail) {
		return 0, 0, false
	}
	e := &r.cqes[r.head&uint32(len(r.cqes)-1)]
	id, res = int(e.userData), e.res
	r.head++
	return id, res, true
}
