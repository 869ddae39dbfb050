package port

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// listen opens a UDP socket in the pod.
func (p *pod) listen(t *testing.T, a netip.Addr, portNumber uint16) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	p.ns.Do(t, func() {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, portNumber)))
		check(t, err)
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// sendUSO sends payload to the address with UDP_SEGMENT, so that the kernel makes one super-frame of it.
func sendUSO(t *testing.T, conn *net.UDPConn, to netip.AddrPort, payload []byte, size int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		check(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size))
	}))
	_, err = conn.WriteToUDPAddrPort(payload, to)
	check(t, err)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// The kernel's own stack hands over a UDP super-frame with partial checksum, and takes one: what a socket in one
// pod sent comes out of a socket in the other, datagram by datagram. Both families, a shorter last segment.
func TestUSO(t *testing.T) { forPairs(t, testUSO) }

// forPairs runs a test for pods 1 and 2 with each pair of port kinds.
func forPairs(t *testing.T, test func(t *testing.T, a, b *pod)) {
	for from, newA := range pods {
		for to, newB := range pods {
			t.Run(from+" to "+to, func(t *testing.T) { test(t, newA(t, 1), newB(t, 2)) })
		}
	}
}

func testUSO(t *testing.T, a, b *pod) {
	if a.port.Caps() != CapsAll {
		t.Fatalf("capabilities %05b, want all of them: this needs a kernel of 6.2 or later", a.port.Caps())
	}
	payload := pattern(5*1000 + 300)
	for _, c := range []struct {
		from, to netip.Addr
		ipLen    uint16
	}{
		{podIPv4(1), podIPv4(2), wire.IPv4MinLen},
		{podIPv6(1), podIPv6(2), wire.IPv6Len},
	} {
		sink := b.listen(t, c.to, 7)
		sendUSO(t, a.listen(t, c.from, 0), netip.AddrPortFrom(c.to, 7), payload, 1000)
		got := a.expect(t, wire.ProtoUDP)
		m := got.meta
		if m.GSOType != wire.GSOUDPL4 || m.GSOSize != 1000 || !m.NeedsCsum || m.CsumStart != wire.EthernetLen+c.ipLen || m.CsumOffset != 6 {
			t.Errorf("to %v: metadata %+v", c.to, m)
		}
		if !bytes.Equal(got.bytes[got.parsed.Payload:got.parsed.End], payload) {
			t.Errorf("to %v: the payload changed", c.to)
		}
		m.HdrLen = uint16(got.parsed.Payload) // the tun driver's own is a hint, the switch sets it anew
		if n := m.WireFrames(len(got.bytes)); n != 6 {
			t.Errorf("to %v: stands for %d frames, want 6", c.to, n)
		}
		before := b.st.Tx.Wire.Load()
		b.send(t, m, got.bytes)
		if n := b.st.Tx.Wire.Load() - before; n != 6 {
			t.Errorf("to %v: %d wire frames counted, want 6", c.to, n)
		}
		expectDatagrams(t, sink, payload, 1000)
	}
	if n, size := b.st.Tx.Frames.Load(), b.st.TxBytes.Load(); n != 2 || size != 2*uint64(14+8+len(payload))+20+40 {
		t.Errorf("%d frames of %d bytes counted", n, size)
	}
}

// expectDatagrams reads payload in datagrams of size bytes.
func expectDatagrams(t *testing.T, sink *net.UDPConn, payload []byte, size int) {
	t.Helper()
	check(t, sink.SetReadDeadline(time.Now().Add(patience)))
	for len(payload) > 0 {
		want := payload[:min(size, len(payload))]
		buf := make([]byte, 2*size)
		n, err := sink.Read(buf)
		check(t, err)
		if !bytes.Equal(buf[:n], want) {
			t.Errorf("a datagram of %d bytes, or other ones; want %d", n, len(want))
		}
		payload = payload[len(want):]
	}
}

// seen is what forward saw.
type seen struct {
	frames, wire int
	gso          map[uint8]int
	partial      int
}

// forward is a switch for two pods: what one sends, the other receives. It ends when stop is closed.
func forward(t *testing.T, a, b *pod, stop chan struct{}) (s seen) {
	s.gso = map[uint8]int{}
	for from, to := a, b; ; from, to = to, from {
		select {
		case <-stop:
			return s
		default:
		}
		burst := from.recv(t, time.Millisecond)
		for _, f := range burst.Frames() {
			var p wire.Parsed
			if wire.Parse(f.Bytes(), f.IsSuper(), &p) == wire.FaultNone {
				f.HdrLen = uint16(p.Payload)
			}
			s.frames++
			s.wire += f.Wire()
			s.gso[f.GSOType]++
			if f.NeedsCsum {
				s.partial++
			}
		}
		to.tx.Send(burst)
		to.tx.Flush()
		burst.Release()
	}
}

// A TCP stream between two pods' kernels goes through Recv and Send as super-frames with partial checksums, and
// arrives whole.
func TestTSO(t *testing.T) { forPairs(t, testTSO) }

func testTSO(t *testing.T, a, b *pod) {
	size := 16 << 20
	if testing.Short() {
		size = 1 << 20
	}
	for _, c := range []struct {
		name string
		to   netip.Addr
		gso  uint8
	}{
		{"tcp4", podIPv4(2), wire.GSOTCPv4},
		{"tcp6", podIPv6(2), wire.GSOTCPv6},
	} {
		payload := pattern(size)
		sum, s := stream(t, a, b, c.name, netip.AddrPortFrom(c.to, 7).String(), payload)
		if sum != sha256.Sum256(payload) {
			t.Errorf("%s: the stream changed", c.name)
		}
		// At the MTU of 1,500 a payload of size bytes is at least size/1460 segments. That a super-frame
		// holds 4 of them on average is far from the 44 that fit 64 KiB.
		if s.gso[c.gso] == 0 || s.partial == 0 || s.wire < size/1460 || s.wire < 4*s.gso[c.gso] {
			t.Errorf("%s: %d frames, %d on the wire, by GSO type %v, %d with a partial checksum", c.name, s.frames, s.wire, s.gso, s.partial)
		}
	}
	for i := range b.st.Drops {
		if n := b.st.Drops[i].Frames.Load(); n > 0 && drop.Reason(i) != drop.TxFull {
			t.Errorf("%d frames dropped: %v", n, drop.Reason(i))
		}
	}
}

// stream sends payload from a's kernel to b's, and returns the hash of what arrived and what was forwarded.
func stream(t *testing.T, a, b *pod, network, to string, payload []byte) (sum [sha256.Size]byte, s seen) {
	t.Helper()
	var listener net.Listener
	b.ns.Do(t, func() {
		var err error
		listener, err = net.Listen(network, to)
		check(t, err)
	})
	stop := make(chan struct{})
	var switching, receiving sync.WaitGroup
	switching.Go(func() { s = forward(t, a, b, stop) })
	receiving.Go(func() { sum = receiveAll(t, listener) })
	defer func() { // also when transmit ends the test
		listener.Close()
		receiving.Wait()
		close(stop)
		switching.Wait()
	}()
	a.ns.Do(t, func() { transmit(t, listener.Addr(), payload) })
	receiving.Wait()
	return sum, s
}

func receiveAll(t *testing.T, l net.Listener) [sha256.Size]byte {
	conn, err := l.Accept()
	if err != nil {
		t.Error(err)
		return [sha256.Size]byte{}
	}
	defer conn.Close()
	h := sha256.New()
	conn.SetDeadline(time.Now().Add(3 * patience))
	if _, err := io.Copy(h, conn); err != nil {
		t.Error(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// transmit is called inside the pod.
func transmit(t *testing.T, to net.Addr, payload []byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", to.String(), patience)
	check(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * patience))
	_, err = conn.Write(payload)
	check(t, err)
}

// udpFrame is a plain datagram from pod 1 to pod 2 with a complete checksum.
func udpFrame(payload []byte) []byte {
	b := make([]byte, wire.EthernetLen+wire.IPv4MinLen+wire.UDPLen+len(payload))
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: podMAC(2), Src: podMAC(1), EtherType: wire.EtherTypeIPv4})
	ip := wire.IPv4(b[wire.EthernetLen:])
	l4len := wire.UDPLen + len(payload)
	ip.Encode(&wire.IPv4Fields{TotalLen: uint16(wire.IPv4MinLen + l4len), TTL: 64, Protocol: wire.ProtoUDP, Src: podIPv4(1), Dst: podIPv4(2)})
	udp := wire.UDP(ip[wire.IPv4MinLen:])
	copy(udp[wire.UDPLen:], payload)
	udp.Encode(&wire.UDPFields{SrcPort: 9, DstPort: 7, Length: uint16(l4len)})
	udp.SetChecksum(wire.Checksum(udp, wire.PseudoHeader(ip, false, wire.ProtoUDP, l4len)))
	return b
}

// Metadata that the kernel finds inconsistent is refused and counted, and the next frame goes through.
func TestSendRefusesBadMetadata(t *testing.T) { forEngines(t, testSendRefusesBadMetadata) }

func testSendRefusesBadMetadata(t *testing.T, newPod func(testing.TB, int) *pod) {
	p := newPod(t, 2)
	sink := p.listen(t, podIPv4(2), 7)
	p.send(t, frame.Meta{NeedsCsum: true, CsumStart: 60_000, CsumOffset: 6}, udpFrame([]byte("bad")))
	if n := p.st.Drops[drop.TxError].Frames.Load(); n != 1 || p.st.Tx.Frames.Load() != 0 {
		t.Errorf("%d counted as tx_error, %d as sent", n, p.st.Tx.Frames.Load())
	}
	p.send(t, frame.Meta{}, udpFrame([]byte("good")))
	expectDatagrams(t, sink, []byte("good"), 100)
}

// A pod that is down, and one whose device is deleted, both count what was for them.
func TestSendToDownedAndDeleted(t *testing.T) { forEngines(t, testSendToDownedAndDeleted) }

func testSendToDownedAndDeleted(t *testing.T, newPod func(testing.TB, int) *pod) {
	p := newPod(t, 2)
	sink := p.listen(t, podIPv4(2), 7)
	p.ns.Do(t, func() { check(t, netlink.LinkSetDown(eth0(t))) })
	p.send(t, frame.Meta{}, udpFrame([]byte("down")))
	if n := p.st.Drops[drop.PortGone].Frames.Load(); n != 1 || p.tap.Gone() {
		t.Errorf("down: %d counted as port_gone, gone %t; want 1, false", n, p.tap.Gone())
	}
	p.ns.Do(t, func() { check(t, netlink.LinkSetUp(eth0(t))) })
	p.send(t, frame.Meta{}, udpFrame([]byte("up again")))
	expectDatagrams(t, sink, []byte("up again"), 100)

	p.ns.Do(t, func() { check(t, netlink.LinkDel(eth0(t))) })
	p.send(t, frame.Meta{}, udpFrame([]byte("deleted")))
	if n := p.st.Drops[drop.PortGone].Frames.Load(); n != 2 || !p.tap.Gone() {
		t.Errorf("deleted: %d counted as port_gone, gone %t; want 2, true", n, p.tap.Gone())
	}
	b := p.recv(t, 0)
	if b.Len() != 0 {
		t.Errorf("%d frames received from a deleted device", b.Len())
	}
	if _, err := p.tap.KernelDrops(); !errors.Is(err, unix.EBADFD) {
		t.Errorf("drop counter of a deleted device: %v, want EBADFD", err)
	}
}

func eth0(t testing.TB) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName("eth0")
	check(t, err)
	return link
}

// A device that MakeTAP has made goes with its descriptors until Persist, and is nobody else's. Delete frees its name at once,
// and its namespace, of which nobody else knows any more, when it has ended.
func TestMadeTAP(t *testing.T) {
	for _, queues := range []int{1, 2} {
		ns := nstest.New(t)
		links := func() (names []string) {
			ns.Do(t, func() {
				list, err := net.Interfaces()
				check(t, err)
				for _, i := range list {
					names = append(names, i.Name)
				}
			})
			return names
		}
		make := func(device string) (tap *TAP, err error) {
			ns.Do(t, func() { tap, err = MakeTAP(TAPConfig{Device: device, PortName: "p", Queues: queues}) })
			return tap, err
		}
		tap, err := make("eth0")
		check(t, err)
		for _, taken := range []string{"eth0", "lo"} {
			if _, err := make(taken); !errors.Is(err, ErrDeviceExists) || !strings.Contains(err.Error(), taken) {
				t.Errorf("%s again: %v, want ErrDeviceExists", taken, err)
			}
		}
		check(t, tap.Close())
		if l := links(); len(l) != 1 {
			t.Errorf("after Close: %q, want lo", l)
		}
		tap, err = make("eth0")
		check(t, err)
		check(t, tap.Persist())
		check(t, tap.Close())
		if l := links(); len(l) != 2 {
			t.Errorf("persistent, after Close: %q, want lo and eth0", l)
		}
		ns.Do(t, func() {
			tap, err = OpenTAP(TAPConfig{Device: "eth0", PortName: "p", Queues: queues})
			check(t, err)
		})
		ended, err := tap.Delete()
		check(t, err)
		again, err := make("eth0")
		check(t, err)
		<-ended
		check(t, again.Close())
		if l := links(); len(l) != 1 {
			t.Errorf("after Delete and Close: %q, want lo", l)
		}
	}
}

// Close leaves the device with its address for the next agent, which attaches in the namespace; Remove takes it
// away.
func TestCloseKeepsAndRemoveDestroys(t *testing.T) { forEngines(t, testCloseKeepsAndRemoveDestroys) }

func testCloseKeepsAndRemoveDestroys(t *testing.T, newPod func(testing.TB, int) *pod) {
	p := newPod(t, 2)
	sink := p.listen(t, podIPv4(2), 7)
	check(t, p.tap.Close())
	p.ns.Do(t, func() {
		eth0(t)
		var err error
		p.tap, err = OpenTAP(TAPConfig{Device: "eth0", PortName: "p", Rings: p.rings})
		check(t, err)
	})
	p.tx = p.tap.Tx(0, &p.st)
	p.send(t, frame.Meta{}, udpFrame([]byte("still there")))
	expectDatagrams(t, sink, []byte("still there"), 100)
	check(t, p.tap.Remove())
	p.ns.Do(t, func() {
		var missing netlink.LinkNotFoundError
		if _, err := netlink.LinkByName("eth0"); !errors.As(err, &missing) {
			t.Errorf("after Remove: %v, want that there is no eth0", err)
		}
	})
}

// An agent that starts while its predecessor's descriptor is about to close waits for it; one that finds a second
// agent says so.
func TestOpenWaitsForThePredecessor(t *testing.T) {
	check(t, CreateTAP("tmp0"))
	first, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "first"})
	check(t, err)
	if !testing.Short() { // this takes busyWait, 2 s
		if _, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "second"}); !errors.Is(err, ErrDeviceBusy) || !strings.Contains(err.Error(), "tmp0") {
			t.Errorf("a second OpenTAP: %v, want ErrDeviceBusy with the device's name", err)
		}
	}
	time.AfterFunc(50*time.Millisecond, func() { first.Close() })
	second, err := OpenTAP(TAPConfig{Device: "tmp0", PortName: "second"})
	check(t, err)
	check(t, second.Remove())
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct{ device, says string }{
		{"a-name-of-16-byt", "16 characters, at most 15"},
		{"lo", "TUNSETIFF"},
	} {
		if _, err := OpenTAP(TAPConfig{Device: c.device}); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.device) {
			t.Errorf("OpenTAP(%q): %v, want %q", c.device, err, c.says)
		}
	}
}

func TestCapsTakes(t *testing.T) {
	for _, c := range []struct {
		caps Caps
		meta frame.Meta
		want bool
	}{
		{0, frame.Meta{}, true},
		{0, frame.Meta{NeedsCsum: true}, false},
		{CapCsum, frame.Meta{NeedsCsum: true}, true},
		{CapCsum | CapTSO4, frame.Meta{NeedsCsum: true, GSOType: wire.GSOTCPv4}, true},
		{CapTSO4, frame.Meta{NeedsCsum: true, GSOType: wire.GSOTCPv4}, false},
		{CapCsum | CapTSO4, frame.Meta{NeedsCsum: true, GSOType: wire.GSOTCPv6}, false},
		{CapCsum | CapTSO6, frame.Meta{NeedsCsum: true, GSOType: wire.GSOTCPv6 | wire.GSOECN}, false},
		{CapCsum | CapTSO6 | CapTSOECN, frame.Meta{NeedsCsum: true, GSOType: wire.GSOTCPv6 | wire.GSOECN}, true},
		{CapsAll &^ CapUSO, frame.Meta{NeedsCsum: true, GSOType: wire.GSOUDPL4}, false},
		{CapsAll, frame.Meta{NeedsCsum: true, GSOType: wire.GSOUDPL4}, true},
	} {
		if got := c.caps.Takes(&c.meta); got != c.want {
			t.Errorf("capabilities %05b take %+v: %t, want %t", c.caps, c.meta, got, c.want)
		}
	}
}
