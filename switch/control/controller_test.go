package control

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tapyard/encap"
	vswitch "tapyard/switch"
	"tapyard/switch/attach"
	"tapyard/switch/fdb"
	"tapyard/switch/frame"
	"tapyard/switch/neigh"
	"tapyard/switch/port"
	"tapyard/switch/port/porttest"
	"tapyard/switch/wire"
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

func podOf(id, addr string, mtu int) attach.Attachment {
	return attach.Attachment{ContainerID: id, IfName: "eth0", Name: id, MAC: wire.MAC{0x0a, 5: id[len(id)-1]}, VNI: 1, MTU: mtu,
		Addresses: []netip.Prefix{netip.MustParsePrefix(addr + "/24")}}
}

// mtuTo returns the MTU of the route to the address, 0 if it has no route of its own.
func mtuTo(sw *vswitch.Switch, addr string) int {
	for _, r := range sw.Routes() {
		if r.Prefix.String() == addr+"/32" {
			return int(r.Adjacency.MTU)
		}
	}
	return 0
}

// What another pod has is refused with both names, and nothing of the second pod stays.
func TestSecondClaimNamesBothPods(t *testing.T) {
	c, sw := newController(t)
	if err := c.AddPod(podOf("ns/p1", "10.244.1.3", 1450), porttest.New("ns/p1", 0)); err != nil {
		t.Fatal(err)
	}
	sameMAC, sameAddr := podOf("ns/q1", "10.244.1.4", 1450), podOf("ns/p2", "10.244.1.3", 1450)
	gateway := podOf("ns/p3", "10.244.1.1", 1450)
	if err := sw.AddNeighbors(1, port.Local, c.node.RouterMAC, addrs("10.244.1.1")); err != nil {
		t.Fatal(err)
	}
	for want, a := range map[string]attach.Attachment{
		"MAC 0a:00:00:00:00:31 of ns/q1: it is that of ns/p1 already, in VNI 1": sameMAC,
		"address 10.244.1.3 of ns/p2: it is that of ns/p1 already, in VNI 1":    sameAddr,
		"address 10.244.1.1 of ns/p3: it is that of the switch already":         gateway,
	} {
		err := c.AddPod(a, porttest.New(a.Name, 0))
		if err == nil || !strings.HasPrefix(err.Error(), want) || !errors.Is(err, fdb.ErrConflict) && !errors.Is(err, neigh.ErrConflict) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if n, ports := len(sw.FDB()), len(sw.Ports()); n != 1 || ports != 4 || mtuTo(sw, "10.244.1.3") != 1450 {
		t.Errorf("%d MACs behind %d ports, want the first pod's behind 4", n, ports)
	}
}

// An ADD has asked for the MTU, then the underlay's changes, and only then the pod is published: nothing would
// ever mend its route.
func TestPodPublishedAfterTheMTUHasChanged(t *testing.T) {
	c, sw := newController(t)
	if err := c.SetMTU(1350, 1350); err != nil {
		t.Fatal(err)
	}
	if err := c.AddPod(podOf("p1", "10.244.1.3", 1450), porttest.New("p1", 0)); err != nil {
		t.Fatal(err)
	}
	if got := mtuTo(sw, "10.244.1.3"); got != 1350 {
		t.Errorf("MTU %d of the route to the pod, want 1350", got)
	}
}

// The MTU changes while pods come and go: when all is quiet, those that are there have routes with the last MTU,
// and none leads to one that has gone, whose port's number is another's by now.
func TestMTUChangesWhilePodsComeAndGo(t *testing.T) {
	c, sw := newController(t)
	sw.Start()
	var all sync.WaitGroup
	stop := make(chan struct{})
	all.Go(func() {
		for mtu := 1300; ; mtu ^= 1 {
			select {
			case <-stop:
				return
			default:
			}
			if err := c.SetMTU(mtu, mtu); err != nil {
				t.Error(err)
			}
		}
	})
	var pods sync.WaitGroup
	for i := range 4 {
		pods.Go(func() {
			a := podOf(fmt.Sprint("p", i), fmt.Sprint("10.244.1.", 3+i), 1450)
			for range 50 {
				if err := c.AddPod(a, porttest.New(a.Name, 0)); err != nil {
					t.Error(err)
				}
				if err := c.RemovePod(t.Context(), a); err != nil {
					t.Error(err)
				}
				if mtu := mtuTo(sw, a.Addrs()[0].String()); mtu != 0 {
					t.Errorf("a route to %s, which has gone, with MTU %d", a.Name, mtu)
				}
			}
		})
	}
	pods.Wait()
	close(stop)
	all.Wait()
}

// A peer that moves to another address gets another index: what was learned behind the old one leads nowhere.
func TestStationsOfAPeerThatMoves(t *testing.T) {
	c, sw := newController(t)
	if err := sw.AddNetwork(vswitch.Network{VNI: 200, Stretched: true}); err != nil {
		t.Fatal(err)
	}
	c.node.Stretched = []uint32{200}
	n2 := peer("n2", "192.168.1.12", "10.244.2.0/24")
	if err := c.Apply(*cluster(n2)); err != nil {
		t.Fatal(err)
	}
	sw.Start()
	for _, v := range sw.Ports() {
		if v.ID == c.links.Tunnel {
			broadcast := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5}, make([]byte, 46)...)
			v.Port.(*porttest.Port).Inject(porttest.Frame{Bytes: broadcast, Meta: frame.Meta{VNI: 200, Peer: c.links.VTEPs.LookupName("n2").Index}})
		}
	}
	for deadline := time.Now().Add(10 * time.Second); len(sw.FDB()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the station was not learned")
		}
	}
	if err := c.Apply(*cluster(peer("n2", "192.168.1.22", "10.244.2.0/24"))); err != nil {
		t.Fatal(err)
	}
	if entries := sw.FDB(); len(entries) > 0 {
		t.Errorf("left: %+v", entries)
	}
}
