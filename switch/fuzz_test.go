package vswitch

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// fuzzed is what FuzzPipeline throws its input at: a routed network with pods a and b, which nobody guards, and
// c, who is, and a stretched one with pod x, who is, and y, who isn't.
type fuzzed struct {
	*rig
	podC, podX, podY *porttest.Port
	given            map[*porttest.Port]Station // what guarded pods were given
}

var (
	macX   = wire.MAC{10, 0, 0, 0, 2, 1}
	x4, x6 = ip("10.50.0.5"), ip("fd00:50::5")
)

func newFuzzed(t testing.TB) *fuzzed {
	r := &fuzzed{rig: newRig(t, 0), podC: porttest.New("c", port.CapsAll), podX: porttest.New("x", port.CapsAll),
		podY: porttest.New("y", port.CapCsum|port.CapTSO4)}
	r.given = map[*porttest.Port]Station{r.podC: {macC, []netip.Addr{c4, c6}}, r.podX: {macX, []netip.Addr{x4, x6}}}
	r.must(r.sw.AddNetwork(Network{VNI: 200, Stretched: true}))
	r.sw.SetMTU(1450)
	r.sw.SetFlows(true)
	r.attach(r.podY, PortConfig{Role: RoleAccess, VNI: 200})
	for p, vni := range map[*porttest.Port]uint32{r.podC: testVNI, r.podX: 200} {
		station := r.given[p]
		r.attach(p, PortConfig{Role: RoleAccess, VNI: vni, Guard: &station})
		r.must(r.sw.AddStation(vni, r.ids[p], station.MAC, station.Addrs))
	}
	to := Adjacency{Kind: AdjForward, MTU: 1450, DstMAC: macC, SrcMAC: routerMAC, Dest: port.Dest{Port: r.ids[r.podC]}}
	r.must(r.sw.UpdateRoutes(testVNI, []RouteChange{{netip.PrefixFrom(c4, 32), &to}, {netip.PrefixFrom(c6, 128), &to}}))
	r.must(r.sw.SetFlood(200, []uint32{7, 8}))
	r.sw.slow.drain()
	r.reset()
	return r
}

// of returns the access ports of a network, and the host of the routed one.
func (r *fuzzed) of(vni uint32) []*porttest.Port {
	if vni == 200 {
		return []*porttest.Port{r.podX, r.podY}
	}
	return []*porttest.Port{r.podA, r.podB, r.podC, r.host}
}

func (r *fuzzed) reset() {
	for _, p := range append(append(r.of(testVNI), r.of(200)...), r.tunnel) {
		p.Reset()
	}
}

// inputs are the places that a frame can come from: a port, or a peer in a network.
var inputs = []struct {
	at   func(*fuzzed) *porttest.Port
	vni  uint32
	peer uint32
}{
	{func(r *fuzzed) *porttest.Port { return r.podA }, testVNI, 0},
	{func(r *fuzzed) *porttest.Port { return r.host }, testVNI, 0},
	{func(r *fuzzed) *porttest.Port { return r.tunnel }, testVNI, remotePeer},
	{func(r *fuzzed) *porttest.Port { return r.podC }, testVNI, 0},
	{func(r *fuzzed) *porttest.Port { return r.podX }, 200, 0},
	{func(r *fuzzed) *porttest.Port { return r.podY }, 200, 0},
	{func(r *fuzzed) *porttest.Port { return r.tunnel }, 200, 7},
	{func(r *fuzzed) *porttest.Port { return r.tunnel }, 200, 8},
}

// FuzzPipeline throws bytes and offload metadata at each kind of port. Whatever they are, every frame is
// accounted for, no buffer is lost, no frame leaves its network or comes back to a peer, and none of a guarded
// pod speaks for somebody else.
func FuzzPipeline(f *testing.F) {
	addSeeds(f)
	r := newFuzzed(f) // one for all inputs: what one leaves behind would show at the next
	f.Fuzz(func(t *testing.T, in uint8, b []byte, gso uint8, csum bool, size, start, offset uint16) {
		if len(b) > frame.MaxLen {
			t.Skip("longer than any device delivers")
		}
		from := inputs[int(in)%len(inputs)]
		one := porttest.Frame{Bytes: b, Meta: frame.Meta{VNI: from.vni, Peer: from.peer, GSOType: gso, NeedsCsum: csum,
			GSOSize: size, CsumStart: start, CsumOffset: offset}}
		burst := []porttest.Frame{one, one}
		burst[1].Meta.Peer ^= 15 // 7 and 8; the second finds what the first has left
		r.run(from.at(r), burst[:1+len(b)%2]...)
		if l := r.sw.Ledger(); l.Check() != nil {
			t.Fatal(l.Check())
		}
		if err := r.judge(from.at(r), from.vni); err != nil {
			t.Error(err)
		}
		r.reset()
	})
}

// addSeeds adds frames that reach what bytes at random don't.
func addSeeds(f *testing.F) {
	plainly := func(in uint8, b []byte) { f.Add(in, b, uint8(0), false, uint16(0), uint16(0), uint16(0)) }
	s := superUDP(f, 64)
	plainly(0, udp(f, macA, macB, a4, b4, 64, "x"))
	plainly(0, udp(f, macA, routerMAC, a6, remote6, 1, "x"))
	plainly(1, udp(f, hostMAC, routerMAC, gw4, absent4, 64, "x"))
	plainly(2, udp(f, peerMAC, routerMAC, remote4, b4, 64, "x"))
	f.Add(uint8(0), s.Bytes, s.Meta.GSOType, true, s.Meta.GSOSize, s.Meta.CsumStart, s.Meta.CsumOffset)
	// The error that answers it goes nowhere, and asks the slow path for another, which there is not.
	plainly(0, []byte("\x02\x00\x00\x00\x00\x01000000\x86\xdda000\x00\t00\xfd\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xfd\x0000000000000000000000000"))
	// The ECN flag without a GSO type reached ports that take no offload.
	f.Add(uint8(0), udp(f, macA, macB, a4, b4, 64, "x"), uint8(0x80), false, uint16(37), uint16(0), uint16(0))
	// A checksum that starts behind the headers of a super-frame: the segmenter refused what parse had let through.
	f.Add(uint8(0), s.Bytes, s.Meta.GSOType, true, s.Meta.GSOSize, s.Meta.CsumStart+60, s.Meta.CsumOffset)
	plainly(0, udp(f, macA, routerMAC, a4, remote4, 64, strings.Repeat("in fragments ", 300)))
	plainly(0, fragmentAt(f, 65000))
	plainly(2, unfinishedTCP(f, peerMAC, routerMAC, remote4, b4, 4000))
	plainly(2, unfinishedTCP(f, peerMAC, routerMAC, remote6, b6, 4000))
	plainly(6, unfinishedTCP(f, peerMAC, macX, ip("10.50.0.9"), x4, 4001))
	plainly(7, arp(f, peerMAC, peerMAC, 1, ip("10.50.0.9"), x4))
	plainly(4, arp(f, macX, macX, 1, x4, ip("10.50.0.9")))
	plainly(5, arp(f, macC, macC, 1, ip("10.50.0.9"), ip("10.50.0.10")))
	plainly(3, arp(f, macC, macC, 1, netip.IPv4Unspecified(), b4))
	plainly(3, udp(f, macC, macB, c6, b6, 64, "x"))
	plainly(3, nd(f, netip.IPv6Unspecified(), "ff02::1:ff00:5", &layers.ICMPv6NeighborSolicitation{TargetAddress: c6.AsSlice()}, 135))
	plainly(3, nd(f, linkLocal, "ff02::1", &layers.ICMPv6RouterAdvertisement{}, 134))
	claim := nd(f, c6, "ff02::1", &layers.ICMPv6NeighborAdvertisement{TargetAddress: c6.AsSlice(),
		Options: linkLayer(layers.ICMPv6OptTargetAddress, macC)}, 136)
	plainly(3, claim)
	f.Add(uint8(3), claim, uint8(0), true, uint16(0), uint16(62), uint16(14))
	f.Add(uint8(3), superSYN(f, 4, 48).Bytes, wire.GSOTCPv4, true, uint16(48), uint16(34), uint16(16))
}

// unfinishedTCP is a packet with n bytes of payload and a partial checksum, as a tunnel brings it that met no
// network card.
func unfinishedTCP(t testing.TB, srcMAC, dstMAC wire.MAC, src, dst netip.Addr, n int) []byte {
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 80, ACK: true}
	var b []byte
	l4 := 34
	if src.Is4() {
		b = packet(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv4),
			&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}, tcp, gopacket.Payload(make([]byte, n)))
	} else {
		l4 = 54
		b = packet(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv6),
			&layers.IPv6{HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}, tcp, gopacket.Payload(make([]byte, n)))
	}
	binary.BigEndian.PutUint16(b[l4+wire.TCPChecksumOffset:], wire.Fold(wire.PseudoHeader(b[14:], src.Is6(), wire.ProtoTCP, len(b)-l4)))
	return b
}

// judge says what is wrong with what the switch has sent after frames that came in at a port, in a network.
func (r *fuzzed) judge(at *porttest.Port, vni uint32) error {
	for _, p := range append(r.of(testVNI), r.of(200)...) {
		sent := p.Sent()
		if len(sent) > 0 && !slices.Contains(r.of(vni), p) {
			return fmt.Errorf("from network %d to port %s: %x", vni, p.Name(), sent[0].Bytes)
		}
		if err := r.judgeAll(at, p, sent); err != nil {
			return err
		}
	}
	for _, f := range r.tunnel.Sent() {
		if f.Meta.VNI != vni || vni == 200 && at == r.tunnel {
			return fmt.Errorf("from port %s in network %d into network %d: %x", at.Name(), vni, f.Meta.VNI, f.Bytes)
		}
	}
	return r.judgeAll(at, r.tunnel, r.tunnel.Sent())
}

// judgeAll judges what left through another port than a guarded pod's own, where the switch's answers go.
func (r *fuzzed) judgeAll(at, out *porttest.Port, sent []porttest.Frame) error {
	station, guarded := r.given[at]
	if !guarded || at == out {
		return nil
	}
	for _, f := range sent {
		if wrong := foreign(station, completed(f)); wrong != "" {
			return fmt.Errorf("from guarded port %s out of %s: %s: %x %+v", at.Name(), out.Name(), wrong, f.Bytes, f.Meta)
		}
	}
	return nil
}

// completed is the frame as its receiver has it in the end.
func completed(f porttest.Frame) []byte {
	b := slices.Clone(f.Bytes)
	if at := int(f.Meta.CsumStart + f.Meta.CsumOffset); f.Meta.NeedsCsum && f.Meta.GSOType == 0 {
		binary.BigEndian.PutUint16(b[at:], wire.Checksum(b[f.Meta.CsumStart:], 0))
	}
	return b
}

var tunnels = []gopacket.LayerType{layers.LayerTypeIPv4, layers.LayerTypeIPv6, layers.LayerTypeUDP, layers.LayerTypeGRE, layers.LayerTypeEtherIP}

// foreign says what in a frame isn't the station's own, as gopacket decodes it, or nothing.
func foreign(s Station, b []byte) string {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
	eth, own := p.LinkLayer().(*layers.Ethernet), append([]netip.Addr{wire.LinkLocal(s.MAC)}, s.Addrs...)
	has := func(a []byte) bool { addr, _ := netip.AddrFromSlice(a); return slices.Contains(own, addr) }
	if mac := wire.MAC(eth.SrcMAC); mac != s.MAC && mac != routerMAC { // the latter is what routing writes
		return "source MAC"
	}
	if t := eth.EthernetType; t != layers.EthernetTypeARP && t != layers.EthernetTypeIPv4 && t != layers.EthernetTypeIPv6 && t != layers.EthernetTypeDot1Q {
		return "" // other protocols are held to the MAC
	}
	for i, l := range p.Layers() {
		if i > 1 && slices.Contains(tunnels, l.LayerType()) {
			return "" // what a tunnel of the pod's own carries is its own affair
		}
		switch l := l.(type) {
		case *layers.Dot1Q, *layers.ICMPv6RouterAdvertisement, *layers.ICMPv6Redirect:
			return l.LayerType().String()
		case *layers.ARP:
			if wire.MAC(l.SourceHwAddress) != s.MAC || !has(l.SourceProtAddress) && !slices.Equal(l.SourceProtAddress, make([]byte, 4)) {
				return "ARP"
			}
		case *layers.IPv4:
			if !has(l.SrcIP) {
				return "IPv4 source"
			}
		case *layers.IPv6:
			if !has(l.SrcIP) && !slices.Equal(l.SrcIP, make([]byte, 16)) {
				return "IPv6 source"
			}
		case *layers.ICMPv6NeighborAdvertisement:
			if !has(l.TargetAddress) || otherMAC(s, l.Options, layers.ICMPv6OptTargetAddress) {
				return "neighbour advertisement"
			}
		case *layers.ICMPv6NeighborSolicitation:
			if otherMAC(s, l.Options, layers.ICMPv6OptSourceAddress) {
				return "neighbour solicitation"
			}
		case *layers.ICMPv6RouterSolicitation:
			if otherMAC(s, l.Options, layers.ICMPv6OptSourceAddress) {
				return "router solicitation"
			}
		}
	}
	return ""
}

// otherMAC says whether an option of that type names another station than the sender. Receivers ignore the other
// type.
func otherMAC(s Station, options layers.ICMPv6Options, typ layers.ICMPv6Opt) bool {
	return slices.ContainsFunc(options, func(o layers.ICMPv6Option) bool { return o.Type == typ && !slices.Equal(o.Data, s.MAC[:]) })
}
