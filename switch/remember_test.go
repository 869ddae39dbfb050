package vswitch

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// What one switch has learned, another one knows whose ports have other numbers.
func TestRecall(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.sw.SetFlows(true)
	stranger := wire.MAC{10, 0, 0, 0, 0, 77}
	r.run(r.podA, plain(udp(t, stranger, macB, netip.MustParseAddr("10.244.1.77"), b4, 64, "a station behind pod A")))
	r.run(r.podA, plain(udp(t, macA, macB, a4, b4, 64, "a flow")))
	r.run(r.podB, plain(udp(t, macB, macA, b6, a6, 64, "another")))
	now := time.Now().UnixNano()
	far := wire.MAC{10, 0, 0, 0, 0, 88}
	r.sw.fdb.Learn(now, testVNI, far, port.Dest{Port: r.ids[r.tunnel], Peer: 7})
	r.sw.fdb.Learn(now-int64(DefaultAgeing), testVNI, wire.MAC{10, 0, 0, 0, 0, 99}, port.Dest{Port: r.ids[r.podA]}) // aged
	memory := r.sw.Remember(nil, func(i uint32) string { return fmt.Sprint("peer", i) })

	next := newRig(t, port.CapsAll)
	next.sw.SetFlows(true)
	peers := func(name string) uint32 {
		if name != "peer7" {
			t.Errorf("asked for peer %q", name)
		}
		return 3
	}
	got, err := next.sw.Recall(memory, peers)
	if want := (Recalled{Stations: 2, Flows: 3, Forgotten: 1}); err != nil || got != want {
		t.Fatalf("recalled %+v, %v; want %+v", got, err, want)
	}
	learned := func(sw *Switch) (list []string) {
		for _, e := range sw.FDB() {
			if !e.Static {
				list = append(list, fmt.Sprint(e.MAC, sw.nameOf(e.Dest.Port), e.Dest.Peer))
			}
		}
		return list
	}
	if got, want := learned(next.sw), []string{fmt.Sprint(stranger, "a", 0), fmt.Sprint(far, "vxlan", 3)}; !slices.Equal(got, want) {
		t.Errorf("stations %q, want %q", got, want)
	}
	flows := func(sw *Switch) (list []string) {
		for e := range sw.Flows().All(now) {
			list = append(list, fmt.Sprint(e.From, e.To, e.State, sw.nameOf(port.ID(e.Owner))))
		}
		slices.Sort(list)
		return list
	}
	if got, want := flows(next.sw), flows(r.sw); !slices.Equal(got, want) || len(got) != 3 {
		t.Errorf("flows %q, want %q", got, want)
	}
}

// What is behind ports and peers that are gone goes with them, and a number isn't taken for a name.
func TestRecallWithoutThePorts(t *testing.T) {
	r := newRig(t, port.CapsAll)
	r.sw.SetFlows(true)
	r.sw.fdb.Learn(time.Now().UnixNano(), testVNI, wire.MAC{10, 0, 0, 0, 0, 88}, port.Dest{Port: r.ids[r.tunnel], Peer: 7})
	r.sw.fdb.Learn(time.Now().UnixNano(), testVNI, wire.MAC{10, 0, 0, 0, 0, 77}, port.Dest{Port: r.ids[r.podA]})
	r.run(r.podA, plain(udp(t, macA, macB, a4, b4, 64, "a flow")))
	memory := r.sw.Remember(nil, func(uint32) string { return "gone" })
	next := newRig(t, port.CapsAll)
	next.sw.SetFlows(true)
	if err := next.sw.Detach(t.Context(), next.ids[next.podA]); err != nil {
		t.Fatal(err)
	}
	if _, err := next.sw.Attach(porttest.New("another", port.CapsAll), PortConfig{Role: RoleAccess, VNI: testVNI}); err != nil {
		t.Fatal(err)
	}
	got, err := next.sw.Recall(memory, func(string) uint32 { return 0 })
	if want := (Recalled{Forgotten: 3}); err != nil || got != want {
		t.Errorf("recalled %+v, %v; want %+v", got, err, want)
	}
}

// FuzzRecall: whatever the memory says, there is an error and nothing is used, or all of it is counted.
func FuzzRecall(f *testing.F) {
	r := newRig(f, port.CapsAll)
	r.sw.SetFlows(true)
	r.sw.fdb.Learn(time.Now().UnixNano(), testVNI, wire.MAC{10, 0, 0, 0, 0, 88}, port.Dest{Port: r.ids[r.tunnel], Peer: 7})
	r.run(r.podA, plain(udp(f, macA, macB, a4, b4, 64, "a flow")))
	f.Add(r.sw.Remember(nil, func(uint32) string { return "peer" }))
	f.Add([]byte{})
	next := newRig(f, port.CapsAll) // one for all: a table of flows is 16 MiB
	next.sw.SetFlows(true)
	f.Fuzz(func(t *testing.T, memory []byte) {
		stations, flows := len(next.sw.FDB()), next.sw.Flows().Stats().Live
		got, err := next.sw.Recall(memory, func(string) uint32 { return 3 })
		if err != nil && got != (Recalled{}) {
			t.Errorf("recalled %+v, and %v", got, err)
		}
		if n := len(next.sw.FDB()) - stations; n != got.Stations {
			t.Errorf("%d stations, said are %d", n, got.Stations)
		}
		if n := next.sw.Flows().Stats().Live - flows; n != got.Flows {
			t.Errorf("%d flows, said are %d", n, got.Flows)
		}
		if size := stationLen*got.Stations + flowLen*got.Flows; size > len(memory) {
			t.Errorf("%+v out of %d bytes", got, len(memory))
		}
	})
}
