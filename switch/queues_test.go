package vswitch

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// twin is a pod with two receive queues: its own, and that of a second port.
type twin struct {
	*porttest.Port
	second *porttest.Port
}

func (p *twin) Rx() []port.RxQueue { return append(p.Port.Rx(), p.second.Rx()...) }

// attachTwin adds a pod with two queues.
func (f *fleet) attachTwin(cfg PortConfig) (pod *fleetPod, second *porttest.Port) {
	f.t.Helper()
	pod = f.attach(cfg)
	f.must(f.sw.Detach(f.t.Context(), pod.id))
	second = porttest.New("second", 0)
	cfg.Role, cfg.VNI = RoleAccess, testVNI
	var err error
	pod.id, err = f.sw.Attach(&twin{pod.Port, second}, cfg)
	f.must(err)
	f.must(f.sw.AddStation(testVNI, pod.id, pod.mac, []netip.Addr{pod.addr}))
	return pod, second
}

// While the queues of other pods change hands, those of a pod with two stay where they began: with different workers.
func TestQueuesOfAPortHaveTheirOwnWorkers(t *testing.T) {
	f := newFleet(t, 2)
	sink := f.attach(PortConfig{})
	pod, second := f.attachTwin(PortConfig{})
	other := f.attach(PortConfig{})
	f.sw.Start()
	view := func() PortView {
		views := f.sw.Ports()
		return views[slices.IndexFunc(views, func(v PortView) bool { return v.ID == pod.id })]
	}
	if w := view().Workers; !slices.Equal(w, []int{0, 1}) && !slices.Equal(w, []int{1, 0}) {
		t.Fatalf("the queues are on workers %v", w)
	}
	const n = 20_000
	before := view().Workers
	var sending sync.WaitGroup
	inject := func(to *porttest.Port, from *fleetPod, parity int) {
		sending.Go(func() {
			for first := 0; first < n; first += 50 {
				frames := numbered(t, from, sink, first, 50)
				if parity >= 0 { // of the two flows, the queue's own
					frames = slices.DeleteFunc(frames, func(x porttest.Frame) bool { return int(x.Bytes[35]) != parity })
				}
				to.Inject(frames...)
				for to.Waiting() > 2000 {
					time.Sleep(50 * time.Microsecond)
				}
			}
		})
	}
	inject(pod.Port, pod, 0)
	inject(second, pod, 1)
	inject(other.Port, other, -1)
	for i := range 2 * enoughMoves {
		f.must(f.move(other.id, i%2))
	}
	sending.Wait()
	_, err := sink.WaitSent(2*n, time.Minute)
	f.must(err)
	if after := view().Workers; !slices.Equal(after, before) || f.taken() < enoughMoves {
		t.Errorf("the queues were on workers %v and are on %v after %d moves", before, after, f.taken())
	}
	f.stop()
	checkOrder(t, sink.Sent(), map[netip.Addr]int{pod.addr: n, other.addr: n})
}

// With a second queue a pod has a second worker, but no second share of floods.
func TestQueuesShareTheLimits(t *testing.T) {
	f := newFleet(t, 2)
	now := time.Unix(1e9, 0)
	f.sw.now = func() time.Time { return now }
	victim := f.attach(PortConfig{})
	pod, second := f.attachTwin(PortConfig{BUM: 10})
	ps := f.sw.snapshot.Load().port(pod.id)
	flood := plain(udp(t, pod.mac, wire.Broadcast, pod.addr, victim.addr, 64, "flood"))
	for q, p := range []*porttest.Port{pod.Port, second} {
		p.Inject(slices.Repeat([]porttest.Frame{flood}, 8)...)
		w := f.sw.workers[ps.polling[q].owner()]
		w.reader.Online()
		w.pass(unix.EpollEvent{Fd: int32(pod.id), Pad: int32(q)})
		w.reader.Offline()
	}
	if n, dropped := len(victim.Sent()), ps.view().Drops[drop.BUMLimit].Frames; n != 10 || dropped != 6 {
		t.Errorf("%d of 16 broadcasts delivered by two queues, %d dropped by the limit; want 10 and 6", n, dropped)
	}
}

// A bucket is exact with any number of takers, and a clock that is set back costs a second's tokens at most.
func TestBucketIsShared(t *testing.T) {
	const rate, takers, tries = 1000, 4, 2000
	b := newBucket(rate)
	var got [takers]int
	var wg sync.WaitGroup
	var ticks atomic.Int64 // 8,000 in 0.9 s: less than what passes for a clock that is set back, however the takers are delayed
	start := time.Unix(1e9, 0).UnixNano()
	for i := range takers {
		wg.Go(func() {
			for range tries {
				if b.take(start+ticks.Add(1)*int64(900*time.Millisecond)/(takers*tries), 1) {
					got[i]++
				}
			}
		})
	}
	wg.Wait()
	// A second's at the start, and those of 0.9 s.
	if sum := got[0] + got[1] + got[2] + got[3]; sum > 1900 || sum < 1800 {
		t.Errorf("%v taken in 0.9 s at %d a second", got, rate)
	}
	back := start - int64(time.Hour)
	b.take(back, 1)
	if b.take(back, 1) {
		t.Error("the clock was set back, and there are tokens at once")
	}
	if !b.take(back+int64(time.Second), rate) {
		t.Error("the clock was set back, and a second later there are no tokens")
	}
}
