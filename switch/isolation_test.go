package vswitch

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// Three networks with the same stations: whatever one of them sends, in its segment, to another network's router or
// over the tunnel, comes out in its own VNI only. Each frame does come out somewhere, or the test proves nothing.
func TestNetworksAreApart(t *testing.T) {
	x4, y4, stray := ip("172.16.0.1"), ip("172.16.0.2"), ip("172.16.0.77")
	x6, y6 := ip("fd16::1"), ip("fd16::2")
	macX, macY := wire.MAC{10, 0, 0, 0, 7, 1}, wire.MAC{10, 0, 0, 0, 7, 2}
	frames := map[string][]byte{
		"broadcast":                       udp(t, macX, wire.Broadcast, x4, ip("172.16.0.255"), 64, "x"),
		"IPv4 multicast":                  udp(t, macX, wire.MAC{1, 0, 0x5e, 1, 2, 3}, x4, ip("224.1.2.3"), 64, "x"),
		"IPv6 multicast":                  udp(t, macX, wire.MulticastMAC(ip("ff02::1:2")), x6, ip("ff02::1:2"), 64, "x"),
		"unknown station":                 udp(t, macX, wire.MAC{10, 9, 9, 9, 9, 9}, x4, stray, 64, "x"),
		"known station":                   udp(t, macX, macY, x4, y4, 64, "x"),
		"known station over IPv6":         udp(t, macX, macY, x6, y6, 64, "x"),
		"station of the own network":      udp(t, macX, macA, x4, a4, 64, "x"),
		"router of the own network":       udp(t, macX, routerMAC, x4, a4, 64, "x"),
		"router, to an address elsewhere": udp(t, macX, routerMAC, x4, remote4, 64, "x"),
		"ARP request":                     arp(t, macX, macX, layers.ARPRequest, x4, stray),
		"ARP request for a pod elsewhere": arp(t, macX, macX, layers.ARPRequest, x4, a4),
		"ARP request for the gateway":     arp(t, macX, macX, layers.ARPRequest, x4, gw4),
		"gratuitous ARP":                  arp(t, macX, macX, layers.ARPRequest, x4, x4),
	}
	for name, b := range frames {
		for _, stretched := range []bool{false, true} {
			t.Run(name, func(t *testing.T) { testApart(t, b, macX, macY, []netip.Addr{x4, x6}, []netip.Addr{y4, y6}, stretched) })
		}
	}
}

func testApart(t *testing.T, b []byte, macX, macY wire.MAC, addrX, addrY []netip.Addr, stretched bool) {
	r := newRig(t, port.CapsAll)
	x, y := map[uint32]*porttest.Port{}, map[uint32]*porttest.Port{}
	for vni, suffix := range map[uint32]string{7: "7", 8: "8"} {
		r.must(r.sw.AddNetwork(Network{VNI: vni, Stretched: stretched}))
		x[vni], y[vni] = porttest.New("x"+suffix, port.CapsAll), porttest.New("y"+suffix, port.CapsAll)
		r.attach(x[vni], PortConfig{Role: RoleAccess, VNI: vni})
		r.attach(y[vni], PortConfig{Role: RoleAccess, VNI: vni})
		r.must(r.sw.AddStation(vni, r.ids[x[vni]], macX, addrX))
		r.must(r.sw.AddStation(vni, r.ids[y[vni]], macY, addrY))
		if stretched {
			r.must(r.sw.SetFlood(vni, []uint32{remotePeer}))
		}
	}
	for len(r.sw.slow.arrivals) > 0 {
		<-r.sw.slow.arrivals
	}
	nowhere := func(what string, ports ...*porttest.Port) {
		t.Helper()
		for _, p := range ports {
			if n := len(p.Sent()); n != 0 {
				t.Errorf("%s: %d frames came out of port %s", what, n, p.Name())
			}
		}
	}
	own := func(what string, vni uint32) {
		t.Helper()
		for _, f := range r.tunnel.Sent() {
			if f.Meta.VNI != vni {
				t.Errorf("%s: a frame went to the peer in VNI %d, want %d", what, f.Meta.VNI, vni)
			}
		}
		if len(y[vni].Sent()) == 0 {
			t.Errorf("%s: nothing arrived in its own network", what)
		}
		y[vni].Reset()
		r.tunnel.Reset()
	}
	r.run(x[7], plain(b))
	nowhere("from x7", x[8], y[8], r.podA, r.podB, r.host, x[7])
	own("from x7", 7)
	r.run(x[8], plain(b))
	nowhere("from x8", x[7], y[7], r.podA, r.podB, r.host, x[8])
	own("from x8", 8)
	if !stretched {
		return
	}
	far, behind := append([]byte(nil), b...), wire.MAC{10, 0, 0, 0, 9, 9}
	if wire.Ethernet(far).SetSrc(behind); wire.Ethernet(far).EtherType() == wire.EtherTypeARP {
		far = arp(t, behind, behind, layers.ARPRequest, ip("172.16.0.9"), ip("172.16.0.77"))
	}
	r.run(r.tunnel, porttest.Frame{Bytes: far, Meta: frame.Meta{VNI: 8, Peer: remotePeer}})
	nowhere("from the peer in VNI 8", x[7], y[7], r.podA, r.podB, r.host)
	own("from the peer in VNI 8", 8)
}

// What is routed in the own network never reaches a station of another one, though it has the address.
func TestRoutesStayInTheirNetwork(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.must(r.sw.AddNetwork(Network{VNI: 7}))
	y, at := porttest.New("y7", port.CapsAll), ip("172.16.0.2")
	r.attach(y, PortConfig{Role: RoleAccess, VNI: 7})
	r.must(r.sw.AddStation(7, r.ids[y], wire.MAC{10, 0, 0, 0, 7, 2}, []netip.Addr{at}))
	for len(r.sw.slow.arrivals) > 0 {
		<-r.sw.slow.arrivals
	}
	for _, mac := range []wire.MAC{routerMAC, {10, 0, 0, 0, 7, 2}, wire.Broadcast} {
		r.run(r.podA, plain(udp(t, macA, mac, a4, at, 64, "x")))
	}
	r.run(r.podA, plain(arp(t, macA, macA, layers.ARPRequest, a4, at)))
	if len(y.Sent()) != 0 || len(r.podA.Sent()) != 0 || len(r.host.Sent()) != 1 || len(r.podB.Sent()) != 3 {
		t.Errorf("y7 got %d frames, the sender %d, the host %d, pod b %d; want 0, 0, 1 that is routed and 3 that are flooded",
			len(y.Sent()), len(r.podA.Sent()), len(r.host.Sent()), len(r.podB.Sent()))
	}
}
