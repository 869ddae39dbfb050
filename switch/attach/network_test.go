package attach

import (
	"net/netip"
	"strings"
	"testing"

	"tapyard/bench/nstest"
)

// A pod of a further network has an address out of this node's range, no default route, and, where no tunnel
// limits it, an MTU that doesn't follow the underlay's.
func TestFurtherNetwork(t *testing.T) {
	part := netip.MustParsePrefix("10.60.0.64/29")
	n := newNode(t, func(c *Config) {
		c.Networks = []Network{{Name: "blue", VNI: 200, MTU: 1500,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.60.0.0/24")}, Ranges: []netip.Prefix{part}}}
	})
	ns := nstest.New(t)
	req := reqFor(ns, "blue1")
	req.Conf.Network = "green"
	if _, err := n.Add(t.Context(), req); err == nil || !strings.Contains(err.Error(), `"green"`) || !strings.Contains(err.Error(), `"blue"`) {
		t.Errorf("a network that isn't there: %v", err)
	}
	req.Conf.Network = "blue"
	a, err := n.Add(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Addresses) != 1 || !part.Contains(a.Addresses[0].Addr()) || a.Addresses[0].Bits() != 24 || len(a.Gateways) != 0 || a.VNI != 200 {
		t.Errorf("attached %+v", a)
	}
	if out, err := ns.Command("ip", "route", "show", "default").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("default route: %s %v", out, err)
	}
	own := n.add(t, nstest.New(t), "own1")
	n.cfg.MTU = func() int { return 1400 }
	if err := n.SetMTU(t.Context(), 1400); err != nil {
		t.Fatal(err)
	}
	for _, p := range n.List() {
		if want := map[string]int{a.Key(): 1500, own.Key(): 1400}[p.Key()]; p.MTU != want {
			t.Errorf("%s has MTU %d, want %d", p.Key(), p.MTU, want)
		}
	}
	n.restart(t)
	if got := n.List(); len(got) != 2 || got[0].Addresses[0] != a.Addresses[0] {
		t.Errorf("restored %+v", got)
	}
	n.del(t, req)
	n.del(t, Request{ContainerID: "own1", IfName: "eth0", NetnsFD: -1})
}
