package vswitch

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/drop"
	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// dontFragment sets DF in an IPv4 frame.
func dontFragment(b []byte) []byte {
	b[20] |= 0x40
	wire.IPv4(b[14:]).UpdateChecksum()
	return b
}

// guarded is a rig with a third pod, whose port holds it to what it was given.
func guarded(t testing.TB, bum int) (r *rig, podC *porttest.Port) {
	r = newRig(t, port.CapsAll)
	podC = porttest.New("c", port.CapsAll)
	r.attach(podC, PortConfig{Role: RoleAccess, VNI: testVNI, BUM: bum, Guard: &Station{macC, []netip.Addr{c4, c6}}})
	to := Adjacency{Kind: AdjForward, MTU: 1450, DstMAC: macC, SrcMAC: routerMAC, Dest: port.Dest{Port: r.ids[podC]}}
	r.must(r.sw.UpdateRoutes(testVNI, []RouteChange{{netip.PrefixFrom(c4, 32), &to}, {netip.PrefixFrom(c6, 128), &to}}))
	return r, podC
}

func (r *rig) attach(p *porttest.Port, cfg PortConfig) {
	r.t.Helper()
	id, err := r.sw.Attach(p, cfg)
	r.must(err)
	r.ids[p] = id
}

var (
	macC      = wire.MAC{10, 0, 0, 0, 0, 5}
	c4, c6    = ip("10.244.1.5"), ip("fd00:1::5")
	linkLocal = ip("fe80::800:ff:fe00:5") // of macC: 0a with the bit of 02 flipped
)

func arp(t testing.TB, eth, sha wire.MAC, op uint16, sender, target netip.Addr) []byte {
	return packet(t, ethernet(eth, wire.Broadcast, layers.EthernetTypeARP),
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: op, SourceHwAddress: sha[:], SourceProtAddress: sender.AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: target.AsSlice()})
}

// nd is a message of neighbour discovery: solicit, advertise or of the router's.
func nd(t testing.TB, src netip.Addr, dst string, body gopacket.SerializableLayer, typ uint8) []byte {
	to := ip(dst)
	mac := wire.MulticastMAC(to)
	return packet(t, ethernet(macC, mac, layers.EthernetTypeIPv6),
		&layers.IPv6{HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: to.AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}, body)
}

func linkLayer(kind layers.ICMPv6Opt, mac wire.MAC) layers.ICMPv6Options {
	return layers.ICMPv6Options{{Type: kind, Data: mac[:]}}
}

func TestGuardDropsWhatThePodWasNotGiven(t *testing.T) {
	solicit := func(target netip.Addr, mac wire.MAC) *layers.ICMPv6NeighborSolicitation {
		return &layers.ICMPv6NeighborSolicitation{TargetAddress: target.AsSlice(), Options: linkLayer(layers.ICMPv6OptSourceAddress, mac)}
	}
	advertise := func(target netip.Addr, mac wire.MAC) *layers.ICMPv6NeighborAdvertisement {
		return &layers.ICMPv6NeighborAdvertisement{Flags: 0x20, TargetAddress: target.AsSlice(), Options: linkLayer(layers.ICMPv6OptTargetAddress, mac)}
	}
	dad := &layers.ICMPv6NeighborSolicitation{TargetAddress: c6.AsSlice()}
	twice := solicit(b6, macC)
	twice.Options = append(twice.Options, linkLayer(layers.ICMPv6OptSourceAddress, macB)...)
	none := netip.IPv6Unspecified()
	dhcp := func(from, to layers.UDPPort) []byte {
		return packet(t, ethernet(macC, wire.Broadcast, layers.EthernetTypeIPv4),
			&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: make([]byte, 4), DstIP: []byte{255, 255, 255, 255}},
			&layers.UDP{SrcPort: from, DstPort: to}, gopacket.Payload("x"))
	}
	for name, c := range map[string]struct {
		frame  []byte
		reason drop.Reason
	}{
		"DHCP client":            {dhcp(68, 67), drop.None},
		"no DHCP client":         {dhcp(67, 68), drop.SpoofedIP},
		"own IPv4":               {udp(t, macC, macB, c4, b4, 64, "x"), drop.None},
		"own IPv6":               {udp(t, macC, macB, c6, b6, 64, "x"), drop.None},
		"own link-local":         {udp(t, macC, macB, linkLocal, b6, 64, "x"), drop.None},
		"other MAC":              {udp(t, macA, macB, c4, b4, 64, "x"), drop.SpoofedMAC},
		"other IPv4":             {udp(t, macC, macB, a4, b4, 64, "x"), drop.SpoofedIP},
		"other IPv6":             {udp(t, macC, macB, a6, b6, 64, "x"), drop.SpoofedIP},
		"no IPv4":                {udp(t, macC, wire.Broadcast, ip("0.0.0.0"), b4, 64, "x"), drop.SpoofedIP},
		"no IPv6, no ICMP":       {udp(t, macC, wire.MulticastMAC(ip("ff02::fb")), none, ip("ff02::fb"), 1, "x"), drop.SpoofedIP},
		"ARP":                    {arp(t, macC, macC, 1, c4, ip("10.244.1.77")), drop.None},
		"ARP probe":              {arp(t, macC, macC, 1, ip("0.0.0.0"), c4), drop.None},
		"ARP reply of nobody":    {arp(t, macC, macC, 2, ip("0.0.0.0"), c4), drop.SpoofedARP},
		"ARP for another":        {arp(t, macC, macC, 1, b4, a4), drop.SpoofedARP},
		"ARP with another's MAC": {arp(t, macC, macB, 1, c4, a4), drop.SpoofedARP},
		"DAD":                    {nd(t, none, "ff02::1:ff00:5", dad, 135), drop.None},
		"solicit":                {nd(t, c6, "ff02::1:ff00:77", solicit(ip("fd00:1::77"), macC), 135), drop.None},
		"solicit, another's MAC": {nd(t, c6, "ff02::1:ff00:4", solicit(b6, macB), 135), drop.SpoofedND},
		"solicit, two MACs":      {nd(t, c6, "ff02::1:ff00:4", twice, 135), drop.SpoofedND},
		"advertise":              {nd(t, c6, "ff02::1", advertise(c6, macC), 136), drop.None},
		"advertise link-local":   {nd(t, linkLocal, "ff02::1", advertise(linkLocal, macC), 136), drop.None},
		"advertise another's":    {nd(t, c6, "ff02::1", advertise(b6, macC), 136), drop.SpoofedND},
		"router solicitation":    {nd(t, linkLocal, "ff02::2", &layers.ICMPv6RouterSolicitation{}, 133), drop.None},
		"router advertisement":   {nd(t, linkLocal, "ff02::1", &layers.ICMPv6RouterAdvertisement{}, 134), drop.RouterAdvert},
		"redirect":               {nd(t, linkLocal, "ff02::1", &layers.ICMPv6Redirect{TargetAddress: c6.AsSlice(), DestinationAddress: b6.AsSlice()}, 137), drop.RouterAdvert},
		"MLD report":             {nd(t, none, "ff02::16", gopacket.Payload(make([]byte, 4)), 143), drop.None},
		"bridge protocol":        {packet(t, ethernet(macC, wire.MAC{1, 0x80, 0xc2, 0, 0, 0}, 0x0026), gopacket.Payload(make([]byte, 60))), drop.ReservedMulticast},
	} {
		t.Run(name, func(t *testing.T) {
			r, podC := guarded(t, 0)
			r.run(podC, plain(c.frame))
			want := map[string]uint64{}
			if c.reason != drop.None {
				want[c.reason.String()] = 1
			}
			if got := r.drops(podC); !maps.Equal(got, want) {
				t.Errorf("drops %v, want %v", got, want)
			}
			if arrived := len(r.podB.Sent()) > 0; arrived != (c.reason == drop.None) {
				t.Errorf("arrived: %v", arrived)
			}
		})
	}
}

func TestFloodsAreLimitedPerPort(t *testing.T) {
	r, podC := guarded(t, 10)
	clock := time.Unix(1000, 0)
	r.sw.now = func() time.Time { return clock }
	broadcast := plain(arp(t, macC, macC, 1, c4, ip("10.244.1.77")))
	for range 25 {
		r.run(podC, broadcast)
	}
	if n := len(r.podB.Sent()); n != 10 {
		t.Errorf("%d of 25 broadcasts arrived at once, want 10", n)
	}
	r.run(podC, plain(udp(t, macC, macB, c4, b4, 64, "x"))) // not a flood
	clock = clock.Add(500 * time.Millisecond)
	for range 25 {
		r.run(podC, broadcast)
	}
	if n := len(r.podB.Sent()); n != 10+1+5 {
		t.Errorf("%d frames after half a second more, want 16", n)
	}
	if got := r.drops(podC)["bum_limit"]; got != 15+20 {
		t.Errorf("%d dropped, want 35", got)
	}
}

func TestPuntsAndErrorsAreLimitedPerPort(t *testing.T) {
	r, podC := guarded(t, 0)
	clock := time.Unix(1000, 0)
	r.sw.now = func() time.Time { return clock }
	unreachable := plain(udp(t, macC, routerMAC, c4, absent4, 64, "x"))
	for range 3 * accessPunts {
		r.run(podC, unreachable)
	}
	if n := len(podC.Sent()); n != icmpErrors {
		t.Errorf("%d errors within a second, want %d", n, icmpErrors)
	}
	if got := r.drops(podC); got["no_neighbor"] != accessPunts || got["punt_full"] != 2*accessPunts {
		t.Errorf("drops %v, want %d no_neighbor and twice as many punt_full", got, accessPunts)
	}
}

// The quotes and codes are checked by gopacket, the MTU where each RFC has it.
func TestTooBigTellsTheMTU(t *testing.T) {
	long := strings.Repeat("x", 1450)
	for name, c := range map[string]struct {
		frame []byte
		from  netip.Addr
	}{
		"IPv4 with DF": {dontFragment(udp(t, macA, routerMAC, a4, remote4, 64, long)), gw4},
		"IPv6":         {udp(t, macA, routerMAC, a6, remote6, 64, long), gw6},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, port.CapsAll)
			r.run(r.podA, plain(c.frame))
			_, p := sentTo(t, r.podA)
			var mtu uint32
			var quoted []byte
			if l := p.Layer(layers.LayerTypeICMPv4); l != nil {
				m := l.(*layers.ICMPv4)
				if m.TypeCode != layers.CreateICMPv4TypeCode(3, 4) {
					t.Errorf("type and code %v", m.TypeCode)
				}
				mtu, quoted = uint32(m.Seq), m.Payload
				if wire.Fold(wire.Sum(m.Contents, wire.Sum(m.Payload, 0))) != 0xffff {
					t.Error("checksum is wrong")
				}
			} else {
				m := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				if m.TypeCode != layers.CreateICMPv6TypeCode(2, 0) {
					t.Errorf("type and code %v", m.TypeCode)
				}
				mtu, quoted = binary.BigEndian.Uint32(m.Payload), m.Payload[4:]
			}
			if mtu != 1450 || !bytes.HasPrefix(c.frame[14:], quoted) || len(quoted) < 28 {
				t.Errorf("MTU %d, quoted %d bytes; want 1450 and the packet's beginning", mtu, len(quoted))
			}
			if src := p.NetworkLayer().NetworkFlow().Src().String(); src != c.from.String() {
				t.Errorf("from %s, want %s", src, c.from)
			}
		})
	}
}

// What a router must not answer, or an ICMP error would answer another, or a group.
func TestNoErrorIsSentAbout(t *testing.T) {
	errorAbout := packet(t, ethernet(macA, routerMAC, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: a4.AsSlice(), DstIP: absent4.AsSlice()},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(make([]byte, 28)))
	later := udp(t, macA, routerMAC, a4, absent4, 64, "x")
	binary.BigEndian.PutUint16(later[20:], 10) // fragment offset 80
	wire.IPv4(later[14:]).UpdateChecksum()
	for name, b := range map[string][]byte{
		"an error":         errorAbout,
		"a later fragment": later,
		"a group":          udp(t, macA, routerMAC, a4, ip("224.0.0.5"), 64, "x"),
		"a group of IPv6":  udp(t, macA, routerMAC, a6, ip("ff0e::5"), 64, "x"),
	} {
		r := newRig(t, port.CapsAll)
		r.run(r.podA, plain(b))
		if n := len(r.podA.Sent()); n != 0 {
			t.Errorf("%s: answered %d times", name, n)
		}
	}
}

func TestMartiansAreNotRouted(t *testing.T) {
	for src, dst := range map[string]netip.Addr{
		"0.1.2.3": remote4, "127.0.0.1": remote4, "224.0.0.9": remote4, "255.255.255.255": remote4,
		"::": remote6, "::1": remote6, "fe80::1": remote6, "ff02::1": remote6,
	} {
		r := newRig(t, port.CapsAll)
		r.run(r.podA, plain(udp(t, macA, routerMAC, ip(src), dst, 64, "x")))
		if got := r.drops(r.podA); got["martian_source"] != 1 || len(r.tunnel.Sent())+len(r.podA.Sent()) != 0 {
			t.Errorf("from %s: drops %v", src, got)
		}
	}
}

// An IPv4 packet that may be fragmented is; gopacket's defragmenter is not used, the pieces are put together
// by their offsets.
func TestPacketsWithoutDFAreFragmented(t *testing.T) {
	payload := strings.Repeat("0123456789", 400)
	whole := packet(t, ethernet(macA, routerMAC, layers.EthernetTypeIPv4),
		&layers.IPv4{TTL: 64, Id: 77, Protocol: layers.IPProtocolUDP, SrcIP: a4.AsSlice(), DstIP: remote4.AsSlice(),
			// record route isn't copied, the router alert is (RFC 791 section 3.1)
			Options: []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}, {OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}, {OptionType: 0, OptionLength: 1}}},
		&layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload(payload))
	r := newRig(t, port.CapsAll)
	r.run(r.podA, plain(whole))
	want := whole[14+32:]
	got := make([]byte, len(want))
	for i, f := range r.tunnel.Sent() {
		ip := gopacket.NewPacket(f.Bytes, layers.LayerTypeEthernet, gopacket.Default).NetworkLayer().(*layers.IPv4)
		if !wire.IPv4(ip.Contents).ChecksumOK() || ip.Length > 1450 || ip.Id != 77 || ip.TTL != 63 || f.Meta.Peer != remotePeer {
			t.Errorf("fragment %d: %+v to peer %d", i, ip, f.Meta.Peer)
		}
		if hasRoute := bytes.Contains(ip.Contents[20:], []byte{7, 7}); hasRoute != (i == 0) || !bytes.Contains(ip.Contents[20:], []byte{148, 4}) {
			t.Errorf("fragment %d has options %x", i, ip.Contents[20:])
		}
		last := i == len(r.tunnel.Sent())-1
		if more := ip.Flags&layers.IPv4MoreFragments != 0; more == last {
			t.Errorf("fragment %d: more %v", i, more)
		}
		copy(got[int(ip.FragOffset)*8:], ip.Payload)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d fragments don't make up the packet", len(r.tunnel.Sent()))
	}
}

// stretched is a rig with a stretched network of two pods and two peers.
func stretched(t testing.TB) (r *rig, podX, podY *porttest.Port) {
	r = newRig(t, port.CapsAll)
	r.must(r.sw.AddNetwork(Network{VNI: 200, Stretched: true}))
	podX, podY = porttest.New("x", port.CapsAll), porttest.New("y", port.CapsAll)
	for _, p := range []*porttest.Port{podX, podY} {
		r.attach(p, PortConfig{Role: RoleAccess, VNI: 200})
	}
	r.must(r.sw.SetFlood(200, []uint32{7, 8}))
	return r, podX, podY
}

func from(peer uint32, b []byte) porttest.Frame {
	return porttest.Frame{Bytes: b, Meta: frame.Meta{VNI: 200, Peer: peer}}
}

func peersOf(frames []porttest.Frame) (peers []uint32) {
	for _, f := range frames {
		peers = append(peers, f.Meta.Peer)
	}
	slices.Sort(peers)
	return peers
}

func TestAStretchedNetworkIsOneSegmentWithThePeers(t *testing.T) {
	r, podX, podY := stretched(t)
	macX, far := wire.MAC{10, 0, 0, 0, 2, 1}, wire.MAC{10, 0, 0, 0, 3, 1}
	x, y := ip("10.50.0.5"), ip("10.50.0.9")
	r.run(podX, plain(arp(t, macX, macX, 1, x, y)))
	if got := peersOf(r.tunnel.Sent()); !slices.Equal(got, []uint32{7, 8}) || len(podY.Sent()) != 1 || len(podX.Sent()) != 0 {
		t.Fatalf("a broadcast reached peers %v and pod y %d times, want each once", got, len(podY.Sent()))
	}
	if f := r.tunnel.Sent()[0]; f.Meta.VNI != 200 {
		t.Errorf("replicated in VNI %d", f.Meta.VNI)
	}
	r.tunnel.Reset()
	podY.Reset()

	r.run(r.tunnel, from(8, arp(t, far, far, 1, y, x))) // from a peer: to the pods, to no peer
	if len(podX.Sent()) != 1 || len(podY.Sent()) != 1 || len(r.tunnel.Sent()) != 0 {
		t.Errorf("a peer's broadcast: pods %d, %d, peers %d; want 1, 1, 0", len(podX.Sent()), len(podY.Sent()), len(r.tunnel.Sent()))
	}
	r.run(podX, plain(udp(t, macX, far, x, y, 64, "to the one that was learned")))
	if got := peersOf(r.tunnel.Sent()); !slices.Equal(got, []uint32{8}) {
		t.Errorf("unicast went to peers %v, want 8", got)
	}
	r.run(r.tunnel, from(7, udp(t, wire.MAC{10, 1, 1, 1, 1, 1}, far, y, x, 64, "for the other peer's")))
	if got := r.drops(r.tunnel); got["split_horizon"] != 1 || len(r.tunnel.Sent()) != 1 {
		t.Errorf("drops %v, want one split_horizon", got)
	}
}

func TestAFrameThatComesBackIsDropped(t *testing.T) {
	r, podX, podY := stretched(t)
	macX := wire.MAC{10, 0, 0, 0, 2, 1}
	r.must(r.sw.AddStation(200, r.ids[podX], macX, nil))
	r.run(r.tunnel, from(7, arp(t, macX, macX, 1, ip("10.50.0.5"), ip("10.50.0.9"))))
	r.run(r.tunnel, tunnelled(udp(t, routerMAC, routerMAC, a4, b4, 64, "x")))
	if got := r.drops(r.tunnel); got["looped"] != 2 || len(podX.Sent())+len(podY.Sent())+len(r.podB.Sent()) != 0 {
		t.Errorf("drops %v, want two looped", got)
	}
}

// A burst of broadcasts to many peers has more copies than a burst holds, and the pool.
func TestReplicationToManyPeers(t *testing.T) {
	r, podX, _ := stretched(t)
	var peers []uint32
	for i := range uint32(300) {
		peers = append(peers, i+1)
	}
	r.must(r.sw.SetFlood(200, peers))
	macX := wire.MAC{10, 0, 0, 0, 2, 1}
	var frames []porttest.Frame
	for range frame.BurstSize {
		frames = append(frames, plain(arp(t, macX, macX, 1, ip("10.50.0.5"), ip("10.50.0.9"))))
	}
	r.run(podX, frames...)
	sent := map[uint32]int{}
	for _, f := range r.tunnel.Sent() {
		sent[f.Meta.Peer]++
	}
	for _, peer := range peers {
		if sent[peer] != frame.BurstSize {
			t.Fatalf("peer %d was sent %d frames, want %d (drops %v)", peer, sent[peer], frame.BurstSize, r.drops(podX))
		}
	}
}

func TestOnePeersFloodLeavesAnotherItsShare(t *testing.T) {
	r := newRig(t, port.CapsAll)
	tunnel, podX := porttest.New("vxlan2", port.CapsAll), porttest.New("x", port.CapsAll)
	r.must(r.sw.AddNetwork(Network{VNI: 200, Stretched: true}))
	r.attach(tunnel, PortConfig{Role: RoleTunnel, BUM: 5})
	r.attach(podX, PortConfig{Role: RoleAccess, VNI: 200})
	clock := time.Unix(1000, 0)
	r.sw.now = func() time.Time { return clock }
	for i := range 20 {
		far := wire.MAC{10, 0, 0, 0, 3, byte(i)}
		r.run(tunnel, from(7, arp(t, far, far, 1, ip("10.50.0.5"), ip("10.50.0.9"))))
	}
	r.run(tunnel, from(8, arp(t, macC, macC, 1, ip("10.50.0.6"), ip("10.50.0.9"))))
	if n := len(podX.Sent()); n != 5+1 {
		t.Errorf("%d broadcasts arrived, want 5 of the one peer and 1 of the other", n)
	}
}

func TestAttachingAnnouncesTheAddresses(t *testing.T) {
	r, podC := guarded(t, 0)
	r.must(r.sw.AddStation(testVNI, r.ids[podC], macC, []netip.Addr{c4, c6}))
	r.sw.slow.drain()
	if len(podC.Sent()) != 0 {
		t.Error("the station was told of itself")
	}
	sent := r.podA.Sent()
	if len(sent) != 2 || len(r.podB.Sent()) != 2 {
		t.Fatalf("pods a and b got %d and %d announcements, want 2 each", len(sent), len(r.podB.Sent()))
	}
	a := gopacket.NewPacket(sent[0].Bytes, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if !bytes.Equal(a.SourceProtAddress, c4.AsSlice()) || !bytes.Equal(a.DstProtAddress, c4.AsSlice()) || !bytes.Equal(a.SourceHwAddress, macC[:]) {
		t.Errorf("announced %+v", a)
	}
	n := gopacket.NewPacket(sent[1].Bytes, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !n.TargetAddress.Equal(c6.AsSlice()) || !n.Override() || n.Solicited() {
		t.Errorf("announced %+v", n)
	}
}

func TestLearnedStationsAge(t *testing.T) {
	r := newRig(t, port.CapsAll)
	clock := time.Unix(1000, 0)
	r.sw.now = func() time.Time { return clock }
	stranger := wire.MAC{10, 9, 9, 9, 9, 9}
	r.run(r.podA, plain(udp(t, stranger, wire.Broadcast, a4, b4, 9, "x")))
	for _, c := range []struct {
		after time.Duration
		known bool
	}{{DefaultAgeing - time.Second, true}, {DefaultAgeing + time.Second, false}} {
		r.sw.fdb.Expire(clock.Add(c.after).UnixNano())
		if _, known := r.sw.fdb.Lookup(testVNI, stranger); known != c.known {
			t.Errorf("known after %v: %v", c.after, known)
		}
	}
}

// Whoever has no guard, and whoever is behind a tunnel, may not speak for a pod of this node either; a probe for
// its address is answered or goes on, so that whoever asks finds the duplicate.
func TestASecondClaimIsRefused(t *testing.T) {
	for name, at := range map[string]func(*rig, *porttest.Port) *porttest.Port{
		"an unguarded pod": func(_ *rig, podY *porttest.Port) *porttest.Port { return podY },
		"a peer":           func(r *rig, _ *porttest.Port) *porttest.Port { return r.tunnel },
	} {
		t.Run(name, func(t *testing.T) {
			r, podX, podY := stretched(t)
			macX, second := wire.MAC{10, 0, 0, 0, 2, 1}, wire.MAC{10, 0, 0, 0, 3, 1}
			x4, x6 := ip("10.50.0.5"), ip("fd00:50::5")
			var log bytes.Buffer
			r.sw.log = slog.New(slog.NewTextHandler(&log, nil))
			r.must(r.sw.AddStation(200, r.ids[podX], macX, []netip.Addr{x4, x6}))
			in := at(r, podY)
			advert := &layers.ICMPv6NeighborAdvertisement{Flags: 0x20, TargetAddress: x6.AsSlice(), Options: linkLayer(layers.ICMPv6OptTargetAddress, macC)}
			r.run(in, from(7, arp(t, second, second, 2, x4, x4)), from(7, arp(t, second, second, 1, x4, x4)), from(7, nd(t, x6, "ff02::1", advert, 136)))
			if got := r.drops(in); got["spoofed_arp"] != 2 || got["spoofed_nd"] != 1 || len(podX.Sent()) != 0 {
				t.Errorf("drops %v, and %d frames reached the owner", got, len(podX.Sent()))
			}
			if text := log.String(); !strings.Contains(text, "owner=x ") || !strings.Contains(text, "=\""+in.Name()+"\"") && !strings.Contains(text, "="+in.Name()) {
				t.Errorf("the log names not both: %s", text)
			}
			r.run(in, from(7, arp(t, second, second, 1, ip("0.0.0.0"), x4)))
			if len(podX.Sent())+len(in.Sent()) == 0 {
				t.Error("a probe was neither answered nor passed on")
			}
		})
	}
}

// A segment behind an uplink is not read less because of one station in it.
func TestASegmentIsNotPaused(t *testing.T) {
	for _, segment := range []bool{false, true} {
		r := newRig(t, port.CapsAll)
		p := porttest.New("eth1", port.CapsAll)
		r.attach(p, PortConfig{Role: RoleAccess, VNI: testVNI, Segment: segment})
		bad := plain(packet(t, ethernet(macC, macB, layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}, gopacket.Payload("x")))
		r.run(p, slices.Repeat([]porttest.Frame{bad}, 2*frame.BurstSize)...)
		if paused := len(r.sw.workers[0].paused) > 0; paused == segment {
			t.Errorf("segment %v: paused %v", segment, paused)
		}
	}
}

// Pods that asked for their gateway while the agent was being restarted would ask again a second later.
func TestTheGatewayIsAnnounced(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.must(r.sw.AddNeighbors(testVNI, port.Local, routerMAC, []netip.Addr{gw4, gw6}))
	r.sw.slow.drain()
	for _, p := range []*porttest.Port{r.podA, r.podB} {
		sent := p.Sent()
		if len(sent) != 2 {
			t.Fatalf("%s was told %d times, want 2", p.Name(), len(sent))
		}
		n := gopacket.NewPacket(sent[1].Bytes, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if !n.Router() || !n.TargetAddress.Equal(gw6.AsSlice()) {
			t.Errorf("%s was told %+v", p.Name(), n)
		}
	}
}
