package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/mmsg"
	"tapyard/switch/wire"
)

const (
	// trialFrames is how many frames a round moves: as many as half a device's ring holds.
	trialFrames = 512
	// trialRounds is how often each engine does. Of 15 rounds of 0.5 ms each, the median errs by 1 to 2 %.
	trialRounds = 15
	// trialLen is the shortest Ethernet frame without its check sequence, which needs most system calls a byte.
	trialLen = 60
	// trialType is the EtherType for local experiments (IEEE 802), whose frames no protocol takes.
	trialType = 0x88b5
)

// trial is a device that is sent to, one that frames are to go to, and a worker's things.
type trial struct {
	from, to *TAP
	sender   int // packet socket on from: what it sends, from receives
	out      [frame.BurstSize][]byte
	iovs     [frame.BurstSize]unix.Iovec
	msgs     [frame.BurstSize]mmsg.Message
	pool     *frame.Pool
	burst    frame.Burst
	rx       tapRx
	tx       TxQueue
	st       Stats
	number   uint32
}

// Trial is the CPU time of a frame from one TAP to another whose kernel drops it, by each engine.
type Trial struct {
	ReadWrite time.Duration `json:"readwrite_ns"`
	IOUring   time.Duration `json:"io_uring_ns"`
}

// TryEngines proves io_uring with numbered frames and measures both engines, in about 25 ms, with a ring and devices of its
// own in a network namespace of its own. Both are as good for the next process on the same boot of the kernel.
func TryEngines() (result Trial, err error) {
	done := make(chan struct{})
	go OnThread(func() {
		var t *trial
		if t, err = newTrial(); err == nil {
			result, err = t.run()
		}
		close(done)
		if t != nil {
			t.close() // which takes the kernel 40 ms, for which nobody waits
		}
	})
	<-done
	return result, err
}

func (t *trial) run() (result Trial, err error) {
	rings, err := OpenRings(1)
	if err != nil {
		return result, err
	}
	defer rings.Close()
	_ = rings.UsePools(0, t.pool) // where it fails, so it will with the workers' pools: to be measured as it will be
	t.use(rings)
	if err := t.prove(); err != nil {
		return result, err
	}
	return t.compare(rings)
}

// newTrial moves the calling thread into a network namespace of its own.
func newTrial() (_ *trial, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	t := &trial{sender: -1, pool: frame.NewPoolWithWindows(frame.BurstSize, frame.DefaultArena, frame.BurstSize)}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.from, err = upTAP("from"); err != nil {
		return nil, err
	}
	if t.to, err = upTAP("to"); err != nil {
		return nil, err
	}
	if t.sender, err = trialSocket("from", 0); err != nil {
		return nil, err
	}
	for i := range t.out {
		t.out[i] = make([]byte, trialLen)
		wire.Ethernet(t.out[i]).Encode(&wire.EthernetFields{Dst: wire.MAC{2, 5: 2}, Src: wire.MAC{2, 5: 1}, EtherType: trialType})
		mmsg.SetBuffer(&t.iovs[i], t.out[i])
		t.msgs[i].Hdr.Iov = &t.iovs[i]
		t.msgs[i].Hdr.SetIovlen(1)
	}
	return t, nil
}

// upTAP makes a device that goes with its descriptor.
func upTAP(device string) (*TAP, error) {
	t, err := OpenTAP(TAPConfig{Device: device, PortName: device})
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up TAP device %s: %w", device, err), t.Close())
	}
	return t, nil
}

// trialSocket opens a packet socket that sends, or with a protocol receives, on a device.
func trialSocket(device string, protocol uint16) (int, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return -1, fmt.Errorf("device %s: %w", device, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: link.Attrs().Index}))
	if err != nil {
		return -1, errors.Join(fmt.Errorf("packet socket on %s: %w", device, err), unix.Close(fd))
	}
	return fd, nil
}

func (t *trial) close() {
	for _, tap := range []*TAP{t.from, t.to} {
		if tap != nil {
			_ = tap.Close()
		}
	}
	if t.sender >= 0 {
		_ = unix.Close(t.sender)
	}
}

// use has the trial move frames with rings, or with read and write if rings is nil.
func (t *trial) use(rings *Rings) {
	t.rx = tapRx{fd: t.from.fds[0], rings: rings}
	t.tx = &tapTx{tap: t.to, fd: t.to.fds[0], st: &t.st, ring: rings.of(0)}
}

// fill sends n numbered frames, a multiple of a burst, to the device.
func (t *trial) fill(n int) error {
	for ; n > 0; n -= frame.BurstSize {
		for i := range t.out {
			binary.BigEndian.PutUint32(t.out[i][wire.EthernetLen:], t.number)
			t.number++
		}
		if sent, errno := mmsg.Send(t.sender, t.msgs[:]); sent != len(t.msgs) {
			return fmt.Errorf("send %d frames: %d sent: %w", len(t.msgs), sent, errno)
		}
	}
	return nil
}

// move forwards until the device is empty, and returns how many frames that were.
func (t *trial) move() (n int) {
	for more := true; more; {
		more = t.rx.Recv(0, &t.burst, t.pool, &t.st)
		n += t.burst.Len()
		t.tx.Send(&t.burst)
		t.burst.Release()
	}
	return n
}

// prove sends numbered frames through both devices and looks at what comes out.
func (t *trial) prove() error {
	sink, err := trialSocket("to", trialType)
	if err != nil {
		return err
	}
	defer unix.Close(sink)
	const frames = 3 * frame.BurstSize // one burst by single reads, the second in two batches, the third in one
	if err := t.fill(frames); err != nil {
		return err
	}
	t.move()
	if t.to.LastError() == unix.EOPNOTSUPP {
		return errors.New("TAP devices have no RWF_NOWAIT; they do since Linux 6.4")
	}
	for i := range uint32(frames) {
		var buf [2 * trialLen]byte
		want := bytes.Clone(t.out[0])
		binary.BigEndian.PutUint32(want[wire.EthernetLen:], i)
		n, err := unix.Read(sink, buf[:])
		if err != nil {
			return fmt.Errorf("frame %d of %d is missing: %w (the last error of a write: %v)", i, frames, err, t.to.LastError())
		}
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("frame %d of %d came out as % x, want % x", i, frames, buf[:n], want)
		}
	}
	return nil
}

// compare measures the CPU time of a frame with read and write and with rings, in turn.
func (t *trial) compare(rings *Rings) (Trial, error) {
	var times [2][]time.Duration
	for range trialRounds {
		for i, r := range []*Rings{nil, rings} {
			t.use(r)
			if err := t.fill(trialFrames); err != nil {
				return Trial{}, err
			}
			began := threadTime()
			n := t.move()
			took := threadTime() - began
			if n < trialFrames {
				return Trial{}, fmt.Errorf("%d of %d frames came through", n, trialFrames)
			}
			times[i] = append(times[i], took/time.Duration(n))
		}
	}
	return Trial{median(times[0]), median(times[1])}, nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // Linux has had this clock since 2.6.12
	return time.Duration(ts.Nano())
}
