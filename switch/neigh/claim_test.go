package neigh

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/wire"
)

// readClaim parses the frame as the switch does.
func readClaim(t testing.TB, frame []byte) (Claim, Finding) {
	t.Helper()
	var p wire.Parsed
	if fault := wire.Parse(frame, false, &p); fault != wire.FaultNone {
		t.Fatalf("the frame is faulty: %v", fault)
	}
	return ReadClaim(frame, &p)
}

func arpFrame(t testing.TB, change func(*layers.ARP)) []byte {
	t.Helper()
	arp := arpRequest(asker, "10.244.1.5", "10.244.1.6")
	change(&arp)
	eth := layers.Ethernet{SrcMAC: asker[:], DstMAC: wire.Broadcast[:], EthernetType: layers.EthernetTypeARP}
	return append(serialize(t, &eth, &arp), make([]byte, 18)...) // Ethernet padding
}

func TestReadClaimARP(t *testing.T) {
	own, other := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.1.6")
	for _, c := range []struct {
		name    string
		change  func(*layers.ARP)
		want    Claim
		finding Finding
	}{
		{"request", func(*layers.ARP) {}, Claim{own, asker, false}, Claimed},
		{"reply", func(a *layers.ARP) { a.Operation = layers.ARPReply }, Claim{own, asker, false}, Claimed},
		{"announcement", func(a *layers.ARP) { a.DstProtAddress = own.AsSlice() }, Claim{own, asker, false}, Claimed},
		{"for another MAC", func(a *layers.ARP) { a.SourceHwAddress = station[:] }, Claim{own, station, false}, Claimed},
		{"an operation that nobody uses", func(a *layers.ARP) { a.Operation = 8 }, Claim{own, asker, false}, Claimed},
		{"probe", func(a *layers.ARP) { a.SourceProtAddress = make([]byte, 4) }, Claim{other, asker, true}, Claimed},
		{"probe for nothing", func(a *layers.ARP) { a.SourceProtAddress, a.DstProtAddress = make([]byte, 4), make([]byte, 4) }, Claim{}, Malformed},
		{"reply from nobody", func(a *layers.ARP) { a.Operation, a.SourceProtAddress = layers.ARPReply, make([]byte, 4) }, Claim{}, Malformed},
		{"for a group", func(a *layers.ARP) { a.SourceProtAddress = []byte{224, 0, 0, 1} }, Claim{}, Malformed},
		{"for everybody", func(a *layers.ARP) { a.SourceProtAddress = []byte{255, 255, 255, 255} }, Claim{}, Malformed},
		{"at a group MAC", func(a *layers.ARP) { a.SourceHwAddress = wire.Broadcast[:] }, Claim{}, Malformed},
		{"at no MAC", func(a *layers.ARP) { a.SourceHwAddress = make([]byte, 6) }, Claim{}, Malformed},
	} {
		if got, finding := readClaim(t, arpFrame(t, c.change)); got != c.want || finding != c.finding {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, got, finding, c.want, c.finding)
		}
	}
}

// message is an ICMPv6 message of any type, by gopacket.
type message struct {
	src, dst string
	hops     uint8
	kind     uint8
	code     uint8
	flags    uint8
	target   netip.Addr // left out if invalid
	options  []byte
}

func (m message) frame(t testing.TB) []byte {
	t.Helper()
	src, dst := netip.MustParseAddr(m.src), netip.MustParseAddr(m.dst)
	eth := layers.Ethernet{SrcMAC: asker[:], DstMAC: station[:], EthernetType: layers.EthernetTypeIPv6}
	ip6 := layers.IPv6{Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: m.hops, SrcIP: ip(src), DstIP: ip(dst)}
	icmp := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(m.kind, m.code)}
	if err := icmp.SetNetworkLayerForChecksum(&ip6); err != nil {
		t.Fatal(err)
	}
	body := append([]byte{m.flags, 0, 0, 0}, m.target.AsSlice()...)
	return serialize(t, &eth, &ip6, &icmp, gopacket.Payload(append(body, m.options...)))
}

// option is a link-layer address option, and nonce what Linux puts into its probes (RFC 7527).
func option(kind uint8, mac wire.MAC) []byte { return append([]byte{kind, 1}, mac[:]...) }

var nonce = []byte{14, 1, 1, 2, 3, 4, 5, 6}

func TestReadClaimND(t *testing.T) {
	const group = "ff02::1:ff00:b" // the solicited-node address of station6
	long := append([]byte{2, 2}, make([]byte, 14)...)
	ns := message{"fd00::a", group, 255, 135, 0, 0, station6, option(1, asker)}
	dad := message{"::", group, 255, 135, 0, 0, station6, nonce}
	na := message{"fd00::a", "ff02::1", 255, 136, 0, 0x20, asker6, option(2, asker)}
	rs := message{"fd00::a", "ff02::2", 255, 133, 0, 0, netip.Addr{}, option(1, asker)}
	for _, c := range []struct {
		name    string
		message message
		change  func(*message)
		want    Claim
		finding Finding
	}{
		{"solicitation", ns, func(m *message) {}, Claim{asker6, asker, false}, Claimed},
		{"behind a nonce", ns, func(m *message) { m.options = append(nonce[:8:8], m.options...) }, Claim{asker6, asker, false}, Claimed},
		{"said twice", ns, func(m *message) { m.options = append(m.options, m.options...) }, Claim{asker6, asker, false}, Claimed},
		{"for another MAC", ns, func(m *message) { m.options = option(1, station) }, Claim{asker6, station, false}, Claimed},
		{"without a MAC (RFC 4429)", ns, func(m *message) { m.options = nil }, Claim{asker6, wire.MAC{}, false}, Claimed},
		{"with an advertisement's option", ns, func(m *message) { m.options = option(2, station) }, Claim{asker6, wire.MAC{}, false}, Claimed},
		{"two MACs", ns, func(m *message) { m.options = append(m.options, option(1, station)...) }, Claim{}, Malformed},
		{"from a group", ns, func(m *message) { m.src = "ff02::1" }, Claim{}, Malformed},
		{"for a group", ns, func(m *message) { m.target = allNodes }, Claim{}, Malformed},
		{"no target", ns, func(m *message) { m.target, m.options = netip.Addr{}, nil }, Claim{}, Malformed},
		{"forwarded", ns, func(m *message) { m.hops = 254 }, Claim{}, Malformed},
		{"a code", ns, func(m *message) { m.code = 1 }, Claim{}, Malformed},

		{"probe", dad, func(m *message) {}, Claim{station6, wire.MAC{}, true}, Claimed},
		{"bare probe", dad, func(m *message) { m.options = nil }, Claim{station6, wire.MAC{}, true}, Claimed},
		{"probe with a MAC", dad, func(m *message) { m.options = option(1, asker) }, Claim{}, Malformed},
		{"probe with a MAC of another medium", dad, func(m *message) { m.options = append([]byte{1, 2}, long[2:]...) }, Claim{}, Malformed},
		{"probe to one station", dad, func(m *message) { m.dst = "fd00::b" }, Claim{}, Malformed},
		{"probe to another group", dad, func(m *message) { m.dst = "ff02::1:ff00:c" }, Claim{}, Malformed},
		{"probe for nothing", dad, func(m *message) { m.target, m.dst = netip.IPv6Unspecified(), "ff02::1:ff00:0" }, Claim{}, Malformed},

		{"advertisement", na, func(m *message) {}, Claim{asker6, asker, false}, Claimed},
		{"for another's address", na, func(m *message) { m.target = station6 }, Claim{station6, asker, false}, Claimed},
		{"an answer", na, func(m *message) { m.dst, m.flags, m.options = "fd00::b", 0x60, nil }, Claim{asker6, wire.MAC{}, false}, Claimed},
		{"an answer to all", na, func(m *message) { m.flags = 0x60 }, Claim{}, Malformed},
		{"two MACs", na, func(m *message) { m.options = append(m.options, option(2, station)...) }, Claim{}, Malformed},
		{"a MAC of another medium first", na, func(m *message) { m.options = append(long[:16:16], m.options...) }, Claim{}, Malformed},
		{"at a group MAC", na, func(m *message) { m.options = option(2, wire.Broadcast) }, Claim{}, Malformed},
		{"at no MAC", na, func(m *message) { m.options = option(2, wire.MAC{}) }, Claim{}, Malformed},
		{"an option of length 0", na, func(m *message) { m.options = make([]byte, 8) }, Claim{}, Malformed},
		{"an option that is cut", na, func(m *message) { m.options = long[:14] }, Claim{}, Malformed},
		{"for no address", na, func(m *message) { m.target = netip.IPv6Unspecified() }, Claim{}, Malformed},

		{"router solicitation", rs, func(m *message) {}, Claim{asker6, asker, false}, Claimed},
		{"router solicitation without a MAC", rs, func(m *message) { m.options = nil }, Claim{asker6, wire.MAC{}, false}, Claimed},
		{"router solicitation from nobody", rs, func(m *message) { m.src, m.options = "::", nil }, Claim{}, NoClaim},
		{"router solicitation from nobody with a MAC", rs, func(m *message) { m.src = "::" }, Claim{}, Malformed},
		{"router solicitation from nobody with two", rs, func(m *message) { m.src, m.options = "::", append(m.options, option(1, station)...) }, Claim{}, Malformed},
		{"router advertisement", rs, func(m *message) { m.kind = 134 }, Claim{}, RouterOnly},
		{"redirect", na, func(m *message) { m.kind = 137 }, Claim{}, RouterOnly},
		{"echo request", rs, func(m *message) { m.kind = 128 }, Claim{}, NoClaim},
	} {
		m := c.message
		c.change(&m)
		if got, finding := readClaim(t, m.frame(t)); got != c.want || finding != c.finding {
			t.Errorf("%s, type %d: %+v, %v, want %+v, %v", c.name, m.kind, got, finding, c.want, c.finding)
		}
	}
}

// What a pod fragments or what the slow path has cut short claims nothing, whatever it looks like.
func TestReadClaimOfPart(t *testing.T) {
	whole := newSolicit(asker6).frame(t)
	for _, frame := range [][]byte{whole, arpFrame(t, func(*layers.ARP) {})} {
		var p wire.Parsed
		wire.Parse(frame, false, &p)
		for n := wire.EthernetLen; n < int(p.End); n++ {
			if c, f := ReadClaim(frame[:n:n], &p); f != Malformed {
				t.Errorf("the first %d bytes: %+v, %v", n, c, f)
			}
		}
	}
	if c, f := readClaim(t, fragmented(whole)); f != Malformed {
		t.Errorf("in one fragment: %+v, %v", c, f)
	}
}

func TestReadClaimAllocatesNothing(t *testing.T) {
	arp, ns := arpFrame(t, func(*layers.ARP) {}), newSolicit(asker6).frame(t)
	var p4, p6 wire.Parsed
	wire.Parse(arp, false, &p4)
	wire.Parse(ns, false, &p6)
	if n := testing.AllocsPerRun(100, func() {
		if _, f := ReadClaim(arp, &p4); f != Claimed {
			t.Fatal(f)
		}
		if _, f := ReadClaim(ns, &p6); f != Claimed {
			t.Fatal(f)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// claimByGopacket is ReadClaim by another decoder, from the RFCs' lists of what to discard. p is used for where
// the message is, which switch/wire has its own tests of.
func claimByGopacket(frame []byte, p *wire.Parsed) (Claim, Finding) {
	if p.Kind == wire.KindARP {
		return arpByGopacket(frame[p.L3:])
	}
	if p.Kind != wire.KindIPv6 || p.Proto != wire.ProtoICMPv6 || !p.HasL4() {
		return Claim{}, NoClaim
	}
	// gopacket reads hop-by-hop options too, and refuses some; they aren't about claims.
	header := append(bytes.Clone(frame[p.L3:p.L3+wire.IPv6Len]), make([]byte, 8)...)
	copy(header[4:], []byte{0, 8, wire.ProtoICMPv6})
	var ip6 layers.IPv6
	if err := ip6.DecodeFromBytes(header, gopacket.NilDecodeFeedback); err != nil {
		return Claim{}, Malformed
	}
	var icmp layers.ICMPv6
	if err := icmp.DecodeFromBytes(frame[p.L4:p.End], gopacket.NilDecodeFeedback); err != nil {
		return Claim{}, NoClaim // under 4 bytes, or a type alone
	}
	kind := icmp.TypeCode.Type()
	bad := p.Fragment || ip6.HopLimit != 255 || icmp.TypeCode.Code() != 0
	switch {
	case kind < 133 || kind > 137:
		return Claim{}, NoClaim
	case (kind == 134 || kind == 137) && !p.Fragment && ip6.HopLimit == 255:
		return Claim{}, RouterOnly
	case bad:
		return Claim{}, Malformed
	}
	c, none, ok := ndByGopacket(kind, icmp.Payload, &ip6)
	switch {
	case !ok:
		return Claim{}, Malformed
	case none:
		return Claim{}, NoClaim
	}
	return c, Claimed
}

func arpByGopacket(b []byte) (Claim, Finding) {
	var arp layers.ARP
	if err := arp.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return Claim{}, Malformed
	}
	mac := wire.MAC(arp.SourceHwAddress)
	sender, _ := netip.AddrFromSlice(arp.SourceProtAddress)
	target, _ := netip.AddrFromSlice(arp.DstProtAddress)
	c := Claim{Addr: sender, MAC: mac}
	if sender == netip.IPv4Unspecified() {
		c = Claim{Addr: target, MAC: mac, Probe: true}
	}
	if c.Probe && arp.Operation != layers.ARPRequest || !oneStation(mac) || !oneAddr(c.Addr) {
		return Claim{}, Malformed
	}
	return c, Claimed
}

func oneStation(mac wire.MAC) bool { return mac[0]%2 == 0 && mac != wire.MAC{} }

func oneAddr(a netip.Addr) bool {
	b := a.As16()
	last := netip.AddrFrom16(b).Unmap()
	return !a.IsUnspecified() && b[0] != 0xff && !(last.Is4() && last.As4()[0]>>4 == 14) &&
		a != netip.MustParseAddr("255.255.255.255")
}

func ndByGopacket(kind uint8, payload []byte, ip6 *layers.IPv6) (c Claim, none, ok bool) {
	var options layers.ICMPv6Options
	var err error
	own := layers.ICMPv6OptSourceAddress
	src, _ := netip.AddrFromSlice(ip6.SrcIP)
	c.Addr = src
	switch kind {
	case 133:
		var m layers.ICMPv6RouterSolicitation
		err, options = m.DecodeFromBytes(payload, gopacket.NilDecodeFeedback), m.Options
		none = src.IsUnspecified()
	case 135:
		var m layers.ICMPv6NeighborSolicitation
		if err, options = m.DecodeFromBytes(payload, gopacket.NilDecodeFeedback), m.Options; err != nil {
			return c, none, false
		}
		target, _ := netip.AddrFromSlice(m.TargetAddress)
		if target.As16()[0] == 0xff {
			return c, none, false
		}
		if src.IsUnspecified() {
			c.Addr, c.Probe = target, true
			group := append([]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}, m.TargetAddress[13:]...)
			if !bytes.Equal(ip6.DstIP, group) {
				return c, none, false
			}
		}
	case 136:
		var m layers.ICMPv6NeighborAdvertisement
		if err, options = m.DecodeFromBytes(payload, gopacket.NilDecodeFeedback), m.Options; err != nil {
			return c, none, false
		}
		own = layers.ICMPv6OptTargetAddress
		c.Addr, _ = netip.AddrFromSlice(m.TargetAddress)
		if m.Solicited() && ip6.DstIP[0] == 0xff {
			return c, none, false
		}
	}
	for _, o := range options {
		if o.Type != own {
			continue
		}
		if len(o.Data) != 6 || !oneStation(wire.MAC(o.Data)) || c.MAC != (wire.MAC{}) && c.MAC != wire.MAC(o.Data) ||
			kind != 136 && src.IsUnspecified() {
			return c, none, false
		}
		c.MAC = wire.MAC(o.Data)
	}
	return c, none, err == nil && (none || oneAddr(c.Addr))
}

// FuzzClaim has gopacket read the same bytes. The IPv6 payload length is mended, so that the fuzzer can add and
// remove options.
func FuzzClaim(f *testing.F) {
	f.Add(arpFrame(f, func(*layers.ARP) {}))
	f.Add(arpFrame(f, func(a *layers.ARP) { a.SourceProtAddress = make([]byte, 4) }))
	f.Add(newSolicit(asker6).frame(f))
	f.Add(newSolicit(netip.IPv6Unspecified()).frame(f))
	f.Add(fragmented(newSolicit(asker6).frame(f)))
	for _, kind := range []uint8{133, 134, 135, 136, 137} {
		m := message{"fd00::a", "ff02::1", 255, kind, 0, 0x20, station6, append(option(1, asker), option(2, asker)...)}
		f.Add(m.frame(f))
		m.target = netip.Addr{}
		f.Add(m.frame(f))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		frame := bytes.Clone(input)
		if ip6 := wire.EthernetLen + wire.IPv6Len; len(frame) > ip6 && len(frame) < 1<<16 {
			if wire.Ethernet(frame).EtherType() == wire.EtherTypeIPv6 {
				binary.BigEndian.PutUint16(frame[wire.EthernetLen+4:], uint16(len(frame)-ip6))
			}
		}
		var p wire.Parsed
		if wire.Parse(frame, false, &p) != wire.FaultNone {
			return
		}
		got, finding := ReadClaim(frame, &p)
		want, wantFinding := claimByGopacket(frame, &p)
		if got != want || finding != wantFinding {
			t.Errorf("% x: %+v, %v, by gopacket %+v, %v", frame, got, finding, want, wantFinding)
		}
	})
}
