package encap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// Frames of any bytes and length cross with their VNI and sender; a flow keeps its order and its queue;
// several flows reach several queues.
func TestExchange(t *testing.T) {
	const flows, bursts = 40, 3
	for family := range families {
		t.Run(family, func(t *testing.T) {
			r := newRand(t)
			a, b := newUnderlay(t, family)
			a.open(t, 2)
			b.open(t, 3)
			for _, way := range []struct{ from, to *node }{{a, b}, {b, a}} {
				out, in := newSender(way.from.tunnel, 1), newReceiver(way.to.tunnel)
				var want [flows][]received
				for range bursts {
					for range frame.BurstSize {
						flow := r.IntN(flows)
						bytes := randomBytes(r, 8+r.IntN(1400))
						binary.BigEndian.PutUint32(bytes, uint32(flow))
						binary.BigEndian.PutUint32(bytes[4:], uint32(len(want[flow])))
						f := out.add(t, bytes)
						f.VNI, f.Hash = r.Uint32N(1<<24), uint32(flow)*0x10001
						want[flow] = append(want[flow], received{bytes, f.VNI, 1, -1})
					}
					out.send(t)
				}
				all := in.receive(t, bursts*frame.BurstSize)
				requireFlows(t, want[:], all)
				requireCounts(t, &out.st, counted{bursts * frame.BurstSize, bursts * frame.BurstSize}, nil)
				requireDrops(t, &in.st, nil)
			}
		})
	}
}

// requireFlows requires that each flow arrived in order and on one queue; a frame begins with the number of
// its flow and its place in it.
func requireFlows(t *testing.T, want [][]received, all []received) {
	t.Helper()
	next, queue, queues := make([]int, len(want)), map[uint32]int{}, map[int]bool{}
	for _, got := range all {
		flow, place := binary.BigEndian.Uint32(got.bytes), binary.BigEndian.Uint32(got.bytes[4:])
		if int(place) != next[flow] {
			t.Fatalf("flow %d: frame %d arrived in the place of frame %d", flow, place, next[flow])
		}
		next[flow]++
		if place == 0 {
			queue[flow] = got.queue
		}
		if queue[flow] != got.queue {
			t.Fatalf("flow %d: frame %d arrived on queue %d, earlier ones on %d", flow, place, got.queue, queue[flow])
		}
		w := want[flow][place]
		if !bytes.Equal(got.bytes, w.bytes) || got.vni != w.vni || got.peer != w.peer {
			t.Fatalf("flow %d: frame %d arrived as %d bytes, VNI %d, peer %d; want %d bytes, VNI %d, peer %d", flow, place,
				len(got.bytes), got.vni, got.peer, len(w.bytes), w.vni, w.peer)
		}
		queues[got.queue] = true
	}
	if len(queues) < 2 {
		t.Errorf("all flows arrived on one queue: %v", queues)
	}
}

// Super-frames go out as their segments and partial checksums complete, in order among plain frames.
func TestOffloads(t *testing.T) {
	r := newRand(t)
	a, b := newUnderlay(t, "IPv6")
	a.open(t, 1)
	b.open(t, 1)
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	var want [][]byte
	wireFrames := uint64(0)
	for i, kind := range []struct{ payload, gso int }{
		{61600, 1400}, {100, 0}, {0, 0}, {60001, 1000}, {50, 100}, {301, 3}, {101, 0}, {500, 0},
	} {
		bytes, m := udpFrame(5000, randomBytes(r, kind.payload), kind.gso)
		if i == 7 { // a plain frame
			m.NeedsCsum = false
		}
		f := out.add(t, bytes)
		f.Meta = m
		forms := wireForm(t, bytes, m)
		want = append(want, forms...)
		wireFrames += uint64(len(forms))
	}
	out.send(t)
	requireCounts(t, &out.st, counted{8, wireFrames}, nil)
	for i, got := range in.receive(t, len(want)) {
		if !bytes.Equal(got.bytes, want[i]) {
			t.Fatalf("frame %d\n got %x\nwant %x", i, got.bytes, want[i])
		}
	}
}

// A frame that can't be sent is counted with its reason and takes no other one with it, not even one of
// the same source socket.
func TestSendDrops(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			other, nowhere := netip.MustParseAddr("192.168.99.9"), netip.MustParseAddr("fd00:99::9")
			if family == "IPv4" {
				other, nowhere = nowhere, other
			}
			must(t, a.peers.Set([]Peer{{Name: "b", Underlay: b.addr}, {Name: "nowhere", Underlay: nowhere}, {Name: "other", Underlay: other}}))
			a.open(t, 1)
			b.open(t, 1)
			out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
			if err := a.tunnel.LastError(); err != nil {
				t.Errorf("an error before the first frame: %v", err)
			}
			small := []byte("a frame as good as any")
			super, superMeta := udpFrame(5000, make([]byte, 6000), 1000)
			tooBig, tooBigMeta := udpFrame(5000, make([]byte, 6000), 1480)
			out.add(t, small)
			out.add(t, make([]byte, 1500))
			out.add(t, small)
			out.add(t, tooBig).Meta = tooBigMeta
			out.add(t, super).Meta = superMeta
			out.add(t, small).Peer = 99
			out.add(t, small).Peer = 2 // no route
			out.add(t, small)
			broken := out.add(t, super)
			broken.Meta = superMeta
			broken.HdrLen++
			broken = out.add(t, super)
			broken.NeedsCsum, broken.CsumStart = true, 65535
			out.send(t)
			requireCounts(t, &out.st, counted{4, 9}, map[drop.Reason]counted{
				drop.TooBig: {2, 1 + 5}, drop.UnknownPeer: {1, 1}, drop.TxError: {1, 1}, drop.BadOffload: {2, 6 + 1},
			})
			in.receive(t, 9)
			requireLastError(t, a.tunnel, "nowhere", unix.ENETUNREACH)

			out.add(t, small).Peer = 3
			out.send(t)
			requireLastError(t, a.tunnel, "other", map[string]unix.Errno{"IPv4": unix.EAFNOSUPPORT, "IPv6": unix.ENETUNREACH}[family])
			must(t, a.peers.Set(nil))
			requireLastError(t, a.tunnel, "gone", 0)
			out.add(t, small)
			out.send(t)
			if got := tally(&out.st.Drops[drop.UnknownPeer]); got != (counted{2, 2}) {
				t.Errorf("a frame to a removed peer: %+v dropped in all, want 2", got)
			}
		})
	}
}

func requireLastError(t *testing.T, tunnel *Tunnel, peer string, errno unix.Errno) {
	t.Helper()
	err := tunnel.LastError()
	if err == nil || errno != 0 && !errors.Is(err, errno) || !bytes.Contains([]byte(err.Error()), []byte(peer)) {
		t.Errorf("LastError %q, want one with %q and %v", err, peer, errno)
	}
}

// A device that holds datagrams back fills the socket's buffer; that is counted, and what was counted as
// sent comes out in the end.
func TestSendBufferFull(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	a.ns.Do(t, func() {
		link, err := netlink.LinkByName("under")
		must(t, err)
		// 1 GB may wait, and goes at 100 kB/s.
		must(t, netlink.QdiscAdd(&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index,
			Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, Rate: 100_000, Buffer: 1_000_000, Limit: 1 << 30}))
	})
	a.open(t, 1)
	b.open(t, 1)
	out := newSender(a.tunnel, 0)
	super, meta := udpFrame(5000, make([]byte, 60000), 1000)
	sent := 0
	for out.st.Drops[drop.TxFull].Frames.Load() == 0 {
		for range 8 {
			out.add(t, super).Meta = meta
			sent++
		}
		if out.send(t); sent > 10000 {
			t.Fatal("600 MB fit into a buffer of 8 MiB")
		}
	}
	tx, full := tally(&out.st.Tx), tally(&out.st.Drops[drop.TxFull])
	if tx.frames+full.frames != uint64(sent) || tx.wire+full.wire != 60*uint64(sent) {
		t.Errorf("of %d frames with 60 segments each, %+v are counted as sent and %+v as dropped", sent, tx, full)
	}
	// The smallest segment with its headers and skb is charged less than 4 KiB, the buffer is 2 × 4 MiB.
	if tx.wire < 2048 {
		t.Errorf("only %d segments fit into the socket's buffer", tx.wire)
	}
	// Another flow has another socket.
	f := out.add(t, []byte("another flow"))
	f.Hash = 1
	out.send(t)
	if got := tally(&out.st.Tx); got.frames != tx.frames+1 {
		t.Errorf("a full lane stopped another one: %+v sent, before %+v", got, tx)
	}
}

func TestSendAndRecvDoNotAllocate(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	out, in := newSender(tunnel, 0), newReceiver(tunnel)
	super, meta := udpFrame(5000, make([]byte, 5000), 1000)
	q := tunnel.Rx()[0]
	var b frame.Burst
	n := testing.AllocsPerRun(50, func() {
		for i := range 30 {
			out.add(t, super[:60]).Hash = uint32(i)
		}
		partial := out.add(t, super)
		partial.Meta = meta
		partial.GSOType = wire.GSONone
		out.add(t, super).Meta = meta
		out.add(t, super).Peer = 77
		out.q.Send(&out.b)
		out.q.Flush()
		out.b.Release()
		q.Recv(&b, in.pool, &in.st)
		b.Release()
	})
	if n != 0 {
		t.Errorf("%v allocations per burst", n)
	}
	if got := tally(&out.st.Tx); got.frames != 51*32 { // AllocsPerRun runs once more
		t.Errorf("sent %+v", got)
	}
}

// loopbackTunnel opens a tunnel with one worker on lo, in a namespace of its own.
func loopbackTunnel(t *testing.T) (*Tunnel, *VTEPTable, *nstest.NS) {
	t.Helper()
	n := &node{ns: nstest.New(t), addr: netip.MustParseAddr("127.0.0.1"), peers: &VTEPTable{}}
	n.open(t, 1)
	return n.tunnel, n.peers, n.ns
}

// Whoever starts a second switch, or has a vxlan device, reads who is in the way.
func TestPortTaken(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	us := fmt.Sprintf("encap.test (pid %d)", os.Getpid())
	for name, test := range map[string]struct {
		take func()
		want string
	}{
		"same address":   {func() { takePort(t, &unix.SockaddrInet4{Addr: local.As4(), Port: DefaultPort}, 0) }, us},
		"shared":         {func() { takePort(t, &unix.SockaddrInet4{Addr: local.As4(), Port: DefaultPort}, 1) }, us},
		"all IPv4":       {func() { takePort(t, &unix.SockaddrInet4{Port: DefaultPort}, 0) }, us},
		"all":            {func() { takePort(t, &unix.SockaddrInet6{Port: DefaultPort}, 0) }, us},
		"another Tunnel": {func() { openTunnel(t, local, 2, &VTEPTable{}) }, us},
		"kernel": {func() {
			vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx"}, VxlanId: 1, Port: DefaultPort}
			must(t, netlink.LinkAdd(vx))
			must(t, netlink.LinkSetUp(vx))
		}, "the kernel (a vxlan device?"},
	} {
		nstest.New(t).Do(t, func() {
			test.take()
			before := descriptors(t)
			_, err := Open(Config{Name: "vxlan0", Local: local, Workers: 2, Peers: &VTEPTable{}})
			if !errors.Is(err, unix.EADDRINUSE) || !bytes.Contains([]byte(err.Error()), []byte(test.want)) {
				t.Errorf("%s: error %q, want one with %q", name, err, test.want)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%s: %d descriptors before, %d after a failed Open", name, before, after)
			}
		})
	}
}

func takePort(t *testing.T, sa unix.Sockaddr, share int) {
	t.Helper()
	family := unix.AF_INET
	if _, v6 := sa.(*unix.SockaddrInet6); v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, share))
	must(t, unix.Bind(fd, sa))
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		local string
		want  string
	}{
		{"203.0.113.9", "hasn't that address"},
		{"0.0.0.0", "not one node's"},
		{"ff02::1", "not one node's"},
		{"fe80::1", "one link only"},
		{"255.255.255.255", "not one node's"},
	} {
		before := descriptors(t)
		_, err := Open(Config{Name: "vxlan0", Local: netip.MustParseAddr(test.local), Workers: 1, Peers: &VTEPTable{}})
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(test.want)) {
			t.Errorf("%s: error %v, want one with %q", test.local, err, test.want)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%s: %d descriptors before, %d after a failed Open", test.local, before, after)
		}
	}
}

// Source ports that others have are left out.
func TestSourcePortsTaken(t *testing.T) {
	nstest.New(t).Do(t, func() {
		for _, p := range []int{firstSourcePort, firstSourcePort + 3} {
			takePort(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: p}, 0)
		}
		tunnel := openTunnel(t, netip.MustParseAddr("127.0.0.1"), 1, &VTEPTable{})
		seen := map[int]bool{firstSourcePort: true, firstSourcePort + 3: true}
		for _, q := range tunnel.tx {
			for _, fd := range q.source {
				sa, err := unix.Getsockname(fd)
				must(t, err)
				p := sa.(*unix.SockaddrInet4).Port
				if p < firstSourcePort || p > lastSourcePort || seen[p] {
					t.Errorf("source port %d", p)
				}
				seen[p] = true
			}
		}
		if len(seen) != 2+2*lanes {
			t.Errorf("%d source ports of one worker and the slow one", len(seen)-2)
		}
	})
}

// What the sockets lost and what they delivered add up to what was sent.
func TestKernelDrops(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	out, in := newSender(tunnel, 0), newReceiver(tunnel)
	if n, err := tunnel.KernelDrops(); n != 0 || err != nil {
		t.Fatalf("%d drops before the first datagram: %v", n, err)
	}
	for range 300 {
		for range frame.BurstSize {
			out.add(t, make([]byte, 60))
		}
		out.send(t)
	}
	lost, err := tunnel.KernelDrops()
	must(t, err)
	if lost == 0 {
		t.Fatal("19,200 datagrams fit into a buffer of 8 MiB")
	}
	sent := out.st.Tx.Frames.Load()
	in.receive(t, int(sent-lost))
	if in.ready(t, 50*time.Millisecond) {
		t.Error("more was received than sent less lost")
	}
}
