package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// numberType is the EtherType of numbered frames, which no protocol takes (IEEE 802: for local experiments).
const numberType = 0x88b5

// numbered is a frame of n bytes, at least 18, whose content follows from its number.
func numbered(number uint32, n int) []byte {
	b := make([]byte, n)
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: podMAC(2), Src: podMAC(1), EtherType: numberType})
	for at := wire.EthernetLen; at < n; at += 4 {
		var word [4]byte
		binary.BigEndian.PutUint32(word[:], number+uint32(at-wire.EthernetLen)*2654435761)
		copy(b[at:], word[:])
	}
	return b
}

// big gives pods the largest MTU of a TAP and no IPv6, so that nobody but the test sends, and returns packet sockets
// for numbered frames.
func big(t *testing.T, pods ...*pod) (sockets []int) {
	for _, p := range pods {
		p.ns.Do(t, func() {
			check(t, netlink.LinkSetMTU(eth0(t), 65521))
			check(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0))
			fd, err := trialSocket("eth0", numberType)
			check(t, err)
			check(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20))
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 256<<20))
			t.Cleanup(func() { unix.Close(fd) })
			sockets = append(sockets, fd)
		})
		for b := p.recv(t, 0); b.Len() > 0; b = p.recv(t, 0) { // what set-up has sent
			b.Release()
		}
	}
	return sockets
}

// Numbered frames of all lengths cross in both directions, in order and unchanged: runs of small ones, which are read
// and written in batches, runs of long ones, and both mixed.
func TestOrder(t *testing.T) {
	forEngines(t, func(t *testing.T, newPod func(testing.TB, int) *pod) {
		a, b := newPod(t, 1), newPod(t, 2)
		sockets := big(t, a, b)
		r := seed.Rand(t)
		rounds := 60
		if testing.Short() {
			rounds = 6
		}
		var next uint32
		for round := range rounds {
			lengths := make([]int, 1+r.IntN(300))
			for i := range lengths {
				switch most := round % 3; {
				case most == 0 || most == 1 && r.IntN(100) > 0:
					lengths[i] = 18 + r.IntN(1500)
				default:
					lengths[i] = 18 + r.IntN(65_000)
				}
			}
			first := next
			for i, n := range lengths {
				for _, fd := range sockets {
					_, err := unix.Write(fd, numbered(first+uint32(i), n))
					check(t, err)
				}
			}
			next += uint32(len(lengths))
			a.forwardAll(b)
			b.forwardAll(a)
			for side, fd := range sockets {
				for i, n := range lengths {
					expectNumbered(t, fd, first+uint32(i), n, side)
				}
			}
		}
		for _, p := range []*pod{a, b} {
			if n := p.st.Tx.Frames.Load(); n != uint64(next) {
				t.Errorf("%d frames counted as sent, want %d", n, next)
			}
		}
	})
}

func expectNumbered(t *testing.T, fd int, number uint32, n, side int) {
	t.Helper()
	buf := make([]byte, 1<<16)
	got, err := unix.Read(fd, buf)
	check(t, err)
	if want := numbered(number, n); !bytes.Equal(buf[:got], want) {
		t.Fatalf("side %d: instead of frame %d of %d bytes came one of %d bytes, % x", side, number, n, got, buf[:min(got, 32)])
	}
}

// forwardAll moves what waits at p to another pod as a worker does.
func (p *pod) forwardAll(to *pod) {
	var burst frame.Burst
	for more := true; more; {
		more = p.port.Rx()[0].Recv(0, &burst, p.pool, &p.st)
		to.tx.Send(&burst)
		to.tx.Flush()
		burst.Release()
	}
}

// A queue changes hands between any two bursts, and nothing is lost, doubled or overtaken; its descriptor is always
// writable, which is how a new worker learns of what waits.
func TestQueueChangesWorker(t *testing.T) {
	rings := openRings(t, 2)
	a, b := newTAPPod(t, 1, rings), newTAPPod(t, 2, rings)
	sockets := big(t, a, b)
	var turns [2]chan chan bool // by worker: one to receive a burst, which answers whether there is more
	for w := range turns {
		turns[w] = make(chan chan bool)
		defer close(turns[w])
		pool, tx := newTestPool(), b.port.Tx(w, &b.st)
		check(t, rings.UsePools(w, pool))
		go func() {
			var burst frame.Burst
			for answer := range turns[w] {
				more := a.port.Rx()[0].Recv(w, &burst, pool, &a.st)
				tx.Send(&burst)
				tx.Flush()
				burst.Release()
				answer <- more
			}
		}()
	}
	r, answer := seed.Rand(t), make(chan bool)
	const frames = 400
	for round := range uint32(50) {
		for i := range uint32(frames) {
			_, err := unix.Write(sockets[0], numbered(round*frames+i, 60))
			check(t, err)
		}
		for more := true; more; more = <-answer {
			fds := []unix.PollFd{{Fd: int32(a.port.Rx()[0].FD()), Events: unix.POLLOUT}}
			if n, err := unix.Poll(fds, 0); n != 1 || err != nil {
				t.Fatalf("poll for writing: %d, %v", n, err)
			}
			turns[r.IntN(2)] <- answer
		}
		for i := range uint32(frames) {
			expectNumbered(t, sockets[1], round*frames+i, 60, 1)
		}
	}
	if n, err := unix.Read(sockets[1], make([]byte, 60)); err != unix.EAGAIN {
		t.Errorf("a frame too many: %d, %v", n, err)
	}
}

// Batches begin when a burst was full and end when the device is empty or frames are long.
func TestBatchesAdapt(t *testing.T) {
	p := newRingPod(t, 1)
	fd := big(t, p)[0]
	q := p.tap.rx[0].(*tapRx)
	q.batch = 0
	for _, step := range []struct{ frames, length, burst, batch int }{
		{frame.BurstSize - 1, 60, frame.BurstSize - 1, 0},
		{2*frame.BurstSize + firstBatch + 10, 60, frame.BurstSize, firstBatch}, // read one by one
		{0, 0, frame.BurstSize, frame.BurstSize},                               // firstBatch, then the rest
		{0, 0, firstBatch + 10, 0},                                             // all at once, which found the device empty
		{3 * frame.BurstSize, 60, frame.BurstSize, firstBatch},
		{0, 0, frame.BurstSize, frame.BurstSize},
		{9, 65_000, frame.BurstSize, frame.BurstSize},
		{frame.BurstSize - 9, 65_000, frame.BurstSize, 0},
		{20, 65_000, 8, 0}, // what an arena holds
	} {
		for i := range step.frames {
			_, err := unix.Write(fd, numbered(uint32(i), step.length))
			check(t, err)
		}
		var b frame.Burst
		q.Recv(0, &b, p.pool, &p.st)
		if b.Len() != step.burst || q.batch != step.batch {
			t.Errorf("%+v: a burst of %d, then batches of %d", step, b.Len(), q.batch)
		}
		b.Release()
	}
}

// Refused frames in the middle of a burst are counted, those around them arrive in order.
func TestSendCountsRefusedOfMany(t *testing.T) {
	forEngines(t, func(t *testing.T, newPod func(testing.TB, int) *pod) {
		p := newPod(t, 2)
		fd := big(t, p)[0]
		const n = 20
		refused := map[uint32]bool{0: true, 7: true, 8: true, n - 1: true}
		var b frame.Burst
		for i := range uint32(n) {
			content := numbered(i, 100)
			f := p.commit(content)
			if refused[i] {
				f.NeedsCsum, f.CsumStart, f.CsumOffset = true, 60_000, 6
			}
			b.Append(f)
		}
		p.tx.Send(&b)
		b.Release()
		for i := range uint32(n) {
			if !refused[i] {
				expectNumbered(t, fd, i, 100, 0)
			}
		}
		if sent, errors, bytes := p.st.Tx.Frames.Load(), p.st.Drops[drop.TxError].Frames.Load(), p.st.TxBytes.Load(); sent != n-4 || errors != 4 || bytes != 100*(n-4) {
			t.Errorf("%d frames of %d bytes counted as sent, %d as tx_error", sent, bytes, errors)
		}
	})
}

func (p *pod) commit(content []byte) *frame.Frame {
	copy(p.pool.Reserve(0, len(content)), content)
	return p.pool.Commit(len(content))
}

// A device that goes while bursts are on their way has each frame counted once, as sent or as port_gone.
func TestDeviceVanishes(t *testing.T) {
	forEngines(t, func(t *testing.T, newPod func(testing.TB, int) *pod) {
		p := newPod(t, 2)
		b := p.burstTo(t, frame.BurstSize)
		defer b.Release()
		deleted := make(chan struct{})
		go p.ns.Do(t, func() {
			defer close(deleted)
			time.Sleep(5 * time.Millisecond)
			if err := netlink.LinkDel(eth0(t)); err != nil {
				t.Error(err)
			}
		})
		bursts := uint64(0)
		for ; p.st.Drops[drop.PortGone].Frames.Load() < 2*frame.BurstSize; bursts++ {
			p.tx.Send(b)
			p.recv(t, 0).Release()
		}
		<-deleted
		sent, gone := p.st.Tx.Frames.Load(), p.st.Drops[drop.PortGone].Frames.Load()
		if sent == 0 || sent+gone != bursts*frame.BurstSize {
			t.Errorf("%d sent and %d dropped of %d", sent, gone, bursts*frame.BurstSize)
		}
	})
}

// Neither direction allocates, in batches or frame by frame.
func TestTAPAllocatesNothing(t *testing.T) {
	forEngines(t, func(t *testing.T, newPod func(testing.TB, int) *pod) {
		p := newPod(t, 1)
		fd := big(t, p)[0]
		b := p.burstTo(t, 32)
		defer b.Release()
		content := numbered(0, 60)
		pool := newTestPool()
		var rx frame.Burst
		if n := testing.AllocsPerRun(100, func() {
			for range 10 {
				_, _ = unix.Write(fd, content)
			}
			p.tx.Send(b)
			if q := p.tap.rx[0].(*tapRx); p.rings != nil {
				q.batch = firstBatch
			}
			p.tap.rx[0].Recv(0, &rx, pool, &p.st)
			rx.Release()
		}); n != 0 {
			t.Errorf("%v allocations per Send and Recv", n)
		}
	})
}

// An engine that is asked for is chosen if it works. With none asked for the faster one in the trial wins, unless they
// differ too little; a ring that fails the trial is never chosen.
func TestChooseEngine(t *testing.T) {
	openRings(t, 1) // or skip
	measured := func(readWrite, ioUring time.Duration) func() (Trial, error) {
		return func() (Trial, error) { return Trial{readWrite, ioUring}, nil }
	}
	fails := func() (Trial, error) { return Trial{}, errors.New("frame 7 is missing") }
	never := func() (Trial, error) { t.Error("tried what isn't wanted"); return Trial{}, nil }
	for i, c := range []struct {
		wanted Engine
		try    func() (Trial, error)
		want   Engine
		reason string
	}{
		{ReadWrite, never, ReadWrite, "configured"},
		{IOUring, measured(500, 900), IOUring, "configured"},
		{IOUring, fails, ReadWrite, "frame 7"},
		{"", fails, ReadWrite, "frame 7"},
		{"", measured(500, 480), IOUring, "faster"},
		{"", measured(500, 490), ReadWrite, "less than 3 %"},
	} {
		rings, choice := ChooseEngine(c.wanted, 2, c.try)
		if choice.Engine != c.want || (rings != nil) != (c.want == IOUring) || !strings.Contains(choice.Reason, c.reason) {
			t.Errorf("case %d: %+v, rings %t; want %s because %s", i, choice, rings != nil, c.want, c.reason)
		}
		if rings != nil {
			check(t, rings.Close())
		}
	}
}
