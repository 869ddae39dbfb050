package flow

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"tapyard/switch/wire"
)

var nobody = Owner{ID: 0, Share: 1 << 30}

// A flood of flows that nobody answers takes no place of those that are kept up.
func TestFloodLeavesSettledFlowsAlone(t *testing.T) {
	table := New(16, 2)
	for i := range 16 {
		track(table, 100, nobody, numbered(i).heard(t, false, 0), numbered(i).heard(t, true, 0))
	}
	for i := range 1000 {
		track(table, 101, Owner{1, 1000}, numbered(1000+i).heard(t, false, 0))
	}
	if s := table.Stats(); s.Live != 16 || s.Refused != 1000 || s.Evicted != 0 {
		t.Errorf("%+v, want 16 live and 1000 refused", s)
	}
	track(table, 100+120, Owner{1, 1000}, numbered(2000).heard(t, false, 0)) // they have been silent for 2 min
	if s := table.Stats(); s.Live != 16 || s.Ended != 1 {
		t.Errorf("%+v, want 16 live, one of which took an ended one's place", s)
	}
}

func TestSharesEndWithTheirOwner(t *testing.T) {
	table, pod := New(1024, 8), Owner{7, 10}
	for i := range 30 {
		track(table, 100, pod, numbered(i).heard(t, false, 0))
		track(table, 100, nobody, numbered(100+i).heard(t, false, 0))
	}
	if s := table.Stats(); s.Live != 40 || s.Refused != 20 {
		t.Errorf("%+v, want 40 live and 20 refused", s)
	}
	if n := table.DropOwner(7); n != 10 {
		t.Errorf("dropped %d, want 10", n)
	}
	for _, e := range table.Entries(100e9, 100, all) {
		if e.Owner == 7 {
			t.Errorf("%+v has stayed", e)
		}
	}
	track(table, 100, pod, numbered(50).heard(t, false, 0))
	if s := table.Stats(); s.Live != 31 || s.Dropped != 10 {
		t.Errorf("%+v, want 31 live", s)
	}
}

// An owner takes all its flows along, also those whose other side goes on talking.
func TestDropOwnerWhileOthersTalk(t *testing.T) {
	const flows = 500
	var asked, answers [flows]heard
	for i := range flows {
		asked[i], answers[i] = numbered(i).heard(t, false, 0), numbered(i).heard(t, true, 0)
	}
	for round := range 300 {
		table := New(4*flows, 2)
		track(table, 0, Owner{1, flows}, asked[:]...)
		var second atomic.Int64
		var stop atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for !stop.Load() {
				track(table, second.Add(1), Owner{0, 0}, answers[:]...) // it may begin none
			}
		})
		for second.Load() < 2 {
			runtime.Gosched()
		}
		table.DropOwner(1)
		if n := table.owned[1].Load(); n != 0 {
			t.Errorf("round %d: %d flows of an owner that is gone", round, n)
		}
		stop.Store(true)
		wg.Wait()
	}
}

func TestClockSetBack(t *testing.T) {
	table := New(64, 1)
	track(table, 1_000_000, nobody, numbered(1).heard(t, false, 0))
	track(table, 900_000, nobody, numbered(2).heard(t, false, 0))
	for range sweepParts {
		table.Expire(900_000e9)
	}
	if n := len(table.Entries(900_029e9, 10, all)); n != 2 {
		t.Errorf("%d flows 29 s after the clock was set back, want 2", n)
	}
	for range sweepParts {
		table.Expire(900_030e9)
	}
	if s := table.Stats(); s.Live != 0 {
		t.Errorf("%+v: 30 s after the clock was set back, want none", s)
	}
}

// What is no conversation of its own is let by.
func TestUntracked(t *testing.T) {
	tcp := talk{1, wire.ProtoTCP, netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80")}
	udp := numbered(1)
	fragment := udp.frame(t, false, 0)
	fragment[14+6] = 0x20 // MF
	wire.IPv4(fragment[14:]).UpdateChecksum()
	gre := udp.frame(t, false, 0)
	gre[14+9] = 47
	wire.IPv4(gre[14:]).UpdateChecksum()
	echo := talk{1, wire.ProtoICMPv4, netip.MustParseAddrPort("10.0.0.1:7"), netip.MustParseAddrPort("10.0.0.2:7")}
	unreachable := echo.frame(t, false, 0)
	unreachable[14+20] = 3
	echo6 := talk{1, wire.ProtoICMPv6, netip.MustParseAddrPort("[fd00::1]:7"), netip.MustParseAddrPort("[fd00::2]:7")}
	solicitation := echo6.frame(t, false, 0)
	solicitation[14+40] = 135
	for name, b := range map[string][]byte{"fragment": fragment, "GRE": gre, "unreachable": unreachable, "solicitation": solicitation,
		"FIN of nothing": tcp.frame(t, false, fFIN|fACK), "RST of nothing": tcp.frame(t, true, fRST), "no flags": tcp.frame(t, false, 0)} {
		table, h := New(64, 1), heard{vni: 1, bytes: b}
		if fault := wire.Parse(b, false, &h.p); fault != wire.FaultNone {
			t.Fatalf("%s: %s", name, fault)
		}
		if track(table, 1, nobody, h); table.Stats().Created != 0 {
			t.Errorf("%s: %+v", name, table.Entries(1e9, 10, all))
		}
	}
}

// Workers that meet both directions of new flows at once, while others sweep and list, make one entry of each.
func TestConcurrentInsertMakesOneEntry(t *testing.T) {
	const flows, workers = 64, 4
	rounds := 100
	if testing.Short() {
		rounds = 40
	}
	var there, back []heard
	for i := range flows {
		there, back = append(there, numbered(i).heard(t, false, 0)), append(back, numbered(i).heard(t, true, 0))
	}
	var doubled uint64
	for range rounds {
		table := New(512, 1)
		var start atomic.Int32
		var wg sync.WaitGroup
		for w := range workers {
			frames := [][]heard{there, back}[w%2]
			wg.Go(func() {
				b := NewBatch(1)
				start.Add(1)
				for start.Load() < workers { // all at once
				}
				for i := range frames { // each in an order of its own, but close to the others'
					h := &frames[i^w]
					b.Add(h.vni, h.bytes, &h.p)
					table.Track(b, 100e9, nobody)
					if i%16 == w {
						table.Expire(100e9)
						table.Entries(100e9, 10, all)
					}
				}
			})
		}
		wg.Wait()
		seen := map[talk]bool{}
		for _, e := range table.Entries(100e9, 1000, all) {
			c := key(&e)
			if seen[c] || seen[c.reversed()] {
				t.Errorf("twice: %+v", e)
			}
			seen[c] = true
		}
		s := table.Stats()
		if len(seen) != flows || s.Live != flows || s.Created != flows {
			t.Fatalf("%d entries, %+v; want %d", len(seen), s, flows)
		}
		for i := range flows { // nobody inserts what is found, in either direction
			track(table, 100, nobody, back[i], there[i])
		}
		for _, e := range table.Entries(100e9, 1000, all) {
			if e.State != Replied {
				t.Errorf("%+v was heard from both sides", e)
			}
		}
		if table.Stats().Created != flows {
			t.Errorf("%+v: a flow was not found again", table.Stats())
		}
		doubled += table.doubled.Load()
	}
	t.Logf("%d doubles were removed", doubled)
}

// A table of 16 places for 300 flows changes hands all the time; no reader sees half of one and half of another,
// and no worker takes one for another.
func TestReadersNeverMixFlows(t *testing.T) {
	const flows, workers = 300, 3
	table, known := New(16, 1), map[talk]bool{}
	frames := make([]heard, flows)
	for i := range frames {
		frames[i] = numbered(i).heard(t, false, 0)
		known[numbered(i)] = true
	}
	rounds := 30000
	if testing.Short() {
		rounds = 3000
	}
	var wg, reader sync.WaitGroup
	var stop atomic.Bool
	for w := range workers {
		wg.Go(func() {
			b := NewBatch(8)
			for n := range rounds * 10 {
				for i := range 8 {
					h := &frames[(n*(w+7)*8+i*13)%flows]
					b.Add(h.vni, h.bytes, &h.p)
				}
				table.Track(b, int64(100+n/1000)*1e9, nobody)
			}
		})
	}
	read := 0
	reader.Go(func() {
		for !stop.Load() || read == 0 {
			for _, e := range table.Entries(100e9, 100, all) {
				if read++; !known[key(&e)] || e.State != Unreplied {
					t.Errorf("%+v is none of them", e)
				}
			}
		}
	})
	wg.Wait()
	stop.Store(true)
	reader.Wait()
	s := table.Stats()
	if n := len(table.Entries(100e9, 100, all)); n != s.Live || uint64(n) != s.Created-s.Evicted-s.Ended {
		t.Errorf("%d entries, %+v", n, s)
	}
	t.Logf("%+v, %d entries read", s, read)
}

// FuzzAdd has bytes make a flow, or none, and holds it against what gopacket reads.
func FuzzAdd(f *testing.F) {
	for i := range 3 {
		f.Add(numbered(i).frame(f, false, 0))
	}
	for _, c := range []talk{
		{1, wire.ProtoTCP, netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80")},
		{1, wire.ProtoICMPv4, netip.MustParseAddrPort("10.0.0.1:7"), netip.MustParseAddrPort("10.0.0.2:7")},
		{1, wire.ProtoICMPv6, netip.MustParseAddrPort("[fd00::1]:7"), netip.MustParseAddrPort("[fd00::2]:7")},
	} {
		f.Add(c.frame(f, false, fSYN))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h := heard{vni: 0xabcdef, bytes: b}
		if wire.Parse(b, false, &h.p) != wire.FaultNone {
			return
		}
		table := New(16, 1)
		track(table, 100, nobody, h)
		for _, e := range table.Entries(100e9, 10, all) {
			p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
			net, transport := p.NetworkLayer(), p.TransportLayer()
			if net == nil {
				t.Fatalf("%+v of what gopacket takes for %s", e, p)
			}
			src, dst := net.NetworkFlow().Endpoints()
			if e.State == Answered {
				src, dst = dst, src
			}
			// Bytes are compared: as text gopacket has ::ffff:10.0.0.1 of an IPv6 header for an IPv4 address.
			from, _ := netip.AddrFromSlice(src.Raw())
			to, _ := netip.AddrFromSlice(dst.Raw())
			if e.From.Addr() != from || e.To.Addr() != to || e.VNI != 0xabcdef {
				t.Errorf("%+v, gopacket reads %s > %s", e, src, dst)
			}
			if transport != nil && (e.Proto == wire.ProtoTCP || e.Proto == wire.ProtoUDP) {
				if s := portsOf(transport); s != [2]uint16{e.From.Port(), e.To.Port()} && s != [2]uint16{e.To.Port(), e.From.Port()} {
					t.Errorf("%+v, gopacket reads ports %d", e, s)
				}
			}
		}
	})
}

func portsOf(l gopacket.TransportLayer) [2]uint16 {
	switch l := l.(type) {
	case *layers.TCP:
		return [2]uint16{uint16(l.SrcPort), uint16(l.DstPort)}
	case *layers.UDP:
		return [2]uint16{uint16(l.SrcPort), uint16(l.DstPort)}
	}
	return [2]uint16{}
}

// A table of the default size that is 60 % full with flows that are kept up takes all of them but a few: of two buckets
// the emptier one is used. With one choice, several thousand would find theirs full.
func TestRoomForManySettledFlows(t *testing.T) {
	const flows = DefaultCapacity * 6 / 10
	table, _ := filled(t, flows, 0)
	s := table.Stats()
	turnedAway := flows - s.Live // each once or, with its answer, twice
	if turnedAway > flows/10_000 || int(s.Refused) < turnedAway || int(s.Refused) > 2*turnedAway || s.Evicted != 0 {
		t.Errorf("%+v, want %d live, less one of 10,000", s, flows)
	}
}

// So does one whose flows differ in nothing but consecutive ports, as those of one client do, whatever the seeds are.
func TestRoomForConsecutivePorts(t *testing.T) {
	const tables, capacity = 100, 1 << 14
	const flows = capacity * 6 / 10
	for family, ends := range map[string][2]string{"IPv4": {"10.244.1.3", "10.244.2.3"}, "IPv6": {"fd00:1::3", "fd00:2::3"}} {
		from, to := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
		h := talk{1, wire.ProtoUDP, netip.AddrPortFrom(from, 1), netip.AddrPortFrom(to, 53)}.heard(t, false, 0)
		back := h
		back.p.Src, back.p.Dst, back.p.SrcPort = h.p.Dst, h.p.Src, 53
		var turnedAway uint64
		for range tables {
			table := New(capacity, 1)
			for port := range uint16(flows) {
				h.p.SrcPort, back.p.DstPort = port+10_000, port+10_000
				track(table, 100, nobody, h, back)
			}
			s := table.Stats()
			turnedAway += s.Refused + s.Evicted
		}
		if turnedAway > tables*flows/10_000 {
			t.Errorf("%s: %d of %d flows found no room", family, turnedAway, tables*flows)
		}
	}
}
