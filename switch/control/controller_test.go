package control

import (
	"log/slog"
	"net/netip"
	"testing"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/port/porttest"
)

func newController(t *testing.T) (*Controller, *vswitch.Switch) {
	t.Helper()
	node := testNode()
	sw, err := vswitch.New(vswitch.Config{Workers: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := sw.Stop(); err != nil || l.Check() != nil {
			t.Error(err, l.Check())
		}
	})
	if err := sw.AddNetwork(vswitch.Network{VNI: node.VNI, RouterMAC: node.RouterMAC}); err != nil {
		t.Fatal(err)
	}
	links := Links{VTEPs: new(encap.VTEPTable)}
	if links.Host, err = sw.Attach(porttest.New("tapyard0", 0), vswitch.PortConfig{Role: vswitch.RoleHost, VNI: node.VNI}); err != nil {
		t.Fatal(err)
	}
	if links.Tunnel, err = sw.Attach(porttest.New("vxlan", 0), vswitch.PortConfig{Role: vswitch.RoleTunnel, VNI: node.VNI}); err != nil {
		t.Fatal(err)
	}
	return New(sw, *node, links), sw
}

// nextHops is the routing table as operators see it.
func nextHops(sw *vswitch.Switch, c *Controller) map[string]string {
	table := map[string]string{}
	for _, r := range sw.Routes() {
		hop := r.Adjacency.Kind.String()
		switch {
		case r.Adjacency.Tunnel:
			hop = c.links.VTEPs.Lookup(r.Adjacency.Dest.Peer).Name
		case r.Adjacency.Kind == vswitch.AdjForward:
			hop = "host"
		}
		table[r.Prefix.String()] = hop
	}
	return table
}

func TestStateBecomesRoutesAndAWrongOneChangesNothing(t *testing.T) {
	c, sw := newController(t)
	n2 := Peer{Name: "n2", Underlay: addrs("192.168.1.12", "fd00:192:168:1::12"), PodSubnets: prefixes("10.244.2.0/24", "fd00:10:244:2::/64")}
	if err := c.Apply(*cluster(n2)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"10.244.2.0/24": "n2", "fd00:10:244:2::/64": "n2", "192.168.1.12/32": "n2", "fd00:192:168:1::12/128": "n2",
		"10.244.1.0/24": "no_neighbor", "10.244.1.1/32": "host", "10.244.1.2/32": "local", "fd00:10:244:1::1/128": "host",
		"10.244.0.0/16": "no_route", "fd00:10:244::/48": "no_route", "0.0.0.0/0": "host", "::/0": "host",
		"192.168.1.11/32": "host", "fe80::/10": "no_route", "224.0.0.0/4": "no_route",
	}
	check := func(when string) {
		t.Helper()
		got := nextHops(sw, c)
		for prefix, hop := range want {
			if got[prefix] != hop {
				t.Errorf("%s: %s leads to %q, want %q", when, prefix, got[prefix], hop)
			}
		}
	}
	check("first state")
	bad := n2
	bad.PodSubnets = prefixes("10.244.1.0/24")
	if err := c.Apply(*cluster(bad)); err == nil {
		t.Error("a state that takes this node's subnet was applied")
	}
	check("after a refused state")
	// The peer moves to another address and another takes its old one, all in one state.
	moved, n3 := n2, Peer{Name: "n3", Underlay: addrs("192.168.1.12"), PodSubnets: prefixes("10.244.3.0/24")}
	moved.Underlay = addrs("192.168.1.22")
	if err := c.Apply(*cluster(moved, n3)); err != nil {
		t.Fatal(err)
	}
	want["10.244.3.0/24"], want["192.168.1.12/32"], want["192.168.1.22/32"] = "n3", "n3", "n2"
	delete(want, "fd00:192:168:1::12/128")
	check("after a move")
	for _, p := range c.links.VTEPs.Peers() {
		if p.Underlay == netip.MustParseAddr("192.168.1.12") && p.Name != "n3" {
			t.Errorf("192.168.1.12 is the VTEP of %s, want n3", p.Name)
		}
	}
	if err := c.Apply(*cluster()); err != nil {
		t.Fatal(err)
	}
	if got := nextHops(sw, c); got["10.244.2.0/24"] != "" || len(c.links.VTEPs.Peers()) != 0 {
		t.Errorf("after the peers left: %v", got)
	}
}
