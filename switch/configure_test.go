package vswitch

import (
	"net/netip"
	"testing"

	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
)

// What a port is held to changes while it is there, in both directions.
func TestConfigure(t *testing.T) {
	r := newRig(t, port.CapsAll)
	p := porttest.New("guarded", port.CapsAll)
	mac, addr := wire.MAC{10, 0, 0, 0, 0, 5}, netip.MustParseAddr("10.244.1.5")
	station := &Station{MAC: mac, Addrs: []netip.Addr{addr}}
	id, err := r.sw.Attach(p, PortConfig{Role: RoleAccess, VNI: testVNI, Guard: station, BUM: 1})
	r.must(err)
	r.ids[p] = id
	dropped := func(reason string) uint64 { return r.drops(p)[reason] }
	spoof := func() { r.run(p, plain(udp(t, mac, macB, a4, b4, 64, "spoofed"))) }
	flood := func() {
		for range 3 {
			r.run(p, plain(udp(t, mac, wire.MAC{10, 9, 9, 9, 9, 9}, addr, b4, 64, "to nobody")))
		}
	}
	spoof()
	flood()
	if dropped("spoofed_ip") != 1 || dropped("bum_limit") != 2 {
		t.Fatalf("guarded: %v", r.drops(p))
	}
	r.must(r.sw.Configure(id, nil, 0))
	spoof()
	flood()
	if dropped("spoofed_ip") != 1 || dropped("bum_limit") != 2 {
		t.Errorf("open: %v", r.drops(p))
	}
	r.must(r.sw.Configure(id, station, 1))
	spoof()
	flood()
	if dropped("spoofed_ip") != 2 || dropped("bum_limit") < 4 {
		t.Errorf("guarded again: %v", r.drops(p))
	}
	if r.sw.Configure(99, nil, 0) == nil || r.sw.Configure(port.Local, nil, 0) == nil {
		t.Error("a port that isn't there was configured")
	}
}
