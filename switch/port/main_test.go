package port

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/frame"
	"tapyard/switch/uring"
	"tapyard/switch/wire"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// patience is how long a test waits for what the kernel does on its own.
const patience = 10 * time.Second

// The addresses of all tests: a pod is .n with MAC 02:00:00:00:00:n, and knows the others by permanent entries.
func podMAC(n int) wire.MAC    { return wire.MAC{2, 5: byte(n)} }
func podIPv4(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(n)}) }
func podIPv6(n int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}) }
func check(t testing.TB, e error) {
	t.Helper()
	if e != nil {
		t.Fatal(e)
	}
}

// pod is eth0 in a namespace with its port, as the agent makes it: either a TAP or the packet socket at the host's end of a veth pair.
type pod struct {
	ns     *nstest.NS
	tap    *TAP
	packet *Packet
	port   Port
	pool   *frame.Pool
	st     Stats
	tx     TxQueue
	rings  *Rings // nil with read and write
}

// pods are the kinds of ports that pods have, and engines those of them that are TAPs.
var (
	engines = map[string]func(testing.TB, int) *pod{"tap": newPod, "tap by io_uring": newRingPod}
	pods    = map[string]func(testing.TB, int) *pod{"tap": newPod, "tap by io_uring": newRingPod, "veth": newVethPod}
)

// forEngines runs a test with each engine of TAPs.
func forEngines(t *testing.T, test func(t *testing.T, newPod func(testing.TB, int) *pod)) {
	for name, newPod := range engines {
		t.Run(name, func(t *testing.T) { test(t, newPod) })
	}
}

// hostEnd is the name of the host's end of pod n's veth pair.
func hostEnd(n int) string { return fmt.Sprintf("host%d", n) }

func newVethPod(t testing.TB, n int) *pod {
	t.Helper()
	p := &pod{ns: nstest.New(t), pool: frame.NewPool(frame.BurstSize, frame.DefaultArena)}
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostEnd(n)}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns.FD())}))
	var err error
	p.packet, err = OpenPacket(PacketConfig{Device: hostEnd(n), PortName: fmt.Sprintf("default/pod%d", n)})
	check(t, err)
	t.Cleanup(func() { p.packet.Delete() }) // an error means that the test has closed it
	p.port = p.packet
	p.configure(t, n)
	return p
}

func newPod(t testing.TB, n int) *pod {
	t.Helper()
	return newTAPPod(t, n, nil)
}

// newRingPod skips the test where there is no io_uring to be had.
func newRingPod(t testing.TB, n int) *pod {
	t.Helper()
	p := newTAPPod(t, n, openRings(t, 1))
	check(t, p.rings.UsePools(0, p.pool))
	return p
}

func openRings(t testing.TB, workers int) *Rings {
	t.Helper()
	rings, err := OpenRings(workers)
	if errors.Is(err, uring.ErrUnavailable) {
		t.Skip(err)
	}
	check(t, err)
	t.Cleanup(func() { check(t, rings.Close()) })
	return rings
}

func newTAPPod(t testing.TB, n int, rings *Rings) *pod {
	t.Helper()
	return newPodOf(t, n, TAPConfig{Rings: rings})
}

// newPodOf makes a pod with a TAP.
func newPodOf(t testing.TB, n int, cfg TAPConfig) *pod {
	t.Helper()
	p := &pod{ns: nstest.New(t), pool: newTestPool(), rings: cfg.Rings}
	cfg.Device, cfg.PortName = "eth0", fmt.Sprintf("default/pod%d", n)
	p.ns.Do(t, func() {
		var err error
		p.tap, err = MakeTAP(cfg)
		check(t, err)
	})
	check(t, p.tap.Persist())
	t.Cleanup(func() { p.tap.Remove() }) // an error means that the test has closed it
	p.port = p.tap
	p.configure(t, n)
	return p
}

// newTestPool is a pool as workers have them.
func newTestPool() *frame.Pool {
	return frame.NewPoolWithWindows(frame.BurstSize, frame.DefaultArena, frame.BurstSize)
}

func (p *pod) configure(t testing.TB, n int) {
	t.Helper()
	p.tx = p.port.Tx(0, &p.st)
	p.ns.Do(t, func() { configure(t, n) })
}

// configure is called inside the pod. IPv6 is there at once, without link-local address and router solicitations.
func configure(t testing.TB, n int) {
	t.Helper()
	link := eth0(t)
	for setting, value := range map[string]string{"addr_gen_mode": "1", "router_solicitations": "0"} {
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/"+setting, []byte(value), 0))
	}
	mac := podMAC(n)
	check(t, netlink.LinkSetHardwareAddr(link, mac[:]))
	check(t, netlink.LinkSetUp(link))
	for _, prefix := range []netip.Prefix{netip.PrefixFrom(podIPv4(n), 24), netip.PrefixFrom(podIPv6(n), 64)} {
		addr, err := netlink.ParseAddr(prefix.String())
		check(t, err)
		addr.Flags = unix.IFA_F_NODAD
		check(t, netlink.AddrAdd(link, addr))
	}
	awaitLocal(t, podIPv6(n))
	for other := 1; other <= 2; other++ {
		mac := podMAC(other)
		for _, a := range []netip.Addr{podIPv4(other), podIPv6(other)} {
			check(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: mac[:], State: netlink.NUD_PERMANENT,
			}))
		}
	}
}

// awaitLocal waits until the kernel takes packets for the IPv6 address: even without duplicate detection it
// adds the route in the background, some time after the address.
func awaitLocal(t testing.TB, a netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is no local address after %v: %v, %v", a, patience, routes, err)
		}
	}
}

// recv waits up to timeout, then returns what one Recv brings, perhaps nothing.
func (p *pod) recv(t testing.TB, timeout time.Duration) *frame.Burst {
	fds := []unix.PollFd{{Fd: int32(p.port.Rx()[0].FD()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(timeout.Milliseconds())); err != nil && err != unix.EINTR {
		t.Error(err)
	}
	var b frame.Burst
	if p.rings != nil {
		p.tap.rx[0].(*tapRx).batch = firstBatch // as after a full burst
	}
	p.port.Rx()[0].Recv(0, &b, p.pool, &p.st)
	return &b
}

// received is a frame that the pod's kernel sent, copied.
type received struct {
	meta   frame.Meta
	bytes  []byte
	parsed wire.Parsed
}

// expect receives until a frame of the protocol comes.
func (p *pod) expect(t *testing.T, proto uint8) received {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		b := p.recv(t, 100*time.Millisecond)
		for _, f := range b.Frames() {
			r := received{meta: f.Meta, bytes: bytes.Clone(f.Bytes())}
			if fault := wire.Parse(r.bytes, f.IsSuper(), &r.parsed); fault != wire.FaultNone {
				t.Fatalf("the kernel sent a faulty frame: %v: % x", fault, r.bytes)
			}
			if r.parsed.Proto == proto {
				b.Release()
				return r
			}
		}
		b.Release()
	}
	t.Fatalf("no frame of protocol %d within %v", proto, patience)
	return received{}
}

// send hands one frame to the port.
func (p *pod) send(t *testing.T, meta frame.Meta, content []byte) {
	t.Helper()
	var b frame.Burst
	copy(p.pool.Reserve(0, len(content)), content)
	f := p.pool.Commit(len(content))
	f.Meta = meta
	b.Append(f)
	p.tx.Send(&b)
	p.tx.Flush()
	b.Release()
	if p.pool.Live() != 0 {
		t.Errorf("%d frames are still out of the pool", p.pool.Live())
	}
}
