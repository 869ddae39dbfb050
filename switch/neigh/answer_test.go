package neigh

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/wire"
)

var (
	asker    = wire.MAC{2, 0, 0, 0, 0, 0x0a}
	station  = wire.MAC{2, 0, 0, 0, 0, 0x0b}
	asker6   = netip.MustParseAddr("fd00::a")
	station6 = netip.MustParseAddr("fd00::b")
	askerLL  = netip.MustParseAddr("fe80::ff:fe00:a")
)

func serialize(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decode(t testing.TB, frame []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v in % x", e.Error(), frame)
	}
	return p
}

// dirty returns a buffer with nothing useful in it and a byte too many on each side of the answer.
func dirty(n int) []byte { return bytes.Repeat([]byte{0xa5}, n+2) }

func arpRequest(sender wire.MAC, senderIP, targetIP string) layers.ARP {
	src, dst := netip.MustParseAddr(senderIP).As4(), netip.MustParseAddr(targetIP).As4()
	return layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: sender[:], SourceProtAddress: src[:],
		DstHwAddress: make([]byte, 6), DstProtAddress: dst[:],
	}
}

// gopacket writes the request and reads the answer. The request of a probe (RFC 5227) has no sender address, and
// one from another subnet is answered as well (RFC 1027).
func TestAnswerARP(t *testing.T) {
	for _, senderIP := range []string{"10.244.1.5", "0.0.0.0", "192.168.7.1"} {
		req := arpRequest(asker, senderIP, "10.244.1.6")
		out := dirty(ARPAnswerLen)
		// Ethernet padding behind the request is no part of it.
		n := AnswerARP(append(serialize(t, &req), make([]byte, 18)...), station, out)
		if n != ARPAnswerLen || out[n] != 0xa5 {
			t.Fatalf("from %s: %d bytes, want %d, none beyond", senderIP, n, ARPAnswerLen)
		}
		p := decode(t, out[:n])
		eth := p.LinkLayer().(*layers.Ethernet)
		if !bytes.Equal(eth.SrcMAC, station[:]) || !bytes.Equal(eth.DstMAC, asker[:]) {
			t.Errorf("from %s: answer goes from %v to %v", senderIP, eth.SrcMAC, eth.DstMAC)
		}
		arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if arp.Operation != layers.ARPReply || arp.AddrType != layers.LinkTypeEthernet || arp.Protocol != layers.EthernetTypeIPv4 ||
			!bytes.Equal(arp.SourceHwAddress, station[:]) || !bytes.Equal(arp.SourceProtAddress, req.DstProtAddress) ||
			!bytes.Equal(arp.DstHwAddress, asker[:]) || !bytes.Equal(arp.DstProtAddress, req.SourceProtAddress) {
			t.Errorf("from %s: answer %+v", senderIP, arp)
		}
	}
}

func TestAnswerARPRefuses(t *testing.T) {
	cases := map[string]func(*layers.ARP){
		"reply":                     func(a *layers.ARP) { a.Operation = layers.ARPReply },
		"announcement":              func(a *layers.ARP) { a.SourceProtAddress = a.DstProtAddress },
		"request of the station":    func(a *layers.ARP) { a.SourceHwAddress = station[:] },
		"multicast target":          func(a *layers.ARP) { a.DstProtAddress = []byte{224, 0, 0, 1} },
		"broadcast target":          func(a *layers.ARP) { a.DstProtAddress = []byte{255, 255, 255, 255} },
		"unspecified target":        func(a *layers.ARP) { a.DstProtAddress = []byte{0, 0, 0, 0} },
		"multicast sender":          func(a *layers.ARP) { a.SourceProtAddress = []byte{224, 0, 0, 1} },
		"broadcast sender":          func(a *layers.ARP) { a.SourceProtAddress = []byte{255, 255, 255, 255} },
		"group MAC":                 func(a *layers.ARP) { a.SourceHwAddress = wire.Broadcast[:] },
		"zero MAC":                  func(a *layers.ARP) { a.SourceHwAddress = make([]byte, 6) },
		"other hardware":            func(a *layers.ARP) { a.AddrType = 6 },
		"probe of the prober's own": func(a *layers.ARP) { a.SourceHwAddress, a.SourceProtAddress = station[:], make([]byte, 4) },
	}
	for name, change := range cases {
		req := arpRequest(asker, "10.244.1.5", "10.244.1.6")
		change(&req)
		if n := AnswerARP(serialize(t, &req), station, dirty(ARPAnswerLen)); n != 0 {
			t.Errorf("%s: answered", name)
		}
	}
	good := arpRequest(asker, "10.244.1.5", "10.244.1.6")
	for n := range wire.ARPLen {
		if AnswerARP(serialize(t, &good)[:n], station, dirty(ARPAnswerLen)) != 0 {
			t.Errorf("%d bytes of a request: answered", n)
		}
	}
}

// solicit is what a neighbour solicitation is made of.
type solicit struct {
	eth     layers.Ethernet
	ip      layers.IPv6
	message layers.ICMPv6NeighborSolicitation
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }

// newSolicit asks for station6 as RFC 4861 7.2.2 says: to the solicited-node address, with a link-layer option
// unless the source is unspecified.
func newSolicit(src netip.Addr) *solicit {
	s := &solicit{
		eth: layers.Ethernet{
			SrcMAC: asker[:], DstMAC: net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 0x0b}, EthernetType: layers.EthernetTypeIPv6,
		},
		ip: layers.IPv6{
			Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255,
			SrcIP: ip(src), DstIP: net.ParseIP("ff02::1:ff00:b"),
		},
		message: layers.ICMPv6NeighborSolicitation{TargetAddress: ip(station6)},
	}
	if !src.IsUnspecified() {
		s.message.Options = layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: asker[:]}}
	}
	return s
}

func (s *solicit) frame(t testing.TB) []byte {
	t.Helper()
	icmp := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
	if err := icmp.SetNetworkLayerForChecksum(&s.ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, &s.eth, &s.ip, &icmp, &s.message)
}

// answer parses the frame as the switch does and returns the answer, nil for none.
func answer(t testing.TB, frame []byte, router bool) []byte {
	t.Helper()
	var p wire.Parsed
	if fault := wire.Parse(frame, false, &p); fault != wire.FaultNone {
		t.Fatalf("the request is faulty: %v", fault)
	}
	out := dirty(NDAnswerLen)
	n := AnswerND(frame, &p, station, router, out)
	if out[n] != 0xa5 {
		t.Error("the answer is longer than its length")
	}
	return out[:n]
}

// gopacket writes the solicitation, reads the advertisement and computes its checksum anew.
func TestAnswerND(t *testing.T) {
	allNodes, allNodesMAC := netip.MustParseAddr("ff02::1"), wire.MAC{0x33, 0x33, 5: 1}
	asIs := func(*solicit) {}
	toStation := func(s *solicit) { s.eth.DstMAC, s.ip.DstIP = station[:], ip(station6) }
	bare := func(s *solicit) { s.message.Options = nil }
	withNonce := func(s *solicit) { s.message.Options = layers.ICMPv6Options{{Type: 14, Data: make([]byte, 6)}} }
	for _, c := range []struct {
		name      string
		src       netip.Addr
		router    bool
		change    func(*solicit)
		wantMAC   wire.MAC
		wantIP    netip.Addr
		wantFlags uint8
	}{
		{"multicast", asker6, false, asIs, asker, asker6, 0x60},
		{"unicast probe", asker6, false, toStation, asker, asker6, 0x60},
		{"from an optimistic address (RFC 4429)", asker6, false, bare, asker, asker6, 0x60},
		{"router", askerLL, true, asIs, asker, askerLL, 0xe0},
		{"duplicate address detection", netip.IPv6Unspecified(), false, asIs, allNodesMAC, allNodes, 0x20},
		{"enhanced detection (RFC 7527)", netip.IPv6Unspecified(), false, withNonce, allNodesMAC, allNodes, 0x20},
		{"duplicate of a router", netip.IPv6Unspecified(), true, asIs, allNodesMAC, allNodes, 0xa0},
	} {
		s := newSolicit(c.src)
		c.change(s)
		got := answer(t, append(s.frame(t), 0, 0), c.router)
		if len(got) != NDAnswerLen {
			t.Errorf("%s: answer of %d bytes", c.name, len(got))
			continue
		}
		p := decode(t, got)
		eth, ip6 := p.LinkLayer().(*layers.Ethernet), p.NetworkLayer().(*layers.IPv6)
		advert := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if !bytes.Equal(eth.SrcMAC, station[:]) || !bytes.Equal(eth.DstMAC, c.wantMAC[:]) {
			t.Errorf("%s: answer goes from %v to %v", c.name, eth.SrcMAC, eth.DstMAC)
		}
		if !ip6.SrcIP.Equal(ip(station6)) || !ip6.DstIP.Equal(ip(c.wantIP)) || ip6.HopLimit != 255 {
			t.Errorf("%s: IPv6 header %+v", c.name, ip6)
		}
		if advert.Flags != c.wantFlags || !advert.TargetAddress.Equal(ip(station6)) || len(advert.Options) != 1 ||
			advert.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(advert.Options[0].Data, station[:]) {
			t.Errorf("%s: advertisement %+v", c.name, advert)
		}
		icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if err := icmp.SetNetworkLayerForChecksum(ip6); err != nil {
			t.Fatal(err)
		}
		if again := serialize(t, eth, ip6, icmp, advert); !bytes.Equal(again, got) {
			t.Errorf("%s: gopacket encodes the answer as\n% x, it is\n% x", c.name, again, got)
		}
	}
}

func TestAnswerNDRefuses(t *testing.T) {
	unspecified := netip.IPv6Unspecified()
	for _, c := range []struct {
		name   string
		src    netip.Addr
		change func(*solicit)
	}{
		{"forwarded by a router", asker6, func(s *solicit) { s.ip.HopLimit = 254 }},
		{"multicast target", asker6, func(s *solicit) { s.message.TargetAddress = net.ParseIP("ff02::1") }},
		{"unspecified target", asker6, func(s *solicit) { s.message.TargetAddress = net.IPv6zero }},
		{"multicast source", asker6, func(s *solicit) { s.ip.SrcIP = net.ParseIP("ff02::1") }},
		{"group MAC", asker6, func(s *solicit) { s.eth.SrcMAC = wire.Broadcast[:] }},
		{"request of the station", asker6, func(s *solicit) { s.eth.SrcMAC = station[:] }},
		{"probe of the prober's own", unspecified, func(s *solicit) { s.eth.SrcMAC = station[:] }},
		{"probe to a unicast address", unspecified, func(s *solicit) { s.ip.DstIP = ip(station6) }},
		{"probe with a link-layer address", unspecified, func(s *solicit) {
			s.message.Options = layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: asker[:]}}
		}},
	} {
		s := newSolicit(c.src)
		c.change(s)
		if len(answer(t, s.frame(t), false)) != 0 {
			t.Errorf("%s: answered", c.name)
		}
	}
}

// Each byte of the ICMPv6 message and of the addresses is under the checksum, so that no flipped bit may be
// answered.
func TestAnswerNDRefusesFlippedBits(t *testing.T) {
	frame := newSolicit(asker6).frame(t)
	const firstAddress = wire.EthernetLen + 8
	for i := firstAddress; i < len(frame); i++ {
		for bit := range 8 {
			frame[i] ^= 1 << bit
			var p wire.Parsed
			if wire.Parse(frame, false, &p) == wire.FaultNone && AnswerND(frame, &p, station, false, dirty(NDAnswerLen)) != 0 {
				t.Errorf("answered with bit %d of byte %d flipped", bit, i)
			}
			frame[i] ^= 1 << bit
		}
	}
}

// fragmented puts the packet into one fragment.
func fragmented(whole []byte) []byte {
	header := wire.EthernetLen + wire.IPv6Len
	frame := append(bytes.Clone(whole[:header]), wire.ProtoICMPv6, 0, 0, 0, 0, 0, 0, 1)
	frame = append(frame, whole[header:]...)
	ip := wire.IPv6(frame[wire.EthernetLen:])
	ip.SetNextHeader(wire.ProtoFragment)
	ip.SetPayloadLen(ip.PayloadLen() + 8)
	return frame
}

// Solicitations must not be fragmented (RFC 6980), not even into one.
func TestAnswerNDRefusesFragment(t *testing.T) {
	if len(answer(t, fragmented(newSolicit(asker6).frame(t)), false)) != 0 {
		t.Error("answered")
	}
}

// The slow path keeps the first bytes of a frame and what Parse said about all of it.
func TestAnswerNDOfTruncatedCopy(t *testing.T) {
	s := newSolicit(asker6)
	for range 300 {
		s.message.Options = append(s.message.Options, layers.ICMPv6Option{Type: 14, Data: make([]byte, 6)})
	}
	frame := s.frame(t)
	if len(answer(t, frame, false)) == 0 {
		t.Error("the whole solicitation is not answered")
	}
	var p wire.Parsed
	wire.Parse(frame, false, &p)
	for n := wire.EthernetLen; n < len(frame); n++ {
		if AnswerND(frame[:n:n], &p, station, false, dirty(NDAnswerLen)) != 0 {
			t.Errorf("the first %d bytes are answered", n)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	req := arpRequest(asker, "10.244.1.5", "10.244.1.6")
	f.Add(append(serialize(f, &layers.Ethernet{SrcMAC: asker[:], DstMAC: wire.Broadcast[:], EthernetType: layers.EthernetTypeARP}), serialize(f, &req)...))
	f.Add(newSolicit(asker6).frame(f))
	f.Add(newSolicit(netip.IPv6Unspecified()).frame(f))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var p wire.Parsed
		if wire.Parse(frame, false, &p) != wire.FaultNone {
			return
		}
		out := make([]byte, NDAnswerLen)
		n := AnswerND(frame, &p, station, false, out)
		if p.Kind == wire.KindARP {
			n = AnswerARP(frame[p.L3:], station, out)
		}
		var answer wire.Parsed
		if fault := wire.Parse(out[:n], false, &answer); n != 0 && fault != wire.FaultNone {
			t.Errorf("the answer to % x is faulty: %v: % x", frame, fault, out[:n])
		}
		if addr, ok := ReadAnswer(frame, &p); ok && (!isUnicast(addr) || n != 0) {
			t.Errorf("% x is read as an answer for %v, and answered with %d bytes", frame, addr, n)
		}
		if addr, ok := ReadAnswer(out[:n], &answer); ok != (n != 0) || ok && !isUnicast(addr) {
			t.Errorf("the answer to % x is read as one for %v: %t", frame, addr, ok)
		}
	})
}
