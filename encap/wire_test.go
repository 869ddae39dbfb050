package encap

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// openAuto opens the node's Tunnel, which negotiates, and has a goroutine receive with it as a worker does. The frames are
// given to seen, which may be nil.
func (n *node) openAuto(t *testing.T, seen func(*frame.Frame)) (in *receiver, closeTunnel func()) {
	t.Helper()
	var err error
	n.ns.Do(t, func() { n.tunnel, err = Open(Config{Name: "vxlan0", Local: n.addr, Workers: 1, Peers: n.peers}) })
	must(t, err)
	in = newReceiver(n.tunnel)
	var done sync.WaitGroup
	stop := make(chan struct{})
	done.Go(func() { receiveUntil(in, n.tunnel, stop, seen) })
	var once sync.Once
	closeTunnel = func() {
		once.Do(func() {
			close(stop)
			done.Wait()
			must(t, n.tunnel.Close())
		})
	}
	t.Cleanup(closeTunnel)
	return in, closeTunnel
}

func receiveUntil(in *receiver, tunnel *Tunnel, stop chan struct{}, seen func(*frame.Frame)) {
	q := tunnel.Rx()[0]
	for {
		select {
		case <-stop:
			return
		default:
		}
		fds := []unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}
		unix.Poll(fds, 20)
		var b frame.Burst
		q.Recv(0, &b, in.pool, &in.st)
		for _, f := range b.Frames() {
			if seen != nil {
				seen(f)
			}
		}
		b.Release()
	}
}

// until repeats do until Peer.Wire of n's peer says what it should.
func (n *node) until(t *testing.T, peer, said string, do func()) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.HasPrefix(n.peers.LookupName(peer).Wire(), said) {
			return
		}
		do()
	}
	t.Fatalf("the wire to %s is %q after 20 s, want %q", peer, n.peers.LookupName(peer).Wire(), said)
}

// untilWhole waits for n messages of a's.
func (n *node) untilWhole(t *testing.T, count uint32) {
	t.Helper()
	link := n.peers.LookupName("a").link
	for deadline := time.Now().Add(5 * time.Second); link.rxWhole.Load() < count; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d messages arrived, %d are lost", link.rxWhole.Load(), count, link.rxLost.Load())
		}
	}
}

// super returns a super-frame of 10,000 bytes.
func super(t *testing.T) ([]byte, frame.Meta) {
	return udpFrame(5000, randomBytes(seed.Rand(t), 10000), 1000)
}

// Two Tunnels find out that they take slices, over any underlay; when one closes, the other knows; when one opens that is
// plain, it gets VXLAN; all the while every super-frame that both are there for arrives.
func TestWireIsNegotiated(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			inner, m := super(t)
			wrong, right := 0, 0
			compare := func(f *frame.Frame) {
				if right++; f.Meta != m || !bytes.Equal(f.Bytes(), inner) {
					wrong++ // VXLAN: joined again, without offloads unless by Joiner, whose tests these are
				}
			}
			a.openAuto(t, nil)
			_, closeB := b.openAuto(t, compare)
			out := newSender(a.tunnel, 0)
			send := func() {
				out.add(t, inner).Meta = m
				out.send(t)
			}
			a.until(t, "b", "slices of ", send)
			if got := b.peers.LookupName("a").Wire(); got != "vxlan: no traffic" {
				t.Errorf("b, who sends nothing, says %q", got)
			}
			for range 100 {
				send()
			}
			b.untilWhole(t, 100)
			closeB()
			if wrong > right-100 { // those before the negotiation may differ
				t.Errorf("%d of %d frames arrived as another", wrong, right)
			}
			a.until(t, "b", "vxlan: the peer takes no slices", send)

			b.open(t, 1) // plain
			in := newReceiver(b.tunnel)
			send()
			if all := in.receive(t, 10); len(all) != 10 {
				t.Errorf("%d frames", len(all))
			}
			requireDrops(t, &in.st, nil)
			must(t, b.tunnel.Close())
			b.tunnel.fds = nil
			b.openAuto(t, nil)
			a.until(t, "b", "slices of ", send)
			requireDrops(t, &out.st, nil)
		})
	}
}

// A peer whose underlay loses slices gets VXLAN, and says why.
func TestWireUnderLoss(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	a.openAuto(t, nil)
	b.openAuto(t, nil)
	out := newSender(a.tunnel, 0)
	inner, m := super(t)
	send := func() {
		out.add(t, inner).Meta = m
		out.send(t)
	}
	nft(t, b, "add table ip lossy", "add chain ip lossy pre { type filter hook prerouting priority 0; }")
	a.until(t, "b", "slices of 1472 bytes", send)
	nft(t, b, "add rule ip lossy pre udp dport 4789 @th,64,8 0x51 @th,88,8 3 drop")
	a.until(t, "b", "vxlan: ", send)
	if said := a.peers.LookupName("b").Wire(); !strings.Contains(said, "super-frames lost slices; the next try comes 8s later") {
		t.Errorf("says %q", said)
	}
}

// A way whose middle takes smaller datagrams than this node's device isn't used for slices: the test shows it.
func TestWireOverSmallPath(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	nft(t, b, "add table ip small", "add chain ip small pre { type filter hook prerouting priority 0; }",
		"add rule ip small pre udp dport 4789 ip length > 1400 drop")
	a.openAuto(t, nil)
	b.openAuto(t, nil)
	out := newSender(a.tunnel, 0)
	inner, m := super(t)
	a.until(t, "b", "vxlan: messages that test the way don't arrive whole", func() {
		out.add(t, inner).Meta = m
		out.send(t)
	})
	if n := b.peers.LookupName("a").link.rxWhole.Load(); n != 0 {
		t.Errorf("%d super-frames went in slices", n)
	}
}

// When the underlay's MTU shrinks, slices do too.
func TestWireFollowsMTU(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	a.openAuto(t, nil)
	b.openAuto(t, nil)
	out := newSender(a.tunnel, 0)
	inner, m := super(t)
	send := func() {
		out.add(t, inner).Meta = m
		out.send(t)
	}
	a.until(t, "b", "slices of 1472 bytes", send)
	a.setMTU(t, 1400)
	a.until(t, "b", "slices of 1372 bytes", send)
}

// A kernel's vxlan device beside a node that takes slices: it gets VXLAN, is asked in vain and not disturbed.
func TestWireBesideKernel(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	c := a.joinThird(t)
	conn := c.kernelVXLAN(t)
	a.openAuto(t, nil)
	b.openAuto(t, nil)
	out := newSender(a.tunnel, 0)
	inner, m := super(t)
	payload := inner[m.HdrLen:]
	both := func() {
		out.add(t, inner).Meta = m
		f := out.add(t, inner)
		f.Meta = m
		f.Peer = a.peers.LookupName("c").Index
		out.send(t)
		requireDatagrams(t, conn, payload, 1000)
	}
	a.until(t, "b", "slices of 1472 bytes", both)
	a.until(t, "c", "vxlan: no answer to an offer of slices", both)
	for range 10 {
		both()
	}
	b.untilWhole(t, 10)
	requireDrops(t, &out.st, nil)
}

// joinThird joins a third node to n by a veth pair of its own; n knows it as peer "c".
func (n *node) joinThird(t *testing.T) *node {
	t.Helper()
	c := &node{ns: nstest.New(t), addr: netip.MustParseAddr("192.168.78.2"), mac: net.HardwareAddr{2, 0, 0, 0, 1, 3}, far: n}
	n.ns.Do(t, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "third"}, PeerName: "under",
			PeerNamespace: netlink.NsFd(c.ns.FD())}))
	})
	for _, end := range []struct {
		ns     *nstest.NS
		device string
		addr   string
	}{{n.ns, "third", "192.168.78.1/24"}, {c.ns, "under", "192.168.78.2/24"}} {
		end.ns.Do(t, func() {
			link, err := netlink.LinkByName(end.device)
			must(t, err)
			addr, err := netlink.ParseAddr(end.addr)
			must(t, err)
			must(t, netlink.AddrAdd(link, addr))
			must(t, netlink.LinkSetUp(link))
			transmitChecksums(t, end.device, false)
		})
	}
	c.ns.Do(t, func() {
		must(t, netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(n.addr.AsSlice()), Gw: net.IPv4(192, 168, 78, 1)}))
		c.waitUp(t)
	})
	must(t, n.peers.Set([]Peer{{Name: "b", Underlay: n.far.addr}, {Name: "c", Underlay: c.addr}}))
	return c
}

// An old peer counts a hello as what it is to it, and nothing else.
func TestHelloIsNoVXLAN(t *testing.T) {
	b := make([]byte, helloLen)
	(&hello{asks: true}).encode(b)
	for _, b := range [][]byte{b, slicesOf(sliceFlags, 1, bodyOf([]byte("x")), 100)[0], slicesOf(testFlags, 1, bodyOf([]byte("x")), 100)[0]} {
		if wire.VXLAN(b).IsValid() {
			t.Errorf("%x is valid VXLAN", b)
		}
	}
}

// Nothing is allocated for slices, in one piece or one by one.
func TestSlicesDoNotAllocate(t *testing.T) {
	for _, cut := range []bool{true, false} {
		tunnel, peers, _ := loopbackTunnel(t)
		must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
		peers.Lookup(1).link.size.Store(1472)
		if !cut {
			tunnel.unsegments.Store(uint32(unix.EIO))
		}
		out, in := newSender(tunnel, 0), newReceiver(tunnel)
		inner, m := super(t)
		var b frame.Burst
		frames := 0
		n := testing.AllocsPerRun(50, func() {
			out.add(t, inner).Meta = m
			out.add(t, inner).Meta = m
			if !out.q.(*txQueue).Joins(&out.b) && !tunnel.cfg.Plain {
				t.Fatal("doesn't join")
			}
			out.q.Send(&out.b)
			out.q.Flush()
			out.b.Release()
			tunnel.Rx()[0].Recv(0, &b, in.pool, &in.st)
			frames += b.Len()
			b.Release()
		})
		if n != 0 {
			t.Errorf("%v allocations per burst, cut by the kernel: %t", n, cut)
		}
		if frames != 51*2 {
			t.Errorf("%d frames, want 102", frames)
		}
		requireDrops(t, &in.st, map[drop.Reason]counted{})
	}
}

// Hellos for which the negotiator has no room are counted, and those to a plain Tunnel are none of its business; a Tunnel
// may be closed twice.
func TestHelloFlood(t *testing.T) {
	for _, plain := range []bool{false, true} {
		tunnel, peers, ns := loopbackTunnel(t)
		must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
		q := tunnel.Rx()[0].(*rxQueue)
		want := map[drop.Reason]counted{}
		if !plain {
			q.hellos = make(chan heard, 2)
			want[drop.PuntFull] = counted{8, 8}
		}
		in := newReceiver(tunnel)
		ns.Do(t, func() {
			conn := strangerTo(t, tunnel.cfg.Local, tunnel.cfg.Local)
			b := make([]byte, helloLen)
			(&hello{asks: true}).encode(b)
			for range 10 {
				_, err := conn.Write(b)
				must(t, err)
			}
			_, err := conn.Write(vxlan(42, []byte("a frame")))
			must(t, err)
		})
		in.receive(t, 1)
		requireDrops(t, &in.st, want)
	}
	a, _ := newUnderlay(t, "IPv4")
	a.openAuto(t, nil)
	must(t, a.tunnel.Close())
}
