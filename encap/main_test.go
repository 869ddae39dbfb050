package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// node is one end of an underlay: a namespace with a device "under" and an address.
type node struct {
	ns     *nstest.NS
	addr   netip.Addr
	mac    net.HardwareAddr
	far    *node // the other end
	peers  *VTEPTable
	tunnel *Tunnel
}

// families are the underlay addresses of two nodes.
var families = map[string][2]netip.Addr{
	"IPv4": {netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("192.168.77.2")},
	"IPv6": {netip.MustParseAddr("fd00:77::1"), netip.MustParseAddr("fd00:77::2")},
}

// newUnderlay joins two nodes by a veth pair whose checksums are complete, as those of a real wire.
func newUnderlay(t *testing.T, family string) (a, b *node) {
	t.Helper()
	addrs := families[family]
	a = &node{ns: nstest.New(t), addr: addrs[0], mac: net.HardwareAddr{2, 0, 0, 0, 1, 1}, peers: &VTEPTable{}}
	b = &node{ns: nstest.New(t), addr: addrs[1], mac: net.HardwareAddr{2, 0, 0, 0, 1, 2}, peers: &VTEPTable{}, far: a}
	a.far = b
	a.ns.Do(t, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "under",
			PeerNamespace: netlink.NsFd(b.ns.FD())}))
	})
	must(t, a.peers.Set([]Peer{{Name: "b", Underlay: b.addr}}))
	must(t, b.peers.Set([]Peer{{Name: "a", Underlay: a.addr}}))
	for _, n := range []*node{a, b} {
		n.ns.Do(t, func() {
			link, err := netlink.LinkByName("under")
			must(t, err)
			must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: n.addr.AsSlice(),
				Mask: net.CIDRMask(n.addr.BitLen()-8, n.addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
			must(t, netlink.LinkSetHardwareAddr(link, n.mac))
			must(t, netlink.LinkSetUp(link))
			// A burst to a neighbour that the kernel has yet to find would overflow its queue.
			must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.far.addr.AsSlice(),
				HardwareAddr: n.far.mac, State: netlink.NUD_PERMANENT}))
			transmitChecksums(t, "under", false)
		})
	}
	for _, n := range []*node{a, b} {
		n.ns.Do(t, func() { n.waitUp(t) })
	}
	return a, b
}

// waitUp waits for what the kernel does behind the caller's back: until its link watch has run, a device
// silently drops what it is to send, and until its address work has run, an IPv6 address isn't local.
func (n *node) waitUp(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName("under")
		must(t, err)
		routes, err := netlink.RouteGet(n.addr.AsSlice())
		if link.Attrs().OperState == netlink.OperUp && err == nil && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
	t.Fatalf("the underlay of %v isn't up after 5 s", n.addr)
}

// transmitChecksums switches a device's transmit checksum offload, and with it segmentation offload.
func transmitChecksums(t *testing.T, device string, on bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	must(t, err)
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: 0x17} // ETHTOOL_STXCSUM of linux/ethtool.h
	if on {
		value.data = 1
	}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}{data: unsafe.Pointer(&value)}
	copy(ifreq.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		t.Fatalf("ethtool -K %s tx %t: %v", device, on, errno)
	}
}

// open opens the node's Tunnel.
func (n *node) open(t testing.TB, workers int) {
	t.Helper()
	n.ns.Do(t, func() { n.tunnel = openTunnel(t, n.addr, workers, n.peers) })
}

func openTunnel(t testing.TB, local netip.Addr, workers int, peers *VTEPTable) *Tunnel {
	t.Helper()
	tunnel, err := Open(Config{Name: "vxlan0", Local: local, Workers: workers, Peers: peers, Plain: true})
	must(t, err)
	t.Cleanup(func() { must(t, tunnel.Close()) })
	return tunnel
}

// sender sends as one worker does and keeps its counters.
type sender struct {
	pool *frame.Pool
	st   port.Stats
	q    port.TxQueue
	b    frame.Burst
}

func newSender(tunnel *Tunnel, worker int) *sender {
	s := &sender{pool: frame.NewPool(frame.BurstSize, frame.DefaultArena)}
	s.q = tunnel.Tx(worker, &s.st)
	return s
}

// add puts a frame to peer 1 into the next burst; its metadata are the caller's to set.
func (s *sender) add(t testing.TB, b []byte) *frame.Frame {
	t.Helper()
	buf := s.pool.Reserve(0, len(b))
	if buf == nil {
		t.Fatalf("no room for %d bytes", len(b))
	}
	copy(buf, b)
	f := s.pool.Commit(len(b))
	f.VNI, f.Peer = 42, 1
	s.b.Append(f)
	return f
}

// send sends the burst and requires that the frames' bytes are left as they were.
func (s *sender) send(t testing.TB) {
	t.Helper()
	var before [][]byte
	for _, f := range s.b.Frames() {
		before = append(before, bytes.Clone(f.Bytes()))
	}
	s.q.Send(&s.b)
	s.q.Flush()
	for i, f := range s.b.Frames() {
		if !bytes.Equal(f.Bytes(), before[i]) {
			t.Fatalf("Send changed the bytes of frame %d, which a clone may share", i)
		}
	}
	s.b.Release()
}

// counted is what the sender's or a receiver's counters say.
type counted struct{ frames, wire uint64 }

func tally(c *port.Tally) counted { return counted{c.Frames.Load(), c.Wire.Load()} }

// requireCounts requires that exactly these drops, and tx, were counted.
func requireCounts(t testing.TB, st *port.Stats, tx counted, drops map[drop.Reason]counted) {
	t.Helper()
	if got := tally(&st.Tx); got != tx {
		t.Errorf("tx %+v, want %+v", got, tx)
	}
	requireDrops(t, st, drops)
}

func requireDrops(t testing.TB, st *port.Stats, drops map[drop.Reason]counted) {
	t.Helper()
	for r := drop.None; r < drop.Count; r++ {
		if got := tally(&st.Drops[r]); got != drops[r] {
			t.Errorf("drops of %v: %+v, want %+v", r, got, drops[r])
		}
	}
}

// received is a frame outside of its pool.
type received struct {
	bytes []byte
	vni   uint32
	peer  uint32
	queue int
}

// receiver receives as one worker with all of a Tunnel's queues does.
type receiver struct {
	tunnel *Tunnel
	pool   *frame.Pool
	st     port.Stats
}

func newReceiver(tunnel *Tunnel) *receiver {
	return &receiver{tunnel: tunnel, pool: frame.NewPool(frame.BurstSize, frame.DefaultArena)}
}

// ready waits until one of the queues is readable; it returns false after the time is up.
func (r *receiver) ready(t testing.TB, wait time.Duration) bool {
	t.Helper()
	var fds []unix.PollFd
	for _, q := range r.tunnel.Rx() {
		fds = append(fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
	}
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		return n > 0
	}
	return false
}

// receive returns n frames, in the order of each queue, those of super-frames one by one.
func (r *receiver) receive(t testing.TB, n int) []received {
	t.Helper()
	var all []received
	for len(all) < n {
		some := r.some(t)
		if all = append(all, some...); len(some) == 0 {
			t.Fatalf("%d of %d frames arrived", len(all), n)
		}
	}
	if len(all) > n {
		t.Fatalf("%d frames arrived, want %d", len(all), n)
	}
	return all
}

// some waits for frames and returns those that are there, none after 2 s.
func (r *receiver) some(t testing.TB) (all []received) {
	t.Helper()
	for len(all) == 0 && r.ready(t, 2*time.Second) {
		for i, q := range r.tunnel.Rx() {
			for more := true; more; {
				var b frame.Burst
				more = q.Recv(0, &b, r.pool, &r.st)
				for _, f := range b.Frames() {
					for _, b := range wireForm(t, f.Bytes(), f.Meta) {
						all = append(all, received{b, f.VNI, f.Peer, i})
					}
				}
				b.Release()
			}
		}
	}
	if r.pool.Live() != 0 {
		t.Fatalf("%d frames live", r.pool.Live())
	}
	return all
}

var (
	macA = wire.MAC{0x02, 0, 0, 0, 0, 0x0a}
	macB = wire.MAC{0x02, 0, 0, 0, 0, 0x0b}
	ipA  = netip.MustParseAddr("10.9.0.1")
	ipB  = netip.MustParseAddr("10.9.0.2")
)

// udpFrame returns a UDP frame from A to B with a partial checksum, and the metadata of a TAP for it;
// gso is 0 for one that is no super-frame.
func udpFrame(dstPort uint16, payload []byte, gso int) ([]byte, frame.Meta) {
	const l4 = wire.EthernetLen + wire.IPv4MinLen
	b := make([]byte, l4+wire.UDPLen, l4+wire.UDPLen+len(payload))
	n := wire.UDPLen + len(payload)
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: macB, Src: macA, EtherType: wire.EtherTypeIPv4})
	ip := b[wire.EthernetLen:]
	wire.IPv4(ip).Encode(&wire.IPv4Fields{TotalLen: uint16(wire.IPv4MinLen + n), TTL: 64, Protocol: wire.ProtoUDP, Src: ipA, Dst: ipB})
	sum := wire.Fold(wire.PseudoHeader(ip, false, wire.ProtoUDP, n))
	wire.UDP(b[l4:]).Encode(&wire.UDPFields{SrcPort: 4000, DstPort: dstPort, Length: uint16(n), Checksum: sum})
	m := frame.Meta{VNI: 42, Peer: 1, NeedsCsum: true, CsumStart: l4, CsumOffset: wire.UDPChecksumOffset, HdrLen: l4 + wire.UDPLen}
	if gso > 0 {
		m.GSOType, m.GSOSize = wire.GSOUDPL4, uint16(gso)
	}
	return append(b, payload...), m
}

// wireForm returns what a frame must look like on the wire: its segments, or itself with its checksum.
// That these are right is tested in package frame, against the kernel.
func wireForm(t testing.TB, b []byte, m frame.Meta) (all [][]byte) {
	t.Helper()
	b = bytes.Clone(b)
	p := frame.NewPool(1, frame.DefaultArena)
	f := p.Commit(copy(p.Reserve(0, len(b)), b))
	f.Meta = m
	if !m.IsSuper() {
		if m.NeedsCsum && !frame.CompleteChecksum(f) {
			t.Fatalf("the test's checksum can't be completed: %+v", m)
		}
		return [][]byte{f.Bytes()}
	}
	var s frame.Segmenter
	if !s.Start(f) {
		t.Fatalf("the test's super-frame can't be cut: %+v", m)
	}
	for {
		hdr := make([]byte, frame.MaxHeaderLen)
		n, payload, ok := s.Next(hdr)
		if !ok {
			return all
		}
		all = append(all, append(hdr[:n], payload...))
	}
}

// strangerTo returns a socket that sends from local to the tunnel's address, without a Tunnel.
func strangerTo(t testing.TB, local, remote netip.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, DefaultPort)))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// vxlan returns a datagram with the frame, written without package wire.
func vxlan(vni uint32, inner []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8)
	return append(b, inner...)
}
