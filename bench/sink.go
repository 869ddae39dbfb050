package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// sinkBuffer holds what arrives while the sink waits for its core: 4 ms at a million frames a second
	// are 4,000 frames of about 1 KiB of kernel memory each; 64 MiB is room for stalls of 60 ms.
	sinkBuffer = 64 << 20

	// sinkQuiet is the silence after which nothing more is on its way: the longest queue, a ring of 1000
	// frames, empties in a few milliseconds.
	sinkQuiet = 200 * time.Millisecond
)

// sinkSpec says where a sink listens.
type sinkSpec struct {
	Netns string // path of the pod's namespace
	At    netip.AddrPort
	Run   uint64 // the run whose frames count
	Flows int    // that took turns with the numbers; 0 is 1

	Arrived string // file to count in for a generator with a window, see counter; "" is none
}

// sinkResult is the sink's side of the account.
type sinkResult struct {
	Received   uint64        // frames of the run, each number once
	Duplicates uint64        // frames whose number had been received
	Reordered  uint64        // frames that came after one of their flow with a higher number
	Foreign    uint64        // datagrams that are no frame of the run
	Overflowed uint64        // datagrams that the kernel dropped at the socket
	Took       time.Duration // from the first frame to the last
	CPU        time.Duration // that the sink itself has used
}

// sink is the job of a sink: a UDP socket read 64 datagrams to a call.
func sink(c *console, spec sinkSpec) (sinkResult, error) {
	if err := enterForGood(spec.Netns); err != nil {
		return sinkResult{}, err
	}
	fd, err := sinkSocket(spec.At)
	if err != nil {
		return sinkResult{}, fmt.Errorf("open a sink at %s: %w", spec.At, err)
	}
	defer unix.Close(fd)
	t := tally{run: spec.Run, next: make([]uint64, max(1, spec.Flows))}
	if spec.Arrived != "" {
		if t.arrived, err = openCounter(spec.Arrived); err != nil {
			return sinkResult{}, err
		}
		defer t.arrived.close()
	}
	var ending atomic.Bool
	if err := c.ready(); err != nil {
		return sinkResult{}, err
	}
	gone := make(chan error, 1)
	go func() {
		gone <- c.wait()
		ending.Store(true)
	}()
	if err := t.collect(fd, &ending); err != nil {
		return sinkResult{}, fmt.Errorf("receive at %s: %w", spec.At, err)
	}
	if t.result.Overflowed, err = socketDrops(fd); err != nil {
		return sinkResult{}, err
	}
	t.result.CPU, err = processCPU(os.Getpid())
	return t.result, errors.Join(err, <-gone)
}

func sinkSocket(at netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(sinkQuiet))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socketDrops reads the socket's own drop counter: full buffer or bad checksum.
func socketDrops(fd int) (uint64, error) {
	const skMeminfoDrops, skMeminfoVars = 8, 9 // linux/sock_diag.h
	var vars [skMeminfoVars]uint32
	size := uint32(unsafe.Sizeof(vars))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&vars)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read SO_MEMINFO: %w", errno)
	}
	return uint64(vars[skMeminfoDrops]), nil
}

// tally counts the frames of a run and remembers their numbers.
type tally struct {
	run         uint64
	seen        []uint64 // a bit per frame number
	next        []uint64 // by flow: one above the highest number so far
	first, last time.Time
	arrived     *counter // that the generator reads; nil: none
	result      sinkResult
}

// maxFrameNumber bounds the memory that a forged number can ask for: 2^32 bits are 512 MiB, and an hour at
// a million frames a second.
const maxFrameNumber = 1 << 32

// collect counts until it was told to end and nothing has come for sinkQuiet.
func (t *tally) collect(fd int, ending *atomic.Bool) error {
	b := newBatch(2048)
	for {
		n, errno := b.receive(fd)
		switch errno {
		case 0:
			t.countBatch(b, n)
		case unix.EAGAIN:
			if ending.Load() {
				t.result.Took = t.last.Sub(t.first)
				return nil
			}
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (t *tally) countBatch(b *batch, n int) {
	t.last = time.Now()
	if t.first.IsZero() {
		t.first = t.last
	}
	for i := range n {
		t.count(b.received(i))
	}
	if t.arrived != nil {
		t.arrived.store(t.result.Received)
	}
}

// count takes a datagram's payload.
func (t *tally) count(p []byte) {
	if len(p) < stampLen || binary.BigEndian.Uint64(p) != t.run {
		t.result.Foreign++
		return
	}
	number := binary.BigEndian.Uint64(p[8:])
	if number >= maxFrameNumber {
		t.result.Foreign++
		return
	}
	word, bit := number/64, uint64(1)<<(number%64)
	for uint64(len(t.seen)) <= word {
		t.seen = append(t.seen, 0)
	}
	if t.seen[word]&bit != 0 {
		t.result.Duplicates++
		return
	}
	t.seen[word] |= bit
	t.result.Received++
	next := &t.next[number%uint64(len(t.next))]
	if number < *next {
		t.result.Reordered++
		return
	}
	*next = number + 1
}
