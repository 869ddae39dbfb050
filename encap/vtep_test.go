package encap

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/wire"
)

// Random tables one after the other: a peer keeps its index while name and address stay, every other index
// is new in the life of the table, and the lookups agree with the list.
func TestVTEPTableAgainstModel(t *testing.T) {
	r := seed.Rand(t)
	names := []string{"n1", "n2", "n3", "n4", "n5"}
	var table VTEPTable
	type life struct {
		name string
		addr netip.Addr
	}
	before, ever := map[life]uint32{}, map[uint32]bool{}
	for range 300 {
		var peers []Peer
		perm := r.Perm(len(names))
		for _, i := range perm[:r.IntN(len(names)+1)] {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i), byte(1 + r.IntN(2))})
			peers = append(peers, Peer{Index: r.Uint32(), Name: names[i], Underlay: addr, MAC: wire.MAC{2, byte(r.Uint32())}})
		}
		must(t, table.Set(peers))
		now := map[life]uint32{}
		for _, p := range peers {
			got := table.LookupName(p.Name)
			if got == nil || got.Underlay != p.Underlay || got.MAC != p.MAC || table.Lookup(got.Index) != got || got.Index == 0 {
				t.Fatalf("peer %+v is %+v", p, got)
			}
			l := life{p.Name, p.Underlay}
			if was, stayed := before[l]; stayed && got.Index != was || !stayed && ever[got.Index] {
				t.Fatalf("peer %v: index %d, before %d (%t)", l, got.Index, was, stayed)
			}
			now[l], ever[got.Index] = got.Index, true
		}
		for l, index := range before {
			if _, stayed := now[l]; !stayed && table.Lookup(index) != nil {
				t.Fatalf("peer %v is gone, its index %d finds %+v", l, index, table.Lookup(index))
			}
		}
		if list := table.Peers(); len(list) != len(peers) {
			t.Fatalf("%d peers listed of %d", len(list), len(peers))
		}
		before = now
	}
}

// A table that can't be right is refused as a whole, with what an operator has to look for.
func TestVTEPTableRefuses(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	var table VTEPTable
	must(t, table.Set([]Peer{{Name: "old", Underlay: a}}))
	for want, peers := range map[string][]Peer{
		"peers n1 and n2 have the same underlay address 10.0.0.2": {{Name: "n1", Underlay: b}, {Name: "n2", Underlay: netip.MustParseAddr("::ffff:10.0.0.2")}},
		"peer n1 is listed twice":                                 {{Name: "n1", Underlay: a}, {Name: "n1", Underlay: b}},
		"no name":                                                 {{Underlay: a}},
		"peer n1: underlay address is missing":                    {{Name: "n1"}},
		"peer n1: underlay address 224.0.0.1":                     {{Name: "n1", Underlay: netip.MustParseAddr("224.0.0.1")}},
		"peer n1: underlay address ::":                            {{Name: "n1", Underlay: netip.IPv6Unspecified()}},
		"peer n1: underlay address fe80::1%eth0":                  {{Name: "n1", Underlay: netip.MustParseAddr("fe80::1%eth0")}},
	} {
		err := table.Set(append([]Peer{{Name: "good", Underlay: netip.MustParseAddr("10.0.0.9")}}, peers...))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if list := table.Peers(); len(list) != 1 || list[0].Name != "old" {
			t.Errorf("after %q the table is %v", want, list)
		}
	}
}

// Workers send and receive while the table changes; what they find is a peer or nobody, never a mixture.
// The race detector watches.
func TestVTEPTableChangesUnderTraffic(t *testing.T) {
	tunnel, peers, _ := loopbackTunnel(t)
	self := Peer{Name: "self", Underlay: tunnel.cfg.Local}
	must(t, peers.Set([]Peer{self}))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !stop.Load(); i++ {
			others := []Peer{{Name: "other", Underlay: netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i%200)})}}
			if err := peers.Set(append(others, self)); err != nil {
				t.Error(err)
			}
		}
	})
	out, in := newSender(tunnel, 0), newReceiver(tunnel)
	for range 200 {
		out.add(t, []byte("to self"))
		out.add(t, []byte("to self too"))
		out.send(t)
		for _, got := range in.receive(t, 2) {
			if got.peer != 1 {
				t.Fatalf("from peer %d", got.peer)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
}
