package vswitch

import (
	"log/slog"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// rig is a switch of one worker that the test drives pass by pass, with two pods, a host and a tunnel. All
// ports are in memory. When the test ends, the ledger must balance.
type rig struct {
	t            testing.TB
	sw           *Switch
	podA, podB   *porttest.Port
	host, tunnel *porttest.Port
	ids          map[*porttest.Port]port.ID
}

const testVNI = 1

var (
	routerMAC = wire.MAC{2, 0, 0, 0, 0, 1}
	hostMAC   = wire.MAC{6, 0, 0, 0, 0, 1}
	peerMAC   = wire.MAC{2, 0, 0, 0, 0, 9}
	macA      = wire.MAC{10, 0, 0, 0, 0, 3}
	macB      = wire.MAC{10, 0, 0, 0, 0, 4}

	a4, b4, gw4, local4        = ip("10.244.1.3"), ip("10.244.1.4"), ip("10.244.1.1"), ip("10.244.1.2")
	a6, b6, gw6, local6        = ip("fd00:1::3"), ip("fd00:1::4"), ip("fd00:1::1"), ip("fd00:1::2")
	remote4, remote6           = ip("10.244.2.3"), ip("fd00:2::3")
	nowhere4, nowhere6         = ip("10.244.9.9"), ip("fd00:9::9")
	absent4, absent6           = ip("10.244.1.200"), ip("fd00:1::200")
	internet4                  = ip("192.0.2.1")
	remotePeer          uint32 = 7
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func newRig(t testing.TB, capsB port.Caps) *rig {
	t.Helper()
	sw, err := New(Config{Workers: 1, Ageing: DefaultAgeing, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, sw: sw, ids: map[*porttest.Port]port.ID{},
		podA: porttest.New("a", port.CapsAll), podB: porttest.New("b", capsB),
		host: porttest.New("tapyard0", port.CapsAll), tunnel: porttest.New("vxlan", port.CapsAll)}
	r.must(sw.AddNetwork(Network{VNI: testVNI, RouterMAC: routerMAC,
		Gateways: []netip.Addr{gw4, gw6}, Locals: []netip.Addr{local4, local6}}))
	for p, role := range map[*porttest.Port]Role{r.podA: RoleAccess, r.podB: RoleAccess, r.host: RoleHost, r.tunnel: RoleTunnel} {
		id, err := sw.Attach(p, PortConfig{Role: role, VNI: testVNI})
		r.must(err)
		r.ids[p] = id
	}
	r.must(sw.AddStation(testVNI, r.ids[r.podA], macA, []netip.Addr{a4, a6}))
	r.must(sw.AddStation(testVNI, r.ids[r.podB], macB, []netip.Addr{b4, b6}))
	r.must(sw.AddNeighbors(testVNI, port.Local, routerMAC, []netip.Addr{gw4, gw6, local4, local6}))
	r.route()
	for len(sw.slow.arrivals) > 0 { // no announcements among what tests count
		<-sw.slow.arrivals
	}
	t.Cleanup(func() { r.checkLedger() })
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) route() {
	pod := func(p *porttest.Port, mac wire.MAC) *Adjacency {
		return &Adjacency{Kind: AdjForward, MTU: 1450, DstMAC: mac, SrcMAC: routerMAC, Dest: port.Dest{Port: r.ids[p]}}
	}
	host := pod(r.host, hostMAC)
	own := *host
	own.Own = true
	tunnel := pod(r.tunnel, peerMAC)
	tunnel.Tunnel, tunnel.Dest.Peer = true, remotePeer
	var changes []RouteChange
	for prefix, adj := range map[string]*Adjacency{
		"0.0.0.0/0": host, "::/0": host,
		"10.244.0.0/16": {Kind: AdjNoRoute}, "fd00::/16": {Kind: AdjNoRoute},
		"10.244.1.0/24": {Kind: AdjNoNeighbor}, "fd00:1::/64": {Kind: AdjNoNeighbor},
		"10.244.1.1/32": &own, "fd00:1::1/128": &own,
		"10.244.1.2/32": {Kind: AdjLocal}, "fd00:1::2/128": {Kind: AdjLocal},
		"10.244.1.3/32": pod(r.podA, macA), "fd00:1::3/128": pod(r.podA, macA),
		"10.244.1.4/32": pod(r.podB, macB), "fd00:1::4/128": pod(r.podB, macB),
		"10.244.2.0/24": tunnel, "fd00:2::/64": tunnel,
	} {
		changes = append(changes, RouteChange{netip.MustParsePrefix(prefix), adj})
	}
	r.must(r.sw.UpdateRoutes(testVNI, changes))
}

// run injects frames at a port and drives the worker and the slow path until both are idle.
func (r *rig) run(in *porttest.Port, frames ...porttest.Frame) {
	in.Inject(frames...)
	w := r.sw.workers[0]
	for in.Waiting() > 0 {
		w.reader.Online()
		w.pass(unix.EpollEvent{Fd: int32(r.ids[in])})
		w.reader.Offline()
	}
	w.live.Store(int64(w.pool.Live()))
	r.sw.slow.drain()
}

func (r *rig) checkLedger() {
	r.t.Helper()
	l := r.sw.Ledger()
	if err := l.Check(); err != nil {
		r.t.Error(err)
	}
}

// drops returns how many frames the port dropped, by reason name.
func (r *rig) drops(p *porttest.Port) map[string]uint64 {
	return r.dropsOf(r.ids[p])
}

func (r *rig) dropsOf(id port.ID) map[string]uint64 {
	counts := map[string]uint64{}
	v := r.sw.snapshot.Load().port(id).view()
	for reason, n := range v.Drops {
		if n.Frames > 0 {
			counts[reasonName(reason)] += n.Frames
		}
	}
	return counts
}

// packet is what gopacket, which doesn't know our code, makes of the layers.
func packet(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var network gopacket.NetworkLayer
	for _, layer := range l {
		switch v := layer.(type) {
		case *layers.IPv4:
			v.Version = 4
			network = v
		case *layers.IPv6:
			v.Version = 6
			network = v
		case *layers.UDP:
			_ = v.SetNetworkLayerForChecksum(network)
		case *layers.TCP:
			_ = v.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			_ = v.SetNetworkLayerForChecksum(network)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func ethernet(src, dst wire.MAC, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: typ}
}

// udp is a UDP packet in an Ethernet frame, of the family of the addresses.
func udp(t testing.TB, srcMAC, dstMAC wire.MAC, src, dst netip.Addr, ttl uint8, payload string) []byte {
	t.Helper()
	u := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	if src.Is4() {
		return packet(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv4),
			&layers.IPv4{TTL: ttl, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
			u, gopacket.Payload(payload))
	}
	return packet(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv6),
		&layers.IPv6{HopLimit: ttl, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
		u, gopacket.Payload(payload))
}

func plain(b []byte) porttest.Frame { return porttest.Frame{Bytes: b} }
