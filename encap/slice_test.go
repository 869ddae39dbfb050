package encap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/bench/seed"
	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/wire"
)

// superKind is a kind of super-frame.
type superKind struct{ v6, tcp bool }

var superKinds = []superKind{{false, false}, {false, true}, {true, false}, {true, true}}

// frame returns a frame with a partial checksum, as from a TAP, with gso bytes in each segment if that is less than the
// payload.
func (k superKind) frame(dstPort uint16, payload []byte, gso int) ([]byte, frame.Meta) {
	if !k.v6 && !k.tcp {
		if gso >= len(payload) {
			gso = 0
		}
		return udpFrame(dstPort, payload, gso)
	}
	l3, proto, header := wire.IPv4MinLen, wire.ProtoUDP, wire.UDPLen
	if k.v6 {
		l3 = wire.IPv6Len
	}
	if k.tcp {
		proto, header = wire.ProtoTCP, wire.TCPMinLen
	}
	l4 := wire.EthernetLen + l3
	n := header + len(payload)
	b := make([]byte, l4+header, l4+n)
	kind := wire.EtherTypeIPv4
	if k.v6 {
		kind = wire.EtherTypeIPv6
		wire.IPv6(b[wire.EthernetLen:]).Encode(&wire.IPv6Fields{PayloadLen: uint16(n), NextHeader: proto, HopLimit: 64,
			Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2")})
	} else {
		wire.IPv4(b[wire.EthernetLen:]).Encode(&wire.IPv4Fields{TotalLen: uint16(l3 + n), TTL: 64, Protocol: proto, Src: ipA, Dst: ipB})
	}
	wire.Ethernet(b).Encode(&wire.EthernetFields{Dst: macB, Src: macA, EtherType: kind})
	sum := wire.Fold(wire.PseudoHeader(b[wire.EthernetLen:], k.v6, proto, n))
	m := frame.Meta{VNI: 42, Peer: 1, NeedsCsum: true, CsumStart: uint16(l4), CsumOffset: wire.UDPChecksumOffset, HdrLen: uint16(l4 + header)}
	super := gso < len(payload)
	if super {
		m.GSOType, m.GSOSize = wire.GSOUDPL4, uint16(gso)
	}
	if !k.tcp {
		wire.UDP(b[l4:]).Encode(&wire.UDPFields{SrcPort: 4000, DstPort: dstPort, Length: uint16(n), Checksum: sum})
		return append(b, payload...), m
	}
	m.CsumOffset = wire.TCPChecksumOffset
	wire.TCP(b[l4:]).Encode(&wire.TCPFields{SrcPort: 4000, DstPort: dstPort, Seq: 7, DataOffset: header, Flags: wire.TCPAck, Checksum: sum})
	switch {
	case super && k.v6:
		m.GSOType = wire.GSOTCPv6
	case super:
		m.GSOType = wire.GSOTCPv4
	}
	return append(b, payload...), m
}

// slicing has the node's Tunnel send super-frames to peer 1 in slices, negotiated or not.
func (n *node) slicing(size int) { n.peers.Lookup(1).link.size.Store(uint32(size)) }

// fullSize is what fits the underlay's MTU of 1,500.
func fullSize(family string) int {
	if family == "IPv4" {
		return 1472
	}
	return 1452
}

// Super-frames of all kinds and lengths cross in slices as they were sent, metadata included, in order among the plain
// frames of their flow, over an underlay that keeps a message in one piece and over one that doesn't.
func TestSlices(t *testing.T) {
	for family := range families {
		for _, offloads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/offloads=%t", family, offloads), func(t *testing.T) {
				r := seed.Rand(t)
				a, b := newUnderlay(t, family)
				a.ns.Do(t, func() { transmitChecksums(t, "under", offloads) })
				a.open(t, 1)
				b.open(t, 2)
				a.slicing(fullSize(family))
				out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
				supers := 0
				for round := range 30 {
					var want [5][]sent
					for n := range 8 {
						flow := r.IntN(len(want))
						bytes, m := randomSuper(r, uint16(5000+flow), n)
						if round == 0 { // full slices, and one byte more or less
							payload := []int{65000, 64000, 1, 2, 5*(fullSize(family)-8) - 10 - 42, 5*(fullSize(family)-8) - 9 - 42, 5*(fullSize(family)-8) - 11 - 42, 3}[n]
							bytes, m = udpFrame(uint16(5000+flow), randomBytes(r, payload), 1400)
						}
						f := out.add(t, bytes)
						f.Meta = m
						f.Hash = uint32(flow)
						if m.IsSuper() {
							supers++
						}
						want[flow] = append(want[flow], sent{bytes, m})
					}
					out.send(t)
					receiveSent(t, in, want[:])
				}
				requireDrops(t, &out.st, nil)
				requireDrops(t, &in.st, nil)
				if got := b.peers.Lookup(1).link.rxWhole.Load(); int(got) != supers {
					t.Errorf("%d messages arrived, %d super-frames were sent", got, supers)
				}
			})
		}
	}
}

// sent is a frame as it was sent.
type sent struct {
	bytes []byte
	meta  frame.Meta
}

// randomSuper returns a frame of a kind and length, in a third of the cases no super-frame.
func randomSuper(r *rand.Rand, dstPort uint16, n int) ([]byte, frame.Meta) {
	gso := 1 + r.IntN(1360) // with TCP over IPv6 and VXLAN, 1,442 bytes
	payload := randomBytes(r, 2+r.IntN(min(64000, 60*gso)))
	if n%3 == 2 {
		payload = payload[:min(gso, len(payload))]
	}
	return superKinds[r.IntN(len(superKinds))].frame(dstPort, payload, gso)
}

// receiveSent receives all frames of want, by destination port from 5000 on, and compares super-frames with what was sent:
// bytes and metadata. Plain ones may have been joined and completed.
func receiveSent(t *testing.T, in *receiver, want [][]sent) {
	t.Helper()
	left := 0
	for _, flow := range want {
		for _, s := range flow {
			left += s.meta.WireFrames(len(s.bytes))
		}
	}
	for left > 0 {
		if !in.ready(t, 2e9) {
			t.Fatalf("%d wire frames are missing", left)
		}
		for _, q := range in.tunnel.Rx() {
			for more := true; more; {
				var b frame.Burst
				more = q.Recv(0, &b, in.pool, &in.st)
				for _, f := range b.Frames() {
					left -= f.Wire()
					compareSent(t, f, want)
				}
				b.Release()
			}
		}
	}
}

func compareSent(t *testing.T, f *frame.Frame, want [][]sent) {
	t.Helper()
	l4 := wire.EthernetLen + wire.IPv4MinLen
	if wire.Ethernet(f.Bytes()).EtherType() == wire.EtherTypeIPv6 {
		l4 = wire.EthernetLen + wire.IPv6Len
	}
	flow := &want[binary.BigEndian.Uint16(f.Bytes()[l4+2:])-5000]
	for _, got := range wireForm(t, f.Bytes(), f.Meta) { // of one or more that were sent
		if len(*flow) == 0 {
			t.Fatal("a frame more than was sent")
		}
		s := &(*flow)[0]
		if s.meta.IsSuper() {
			m := s.meta
			m.Hash = 0
			if f.Meta != m || !bytes.Equal(f.Bytes(), s.bytes) {
				t.Fatalf("a super-frame of %d bytes with %+v arrived as %d bytes with %+v", len(s.bytes), m, f.Len(), f.Meta)
			}
			*flow = (*flow)[1:]
			return
		}
		if w := wireForm(t, s.bytes, s.meta)[0]; !bytes.Equal(unnumbered(got), unnumbered(w)) {
			t.Fatalf("a plain frame\n got %x\nwant %x", got, w)
		}
		*flow = (*flow)[1:]
	}
}

// A congestion mark on any slice reaches the pods, whichever of them got it, and is a reason to drop where the pods don't
// understand it.
func TestSlicesCarryCongestionMarks(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	nft(t, b, "add table ip congest", "add chain ip congest pre { type filter hook prerouting priority 0; }",
		"add rule ip congest pre udp dport 4789 @th,64,8 0x51 @th,88,8 3 ip ecn set ce")
	a.open(t, 1)
	b.open(t, 1)
	a.slicing(1472)
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	for _, c := range []struct{ payload, tos, want int }{{5000, 2, 3}, {2000, 2, 2}, {5000, 1, 3}, {2000, 0, 0}, {5000, 3, 3}} {
		bytes, m := udpFrame(5000, make([]byte, c.payload), 1000)
		ip := wire.IPv4(bytes[wire.EthernetLen:])
		ip.SetTOS(uint8(c.tos))
		ip.UpdateChecksum()
		out.add(t, bytes).Meta = m
		out.send(t)
		for _, got := range in.receive(t, m.WireFrames(len(bytes))) {
			ip := wire.IPv4(got.bytes[wire.EthernetLen:])
			if int(ip.TOS()) != c.want || !ip.ChecksumOK() {
				t.Errorf("%d bytes with ECN %d arrived with %d, checksum right: %t", c.payload, c.tos, ip.TOS(), ip.ChecksumOK())
			}
		}
	}
	requireDrops(t, &in.st, nil)
	bytes, m := udpFrame(5000, make([]byte, 5000), 1000)
	out.add(t, bytes).Meta = m
	out.send(t)
	if all := in.some(t); len(all) != 0 {
		t.Errorf("%d frames of pods that don't understand the mark arrived with it", len(all))
	}
	requireDrops(t, &in.st, map[drop.Reason]counted{drop.ECNNotCapable: {4, 4}})
}

// What stands on the wire is what README.md says, read by gopacket and by the model.
func TestSlicesOnTheWire(t *testing.T) {
	for family := range families {
		t.Run(family, func(t *testing.T) {
			r := seed.Rand(t)
			a, b := newUnderlay(t, family)
			a.open(t, 1)
			size := fullSize(family)
			a.slicing(size)
			var fd int
			b.ns.Do(t, func() { fd = capture(t, "under") })
			out := newSender(a.tunnel, 0)
			for n := range 20 {
				inner, m := randomSuper(r, 5000, 0)
				if n == 0 || !m.IsSuper() {
					inner, m = udpFrame(5000, randomBytes(r, 64000), 1400)
				}
				out.add(t, inner).Meta = m
				out.send(t)
				var datagrams [][]byte
				for len(datagrams) == 0 || len(datagrams) <= int(datagrams[0][7]) {
					b := nextUDP(t, fd)
					packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
					if packet.Layer(layers.LayerTypeUDP).(*layers.UDP).DstPort != DefaultPort {
						continue // the kernel's own multicast
					}
					udp := requireUDP(t, b, packet, a)
					if len(udp.Payload) > size || udp.Payload[0]&0x08 != 0 || !bytes.Equal(udp.Payload[4:7], []byte{0, 0, 42}) {
						t.Fatalf("%d bytes %x... of at most %d", len(udp.Payload), udp.Payload[:8], size)
					}
					datagrams = append(datagrams, bytes.Clone(udp.Payload))
				}
				frames, drops := modelSlices(datagrams, 0)
				if len(frames) != 1 || len(drops) != 0 || !bytes.Equal(frames[0].bytes, inner) || frames[0].meta != m {
					t.Fatalf("%d slices are %d frames, drops %v; want %d bytes with %+v", len(datagrams), len(frames), drops, len(inner), m)
				}
			}
		})
	}
}

// A kernel that can't cut for a socket gets the slices one by one, and operators are told.
func TestSlicesCutByNobody(t *testing.T) {
	a, b := newUnderlay(t, "IPv4")
	a.open(t, 1)
	b.open(t, 1)
	a.slicing(1472)
	for _, fd := range a.tunnel.fds[1:] {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)) // EINVAL: udp_send_skb
	}
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	inner, m := super(t)
	for range 2 {
		for range 3 {
			out.add(t, inner).Meta = m
		}
		out.send(t)
		receiveSent(t, in, [][]sent{{{inner, m}, {inner, m}, {inner, m}}})
	}
	requireDrops(t, &out.st, nil)
	requireDrops(t, &in.st, nil)
	if err := a.tunnel.Segmentation(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("segmentation: %v", err)
	}
}

// What a burst has between, before and after a message of slices, of all of a flow's frames, is in its order and whole,
// whether the receiver expected the one or the other.
func TestSlicesAmongOthers(t *testing.T) {
	r := seed.Rand(t)
	a, b := newUnderlay(t, "IPv4")
	a.open(t, 1)
	b.open(t, 1)
	out, in := newSender(a.tunnel, 0), newReceiver(b.tunnel)
	big, bigMeta := udpFrame(5000, randomBytes(r, 60000), 1400)
	for range 100 {
		a.slicing(1472 * r.IntN(2)) // or in plain VXLAN
		var want [][]byte
		for range 1 + r.IntN(6) {
			bytes, m := big, bigMeta
			if r.IntN(3) > 0 {
				bytes, m = randomSuper(r, 5000, r.IntN(3))
			}
			f := out.add(t, bytes)
			f.Meta = m
			want = append(want, wireForm(t, bytes, m)...)
			if r.IntN(3) == 0 { // as when it is flooded
				out.b.Append(f.Clone())
				want = append(want, wireForm(t, bytes, m)...)
			}
		}
		out.send(t)
		for i, got := range in.receive(t, len(want)) {
			if !bytes.Equal(unnumbered(got.bytes), unnumbered(want[i])) {
				t.Fatalf("frame %d of %d\n got %x\nwant %x", i, len(want), got.bytes, want[i])
			}
		}
	}
	requireDrops(t, &in.st, nil)
}
