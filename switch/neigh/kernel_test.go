package neigh

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// newTAP makes a namespace whose eth0 is a TAP with the MAC asker, up. It goes when the test ends.
func newTAP(t *testing.T) (ns *nstest.NS, eth0 netlink.Link, tap *port.TAP) {
	t.Helper()
	ns = nstest.New(t)
	ns.Do(t, func() {
		check(t, port.CreateTAP("eth0"))
		var err error
		tap, err = port.OpenTAP(port.TAPConfig{Device: "eth0", PortName: t.Name()})
		check(t, err)
		eth0, err = netlink.LinkByName("eth0")
		check(t, err)
		check(t, netlink.LinkSetHardwareAddr(eth0, asker[:]))
		check(t, netlink.LinkSetUp(eth0))
	})
	t.Cleanup(func() { check(t, tap.Remove()) })
	return ns, eth0, tap
}

// newPod makes a namespace whose eth0 is a TAP that a goroutine serves out of the table until the test ends: it
// answers what is asked, and nothing else. probes counts the answers to requests that were unicast.
func newPod(t *testing.T, table *Table) (ns *nstest.NS, eth0 netlink.Link, probes *atomic.Int32) {
	t.Helper()
	ns, eth0, tap := newTAP(t)
	probes = new(atomic.Int32)
	stop := make(chan struct{})
	var server sync.WaitGroup
	server.Go(func() { serve(t, tap, table, stop, probes) })
	t.Cleanup(func() { // before the TAP goes
		close(stop)
		server.Wait()
	})
	return ns, eth0, probes
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, tap *port.TAP, table *Table, stop chan struct{}, probes *atomic.Int32) {
	pool := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	answers := frame.NewPool(1, 4096)
	var st port.Stats
	tx := tap.Tx(0, &st)
	for {
		select {
		case <-stop:
			return
		default:
		}
		fds := []unix.PollFd{{Fd: int32(tap.Rx()[0].FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 50); err != nil && err != unix.EINTR {
			t.Error(err)
			return
		}
		var in, out frame.Burst
		tap.Rx()[0].Recv(0, &in, pool, &st)
		for _, f := range in.Frames() {
			if n := answerFrom(table, f.Bytes(), answers.Reserve(0, NDAnswerLen)); n > 0 {
				out.Append(answers.Commit(n))
				tx.Send(&out)
				tx.Flush()
				out.Release()
				if !wire.Ethernet(f.Bytes()).Dst().IsMulticast() {
					probes.Add(1)
				}
			}
		}
		in.Release()
	}
}

func answerFrom(table *Table, request, out []byte) int {
	var p wire.Parsed
	if wire.Parse(request, false, &p) != wire.FaultNone {
		return 0
	}
	switch {
	case p.Kind == wire.KindARP:
		arp := wire.ARP(request[p.L3:])
		if n, known := table.Lookup(1, arp.TargetIP()); known {
			return AnswerARP(arp, n.MAC, out)
		}
	case p.ND && wire.NeighborSolicit(request[p.L4:p.End]).IsValid():
		target := wire.NeighborSolicit(request[p.L4:p.End]).Target()
		if n, known := table.Lookup(1, target); known {
			return AnswerND(request, &p, n.MAC, n.Port == port.Local, out)
		}
	}
	return 0
}

// eventually polls, since the kernel tells nobody when its neighbour discovery is done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// Linux must believe the answers: it resolves a pod's addresses, notices that one is a router, and confirms the
// entries again by unicast probes when they have become old.
func TestKernelResolves(t *testing.T) {
	table := New()
	addrs := map[netip.Addr]Neighbor{
		netip.MustParseAddr("10.244.1.6"): {station, 1},
		netip.MustParseAddr("fd00::b"):    {station, 1},
		netip.MustParseAddr("fd00::1"):    {wire.MAC{2, 5: 0xcc}, port.Local},
	}
	for a, n := range addrs {
		check(t, table.Insert(1, a, n))
	}
	ns, eth0, probes := newPod(t, table)
	ns.Do(t, func() {
		addAddr(t, eth0, "10.244.1.5/24", 0)
		addAddr(t, eth0, "fd00::a/64", unix.IFA_F_NODAD)
		for a, n := range addrs {
			provoke(t, a)
			eventually(t, "resolve "+a.String(), func() bool { return resolved(t, eth0, a, n) })
			before := probes.Load()
			reprobe(t, eth0, a, n)
			eventually(t, "confirm "+a.String(), func() bool { return probes.Load() > before && resolved(t, eth0, a, n) })
		}
		provoke(t, netip.MustParseAddr("10.244.1.7"))
		eventually(t, "give up 10.244.1.7", func() bool { return neighbor(t, eth0, netip.MustParseAddr("10.244.1.7")).State == netlink.NUD_FAILED })
	})
}

func addAddr(t *testing.T, link netlink.Link, cidr string, flags int) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	check(t, err)
	a.Flags = flags
	check(t, netlink.AddrAdd(link, a))
}

// provoke sends a datagram to the address, so that the kernel asks for it.
func provoke(t *testing.T, a netip.Addr) {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	check(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	check(t, err)
}

func neighbor(t *testing.T, link netlink.Link, a netip.Addr) netlink.Neigh {
	t.Helper()
	list, err := netlink.NeighList(link.Attrs().Index, 0)
	check(t, err)
	for _, n := range list {
		if n.IP.Equal(a.AsSlice()) {
			return n
		}
	}
	return netlink.Neigh{}
}

func resolved(t *testing.T, link netlink.Link, a netip.Addr, want Neighbor) bool {
	n := neighbor(t, link, a)
	if n.State != netlink.NUD_REACHABLE {
		return false
	}
	if router := n.Flags&netlink.NTF_ROUTER != 0; n.HardwareAddr.String() != want.MAC.String() || a.Is6() && router != (want.Port == port.Local) {
		t.Errorf("%v: the kernel believes %+v, want %v", a, n, want)
	}
	return true
}

// reprobe puts the kernel's entry into NUD_PROBE: it asks by unicast.
func reprobe(t *testing.T, link netlink.Link, a netip.Addr, n Neighbor) {
	t.Helper()
	check(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: n.MAC[:], State: netlink.NUD_PROBE,
	}))
}

// A pod that is given another one's address must find out (RFC 4862 section 5.4), and one with its own must not
// be disturbed.
func TestKernelFindsDuplicate(t *testing.T) {
	table := New()
	check(t, table.Insert(1, station6, Neighbor{station, 1}))
	check(t, table.Insert(1, asker6, Neighbor{asker, 2}))
	ns, eth0, _ := newPod(t, table)
	ns.Do(t, func() {
		addAddr(t, eth0, "fd00::b/64", 0)
		addAddr(t, eth0, "fd00::a/64", 0)
		eventually(t, "detect that fd00::b is taken", func() bool { return flags(t, eth0, station6)&unix.IFA_F_DADFAILED != 0 })
		eventually(t, "use fd00::a", func() bool { return flags(t, eth0, asker6)&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 })
	})
}

func flags(t *testing.T, link netlink.Link, a netip.Addr) int {
	t.Helper()
	list, err := netlink.AddrList(link, netlink.FAMILY_V6)
	check(t, err)
	for _, have := range list {
		if have.IP.Equal(a.AsSlice()) {
			return have.Flags
		}
	}
	t.Fatalf("%v is not on %s", a, link.Attrs().Name)
	return 0
}
