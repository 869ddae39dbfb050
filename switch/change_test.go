package vswitch

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// A station that moves away and back was once believed to be where a worker's cache had seen it.
func TestAStationThatMovesBackIsLearnedAgain(t *testing.T) {
	r := newRig(t, port.CapsAll)
	x := wire.MAC{10, 9, 9, 9, 9, 9}
	from := func(p *porttest.Port) port.ID {
		r.run(p, plain(udp(t, x, wire.Broadcast, a4, b4, 64, "x")))
		dest, _ := r.sw.fdb.Lookup(testVNI, x)
		return dest.Port
	}
	for _, p := range []*porttest.Port{r.podA, r.podB, r.podA} {
		if got := from(p); got != r.ids[p] {
			t.Errorf("seen at port %d, learned at %d", r.ids[p], got)
		}
	}
}

// A device that is deleted under its port reports EPOLLERR for ever; the worker must not spin on it.
func TestADeletedDeviceIsPolledNoMore(t *testing.T) {
	r := newRig(t, port.CapsAll)
	w := r.sw.workers[0]
	r.podA.Inject(plain(udp(t, macA, macB, a4, b4, 64, "x")))
	w.reader.Online()
	gone := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLERR, Fd: int32(r.ids[r.podA])}
	w.pass(gone) // what it had left is still taken
	w.pass(gone)
	r.podA.Inject(plain(udp(t, macA, macB, a4, b4, 64, "x")))
	var events [4]unix.EpollEvent
	if n, err := unix.EpollWait(w.epoll, events[:], 0); n != 0 || err != nil {
		t.Errorf("%d events, %v: the queue is still polled", n, err)
	}
	w.pass(unix.EpollEvent{Fd: int32(r.ids[r.podA])})
	if n := len(r.podB.Sent()); n != 2 {
		t.Errorf("%d frames arrived, want 2", n)
	}
}

// TestChangesUnderTraffic attaches, routes and detaches pods while others talk through running workers.
// Under the race detector it is the proof of the concurrency contracts; without it, of the ledger.
func TestChangesUnderTraffic(t *testing.T) {
	sw, err := New(Config{Workers: 3, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	sw.Start()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(sw.AddNetwork(Network{VNI: testVNI, RouterMAC: routerMAC, Gateways: []netip.Addr{gw4, gw6}}))
	must(sw.AddNeighbors(testVNI, port.Local, routerMAC, []netip.Addr{gw4, gw6}))
	attach := func(n int) (*porttest.Port, port.ID, wire.MAC, netip.Addr) {
		t.Helper()
		p := porttest.New(fmt.Sprintf("pod%d", n), port.CapsAll)
		mac, addr := wire.MAC{10, 0, 0, 0, 1, byte(n)}, netip.AddrFrom4([4]byte{10, 244, 1, byte(n)})
		id, err := sw.Attach(p, PortConfig{Role: RoleAccess, VNI: testVNI})
		must(err)
		must(sw.AddStation(testVNI, id, mac, []netip.Addr{addr}))
		must(sw.UpdateRoutes(testVNI, []RouteChange{{netip.PrefixFrom(addr, 32),
			&Adjacency{Kind: AdjForward, MTU: 1450, DstMAC: mac, SrcMAC: routerMAC, Dest: port.Dest{Port: id}}}}))
		return p, id, mac, addr
	}
	podA, _, mac1, addr1 := attach(11)
	podB, _, mac2, addr2 := attach(12)
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	done := make(chan struct{})
	var senders sync.WaitGroup
	for from, frames := range map[*porttest.Port][][]byte{
		podA: {
			udp(t, mac1, mac2, addr1, addr2, 64, "switched"),
			udp(t, mac1, routerMAC, addr1, netip.AddrFrom4([4]byte{10, 244, 1, 20}), 64, "routed to one that comes and goes"),
			udp(t, mac1, wire.Broadcast, addr1, addr2, 64, "flooded"),
			udp(t, mac1, routerMAC, addr1, addr2, 1, "dies here"),
		},
		podB: {udp(t, mac2, wire.MAC{10, 0, 0, 0, 1, 20}, addr2, addr1, 64, "switched to one that comes and goes")},
	} {
		senders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Microsecond):
					from.Inject(plain(frames[i%len(frames)]))
				}
			}
		})
	}
	for range rounds {
		p, id, mac, addr := attach(20)
		p.Inject(plain(udp(t, mac, mac1, addr, addr1, 64, "hello")), plain(udp(t, wire.MAC{10, 7, 7, 7, 7, 7}, mac1, addr, addr1, 64, "learn me")))
		if _, err := p.WaitSent(1, 10*time.Second); err != nil { // a flood of pod a's at the latest
			t.Error(err)
		}
		must(sw.UpdateRoutes(testVNI, []RouteChange{{Prefix: netip.PrefixFrom(addr, 32)}}))
		must(sw.Detach(context.Background(), id))
		before := len(p.Sent())
		time.Sleep(time.Millisecond)
		if after := len(p.Sent()); after != before {
			t.Errorf("%d frames were sent to a port after Detach", after-before)
		}
		must(p.Close())
	}
	close(done)
	senders.Wait()
	for _, p := range []*porttest.Port{podA, podB} {
		for deadline := time.Now().Add(10 * time.Second); p.Waiting() > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	l, err := sw.Stop()
	must(err)
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	if l.Tx.Frames == 0 || l.Copied.Frames == 0 || l.Originated.Frames == 0 {
		t.Errorf("the traffic missed a path: %+v", l)
	}
}
