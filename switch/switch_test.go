package vswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

func reasonName(r int) string { return drop.Reason(r).String() }

// sentTo returns the only frame that p sent, decoded by gopacket.
func sentTo(t *testing.T, p *porttest.Port) (porttest.Frame, gopacket.Packet) {
	t.Helper()
	sent := p.Sent()
	if len(sent) != 1 {
		t.Fatalf("port %s sent %d frames, want 1", p.Name(), len(sent))
	}
	return sent[0], gopacket.NewPacket(sent[0].Bytes, layers.LayerTypeEthernet, gopacket.Default)
}

func TestPodsOfANodeAreSwitched(t *testing.T) {
	for _, family := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
		r := newRig(t, port.CapsAll)
		in := udp(t, macA, macB, family[0], family[1], 1, "hello")
		r.run(r.podA, plain(in))
		out, _ := sentTo(t, r.podB)
		if !bytes.Equal(out.Bytes, in) {
			t.Errorf("%s: switched frame changed:\n got %x\nwant %x", family, out.Bytes, in)
		}
	}
}

func TestUnknownDestinationIsFloodedAndLearned(t *testing.T) {
	r := newRig(t, port.CapsAll)
	stranger := wire.MAC{10, 9, 9, 9, 9, 9}
	r.run(r.podA, plain(udp(t, stranger, wire.MAC{10, 8, 8, 8, 8, 8}, a4, b4, 9, "x")))
	if n := len(r.podB.Sent()); n != 1 {
		t.Fatalf("flood reached pod b %d times, want once", n)
	}
	if len(r.host.Sent())+len(r.tunnel.Sent())+len(r.podA.Sent()) != 0 {
		t.Error("flood left the VNI's access ports or came back")
	}
	dest, known := r.sw.fdb.Lookup(testVNI, stranger)
	if !known || dest.Port != r.ids[r.podA] {
		t.Errorf("learned %v, %v; want port of pod a", dest, known)
	}
}

func TestRoutingRewritesAndCountsTTLDown(t *testing.T) {
	for name, c := range map[string]struct {
		in             func(*rig) *porttest.Port
		out            func(*rig) *porttest.Port
		src, dst       netip.Addr
		dstMAC         wire.MAC
		ttl, wantedTTL uint8
		peer           uint32
	}{
		"pod to remote pod":   {podA, tunnel, a4, remote4, peerMAC, 64, 63, remotePeer},
		"pod to remote pod 6": {podA, tunnel, a6, remote6, peerMAC, 64, 63, remotePeer},
		"remote pod to pod":   {tunnel, podB, remote4, b4, macB, 64, 63, 0},
		"remote pod to pod 6": {tunnel, podB, remote6, b6, macB, 2, 1, 0},
		"pod to world":        {podA, host, a4, internet4, hostMAC, 64, 63, 0},
		"pod to its gateway":  {podA, host, a4, gw4, hostMAC, 1, 1, 0}, // it ends here: no hop
		"host to remote pod":  {host, tunnel, gw6, remote6, peerMAC, 64, 63, remotePeer},
		"host to pod":         {host, podA, gw4, a4, macA, 64, 63, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			f := plain(udp(t, macA, routerMAC, c.src, c.dst, c.ttl, "payload"))
			f.Meta.VNI = testVNI
			r.run(c.in(r), f)
			out, p := sentTo(t, c.out(r))
			eth := p.LinkLayer().(*layers.Ethernet)
			if !bytes.Equal(eth.DstMAC, c.dstMAC[:]) || !bytes.Equal(eth.SrcMAC, routerMAC[:]) {
				t.Errorf("sent from %s to %s, want from %s to %s", eth.SrcMAC, eth.DstMAC, routerMAC, c.dstMAC)
			}
			if c.peer != 0 && (out.Meta.Peer != c.peer || out.Meta.VNI != testVNI) {
				t.Errorf("peer %d VNI %d, want %d and %d", out.Meta.Peer, out.Meta.VNI, c.peer, testVNI)
			}
			if c.src.Is4() {
				h := p.NetworkLayer().(*layers.IPv4)
				if sum := wire.IPv4(h.Contents); !sum.ChecksumOK() || h.TTL != c.wantedTTL {
					t.Errorf("TTL %d with checksum ok %v, want %d", h.TTL, sum.ChecksumOK(), c.wantedTTL)
				}
			} else if h := p.NetworkLayer().(*layers.IPv6); h.HopLimit != c.wantedTTL {
				t.Errorf("hop limit %d, want %d", h.HopLimit, c.wantedTTL)
			}
		})
	}
}

func podA(r *rig) *porttest.Port   { return r.podA }
func podB(r *rig) *porttest.Port   { return r.podB }
func host(r *rig) *porttest.Port   { return r.host }
func tunnel(r *rig) *porttest.Port { return r.tunnel }

func TestARPIsAnsweredForKnownAddressesOnly(t *testing.T) {
	request := func(src netip.Addr, mac wire.MAC, target netip.Addr) porttest.Frame {
		return plain(packet(t, ethernet(mac, wire.Broadcast, layers.EthernetTypeARP),
			&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
				Operation: layers.ARPRequest, SourceHwAddress: mac[:], SourceProtAddress: src.AsSlice(),
				DstHwAddress: make([]byte, 6), DstProtAddress: target.AsSlice()}))
	}
	for target, mac := range map[netip.Addr]wire.MAC{b4: macB, gw4: routerMAC, local4: routerMAC} {
		r := newRig(t, port.CapsAll)
		r.run(r.podA, request(a4, macA, target))
		_, p := sentTo(t, r.podA)
		arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if arp.Operation != layers.ARPReply || !bytes.Equal(arp.SourceHwAddress, mac[:]) ||
			!bytes.Equal(arp.SourceProtAddress, target.AsSlice()) || !bytes.Equal(arp.DstHwAddress, macA[:]) {
			t.Errorf("who has %s: answered %+v, want %s", target, arp, mac)
		}
		if len(r.podB.Sent()) != 0 {
			t.Errorf("who has %s: flooded although answered", target)
		}
	}
	r := newRig(t, port.CapsAll)
	r.run(r.podA, request(a4, macA, absent4))                             // unknown: everybody is asked
	r.run(r.podA, request(netip.IPv4Unspecified(), macA, a4))             // RFC 5227 probe for its own address
	if a, b := len(r.podA.Sent()), len(r.podB.Sent()); a != 0 || b != 2 { // both are left to L2
		t.Errorf("unknown target and own probe: %d answers, %d floods; want 0 and 2", a, b)
	}
}

func TestNeighborSolicitationIsAnswered(t *testing.T) {
	for target, mac := range map[netip.Addr]wire.MAC{b6: macB, gw6: routerMAC} {
		r := newRig(t, port.CapsAll)
		group := wire.SolicitedNode(target)
		body := append(target.AsSlice(), append([]byte{1, 1}, macA[:]...)...)
		r.run(r.podA, plain(packet(t, ethernet(macA, wire.MulticastMAC(group), layers.EthernetTypeIPv6),
			&layers.IPv6{HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: a6.AsSlice(), DstIP: group.AsSlice()},
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)},
			gopacket.Payload(append(make([]byte, 4), body...)))))
		_, p := sentTo(t, r.podA)
		na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if !ok {
			t.Fatalf("no neighbour advertisement in %v", p)
		}
		if !na.TargetAddress.Equal(target.AsSlice()) || len(na.Options) != 1 || !bytes.Equal(na.Options[0].Data, mac[:]) {
			t.Errorf("who has %s: answered %+v, want %s", target, na, mac)
		}
	}
}

// A solicitation longer than the slow path's copy once made the slow worker slice behind its end.
func TestLongSolicitationIsLeftToL2(t *testing.T) {
	r := newRig(t, port.CapsAll)
	ns := &layers.ICMPv6NeighborSolicitation{TargetAddress: b6.AsSlice()}
	for range 300 {
		ns.Options = append(ns.Options, layers.ICMPv6Option{Type: 14, Data: make([]byte, 6)}) // nonces, RFC 3971
	}
	group := wire.SolicitedNode(b6)
	r.run(r.podA, plain(packet(t, ethernet(macA, wire.MulticastMAC(group), layers.EthernetTypeIPv6),
		&layers.IPv6{HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: a6.AsSlice(), DstIP: group.AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}, ns)))
	if n := len(r.podB.Sent()); n != 1 {
		t.Errorf("flooded %d times, want once", n)
	}
}

func TestICMPErrors(t *testing.T) {
	for name, c := range map[string]struct {
		src, dst, from netip.Addr
		ttl            uint8
		type4, code4   uint8
		type6, code6   uint8
		reason         string
		in             func(*rig) *porttest.Port
	}{
		"time exceeded":     {a4, remote4, gw4, 1, 11, 0, 0, 0, "ttl_exceeded", podA},
		"time exceeded 6":   {a6, remote6, gw6, 1, 0, 0, 3, 0, "ttl_exceeded", podA},
		"no route":          {a4, nowhere4, gw4, 64, 3, 0, 0, 0, "no_route", podA},
		"no route 6":        {a6, nowhere6, gw6, 64, 0, 0, 1, 0, "no_route", podA},
		"no such neighbor":  {gw4, absent4, local4, 64, 3, 1, 0, 0, "no_neighbor", host}, // from .2: the host drops errors from .1
		"no such neighbor6": {gw6, absent6, local6, 64, 0, 0, 1, 3, "no_neighbor", host},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			in := udp(t, macA, routerMAC, c.src, c.dst, c.ttl, strings.Repeat("x", 1400))
			r.run(c.in(r), plain(in))
			if got := r.drops(c.in(r)); !maps.Equal(got, map[string]uint64{c.reason: 1}) {
				t.Errorf("drops %v, want one %s", got, c.reason)
			}
			_, p := sentTo(t, c.in(r))
			if err := p.ErrorLayer(); err != nil {
				t.Fatal(err.Error())
			}
			src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
			if src.String() != c.from.String() || dst.String() != c.src.String() {
				t.Errorf("error from %s to %s, want from %s to %s", src, dst, c.from, c.src)
			}
			if m, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				if m.TypeCode != layers.CreateICMPv4TypeCode(c.type4, c.code4) || wire.Checksum(append(m.Contents, m.Payload...), 0) != 0 {
					t.Errorf("ICMP %s or its checksum is wrong", m.TypeCode)
				}
				if !bytes.HasPrefix(m.Payload, in[14:14+28]) {
					t.Error("the error doesn't quote the packet")
				}
				return
			}
			m := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			if m.TypeCode != layers.CreateICMPv6TypeCode(c.type6, c.code6) {
				t.Errorf("ICMPv6 %s", m.TypeCode)
			}
			if n := len(p.NetworkLayer().LayerPayload()) + 40; n > 1280 {
				t.Errorf("ICMPv6 error of %d bytes, at most 1280", n)
			}
		})
	}
}

func TestNoErrorAboutAnError(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(packet(t, ethernet(macA, routerMAC, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 1, Protocol: layers.IPProtocolICMPv4, SrcIP: a4.AsSlice(), DstIP: remote4.AsSlice()},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload("quoted"))))
	if n := len(r.podA.Sent()); n != 0 {
		t.Errorf("%d errors about an ICMP error (RFC 1812 section 4.3.2.7)", n)
	}
}

func TestEchoToTheSwitchItself(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(packet(t, ethernet(macA, routerMAC, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 1, Protocol: layers.IPProtocolICMPv4, SrcIP: a4.AsSlice(), DstIP: local4.AsSlice()},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77, Seq: 5}, gopacket.Payload("payload"))))
	_, p := sentTo(t, r.podA)
	m := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if m.TypeCode.Type() != 0 || m.Id != 77 || m.Seq != 5 || string(m.Payload) != "payload" {
		t.Errorf("echo reply %+v", m)
	}
}

func TestDropReasons(t *testing.T) {
	for reason, c := range map[string]struct {
		in    func(*rig) *porttest.Port
		frame func() porttest.Frame
	}{
		"not_for_router": {host, func() porttest.Frame { return plain(udp(t, hostMAC, macA, gw4, a4, 64, "x")) }},
		"host_loop":      {host, func() porttest.Frame { return plain(udp(t, hostMAC, routerMAC, gw4, internet4, 64, "x")) }},
		"split_horizon":  {tunnel, func() porttest.Frame { return tunnelled(udp(t, peerMAC, routerMAC, remote4, remote4, 64, "x")) }},
		"unknown_vni":    {tunnel, func() porttest.Frame { return plain(udp(t, peerMAC, routerMAC, remote4, a4, 64, "x")) }},
		"hairpin":        {podA, func() porttest.Frame { return plain(udp(t, macB, macA, a4, b4, 64, "x")) }},
		"too_big": {podA, func() porttest.Frame {
			return plain(dontFragment(udp(t, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 1423))))
		}},
		"not_ip": {podA, func() porttest.Frame {
			return plain(packet(t, ethernet(macA, routerMAC, 0x88b5), gopacket.Payload("IEEE local experimental")))
		}},
		"local_unhandled": {podA, func() porttest.Frame { return plain(udp(t, macA, routerMAC, a4, local4, 64, "x")) }},
		"multicast_source": {podA, func() porttest.Frame {
			return plain(udp(t, wire.MAC{1, 0, 0, 0, 0, 1}, macB, a4, b4, 64, "x"))
		}},
		"vlan_tagged": {podA, func() porttest.Frame {
			return plain(packet(t, ethernet(macA, macB, layers.EthernetTypeDot1Q),
				&layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}, gopacket.Payload("x")))
		}},
		"ipv4_checksum": {podA, func() porttest.Frame {
			b := udp(t, macA, macB, a4, b4, 64, "x")
			b[24] ^= 1
			return plain(b)
		}},
		"short_ethernet": {podA, func() porttest.Frame { return plain(make([]byte, 13)) }},
		"bad_offload": {podA, func() porttest.Frame {
			f := superUDP(t, 64)
			f.Meta.CsumOffset = 0 // would let the pod rewrite its source port behind lookup's back
			return f
		}},
	} {
		t.Run(reason, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			r.run(c.in(r), c.frame())
			if got := r.drops(c.in(r)); !maps.Equal(got, map[string]uint64{reason: 1}) {
				t.Errorf("drops %v, want one %s", got, reason)
			}
		})
	}
}

func tunnelled(b []byte) porttest.Frame {
	return porttest.Frame{Bytes: b, Meta: frame.Meta{VNI: testVNI, Peer: remotePeer}}
}

// superUDP is a USO super-frame from pod a to pod b with 3 segments and a rest, as a TAP delivers it: the
// checksum field holds the pseudo-header's sum, and HdrLen is nonsense.
func superUDP(t testing.TB, size int) porttest.Frame {
	b := udp(t, macA, macB, a4, b4, 64, strings.Repeat("abcdefgh", size/2)[:3*size+size/2])
	l4 := 14 + 20
	sum := wire.Fold(wire.PseudoHeader(b[14:], false, wire.ProtoUDP, len(b)-l4))
	b[l4+6], b[l4+7] = byte(sum>>8), byte(sum)
	return porttest.Frame{Bytes: b, Meta: frame.Meta{GSOType: wire.GSOUDPL4, NeedsCsum: true, HdrLen: 9,
		GSOSize: uint16(size), CsumStart: uint16(l4), CsumOffset: 6}}
}

func TestSuperFrameStaysWholeOrIsSegmented(t *testing.T) {
	r := newRig(t, port.CapsAll)
	in := superUDP(t, 100)
	r.run(r.podA, in)
	out, _ := sentTo(t, r.podB)
	if !bytes.Equal(out.Bytes, in.Bytes) || out.Meta.GSOSize != 100 || out.Meta.HdrLen != 42 {
		t.Errorf("super-frame arrived with meta %+v, want it whole", out.Meta)
	}
	l := r.sw.Ledger()
	if l.Rx != (Count{1, 4}) || l.Tx != (Count{1, 4}) {
		t.Errorf("rx %v tx %v, want 1 frame of 4 wire frames", l.Rx, l.Tx)
	}

	r = newRig(t, 0)
	r.run(r.podA, superUDP(t, 100))
	sent := r.podB.Sent()
	if len(sent) != 4 {
		t.Fatalf("%d segments, want 4", len(sent))
	}
	var payload []byte
	for _, f := range sent {
		p := gopacket.NewPacket(f.Bytes, layers.LayerTypeEthernet, gopacket.Default)
		u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if int(u.Length) != len(u.Payload)+8 || f.Meta.NeedsCsum || !wire.UDP(append(u.Contents, u.Payload...)).ChecksumOK(
			wire.PseudoHeader(f.Bytes[14:], false, wire.ProtoUDP, int(u.Length))) {
			t.Errorf("segment of %d bytes: length %d or checksum wrong", len(u.Payload), u.Length)
		}
		payload = append(payload, u.Payload...)
	}
	if want := in.Bytes[42:]; !bytes.Equal(payload, want) {
		t.Error("the segments' payloads are not the super-frame's")
	}
	if l := r.sw.Ledger(); l.Split.Frames != 3 || l.Tx != (Count{4, 4}) {
		t.Errorf("split %v tx %v, want 3 further frames", l.Split, l.Tx)
	}
}

func TestDetachWaitsAndKeepsTheCounts(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(udp(t, macA, macB, a4, b4, 64, "x")))
	r.must(r.sw.Detach(context.Background(), r.ids[r.podA]))
	if l := r.sw.Ledger(); l.Rx.Frames != 1 || l.Tx.Frames != 1 {
		t.Errorf("ledger after detach: %+v", l)
	}
	if _, known := r.sw.fdb.Lookup(testVNI, macA); known {
		t.Error("the detached station is still in the FDB")
	}
	r.run(r.podB, plain(udp(t, macB, routerMAC, b4, a4, 64, "x"))) // the route is still there
	if got := r.drops(r.podB); got["port_gone"] != 1 {
		t.Errorf("drops %v, want port_gone", got)
	}
}

func TestAPortsFloodFillsItsShareOnly(t *testing.T) {
	r := newRig(t, port.CapsAll)
	var storm []porttest.Frame
	for range 3 * puntsPerPort {
		storm = append(storm, plain(udp(t, macA, routerMAC, a4, nowhere4, 64, "x")))
	}
	r.podA.Inject(storm...)
	w := r.sw.workers[0]
	w.reader.Online()
	for r.podA.Waiting() > 0 {
		w.pass(eventOf(r.ids[r.podA]))
	}
	if got := r.drops(r.podA)["punt_full"]; got != 2*puntsPerPort {
		t.Errorf("%d frames refused, want %d", got, 2*puntsPerPort)
	}
	r.run(r.podB, plain(udp(t, macB, routerMAC, b4, nowhere4, 64, "x")))
	if n := len(r.podB.Sent()); n != 1 {
		t.Errorf("the neighbour got %d answers, want 1", n)
	}
}

func TestAnUnbalancedLedgerSaysWhatIsMissing(t *testing.T) {
	l := Ledger{Rx: Count{7, 9}, Tx: Count{5, 7}, Consumed: Count{2, 2}}
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	l.Tx.Frames--
	wantError(t, l.Check(), "1 frames and 0 wire frames in flight")
	l.Tx.Frames++
	l.Split.Frames++ // further frames that stand for none on the wire
	wantError(t, l.Check(), "1 frames and 0 wire frames in flight")
	wantError(t, (&Ledger{PoolLive: 3}).Check(), "3 buffers out")
}

func TestConfigurationErrorsNameTheThing(t *testing.T) {
	r := newRig(t, port.CapsAll)
	_, err := r.sw.Attach(porttest.New("a", 0), PortConfig{Role: RoleAccess, VNI: testVNI})
	wantError(t, err, "port a")
	_, err = r.sw.Attach(porttest.New("c", 0), PortConfig{Role: RoleAccess, VNI: 99})
	wantError(t, err, "VNI 99")
	wantError(t, r.sw.AddNetwork(Network{VNI: testVNI}), "VNI 1")
	wantError(t, r.sw.UpdateRoutes(testVNI, []RouteChange{{netip.MustParsePrefix("10.0.0.1/8"), &Adjacency{}}}), "10.0.0.1/8")
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want one that names %q", err, part)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	segment := tcp4(t, macA, macB, netip.AddrPortFrom(a4, 4000), netip.AddrPortFrom(b4, 80), layers.TCP{ACK: true})
	superSegment := porttest.Frame{Bytes: append(bytes.Clone(segment.Bytes[:54]), make([]byte, 3000)...), Meta: frame.Meta{
		NeedsCsum: true, CsumStart: 34, CsumOffset: 16, GSOType: wire.GSOTCPv4, HdrLen: 54, GSOSize: 1000}}
	binary.BigEndian.PutUint16(superSegment.Bytes[16:], 40+3000)
	wire.IPv4(superSegment.Bytes[14:]).UpdateChecksum()
	for name, c := range map[string]struct {
		at    func(*rig) *porttest.Port
		frame porttest.Frame
		drop  string // why all of them are dropped, or those that find the slow path busy
	}{
		"switched":     {podA, plain(udp(t, macA, macB, a4, b4, 64, "x")), ""},
		"routed":       {podA, plain(udp(t, macA, routerMAC, a4, remote4, 64, "x")), ""},
		"routed ipv6":  {podA, plain(udp(t, macA, routerMAC, a6, remote6, 64, "x")), ""},
		"decapsulated": {tunnel, tunnelled(udp(t, peerMAC, routerMAC, remote4, a4, 64, "x")), ""},
		"from host":    {host, plain(udp(t, hostMAC, routerMAC, local4, a4, 64, "x")), ""},
		"TCP":          {podA, segment, ""},
		"TCP, super":   {podA, superSegment, ""},
		"UDP, super":   {podA, superUDP(t, 100), ""},
		"ARP":          {podA, plain(arp(t, macA, macA, layers.ARPRequest, a4, gw4)), "punt_full"},
		"flooded":      {podA, plain(udp(t, macA, wire.Broadcast, a4, b4, 64, "x")), ""},
		"punted":       {podA, plain(udp(t, macA, routerMAC, a4, nowhere4, 64, "x")), "no_route"},
		"fragmented":   {podA, plain(udp(t, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 1450))), ""},
		"hairpin":      {podA, plain(udp(t, macB, macA, a4, b4, 64, "x")), "hairpin"},
		"malformed":    {podA, plain(make([]byte, 5)), "short_ethernet"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			r.sw.SetFlows(true)
			id := r.ids[c.at(r)]
			r.sw.snapshot.Load().port(id).rx = []port.RxQueue{&repeater{frame: c.frame}}
			for p, id := range r.ids {
				if p != c.at(r) {
					o := r.sw.snapshot.Load().port(id)
					o.tx[0] = &blackHole{&o.stats[0]}
				}
			}
			w := r.sw.workers[0]
			w.reader.Online()
			w.pass(eventOf(id)) // the first frame may grow the transmit tables
			if n := testing.AllocsPerRun(100, func() { w.pass(eventOf(id)) }); n != 0 {
				t.Errorf("%v allocations per burst", n)
			}
			r.sw.slow.drain()
			if drops := r.dropsOf(id); (drops[c.drop] > 0) != (c.drop != "") || c.drop == "" && len(drops) > 0 {
				t.Errorf("dropped %v, want %q", drops, c.drop)
			}
		})
	}
}

// repeater is a receive queue that always has one more of the same frame; blackHole takes everything.
type repeater struct{ frame porttest.Frame }

func (q *repeater) FD() int { return -1 }
func (q *repeater) Recv(_ int, b *frame.Burst, p *frame.Pool, _ *port.Stats) bool {
	for !b.Full() {
		buf := p.Reserve(0, len(q.frame.Bytes))
		if buf == nil {
			break
		}
		copy(buf, q.frame.Bytes)
		f := p.Commit(len(q.frame.Bytes))
		f.Meta = q.frame.Meta
		b.Append(f)
	}
	return true
}

type blackHole struct{ st *port.Stats }

func (q *blackHole) Send(b *frame.Burst) {
	for _, f := range b.Frames() {
		q.st.Tx.Add(1, uint64(f.Wire()))
	}
}
func (q *blackHole) Flush() {}

func eventOf(id port.ID) unix.EpollEvent { return unix.EpollEvent{Fd: int32(id)} }

// The ladder: each rung is one stage more.
func BenchmarkLadder(b *testing.B) {
	for _, c := range []struct {
		name  string
		frame porttest.Frame
		flows bool
	}{
		{"switched", plain(udp(b, macA, macB, a4, b4, 64, strings.Repeat("x", 18))), false},
		{"routed", plain(udp(b, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 18))), false},
		{"routed6", plain(udp(b, macA, routerMAC, a6, remote6, 64, strings.Repeat("x", 18))), false},
		{"tracked", plain(udp(b, macA, routerMAC, a4, remote4, 64, strings.Repeat("x", 18))), true},
	} {
		for rung := 1; rung <= 5; rung++ {
			stages := [...]string{"recv", "parse", "lookup", "act", "send"}
			b.Run(fmt.Sprintf("%s/%d-%s", c.name, rung, stages[rung-1]), func(b *testing.B) {
				r := newRig(b, port.CapsAll)
				r.sw.SetFlows(c.flows)
				ps := r.sw.snapshot.Load().port(r.ids[r.podA])
				ps.rx = []port.RxQueue{&repeater{frame: c.frame}}
				for _, out := range []*porttest.Port{r.podB, r.tunnel} {
					o := r.sw.snapshot.Load().port(r.ids[out])
					o.tx[0] = &blackHole{&o.stats[0]}
				}
				w := r.sw.workers[0]
				w.reader.Online()
				b.SetBytes(int64(len(c.frame.Bytes)))
				for n := 0; b.Loop(); n += frame.BurstSize {
					w.rung(eventOf(r.ids[r.podA]), rung)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/frame.BurstSize, "ns/frame")
			})
		}
	}
}

// rung is pass, cut short behind the given number of stages; what is in hand is given back as drops.
func (w *worker) rung(ev unix.EpollEvent, stages int) {
	if stages == 5 {
		w.pass(ev)
		return
	}
	w.reader.Quiesce()
	w.recv(ev)
	if stages >= 2 {
		w.parse()
	}
	if stages >= 3 {
		w.lookup()
	}
	if stages >= 4 {
		w.act()
		for _, out := range w.out.dirty {
			w.st.Drops[drop.TxFull].Add(uint64(out.burst.Len()), uint64(out.burst.Len()))
			out.burst.Release()
		}
		w.out.dirty = w.out.dirty[:0]
		return
	}
	if stages == 1 {
		w.st.Rx.Add(uint64(w.burst.Len()), uint64(w.burst.Len()))
	}
	w.st.Drops[drop.TxFull].Add(uint64(w.burst.Len()), uint64(w.burst.Len()))
	w.burst.Release()
}
