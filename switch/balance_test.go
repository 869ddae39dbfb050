package vswitch

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// fleet is a switch of several workers that pods come to.
type fleet struct {
	t  *testing.T
	sw *Switch
	n  int // pods so far
}

// fleetPod is one of its pods.
type fleetPod struct {
	*porttest.Port
	id   port.ID
	mac  wire.MAC
	addr netip.Addr
}

func newFleet(t *testing.T, workers int) *fleet {
	t.Helper()
	sw, err := New(Config{Workers: workers, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, sw: sw}
	f.must(sw.AddNetwork(Network{VNI: testVNI, RouterMAC: routerMAC, Gateways: []netip.Addr{gw4}}))
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// attach adds a pod that takes plain frames only, so that what was merged arrives in parts.
func (f *fleet) attach(cfg PortConfig) *fleetPod {
	f.t.Helper()
	f.n++
	p := &fleetPod{Port: porttest.New(fmt.Sprintf("pod%d", f.n), 0),
		mac: wire.MAC{10, 0, 0, 1, byte(f.n >> 8), byte(f.n)}, addr: netip.AddrFrom4([4]byte{10, 244, byte(f.n >> 8), byte(f.n)})}
	cfg.Role, cfg.VNI = RoleAccess, testVNI
	var err error
	p.id, err = f.sw.Attach(p.Port, cfg)
	f.must(err)
	f.must(f.sw.AddStation(testVNI, p.id, p.mac, []netip.Addr{p.addr}))
	return p
}

// move does what the balancer does once it has chosen.
func (f *fleet) move(id port.ID, to int) error {
	f.sw.mu.Lock()
	defer f.sw.mu.Unlock()
	ps := f.sw.snapshot.Load().port(id)
	if ps == nil || ps.polling[0].owner() == to {
		return nil
	}
	return f.sw.move(f.sw.stopping, ps, 0, to)
}

func (f *fleet) stop() Ledger {
	f.t.Helper()
	l, err := f.sw.Stop()
	f.must(err)
	if err := l.Check(); err != nil {
		f.t.Error(err)
	}
	return l
}

// numbered returns frames from one pod to another that carry the numbers from first on, in two flows.
func numbered(t *testing.T, from, to *fleetPod, first, n int) []porttest.Frame {
	frames := make([]porttest.Frame, n)
	for i := range frames {
		var payload [8]byte
		binary.BigEndian.PutUint64(payload[:], uint64(first+i))
		b := udp(t, from.mac, to.mac, from.addr, to.addr, 64, string(payload[:]))
		binary.BigEndian.PutUint16(b[34:], uint16((first+i)%2)) // source port
		copy(b[40:], []byte{0, 0})                              // no checksum
		frames[i] = plain(b)
	}
	return frames
}

// checkOrder makes sure that the numbers of each flow rise by two, to n: the slow model of a switch of one worker.
func checkOrder(t *testing.T, sent []porttest.Frame, n map[netip.Addr]int) {
	t.Helper()
	type flow struct {
		from netip.Addr
		port uint16
	}
	next, count := map[flow]int{}, map[netip.Addr]int{}
	for _, f := range sent {
		if wire.Ethernet(f.Bytes).EtherType() != wire.EtherTypeIPv4 {
			continue // an announcement
		}
		from := netip.AddrFrom4([4]byte(f.Bytes[26:30]))
		k := flow{from, binary.BigEndian.Uint16(f.Bytes[34:])}
		number := int(binary.BigEndian.Uint64(f.Bytes[42:]))
		want, known := next[k]
		if !known {
			want = int(k.port)
		}
		if number != want {
			t.Fatalf("flow %v: number %d where %d is due", k, number, want)
		}
		next[k] = number + 2
		count[from]++
	}
	for from, want := range n {
		if count[from] != want {
			t.Errorf("%d frames from %s, want %d", count[from], from, want)
		}
	}
}

// Queues change hands under traffic all the time while other pods come and go, some of them in the middle of a
// move; the ledger balances and every flow keeps its order. Under the race detector it is the proof that two
// workers never have one queue.
func TestMovesKeepTheOrderOfEveryFlow(t *testing.T) {
	const workers, senders = 3, 6
	rounds, frames := 40, 30_000
	if testing.Short() {
		rounds, frames = 10, 5000
	}
	f := newFleet(t, workers)
	f.sw.Start()
	sink := f.attach(PortConfig{})
	want := map[netip.Addr]int{}
	var ids []port.ID
	var sending, moving sync.WaitGroup
	var moved atomic.Uint64
	for range senders {
		p := f.attach(PortConfig{})
		ids, want[p.addr] = append(ids, p.id), frames
		sending.Go(func() {
			for first := 0; first < frames; first += 50 {
				for last := first+50 >= frames; last && moved.Load() < enoughMoves; {
					time.Sleep(time.Millisecond)
				}
				p.Inject(numbered(t, p, sink, first, 50)...)
				for p.Waiting() > 2000 {
					time.Sleep(50 * time.Microsecond)
				}
			}
		})
	}
	done := make(chan struct{})
	moving.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			id := ids[i%senders]
			if i%3 == 0 {
				id = port.ID(senders + 2 + rand.IntN(2)) // one that comes and goes, if it's there
			}
			if err := f.move(id, rand.IntN(workers)); err != nil {
				t.Error(err)
			}
			moved.Store(f.taken())
		}
	})
	for range rounds {
		p := f.attach(PortConfig{})
		p.Inject(numbered(t, p, sink, 0, 200)...)
		time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
		f.must(f.sw.Detach(context.Background(), p.id))
		want[p.addr] = 200 - p.Waiting()
		f.must(p.Close())
	}
	sending.Wait()
	total := 0
	for _, n := range want {
		total += n
	}
	_, err := sink.WaitSent(total, time.Minute)
	f.must(err)
	close(done)
	moving.Wait()
	t.Logf("%d moves, %d frames", f.taken(), total)
	f.stop()
	checkOrder(t, sink.Sent(), want)
}

// enoughMoves is how many there must be while frames are under way.
const enoughMoves = 20

// taken is how many queues workers have taken over.
func (f *fleet) taken() (n uint64) {
	for _, v := range f.sw.WorkerViews() {
		n += v.Taken
	}
	return n
}

// Stop ends a switch in the middle of moves.
func TestStopDuringMoves(t *testing.T) {
	for range 20 {
		f := newFleet(t, 2)
		a, b := f.attach(PortConfig{}), f.attach(PortConfig{})
		f.sw.Start()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; f.sw.stopping.Err() == nil; i++ {
				if err := f.move(a.id, i%2); err != nil && f.sw.stopping.Err() == nil {
					t.Error(err)
				}
			}
		}()
		for first := range 20 {
			a.Inject(numbered(t, a, b, 10*first, 10)...)
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		f.stop()
		<-ended
		checkOrder(t, b.Sent(), map[netip.Addr]int{a.addr: 200 - a.Waiting()})
	}
}

// hiding is a pod whose queue takes all frames off its descriptor at once, as those with several slots do.
type hiding struct {
	*porttest.Port
	frames [][]byte
}

func (h *hiding) Rx() []port.RxQueue { return []port.RxQueue{h} }
func (h *hiding) FD() int            { return h.Port.Rx()[0].FD() }

func (h *hiding) Recv(worker int, b *frame.Burst, p *frame.Pool, st *port.Stats) (more bool) {
	h.Port.Rx()[0].Recv(worker, b, p, st) // the one frame that the descriptor announces
	for len(h.frames) > 0 && !b.Full() {
		buf := p.Reserve(0, len(h.frames[0]))
		copy(buf, h.frames[0])
		b.Append(p.Commit(len(h.frames[0])))
		h.frames = h.frames[1:]
	}
	return len(h.frames) > 0
}

// What the old worker left in the queue's own slots nothing announces; the new one must not wait for the next frame.
func TestAHandOverTakesWhatTheDescriptorHides(t *testing.T) {
	f := newFleet(t, 2)
	to := f.attach(PortConfig{})
	from := f.attach(PortConfig{})
	f.must(f.sw.Detach(t.Context(), from.id))
	h := &hiding{Port: from.Port}
	const n = 3 * frame.BurstSize
	for _, x := range numbered(t, from, to, 0, n) {
		h.frames = append(h.frames, x.Bytes)
	}
	id, err := f.sw.Attach(h, PortConfig{Role: RoleAccess, VNI: testVNI})
	f.must(err)
	f.must(f.sw.AddStation(testVNI, id, from.mac, []netip.Addr{from.addr}))
	ps := f.sw.snapshot.Load().port(id)
	old := f.sw.workers[ps.polling[0].owner()]
	old.reader.Online()
	ev := unix.EpollEvent{Fd: int32(id)}
	if more := old.pass(ev); !more {
		t.Fatal("the first burst took all")
	}
	old.reader.Offline()
	f.must(f.move(id, 1-old.id))
	old.reader.Online()
	if more := old.pass(ev); more || len(to.Sent()) != frame.BurstSize {
		t.Errorf("the old worker went on receiving: %d frames sent", len(to.Sent()))
	}
	old.reader.Offline()
	f.sw.Start()
	_, err = to.WaitSent(n, 20*time.Second)
	f.must(err)
	f.stop()
	checkOrder(t, to.Sent(), map[netip.Addr]int{from.addr: n})
}

// A flooding pod doesn't get a second share by changing workers.
func TestLimitsMoveAlong(t *testing.T) {
	f := newFleet(t, 2)
	now := time.Unix(1e9, 0)
	f.sw.now = func() time.Time { return now }
	a, b := f.attach(PortConfig{BUM: 10}), f.attach(PortConfig{})
	flood := plain(udp(t, a.mac, wire.Broadcast, a.addr, b.addr, 64, "flood"))
	delivered := func() int {
		a.Inject(slices.Repeat([]porttest.Frame{flood}, 8)...)
		b.Reset()
		w := f.sw.workers[f.sw.snapshot.Load().port(a.id).polling[0].owner()]
		w.reader.Online()
		w.pass(unix.EpollEvent{Fd: int32(a.id)})
		w.reader.Offline()
		return len(b.Sent())
	}
	for _, want := range []int{8, 2, 0} {
		if got := delivered(); got != want {
			t.Errorf("%d of 8 broadcasts delivered, want %d", got, want)
		}
		owner := f.sw.snapshot.Load().port(a.id).polling[0].owner()
		f.must(f.move(a.id, 1-owner))
	}
	if n := f.sw.snapshot.Load().port(a.id).view().Drops[drop.BUMLimit].Frames; n != 14 {
		t.Errorf("%d broadcasts dropped by the limit, want 14", n)
	}
}

// A device that is gone isn't moved, or its new worker would report it once more.
func TestADeletedDeviceIsNotMoved(t *testing.T) {
	f := newFleet(t, 2)
	p := f.attach(PortConfig{})
	ps := f.sw.snapshot.Load().port(p.id)
	w := f.sw.workers[ps.polling[0].owner()]
	w.reader.Online()
	w.pass(unix.EpollEvent{Events: unix.EPOLLERR, Fd: int32(p.id)})
	w.reader.Offline()
	if err := f.move(p.id, 1-w.id); err == nil || !strings.Contains(err.Error(), "device is gone") {
		t.Errorf("move: %v", err)
	}
	p.Inject(numbered(t, p, p, 0, 1)...)
	for _, w := range f.sw.workers {
		if n, err := unix.EpollWait(w.epoll, w.events[:], 0); n != 0 || err != nil {
			t.Errorf("worker %d: %d events, %v", w.id, n, err)
		}
	}
	f.must(f.sw.Detach(t.Context(), p.id))
}
