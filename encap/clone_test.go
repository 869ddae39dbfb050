package encap

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
)

// Head-end replication: a burst of clones of one frame, which share its bytes, reaches as many peers as it
// has frames, each complete: gopacket reads the wire, and the kernel's device checks every checksum.
func TestClonesToManyPeers(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			r := seed.Rand(t)
			a, b := newUnderlay(t, family)
			addrs := b.manyAddresses(t, frame.BurstSize)
			a.open(t, 1)
			conn := b.kernelVXLAN(t)
			bigBuffer(t, conn)
			var fd int
			b.ns.Do(t, func() { fd = capture(t, "under") })
			must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
			out := newSender(a.tunnel, 0)
			var sent counted
			for _, kind := range []struct{ payload, gso int }{{1000, 0}, {1201, 0}, {6000, 1300}, {13000, 1300}, {30, 3}} {
				inner, m := udpFrame(5000, randomBytes(r, kind.payload), kind.gso)
				if kind.payload == 1000 { // a plain frame
					inner, m = wireForm(t, inner, m)[0], frame.Meta{VNI: 42, Peer: 1}
				}
				f := out.add(t, inner)
				f.Meta = m
				f.Peer = a.peers.LookupName(addrs[0].String()).Index
				for _, addr := range addrs[1:] {
					c := f.Clone()
					c.Peer = a.peers.LookupName(addr.String()).Index
					out.b.Append(c)
				}
				out.send(t)
				forms := wireForm(t, inner, m)
				requireReplicas(t, fd, a.addr, addrs, forms)
				for range addrs {
					for _, form := range forms {
						requireDatagrams(t, conn, form[42:], 0)
					}
				}
				sent = counted{sent.frames + frame.BurstSize, sent.wire + frame.BurstSize*uint64(len(forms))}
				requireCounts(t, &out.st, sent, nil)
			}
		})
	}
}

// manyAddresses gives n that many underlay addresses more, which are the peers of the far end from then on.
func (n *node) manyAddresses(t *testing.T, count int) (addrs []netip.Addr) {
	t.Helper()
	var peers []Peer
	for i := range count {
		bytes := n.addr.AsSlice()
		bytes[len(bytes)-1] = byte(100 + i)
		addr, _ := netip.AddrFromSlice(bytes)
		addrs = append(addrs, addr)
		peers = append(peers, Peer{Name: addr.String(), Underlay: addr})
	}
	must(t, n.far.peers.Set(peers))
	n.far.ns.Do(t, func() {
		link, err := netlink.LinkByName("under")
		must(t, err)
		for _, addr := range addrs {
			must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: n.mac,
				State: netlink.NUD_PERMANENT}))
		}
	})
	n.ns.Do(t, func() {
		link, err := netlink.LinkByName("under")
		must(t, err)
		for _, addr := range addrs {
			must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(),
				Mask: net.CIDRMask(addr.BitLen()-8, addr.BitLen())}, Flags: unix.IFA_F_NODAD}))
		}
		last := *n
		last.addr = addrs[len(addrs)-1]
		last.waitUp(t)
	})
	return addrs
}

func bigBuffer(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	}))
}

// requireReplicas requires that every address was sent these inner frames in order, and nothing else.
func requireReplicas(t *testing.T, fd int, from netip.Addr, addrs []netip.Addr, forms [][]byte) {
	t.Helper()
	next := map[netip.Addr]int{}
	for range len(addrs) * len(forms) {
		to, inner := nextReplica(t, fd, from)
		if at := next[to]; at >= len(forms) || !bytes.Equal(inner, forms[at]) {
			t.Fatalf("datagram %d to %v: inner frame\n%x", at, to, inner)
		}
		next[to]++
	}
	for _, addr := range addrs {
		if next[addr] != len(forms) {
			t.Errorf("%d of %d frames were sent to %v", next[addr], len(forms), addr)
		}
	}
}

// nextReplica returns the next captured datagram of ours.
func nextReplica(t *testing.T, fd int, from netip.Addr) (to netip.Addr, inner []byte) {
	t.Helper()
	for {
		packet := gopacket.NewPacket(nextUDP(t, fd), layers.LayerTypeEthernet, gopacket.Default)
		flow := packet.NetworkLayer().NetworkFlow()
		src, _ := netip.AddrFromSlice(flow.Src().Raw())
		vx, _ := packet.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
		if src != from || vx == nil {
			continue // the kernel's own multicast
		}
		to, _ = netip.AddrFromSlice(flow.Dst().Raw())
		return to, vx.Payload
	}
}

// Among clones, each one that can't be sent is counted alone.
func TestClonesAreCountedOneByOne(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	must(t, a.peers.Set([]Peer{{Name: "b", Underlay: b.addr}, {Name: "nowhere", Underlay: netip.MustParseAddr("192.168.99.9")}}))
	a.open(t, 1)
	b.open(t, 1)
	out := newSender(a.tunnel, 0)
	super, meta := udpFrame(5000, make([]byte, 6000), 1000)
	f := out.add(t, super)
	f.Meta = meta
	for i := range uint32(30) {
		c := f.Clone()
		c.Peer = 1 + i%3 // b, nowhere, nobody
		out.b.Append(c)
	}
	out.send(t)
	requireCounts(t, &out.st, counted{11, 66}, map[drop.Reason]counted{drop.TxError: {10, 60}, drop.UnknownPeer: {10, 60}})
	newReceiver(b.tunnel).receive(t, 66)
}
