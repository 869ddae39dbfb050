package vswitch

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// An advertisement for the pod's own address, whose "partial checksum" lies in the target: once completed, it
// speaks for pod b. The guard has seen the bytes before, so no message of ND may have one.
func TestACompletedChecksumCannotChangeWhatAnAdvertisementClaims(t *testing.T) {
	const target = 14 + 40 + 8
	own := nd(t, c6, "ff02::1", &layers.ICMPv6NeighborAdvertisement{Flags: 0x20, TargetAddress: c6.AsSlice(), Options: append(
		layers.ICMPv6Options{{Type: 14, Data: make([]byte, 6)}}, linkLayer(layers.ICMPv6OptTargetAddress, macC)...)}, 136)
	// The sum from the target's last word to the end, through a nonce that makes it what pod b's address ends with.
	last := own[target+14:]
	binary.BigEndian.PutUint16(last[len(last)-2:], ^wire.Fold(wire.Sum(last, 0x0004)))
	r, podC := guarded(t, 0)
	r.run(podC, porttest.Frame{Bytes: own, Meta: frame.Meta{NeedsCsum: true, CsumStart: target + 14}})
	for _, f := range r.podB.Sent() {
		t.Errorf("arrived with target %v", netip.AddrFrom16([16]byte(f.Bytes[target:])))
	}
	if got := r.drops(podC); got["bad_offload"] != 1 {
		t.Errorf("drops %v, want bad_offload", got)
	}
}

// A burst from a peer holds frames of several networks, and what is known in one is news in another.
func TestASourceIsLookedUpInItsOwnNetwork(t *testing.T) {
	r, podX, _ := stretched(t)
	r.must(r.sw.AddNetwork(Network{VNI: 300, Stretched: true}))
	podZ, podW := porttest.New("z", port.CapsAll), porttest.New("w", port.CapsAll)
	for _, p := range []*porttest.Port{podZ, podW} {
		r.attach(p, PortConfig{Role: RoleAccess, VNI: 300})
	}
	mac := wire.MAC{10, 0, 0, 0, 2, 1}
	r.must(r.sw.AddStation(300, r.ids[podZ], mac, nil))
	broadcast := from(7, arp(t, mac, mac, 1, ip("10.50.0.5"), ip("10.50.0.9")))
	r.run(r.tunnel, broadcast) // learned in VNI 200
	other := broadcast
	other.Meta.VNI = 300
	r.run(r.tunnel, broadcast, other)
	if got := r.drops(r.tunnel); got["looped"] != 1 || len(podW.Sent()) != 0 || len(podX.Sent()) != 2 {
		t.Errorf("drops %v, %d frames in the network where the source is a pod; want one looped and none", got, len(podW.Sent()))
	}
}

// slots is a receive queue with frames that its descriptor doesn't announce, as those of packet sockets and tunnels.
type slots struct {
	port.RxQueue
	held []porttest.Frame
}

func (q *slots) Recv(_ int, b *frame.Burst, p *frame.Pool, _ *port.Stats) (more bool) {
	for ; len(q.held) > 0 && !b.Full(); q.held = q.held[1:] {
		f := p.Commit(copy(p.Reserve(0, len(q.held[0].Bytes)), q.held[0].Bytes))
		b.Append(f)
	}
	return len(q.held) > 0
}

func TestAPausedQueueIsReadToItsEnd(t *testing.T) {
	r, podC := guarded(t, 0)
	clock := time.Unix(1000, 0)
	r.sw.now = func() time.Time { return clock }
	ps := r.sw.snapshot.Load().port(r.ids[podC])
	q := &slots{RxQueue: ps.rx[0]}
	ps.rx = []port.RxQueue{q}
	for range frame.BurstSize {
		q.held = append(q.held, plain(udp(t, macA, macB, c4, b4, 64, "spoofed")))
	}
	q.held = append(q.held, plain(udp(t, macC, macB, c4, b4, 64, "x")))
	w := r.sw.workers[0]
	w.reader.Online()
	w.pass(eventOf(r.ids[podC]))
	if len(w.paused) != 1 {
		t.Fatal("a burst of spoofed frames didn't pause the queue")
	}
	clock = clock.Add(2 * time.Millisecond)
	for _, ev := range append([]unix.EpollEvent(nil), w.wait()...) {
		w.pass(ev)
	}
	if n := len(r.podB.Sent()); n != 1 {
		t.Errorf("%d frames arrived, want the one that waited behind the pause", n)
	}
}

// living is a port that can say that its device is there.
type living struct{ *porttest.Port }

func (living) Gone() bool { return false }

// An uplink that goes down and up again reports an error once.
func TestAnErrorOfADeviceThatIsThereEndsNothing(t *testing.T) {
	r := newRig(t, port.CapsAll)
	uplink := living{porttest.New("uplink", port.CapsAll)}
	id, err := r.sw.Attach(uplink, PortConfig{Role: RoleAccess, VNI: testVNI})
	r.must(err)
	w := r.sw.workers[0]
	w.reader.Online()
	w.pass(unix.EpollEvent{Events: unix.EPOLLERR, Fd: int32(id)})
	uplink.Inject(plain(udp(t, macC, macB, c4, b4, 64, "x")))
	var events [4]unix.EpollEvent
	if n, err := unix.EpollWait(w.epoll, events[:], 0); n != 1 || err != nil {
		t.Errorf("%d events, %v: the queue is polled no more", n, err)
	}
}

// superTCP is a super-frame of n segments of size bytes with the flags of a SYN, from guarded's pod c.
func superSYN(t testing.TB, n, size int) porttest.Frame {
	b := packet(t, ethernet(macC, macB, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: c4.AsSlice(), DstIP: b4.AsSlice()},
		&layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true}, gopacket.Payload(make([]byte, n*size)))
	return porttest.Frame{Bytes: b, Meta: frame.Meta{GSOType: wire.GSOTCPv4, NeedsCsum: true,
		GSOSize: uint16(size), CsumStart: 34, CsumOffset: wire.TCPChecksumOffset}}
}

func TestASuperFrameOfSYNsIsAsManyAsItHas(t *testing.T) {
	r := newRig(t, 0)
	podC := porttest.New("c", port.CapsAll)
	r.attach(podC, PortConfig{Role: RoleAccess, VNI: testVNI, SYN: 100})
	r.run(podC, superSYN(t, 90, 48), superSYN(t, 90, 48))
	if got := r.drops(podC); got["syn_limit"] != 1 || len(r.podB.Sent()) != 90 {
		t.Errorf("drops %v, %d segments arrived; want the second super-frame refused", got, len(r.podB.Sent()))
	}
}

// fragmentAt makes of a long UDP packet without DF a fragment at the offset, with more to come.
func fragmentAt(t testing.TB, offset int) []byte {
	b := udp(t, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 4000))
	wire.IPv4(b[14:]).SetFragment(offset, true)
	wire.IPv4(b[14:]).UpdateChecksum()
	return b
}

// Fragments of a fragment that ends behind byte 65,535 would begin again at 0, as the first of another packet.
func TestNoFragmentWrapsAround(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(fragmentAt(t, 65528-1424)))
	for _, f := range r.tunnel.Sent() {
		if at := wire.IPv4(f.Bytes[14:]).FragmentOffset(); at < 65528-1424 {
			t.Errorf("sent a fragment at %d", at)
		}
	}
	if got := r.drops(r.podA); got["too_big"] != 1 || len(r.tunnel.Sent()) != 0 {
		t.Errorf("drops %v, %d fragments sent; want too_big", got, len(r.tunnel.Sent()))
	}
	r.run(r.podA, plain(fragmentAt(t, 60000)))
	if n := len(r.tunnel.Sent()); n != 3 {
		t.Errorf("%d fragments of one that fits, want 3", n)
	}
}

// narrow makes the way to the remote pods as narrow as mtu.
func (r *rig) narrow(mtu uint16) {
	r.must(r.sw.UpdateRoutes(testVNI, []RouteChange{{netip.MustParsePrefix("10.244.2.0/24"), &Adjacency{Kind: AdjForward, MTU: mtu,
		DstMAC: peerMAC, SrcMAC: routerMAC, Tunnel: true, Dest: port.Dest{Port: r.ids[r.tunnel], Peer: remotePeer}}}}))
}

func TestMoreFragmentsThanABurstHolds(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.narrow(526) // an underlay of 576, the least that every IPv4 host takes whole
	r.run(r.podA, plain(udp(t, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 60000))))
	end := 0
	for _, f := range r.tunnel.Sent() {
		if fragment := wire.IPv4(f.Bytes[14:]); fragment.FragmentOffset() == end {
			end += len(fragment.Payload())
		}
	}
	if end != 60008 {
		t.Errorf("%d fragments make up %d bytes, want 60008", len(r.tunnel.Sent()), end)
	}
}

func TestAWayTooNarrowForAFragment(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.narrow(27) // a header of 20 bytes leaves 7, and fragments come in eights
	r.run(r.podA, plain(udp(t, macA, routerMAC, a4, remote4, 64, "12345678901234567890")))
	if got := r.drops(r.podA); got["too_big"] != 1 || len(r.tunnel.Sent()) != 0 {
		t.Errorf("drops %v, %d sent", got, len(r.tunnel.Sent()))
	}
}

func TestNoErrorIsSentAboutABroadcast(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(udp(t, macA, routerMAC, a4, ip("255.255.255.255"), 1, "x")))
	if n := len(r.podA.Sent()); n != 0 {
		t.Errorf("answered %d times", n)
	}
}

// The error lies behind more extension headers than the slow path keeps of a packet.
func TestNoErrorAboutAnErrorBehindLongHeaders(t *testing.T) {
	options := make([]byte, 2048)
	options[0], options[1] = wire.ProtoICMPv6, 2048/8-1
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(packet(t, ethernet(macA, routerMAC, layers.EthernetTypeIPv6),
		&layers.IPv6{HopLimit: 64, NextHeader: layers.IPProtocolIPv6Destination, SrcIP: a6.AsSlice(), DstIP: nowhere6.AsSlice()},
		gopacket.Payload(append(options, 1, 0, 0, 0, 0, 0, 0, 0)))))
	if n := len(r.podA.Sent()); n != 0 {
		t.Errorf("answered %d times", n)
	}
}

// From the unspecified address, a pod probes, looks for routers and joins groups, and does nothing else.
func TestTheUnspecifiedAddressIsForProbesAndGroups(t *testing.T) {
	none := netip.IPv6Unspecified()
	later := nd(t, none, "ff02::1", gopacket.Payload(make([]byte, 12)), 128)
	fragment := append(append(append([]byte(nil), later[:54]...), wire.ProtoICMPv6, 0, 0, 8, 0, 0, 0, 1), later[54:]...)
	fragment[20], fragment[19] = wire.ProtoFragment, fragment[19]+8
	for name, c := range map[string]struct {
		frame []byte
		lets  bool
	}{
		"report":         {nd(t, none, "ff02::16", gopacket.Payload(make([]byte, 4)), 143), true},
		"old report":     {nd(t, none, "ff02::16", gopacket.Payload(make([]byte, 20)), 131), true},
		"done":           {nd(t, none, "ff02::2", gopacket.Payload(make([]byte, 20)), 132), true},
		"solicitation":   {nd(t, none, "ff02::2", &layers.ICMPv6RouterSolicitation{}, 133), true},
		"echo request":   {later, false},
		"later fragment": {fragment, false},
		"query":          {nd(t, none, "ff02::1", gopacket.Payload(make([]byte, 20)), 130), false},
	} {
		r, podC := guarded(t, 0)
		r.run(podC, plain(c.frame))
		if n := len(r.podB.Sent()); (n == 1) != c.lets {
			t.Errorf("%s: arrived %d times, drops %v", name, n, r.drops(podC))
		}
	}
}

// What is for the router itself isn't for the pods, known address or not.
func TestARPToTheRouterIsNotFlooded(t *testing.T) {
	r := newRig(t, port.CapsAll)
	for _, op := range []uint16{1, 2} {
		b := arp(t, macA, macA, op, a4, absent4)
		copy(b, routerMAC[:])
		r.run(r.podA, plain(b))
	}
	if n := len(r.podB.Sent()); n != 0 {
		t.Errorf("pod b got %d frames for the router's MAC", n)
	}
	if got := r.drops(r.podA); got["local_unhandled"] != 2 {
		t.Errorf("drops %v", got)
	}
}

// A pod may be gone, and its port another one's, when its announcement's turn comes.
func TestNobodyIsAnnouncedWhoIsGone(t *testing.T) {
	r, podC := guarded(t, 0)
	r.must(r.sw.AddStation(testVNI, r.ids[podC], macC, []netip.Addr{c4}))
	r.sw.neighbors.DeletePort(r.ids[podC])
	r.must(r.sw.neighbors.Insert(testVNI, c4, neigh.Neighbor{MAC: macB, Port: r.ids[podC]}))
	r.sw.slow.drain()
	if n := len(r.podA.Sent()); n != 0 {
		t.Errorf("%d announcements of a station that has left", n)
	}
}
