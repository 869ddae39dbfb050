package bench

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
	vswitch "tapyard/switch"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

const coalesceVNI = 1

// tapPod is a pod with a TAP of a switch.
type tapPod struct {
	ns     *nstest.NS
	tap    *port.TAP
	id     port.ID
	mac    wire.MAC
	v4, v6 netip.Addr
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newTapPod attaches pod n, which knows the other of pods 1 and 2 by permanent entries.
func newTapPod(t *testing.T, sw *vswitch.Switch, n int) *tapPod {
	t.Helper()
	p := newTapPodOf(t, n, port.TAPConfig{})
	p.attach(t, sw)
	return p
}

func newTapPodOf(t *testing.T, n int, cfg port.TAPConfig) *tapPod {
	t.Helper()
	p := &tapPod{ns: nstest.New(t)}
	p.mac, p.v4, p.v6 = tapAddresses(n)
	cfg.Device, cfg.PortName = podDevice, fmt.Sprintf("pod%d", n)
	p.ns.Do(t, func() {
		var err error
		p.tap, err = port.MakeTAP(cfg)
		must(t, err)
		must(t, p.tap.Persist())
		configureTAP(t, n)
	})
	t.Cleanup(func() { p.tap.Remove() })
	if p.tap.Caps() != port.CapsAll {
		t.Fatalf("capabilities %05b, want all of them: this needs a kernel of 6.2 or later", p.tap.Caps())
	}
	return p
}

func (p *tapPod) open(t *testing.T, cfg port.TAPConfig) {
	t.Helper()
	var err error
	p.tap, err = port.OpenTAP(cfg)
	must(t, err)
}

func (p *tapPod) attach(t *testing.T, sw *vswitch.Switch) {
	t.Helper()
	var err error
	p.id, err = sw.Attach(p.tap, vswitch.PortConfig{Role: vswitch.RoleAccess, VNI: coalesceVNI})
	must(t, err)
	must(t, sw.AddStation(coalesceVNI, p.id, p.mac, []netip.Addr{p.v4, p.v6}))
}

func tapAddresses(n int) (mac wire.MAC, v4, v6 netip.Addr) {
	v4 = netip.AddrFrom4([4]byte{10, 244, 1, byte(n)})
	return wire.MAC{2, 5: byte(n)}, v4, netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})
}

// configureTAP is called inside pod n. It returns when the kernel takes packets for all addresses: even without
// duplicate detection it adds the route of an IPv6 address some time later.
func configureTAP(t *testing.T, n int) {
	t.Helper()
	mac, v4, v6 := tapAddresses(n)
	otherMAC, other4, other6 := tapAddresses(3 - n)
	link, err := netlink.LinkByName(podDevice)
	must(t, err)
	must(t, netlink.LinkSetHardwareAddr(link, mac[:]))
	must(t, netlink.LinkSetTxQLen(link, 2000))
	must(t, netlink.LinkSetGSOMaxSegs(link, 1)) // it sends TCP a segment at a time
	must(t, netlink.LinkSetUp(link))
	for _, prefix := range []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)} {
		addr, err := netlink.ParseAddr(prefix.String())
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(link, addr))
	}
	for _, a := range []netip.Addr{other4, other6} {
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: otherMAC[:], State: netlink.NUD_PERMANENT}))
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(v6.AsSlice())
		if err == nil && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is no local address after 10 s: %v, %v", v6, routes, err)
		}
	}
}

// newTapSwitch is a switch, not yet started, with two pods.
func newTapSwitch(t *testing.T) (sw *vswitch.Switch, a, b *tapPod) {
	t.Helper()
	sw, err := vswitch.New(vswitch.Config{Workers: 1, Ageing: vswitch.DefaultAgeing, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, sw.AddNetwork(vswitch.Network{VNI: coalesceVNI}))
	return sw, newTapPod(t, sw, 1), newTapPod(t, sw, 2)
}

// listenUDP opens a socket in the pod with room for everything that a test sends.
func (p *tapPod) listenUDP(t *testing.T, a netip.Addr, portNumber uint16, gro bool) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	p.ns.Do(t, func() {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, portNumber)))
		must(t, err)
	})
	t.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
		if gro {
			must(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1))
		}
	}))
	return conn
}

// readDatagrams returns what arrives until there are n datagrams, and how many reads that took. A socket with UDP_GRO
// gets several at once, with their size beside them.
func readDatagrams(t *testing.T, conn *net.UDPConn, n int) (got [][]byte, reads int) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	buf, control := make([]byte, 1<<16), make([]byte, 64)
	for ; len(got) < n; reads++ {
		size, controlLen, _, _, err := conn.ReadMsgUDP(buf, control)
		if err != nil {
			t.Fatalf("%d of %d datagrams arrived: %v", len(got), n, err)
		}
		each := size
		messages, err := unix.ParseSocketControlMessage(control[:controlLen])
		must(t, err)
		for _, m := range messages {
			if m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO {
				each = int(binary.NativeEndian.Uint32(m.Data))
			}
		}
		for part := range slices.Chunk(buf[:size], max(1, each)) {
			got = append(got, bytes.Clone(part))
		}
	}
	return got, reads
}

// What a socket in one pod sends in small datagrams, a socket in the other receives datagram by datagram, each with
// its bytes and in order, whether the kernel cuts the super-frames for it or not.
func TestCoalescedDatagramsArrive(t *testing.T) {
	r := seed.Rand(t)
	sizes := slices.Concat(slices.Repeat([]int{18}, 200), slices.Repeat([]int{1000}, 50),
		[]int{999, 1000, 1000, 1, 1, 1, 2, 2, 1400})
	for range 200 {
		sizes = append(sizes, 1+r.IntN(20)/10*1000)
	}
	for _, gro := range []bool{false, true} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("gro %t ipv6 %t", gro, v6), func(t *testing.T) {
				sw, a, b := newTapSwitch(t)
				from, to := a.v4, b.v4
				if v6 {
					from, to = a.v6, b.v6
				}
				sink, source := b.listenUDP(t, to, 7, gro), a.listenUDP(t, from, 0, false)
				var want [][]byte
				for _, size := range sizes {
					payload := make([]byte, size)
					for i := range payload {
						payload[i] = byte(r.Uint32())
					}
					_, err := source.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to, 7))
					must(t, err)
					want = append(want, payload)
				}
				sw.Start() // now: the datagrams wait in the device's ring, so that the switch finds bursts
				got, reads := readDatagrams(t, sink, len(want))
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("datagram %d: %d bytes, or other ones; want %d", i, len(got[i]), len(want[i]))
					}
				}
				l := stopBalanced(t, sw)
				if l.Merged.Frames < 240 {
					t.Errorf("%d of %d frames saved, want 240 at least", l.Merged.Frames, len(want))
				}
				if gro && reads > len(want)-200 {
					t.Errorf("%d reads for %d datagrams with UDP_GRO", reads, len(want))
				}
			})
		}
	}
}

func stopBalanced(t *testing.T, sw *vswitch.Switch) vswitch.Ledger {
	t.Helper()
	l, err := sw.Stop()
	must(t, err)
	must(t, l.Check())
	return l
}

// A stream of single segments arrives whole, most of them merged.
func TestCoalescedStreamArrives(t *testing.T) {
	payload := make([]byte, 8<<20)
	r := seed.Rand(t)
	for i := range payload {
		payload[i] = byte(r.Uint32())
	}
	for _, v6 := range []bool{false, true} {
		sw, a, b := newTapSwitch(t)
		sw.Start()
		to := b.v4
		if v6 {
			to = b.v6
		}
		var listener net.Listener
		b.ns.Do(t, func() {
			var err error
			listener, err = net.Listen("tcp", netip.AddrPortFrom(to, 7).String())
			must(t, err)
		})
		sum := make(chan [sha256.Size]byte, 1)
		go func() { sum <- hashOf(t, listener) }()
		a.ns.Do(t, func() {
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
			must(t, err)
			_, err = conn.Write(payload)
			must(t, err)
			must(t, conn.Close())
		})
		if <-sum != sha256.Sum256(payload) {
			t.Errorf("ipv6 %t: the stream changed", v6)
		}
		listener.Close()
		if l := stopBalanced(t, sw); l.Merged.Frames == 0 {
			t.Errorf("ipv6 %t: none of %d frames saved", v6, l.Rx.Frames)
		}
	}
}

func hashOf(t *testing.T, l net.Listener) (sum [sha256.Size]byte) {
	conn, err := l.Accept()
	if err != nil {
		t.Error(err)
		return sum
	}
	defer conn.Close()
	h := sha256.New()
	if _, err := io.Copy(h, conn); err != nil {
		t.Error(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
