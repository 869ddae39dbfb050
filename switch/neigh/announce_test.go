package neigh

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/switch/frame"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

func TestAnnounce4(t *testing.T) {
	addr := netip.MustParseAddr("10.244.1.6")
	out := dirty(ARPAnswerLen)
	n := Announce4(addr, station, out)
	if n != ARPAnswerLen || out[n] != 0xa5 {
		t.Fatalf("%d bytes, want %d, none beyond", n, ARPAnswerLen)
	}
	p := decode(t, out[:n])
	eth := p.LinkLayer().(*layers.Ethernet)
	if !bytes.Equal(eth.SrcMAC, station[:]) || !bytes.Equal(eth.DstMAC, wire.Broadcast[:]) {
		t.Errorf("announcement goes from %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	want := arpRequest(station, addr.String(), addr.String())
	if !bytes.Equal(serialize(t, eth, arp), serialize(t, eth, &want)) {
		t.Errorf("announcement %+v", arp)
	}
}

func TestAnnounce6(t *testing.T) {
	for _, router := range []bool{false, true} {
		out := dirty(NDAnswerLen)
		n := Announce6(station6, station, router, out)
		if n != NDAnswerLen || out[n] != 0xa5 {
			t.Fatalf("%d bytes, want %d, none beyond", n, NDAnswerLen)
		}
		p := decode(t, out[:n])
		eth, ip6 := p.LinkLayer().(*layers.Ethernet), p.NetworkLayer().(*layers.IPv6)
		advert := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if !bytes.Equal(eth.SrcMAC, station[:]) || eth.DstMAC.String() != "33:33:00:00:00:01" {
			t.Errorf("announcement goes from %v to %v", eth.SrcMAC, eth.DstMAC)
		}
		if !ip6.SrcIP.Equal(ip(station6)) || ip6.DstIP.String() != "ff02::1" || ip6.HopLimit != 255 {
			t.Errorf("IPv6 header %+v", ip6)
		}
		if advert.Router() != router || advert.Solicited() || !advert.Override() || !advert.TargetAddress.Equal(ip(station6)) ||
			len(advert.Options) != 1 || advert.Options[0].Type != layers.ICMPv6OptTargetAddress ||
			!bytes.Equal(advert.Options[0].Data, station[:]) {
			t.Errorf("advertisement %+v", advert)
		}
		icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if err := icmp.SetNetworkLayerForChecksum(ip6); err != nil {
			t.Fatal(err)
		}
		if again := serialize(t, eth, ip6, icmp, advert); !bytes.Equal(again, out[:n]) {
			t.Errorf("gopacket encodes it as\n% x, it is\n% x", again, out[:n])
		}
	}
}

func TestAnnounceRefuses(t *testing.T) {
	for _, c := range []struct {
		addr string
		mac  wire.MAC
	}{
		{"0.0.0.0", station}, {"::", station}, {"224.0.0.1", station}, {"ff02::1", station}, {"255.255.255.255", station},
		{"::ffff:10.244.1.5", station}, {"10.244.1.5", wire.MAC{}}, {"fd00::5", wire.Broadcast},
	} {
		a := netip.MustParseAddr(c.addr)
		if Announce4(a, c.mac, dirty(ARPAnswerLen)) != 0 || Announce6(a, c.mac, false, dirty(NDAnswerLen)) != 0 {
			t.Errorf("%v at %v is announced", a, c.mac)
		}
	}
	if Announce4(station6, station, dirty(ARPAnswerLen)) != 0 || Announce6(netip.MustParseAddr("10.244.1.5"), station, false, dirty(NDAnswerLen)) != 0 {
		t.Error("an address of the other family is announced")
	}
}

// Linux, which knows an address at an old MAC, must take the new one from an announcement alone. The old entries
// are stale, so the kernel asks nobody; no table answers here anyway.
func TestKernelHearsAnnouncement(t *testing.T) {
	ns, eth0, tap := newTAP(t)
	var st port.Stats
	tx, pool := tap.Tx(0, &st), frame.NewPool(1, 4096)
	ns.Do(t, func() {
		addAddr(t, eth0, "10.244.1.5/24", 0)
		addAddr(t, eth0, "fd00::a/64", unix.IFA_F_NODAD)
		for _, c := range []struct {
			addr     string
			router   bool
			announce func(a netip.Addr, out []byte) int
		}{
			{"10.244.1.6", false, func(a netip.Addr, out []byte) int { return Announce4(a, station, out) }},
			{"fd00::b", false, func(a netip.Addr, out []byte) int { return Announce6(a, station, false, out) }},
			{"fd00::1", true, func(a netip.Addr, out []byte) int { return Announce6(a, station, true, out) }},
		} {
			a := netip.MustParseAddr(c.addr)
			old := wire.MAC{2, 5: 0xdd}
			check(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth0.Attrs().Index, IP: a.AsSlice(), HardwareAddr: old[:], State: netlink.NUD_STALE,
			}))
			var out frame.Burst
			out.Append(pool.Commit(c.announce(a, pool.Reserve(0, NDAnswerLen))))
			tx.Send(&out)
			tx.Flush()
			out.Release()
			eventually(t, "believe the announcement of "+c.addr, func() bool {
				n := neighbor(t, eth0, a)
				return n.HardwareAddr.String() == station.String() && (n.Flags&netlink.NTF_ROUTER != 0) == c.router
			})
		}
	})
}
