package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// bundling has the node's Tunnel send slices and bundles to peer 1, negotiated or not.
func (n *node) bundling(size int) {
	n.slicing(size)
	n.peers.Lookup(1).link.bundles.Store(true)
}

// Frames of all sizes cross as they were sent, in order among those of their flow, small ones in bundles, over an underlay
// that keeps a message in one piece and over one that doesn't.
func TestBundles(t *testing.T) {
	for family := range families {
		for _, offloads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/offloads=%t", family, offloads), func(t *testing.T) {
				r := seed.Rand(t)
				a, b := newUnderlay(t, family)
				a.ns.Do(t, func() { transmitChecksums(t, "under", offloads) })
				a.open(t, 1)
				b.open(t, 2)
				a.bundling(fullSize(family))
				out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
				for range 50 {
					var want [5][]sent
					for range 1 + r.IntN(frame.BurstSize) {
						flow := r.IntN(len(want))
						bytes, m := randomSuper(r, uint16(5000+flow), 0)
						if r.IntN(10) > 0 { // small, at times too large for a bundle
							bytes, m = superKinds[r.IntN(len(superKinds))].frame(uint16(5000+flow), randomBytes(r, 2+r.IntN(400)), 1000)
						}
						f := out.add(t, bytes)
						f.Meta = m
						f.Hash = uint32(flow)
						want[flow] = append(want[flow], sent{bytes, m})
					}
					out.send(t)
					receiveSent(t, in, want[:])
				}
				requireDrops(t, &out.st, nil)
				requireDrops(t, &in.st, nil)
			})
		}
	}
}

// What stands on the wire is what README.md says, read by gopacket and by the model: small frames together, few datagrams.
func TestBundlesOnTheWire(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			a.bundling(fullSize(family))
			var fd int
			b.ns.Do(t, func() { fd = capture(t, "under") })
			out := newSender(a.tunnel, 0)
			for _, c := range []struct {
				sizes     []int
				datagrams int
			}{
				{[]int{60, 100, 80, 200}, 1},
				{[]int{300, 300, 300, 300, 300}, 2},
				{[]int{60, 100, 80}, 3}, // too few
				{[]int{maxBundled, maxBundled, maxBundled, maxBundled, 14}, map[string]int{"IPv4": 2, "IPv6": 5}[family]},
				{[]int{60, 60, 60, 60, 1300, 60, 60, 60, 60}, 3}, // in order
				{[]int{13, 60, 60, 60, 60}, 2},
			} {
				var want [][]byte
				for _, n := range c.sizes {
					inner := bytes.Repeat([]byte{byte(n)}, n)
					out.add(t, inner)
					want = append(want, inner)
				}
				out.send(t)
				var got [][]byte
				for range c.datagrams {
					b := nextUDP(t, fd)
					packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
					payload := requireUDP(t, b, packet, a).Payload
					if len(payload) > fullSize(family) || !bytes.Equal(payload[4:8], []byte{0, 0, 42, 0}) {
						t.Fatalf("%d bytes %x...", len(payload), payload[:8])
					}
					if payload[0] == 0x08 {
						got = append(got, payload[8:])
						continue
					}
					frames, whole := modelBundle(payload)
					if !whole {
						t.Fatalf("no bundle: %x", payload)
					}
					got = append(got, frames...)
				}
				if len(got) != len(want) {
					t.Fatalf("%v: %d frames in %d datagrams", c.sizes, len(got), c.datagrams)
				}
				for i := range got {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("%v: frame %d is %x", c.sizes, i, got[i])
					}
				}
			}
		})
	}
}

// The congestion mark of a datagram is that of all frames in it, and none is sent with frames that have another one.
func TestBundlesCarryCongestionMarks(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	nft(t, b, "add table ip congest", "add chain ip congest pre { type filter hook prerouting priority 0; }",
		"add rule ip congest pre udp dport 4789 @th,64,8 0x53 ip ecn { ect0, ect1, not-ect } ip ecn set ce")
	a.open(t, 1)
	b.open(t, 1)
	a.bundling(1472)
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	for _, tos := range []uint8{2, 2, 2, 2, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2} {
		inner, _ := udpFrame(5000, make([]byte, 20), 0)
		ip := wire.IPv4(inner[wire.EthernetLen:])
		ip.SetTOS(tos)
		ip.UpdateChecksum()
		out.add(t, inner)
	}
	out.send(t)
	var marks [4]int
	for _, got := range in.receive(t, 9) {
		marks[wire.IPv4(got.bytes[wire.EthernetLen:]).TOS()&3]++
	}
	if marks != [4]int{3: 8, 2: 1} {
		t.Errorf("ECN fields %v", marks)
	}
	requireDrops(t, &in.st, map[drop.Reason]counted{drop.ECNNotCapable: {5, 5}})
}

// Frames that the kernel refuses are dropped by the reason it gives, each once.
func TestBundleRefused(t *testing.T) {
	a, _ := newUnderlay(t, "IPv4")
	a.open(t, 1)
	a.bundling(3000)
	a.tunnel.unsegments.Store(uint32(unix.EIO))
	out := newSender(a.tunnel, 0)
	for range 20 {
		out.add(t, make([]byte, 300))
	}
	out.send(t)
	requireCounts(t, &out.st, counted{}, map[drop.Reason]counted{drop.TooBig: {20, 20}})
	for range 20 { // plain until the way was tested again
		out.add(t, make([]byte, 300))
	}
	out.send(t)
	requireCounts(t, &out.st, counted{20, 20}, map[drop.Reason]counted{drop.TooBig: {20, 20}})
}

// Bundles begin when the peer says that it takes them, with slices.
func TestBundlesAreNegotiated(t *testing.T) {
	a, b := newTalkers(t)
	pass(0, 3, a, b)
	a.require(true, "slices of ")
	if got := a.peer.link.bundleSize(); got != int(a.size()) {
		t.Errorf("bundles of %d bytes, slices of %d", got, a.size())
	}
	h := hello{asks: true, offers: true, session: b.peer.link.own, echo: a.peer.link.own}
	a.n.hear(a.peer, h, 0) // an older version
	if got := a.peer.link.bundleSize(); got != 0 {
		t.Errorf("bundles of %d bytes to a peer that takes none", got)
	}
}

func TestBundlesDoNotAllocate(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	must(t, peers.Set([]Peer{{Name: "self", Underlay: tunnel.cfg.Local}}))
	peers.Lookup(1).link.size.Store(1472)
	peers.Lookup(1).link.bundles.Store(true)
	out, in := newSender(tunnel, 0), newReceiver(tunnel)
	inner, m := udpFrame(5000, make([]byte, 100), 0)
	var b frame.Burst
	frames := 0
	n := testing.AllocsPerRun(50, func() {
		for i := range 40 {
			f := out.add(t, inner[:80+i])
			if i%2 == 0 {
				f.Meta = m
			}
		}
		out.q.Send(&out.b)
		out.q.Flush()
		out.b.Release()
		tunnel.Rx()[0].Recv(0, &b, in.pool, &in.st)
		frames += b.Len()
		b.Release()
	})
	if n != 0 || frames != 51*40 {
		t.Errorf("%v allocations per burst, %d frames of %d", n, frames, 51*40)
	}
	requireDrops(t, &in.st, map[drop.Reason]counted{})
}

// bundleOf is the format written down.
func bundleOf(vni byte, frames ...[]byte) []byte {
	b := []byte{0x53, 0, 0, 0, 0, 0, vni, 0}
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// modelBundle is the format read aloud: README.md. whole is false if it ends with an entry that is wrong.
func modelBundle(b []byte) (frames [][]byte, whole bool) {
	for b = b[8:]; len(b) >= 2; {
		n := int(b[0])<<8 | int(b[1])
		if n == 0 {
			return frames, true
		}
		if n < 14 || len(b) < 2+n {
			return frames, false
		}
		frames = append(frames, b[2:2+n])
		b = b[2+n:]
	}
	return frames, true
}

// Whatever arrives in place of bundles, what is whole in it is delivered once and in order, also when a burst has no room
// for all, and the rest is counted.
func FuzzBundles(f *testing.F) {
	peers := &VTEPTable{}
	peer := netip.MustParseAddr("10.0.0.1")
	must(f, peers.Set([]Peer{{Name: "peer", Underlay: peer}}))
	q := newRxQueue(-1, peers)
	p := frame.NewPool(frame.BurstSize, frame.DefaultArena)
	few := bundleOf(42, make([]byte, 20), make([]byte, 14), make([]byte, 99))
	f.Add(few, uint16(0), uint8(0))
	f.Add(append(few, 0, 0, 1), uint16(0), uint8(0))
	f.Add(append(few, 0, 13), uint16(0), uint8(3))
	f.Add(append(few, 0, 255, 1), uint16(0), uint8(1))
	f.Add(few[:len(few)-1], uint16(0), uint8(0))
	f.Add(append(bytes.Clone(few), few...), uint16(len(few)), uint8(0))
	many := make([][]byte, 150)
	for i := range many {
		many[i] = bytes.Repeat([]byte{byte(i)}, 14+i%3)
	}
	f.Add(bundleOf(1, many...), uint16(0), uint8(0))
	f.Add(bundleOf(7, ecnFrames(f)...), uint16(0), uint8(3))
	inner, m := udpFrame(5000, randomBytes(seed.Rand(f), 100), 30)
	f.Add(bundleOf(7, wireForm(f, inner, m)...), uint16(0), uint8(2)) // joined
	f.Fuzz(func(t *testing.T, message []byte, size uint16, tos uint8) {
		for _, d := range datagramsOf(message, int(size)) {
			if !isBundle(d) {
				t.Skip("FuzzDecap and FuzzSlices have it")
			}
		}
		if len(message) > slotLen {
			t.Skip("longer than any message")
		}
		q.from[0].encode(netip.AddrPortFrom(peer, 61000))
		q.msgs[0].Len = uint32(copy(q.slots[0], message))
		var n int
		q.control[0], n = receivedWith(false, tos, size)
		q.msgs[0].Hdr.SetControllen(n)
		q.next, q.got = 0, 1
		q.open()
		var st port.Stats
		var got []received
		for done := false; !done; {
			var b frame.Burst
			done = q.deliver(&b, p, &st)
			q.finish(&b)
			for _, f := range b.Frames() {
				for _, w := range wireForm(t, f.Bytes(), f.Meta) {
					got = append(got, received{bytes: w, vni: f.VNI, peer: f.Peer})
				}
			}
			b.Release()
		}
		drops := map[drop.Reason]counted{}
		lose := func(r drop.Reason) { drops[r] = counted{drops[r].frames + 1, drops[r].wire + 1} }
		var want []received
		for _, d := range datagramsOf(message, int(size)) {
			frames, whole := modelBundle(d)
			for _, inner := range frames {
				inner, reason := modelECN(tos, inner)
				if reason != drop.None {
					lose(reason)
					continue
				}
				want = append(want, received{bytes: inner, vni: uint32(d[4])<<16 | uint32(d[5])<<8 | uint32(d[6]), peer: 1})
			}
			if !whole {
				lose(drop.BadBundle)
			}
		}
		requireDrops(t, &st, drops)
		if len(got) != len(want) {
			t.Fatalf("%d frames, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i].vni != want[i].vni || got[i].peer != 1 || !bytes.Equal(unnumbered(got[i].bytes), unnumbered(want[i].bytes)) {
				t.Fatalf("frame %d of %d\n got %+v\nwant %+v", i, len(got), got[i], want[i])
			}
		}
	})
}
