package porttest

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

func newPort(t *testing.T, caps port.Caps) *Port {
	p := New("p", caps)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// newEpoll returns an epoll descriptor that watches the port, level-triggered as a worker does.
func newEpoll(t *testing.T, p *Port) int {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ep) })
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, p.Rx()[0].FD(), &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	return ep
}

func readable(t *testing.T, ep, timeout int) bool {
	t.Helper()
	for {
		n, err := unix.EpollWait(ep, make([]unix.EpollEvent, 1), timeout)
		if err == nil {
			return n > 0
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// numbered returns n frames of 60 bytes that carry the numbers from first on.
func numbered(first, n int) []Frame {
	list := make([]Frame, n)
	for i := range list {
		list[i].Bytes = make([]byte, 60)
		binary.BigEndian.PutUint32(list[i].Bytes[14:], uint32(first+i))
	}
	return list
}

func number(b []byte) int { return int(binary.BigEndian.Uint32(b[14:])) }

func pool() *frame.Pool { return frame.NewPool(frame.BurstSize, frame.DefaultArena) }

// A worker that sleeps in epoll wakes, is told of frames again as long as some wait, and then sleeps.
func TestEpollIsLevelTriggered(t *testing.T) {
	p := newPort(t, 0)
	ep := newEpoll(t, p)
	if readable(t, ep, 0) {
		t.Fatal("readable before anything was injected")
	}
	time.AfterFunc(10*time.Millisecond, func() { p.Inject(numbered(0, frame.BurstSize+1)...) })
	if !readable(t, ep, 5000) || !readable(t, ep, 0) {
		t.Fatal("not readable with frames waiting")
	}
	var b frame.Burst
	var st port.Stats
	if more := p.Rx()[0].Recv(0, &b, pool(), &st); !more || !b.Full() {
		t.Fatalf("the first Recv: %d frames, more %t", b.Len(), more)
	}
	if !readable(t, ep, 0) {
		t.Fatal("not readable with one frame left")
	}
	b.Release()
	if more := p.Rx()[0].Recv(0, &b, pool(), &st); more || b.Len() != 1 || number(b.Frames()[0].Bytes()) != frame.BurstSize {
		t.Fatalf("the second Recv: %d frames, more %t", b.Len(), more)
	}
	if readable(t, ep, 0) {
		t.Error("readable with nothing left")
	}
}

// What a small pool can't take stays for the next Recv, and Meta comes along.
func TestRecvStopsAtTheEndOfThePool(t *testing.T) {
	p := newPort(t, 0)
	frames := numbered(0, 3)
	frames[0].Meta = frame.Meta{VNI: 7, Peer: 3, NeedsCsum: true, CsumStart: 34, CsumOffset: 6}
	p.Inject(frames...)
	frames[1].Bytes[17] = 99 // injected frames are copies
	small := frame.NewPool(frame.BurstSize, 2*(frame.Headroom+64))
	var got []int
	for more := true; more; {
		var b frame.Burst
		more = p.Rx()[0].Recv(0, &b, small, new(port.Stats))
		for _, f := range b.Frames() {
			if n := number(f.Bytes()); n == 0 && f.Meta != frames[0].Meta {
				t.Errorf("metadata %+v, want %+v", f.Meta, frames[0].Meta)
			}
			got = append(got, number(f.Bytes()))
		}
		if b.Len() > 2 {
			t.Errorf("%d frames from a pool for two", b.Len())
		}
		b.Release()
	}
	if !slices.Equal(got, []int{0, 1, 2}) || p.Waiting() != 0 {
		t.Errorf("received %v, %d still wait", got, p.Waiting())
	}
}

// burst returns a burst of one frame.
func burst(p *frame.Pool, f Frame) *frame.Burst {
	var b frame.Burst
	copy(p.Reserve(0, len(f.Bytes)), f.Bytes)
	out := p.Commit(len(f.Bytes))
	out.Meta = f.Meta
	b.Append(out)
	return &b
}

var super = Frame{
	Bytes: make([]byte, 42+2500),
	Meta:  frame.Meta{GSOType: wire.GSOUDPL4, NeedsCsum: true, HdrLen: 42, GSOSize: 1000, CsumStart: 34, CsumOffset: 6},
}

// Frames in memory and on the wire are counted as a TAP does, at the port that was to send them.
func TestCounts(t *testing.T) {
	p := newPort(t, port.CapsAll)
	var st port.Stats
	tx := p.Tx(0, &st)
	send := func() {
		b := burst(pool(), super)
		tx.Send(b)
		tx.Flush()
		b.Release()
	}
	send()
	p.Refuse(drop.TxFull)
	send()
	send()
	p.Refuse(drop.None)
	send()
	full := &st.Drops[drop.TxFull]
	if st.Tx.Frames.Load() != 2 || st.Tx.Wire.Load() != 6 || st.TxBytes.Load() != 2*2542 || full.Frames.Load() != 2 || full.Wire.Load() != 6 {
		t.Errorf("sent %d (%d on the wire, %d bytes), refused %d (%d), want 2 (6, 5084), 2 (6)", st.Tx.Frames.Load(),
			st.Tx.Wire.Load(), st.TxBytes.Load(), full.Frames.Load(), full.Wire.Load())
	}
	if sent := p.Sent(); len(sent) != 2 || len(sent[0].Bytes) != 2542 || sent[0].Meta != super.Meta {
		t.Errorf("sent %d frames", len(sent))
	}
}

// A caller that releases a frame before Flush, which a coalescing port would not survive, must be seen.
func TestEarlyReleaseShows(t *testing.T) {
	p := newPort(t, port.CapsAll)
	tx := p.Tx(0, new(port.Stats))
	b := burst(pool(), super)
	tx.Send(b)
	if len(p.Sent()) != 0 {
		t.Error("sent before Flush")
	}
	b.Release()
	tx.Flush()
	if sent := p.Sent(); len(sent[0].Bytes) == len(super.Bytes) {
		t.Error("the frame was kept alive")
	}
}

func TestSendBeyondCapabilitiesPanics(t *testing.T) {
	tx := newPort(t, port.CapsAll&^port.CapUSO).Tx(0, new(port.Stats))
	defer func() {
		if recover() == nil {
			t.Error("a port without USO took a UDP super-frame")
		}
	}()
	tx.Send(burst(pool(), super))
}

// Injecting, forwarding and reading go on at once; what comes out is what went in, in order. The race detector
// watches.
func TestConcurrentUse(t *testing.T) {
	const n = 5000
	in, out := newPort(t, 0), newPort(t, 0)
	ep := newEpoll(t, in)
	var worker sync.WaitGroup
	worker.Go(func() {
		var st port.Stats
		tx, frames := out.Tx(0, &st), pool()
		for done := 0; done < n; {
			if !readable(t, ep, 5000) {
				t.Error("not woken within 5 s")
				return
			}
			var b frame.Burst
			in.Rx()[0].Recv(0, &b, frames, &st)
			done += b.Len()
			tx.Send(&b)
			tx.Flush()
			b.Release()
		}
	})
	for i := 0; i < n; i += 10 {
		in.Inject(numbered(i, 10)...)
	}
	sent, err := out.WaitSent(n, 10*time.Second)
	if err != nil {
		t.Error(err)
	}
	worker.Wait()
	for i, f := range sent {
		if number(f.Bytes) != i {
			t.Fatalf("frame %d carries number %d", i, number(f.Bytes))
		}
	}
	if sent, err := out.WaitSent(n+1, time.Millisecond); err == nil || len(sent) != n {
		t.Errorf("waiting for one too many: %d, %v", len(sent), err)
	}
}
