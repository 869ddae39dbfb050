package encap

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

const innerMTU = 1400 // kernelVXLAN's

var (
	ip6A = netip.MustParseAddr("fd00:9::1")
	ip6B = netip.MustParseAddr("fd00:9::2")
)

// arrivals says what a vxlan device behind a veth pair with its default offloads delivers.
type arrivals struct {
	partial     int // small packets with a partial checksum
	superFrames int // TCP packets larger than the MTU
	train       int // datagrams of a UDP train (UDP_SEGMENT)
}

// The kernel hands packets through veth with their offloads pending, inside a vxlan device's datagrams too.
// A TCP stream gets through nevertheless: what RestoreOffload recognises is as good as what a TAP delivers.
func TestKernelLeavesOffloadsPending(t *testing.T) {
	for family := range families {
		for inner, addrs := range map[string][2]netip.Addr{"IPv4": {ipA, ipB}, "IPv6": {ip6A, ip6B}} {
			t.Run(inner+" in "+family, func(t *testing.T) {
				a, b := newUnderlay(t, family)
				for _, n := range []*node{a, b} {
					pendingOffloads(t, n)
				}
				a.open(t, 1)
				udp := b.kernelVXLAN(t)
				b.ns.Do(t, func() { addAddress(t, "vx", addrs[1], addrs[0], macA) })
				pod := newPod(t, addrs[0], addrs[1])
				seen := relay(t, a.tunnel, pod.tap, func() {
					transfer(t, pod.ns, b.ns, addrs)
					_, err := udp.WriteToUDPAddrPort([]byte("a small datagram"), netip.AddrPortFrom(ipA, 4000))
					must(t, err)
					sendUDPTrain(t, udp)
				})
				t.Logf("%+v", seen)
				if seen.partial == 0 || seen.superFrames == 0 || seen.train != 5 {
					t.Errorf("%+v: want partial checksums, super-frames, and 5 datagrams of a train", seen)
				}
			})
		}
	}
}

// pendingOffloads undoes what newUnderlay does to make a veth pair like a wire.
func pendingOffloads(t *testing.T, n *node) {
	t.Helper()
	if out, err := n.ns.Command("ethtool", "-K", "under", "tx", "on", "tso", "on").CombinedOutput(); err != nil {
		t.Fatalf("ethtool: %v: %s", err, out)
	}
}

// addAddress gives a device an address and a neighbour.
func addAddress(t *testing.T, device string, addr, neighbor netip.Addr, mac wire.MAC) {
	t.Helper()
	link, err := netlink.LinkByName(device)
	must(t, err)
	must(t, netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(),
		Mask: net.CIDRMask(addr.BitLen()-8, addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: neighbor.AsSlice(), HardwareAddr: mac[:],
		State: netlink.NUD_PERMANENT}))
}

// pod is a namespace behind a TAP.
type pod struct {
	ns  *nstest.NS
	tap *port.TAP
}

func newPod(t *testing.T, addr, far netip.Addr) *pod {
	t.Helper()
	p := &pod{ns: nstest.New(t)}
	p.ns.Do(t, func() {
		var err error
		must(t, port.CreateTAP("eth0"))
		p.tap, err = port.OpenTAP(port.TAPConfig{Device: "eth0", PortName: "pod"})
		must(t, err)
		t.Cleanup(func() { must(t, p.tap.Close()) })
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.LinkSetMTU(link, innerMTU))
		must(t, netlink.LinkSetHardwareAddr(link, macA[:]))
		must(t, netlink.LinkSetUp(link))
		addAddress(t, "eth0", addr, far, macB)
	})
	return p
}

// relay is a switch with two ports, as long as work runs.
func relay(t *testing.T, tunnel *Tunnel, tap *port.TAP, work func()) (seen arrivals) {
	t.Helper()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		var st port.Stats
		pool := frame.NewPool(frame.BurstSize, frame.DefaultArena)
		toPod, toTunnel := tap.Tx(0, &st), tunnel.Tx(0, &st)
		for !stop.Load() {
			idle := true
			for _, way := range []struct {
				from port.RxQueue
				to   port.TxQueue
			}{{tunnel.Rx()[0], toPod}, {tap.Rx()[0], toTunnel}} {
				var b frame.Burst
				way.from.Recv(0, &b, pool, &st)
				for _, f := range b.Frames() {
					if way.to == toPod {
						seen.repair(t, f)
					} else {
						f.VNI, f.Peer = 42, 1
					}
				}
				idle = idle && b.Len() == 0
				way.to.Send(&b)
				way.to.Flush()
				b.Release()
			}
			if idle {
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	work()
	time.Sleep(50 * time.Millisecond) // for the datagrams, which nobody acknowledges
	stop.Store(true)
	wg.Wait()
	return seen
}

// repair does what the switch does with a frame from a tunnel, and has gopacket judge both.
func (a *arrivals) repair(t *testing.T, f *frame.Frame) {
	var p wire.Parsed
	if fault := wire.Parse(f.Bytes(), f.IsSuper(), &p); fault != wire.FaultNone {
		t.Errorf("the kernel sent a frame that Parse refuses: %v", fault)
		return
	}
	tcp, udp := p.Proto == wire.ProtoTCP, p.Proto == wire.ProtoUDP
	restored := f.NeedsCsum || frame.RestoreOffload(f, &p, innerMTU)
	switch {
	case !tcp && !udp:
		return
	case restored == checksumRight(t, f.Bytes()):
		t.Errorf("restored %t a packet of %d bytes, checksum right %t", restored, p.End-p.L3, !restored)
	case udp && f.IsSuper():
		a.train += f.Wire()
	case f.IsSuper():
		a.superFrames++
	case restored:
		a.partial++
	}
	for _, b := range wireForm(t, f.Bytes(), f.Meta) {
		if len(b)-wire.EthernetLen > innerMTU || !checksumRight(t, b) {
			t.Errorf("%d bytes go on the wire, checksum right: %t; %+v", len(b), checksumRight(t, b), f.Meta)
		}
	}
}

// checksumRight is gopacket's opinion about a TCP or UDP packet.
func checksumRight(t *testing.T, b []byte) bool {
	packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	sum := layers.TCP{BaseLayer: layers.BaseLayer{Contents: packet.TransportLayer().LayerContents(), Payload: packet.TransportLayer().LayerPayload()}}
	must(t, sum.SetNetworkLayerForChecksum(packet.NetworkLayer()))
	got, err := sum.ComputeChecksum() // over everything, the field included
	must(t, err)
	if packet.TransportLayer().LayerType() == layers.LayerTypeUDP { // the pseudo header has 17 in the place of 6
		got = wire.Fold(uint32(got) + uint32(^uint16(17-6)))
	}
	return got == 0 || got == 0xffff
}

// transfer sends a stream from behind the device to the pod.
func transfer(t *testing.T, pod, far *nstest.NS, addrs [2]netip.Addr) {
	t.Helper()
	data := randomBytes(seed.Rand(t), 3<<20)
	var l net.Listener
	pod.Do(t, func() {
		var err error
		l, err = net.Listen("tcp", netip.AddrPortFrom(addrs[0], 6000).String())
		must(t, err)
	})
	defer l.Close()
	var sum [32]byte
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return // the other side tells
		}
		defer conn.Close()
		got, _ := io.ReadAll(conn)
		sum = sha256.Sum256(got)
	})
	far.Do(t, func() {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(addrs[0], 6000).String(), 10*time.Second)
		must(t, err)
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = io.Copy(conn, bytes.NewReader(data))
		must(t, err)
	})
	wg.Wait()
	if sum != sha256.Sum256(data) {
		t.Error("the stream arrived changed")
	}
}

// sendUDPTrain sends five datagrams of 1,000 bytes in one call.
func sendUDPTrain(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)) }))
	_, err = conn.WriteToUDPAddrPort(make([]byte, 5000), netip.AddrPortFrom(ipA, 4000))
	must(t, err)
}
