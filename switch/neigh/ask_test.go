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

var (
	prober  = wire.MAC{0x12, 1, 2, 3, 4, 5}
	prober6 = netip.MustParseAddr("fe80::1001:2ff:fe03:405") // EUI-64, written by hand
)

func TestAskARP(t *testing.T) {
	out := dirty(AskLen)
	n := Ask(netip.MustParseAddr("10.244.1.6"), station, prober, out)
	if n != ARPAnswerLen || out[n] != 0xa5 {
		t.Fatalf("%d bytes, want %d, none beyond", n, ARPAnswerLen)
	}
	p := decode(t, out[:n])
	eth := p.LinkLayer().(*layers.Ethernet)
	if !bytes.Equal(eth.SrcMAC, prober[:]) || !bytes.Equal(eth.DstMAC, station[:]) {
		t.Errorf("question goes from %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	want := arpRequest(prober, "0.0.0.0", "10.244.1.6")
	if !bytes.Equal(serialize(t, eth, arp), serialize(t, eth, &want)) {
		t.Errorf("question %+v", arp)
	}
}

func TestAskND(t *testing.T) {
	out := dirty(AskLen)
	n := Ask(station6, station, prober, out)
	if n != AskLen || out[n] != 0xa5 {
		t.Fatalf("%d bytes, want %d, none beyond", n, AskLen)
	}
	want := newSolicit(prober6)
	want.eth.SrcMAC, want.eth.DstMAC = prober[:], station[:]
	want.ip.DstIP = ip(station6)
	want.message.Options = layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: prober[:]}}
	if got := want.frame(t); !bytes.Equal(out[:n], got) {
		t.Errorf("question %x\nwant     %x", out[:n], got)
	}
}

func TestAskRefuses(t *testing.T) {
	out := dirty(AskLen)
	for _, c := range []struct {
		addr     string
		to, from wire.MAC
	}{
		{"0.0.0.0", station, prober}, {"255.255.255.255", station, prober}, {"224.0.0.1", station, prober}, {"::", station, prober},
		{"ff02::1", station, prober}, {"::ffff:10.0.0.1", station, prober},
		{"10.0.0.1", wire.Broadcast, prober}, {"10.0.0.1", station, wire.MAC{}},
	} {
		if n := Ask(netip.MustParseAddr(c.addr), c.to, c.from, out); n != 0 {
			t.Errorf("Ask(%s, %v, %v) made %d bytes", c.addr, c.to, c.from, n)
		}
	}
}

// The kernel answers both questions, to the asker alone, and ReadAnswer finds the answers among whatever else it sends.
func TestKernelAnswersAsk(t *testing.T) {
	ns, eth0, tap := newTAP(t)
	mac := asker // the kernel's, here
	addrs := []netip.Addr{netip.MustParseAddr("10.244.1.6"), netip.MustParseAddr("fd00:10:244:1::6")}
	ns.Do(t, func() {
		addAddr(t, eth0, "10.244.1.6/24", 0)
		addAddr(t, eth0, "fd00:10:244:1::6/64", unix.IFA_F_NODAD)
		check(t, netlink.LinkSetUp(eth0))
	})
	var st port.Stats
	tx, pool := tap.Tx(0, &st), frame.NewPool(frame.BurstSize, frame.DefaultArena)
	for _, addr := range addrs {
		eventually(t, "the answer for "+addr.String(), func() bool { // the device may be a moment from being ready
			var b frame.Burst
			b.Append(pool.Commit(Ask(addr, mac, prober, pool.Reserve(0, AskLen))))
			tx.Send(&b)
			tx.Flush()
			b.Release()
			var in frame.Burst
			defer in.Release()
			tap.Rx()[0].Recv(0, &in, pool, &st)
			for _, f := range in.Frames() {
				var p wire.Parsed
				if wire.Parse(f.Bytes(), false, &p) != wire.FaultNone {
					continue
				}
				eth := wire.Ethernet(f.Bytes())
				if got, ok := ReadAnswer(f.Bytes(), &p); ok && got == addr && eth.Src() == mac && eth.Dst() == prober {
					return true
				}
			}
			return false
		})
	}
}
