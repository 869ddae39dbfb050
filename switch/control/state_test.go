package control

import (
	"fmt"
	"net/netip"
	"testing"

	"tapyard/bench/seed"
	"tapyard/switch/wire"
)

func testNode() *Node {
	return &Node{Name: "n1", VNI: 1, MTU: 1450, RouterMAC: wire.RouterMAC("n1"),
		PodSubnets: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		Underlay:   addrs("192.168.1.11", "fd00:192:168:1::11")}
}

func prefixes(s ...string) (list []netip.Prefix) {
	for _, p := range s {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

func addrs(s ...string) (list []netip.Addr) {
	for _, a := range s {
		list = append(list, netip.MustParseAddr(a))
	}
	return list
}

func cluster(peers ...Peer) *State {
	return &State{ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48"), Peers: peers}
}

func peer(name, underlay string, subnets ...string) Peer {
	return Peer{Name: name, Underlay: addrs(underlay), PodSubnets: prefixes(subnets...)}
}

func TestAWrongStateIsRefusedWithBothNames(t *testing.T) {
	n2 := peer("n2", "192.168.1.12", "10.244.2.0/24")
	n2also6 := peer("n2", "192.168.1.12", "10.244.2.0/24")
	n2also6.Underlay = addrs("192.168.1.12", "fd00::9")
	n3also6 := peer("n3", "192.168.1.13", "10.244.3.0/24")
	n3also6.Underlay = addrs("192.168.1.13", "fd00::9")
	mac := func(p Peer, m wire.MAC) Peer {
		p.MAC = m
		return p
	}
	on := func(networks ...string) *Node {
		n := testNode()
		for _, p := range networks {
			n.Networks = append(n.Networks, LocalNetwork{"eth0", netip.MustParsePrefix(p)})
		}
		return n
	}
	with := func(subnet string) *Node { // the LAN behind eth0, too, which an uplink into it may stretch to pods
		n := on("192.168.1.0/24")
		n.Segments = []Segment{{"blue", netip.MustParsePrefix(subnet)}}
		return n
	}
	derived2, derived1 := wire.RouterMAC("n2").String(), wire.RouterMAC("n1").String()
	for name, c := range map[string]struct {
		state *State
		node  *Node  // nil: testNode
		want  string // "": the state is right
	}{
		"right":            {cluster(n2, n3also6), on("192.168.1.0/24", "fd00:192:168:1::/64", "127.0.0.0/8", "172.17.0.0/16", "fe80::/64", "fe80::/64"), ""},
		"nothing yet":      {&State{}, nil, ""},
		"own entry listed": {cluster(n2, mac(peer("n1", "192.168.1.11", "10.244.1.0/24"), wire.RouterMAC("n1"))), nil, ""},
		"own entry differs": {cluster(mac(peer("n1", "192.168.1.99", "10.244.8.0/24"), wire.MAC{2, 1})), nil,
			"peer n1 is this node, but underlay 192.168.1.99 is none of its own [192.168.1.11 fd00:192:168:1::11]\n" +
				"peer n1 is this node, but pod subnet 10.244.8.0/24 is none of its own [10.244.1.0/24 fd00:10:244:1::/64]\n" +
				"peer n1 is this node, but mac 02:01:00:00:00:00 is not its router MAC " + derived1 + "; remove it"},

		"no name":                     {cluster(Peer{}), nil, "peers[0]: it has no name; names identify nodes"},
		"name twice":                  {cluster(n2, n2), nil, "peers[1]: n2 is the name of peers[0] already; names identify nodes"},
		"case":                        {cluster(n2, peer("N2", "192.168.1.13")), nil, "peers[1]: N2 differs from n2, the name of peers[0], by case only; names identify nodes"},
		"this node's in another case": {cluster(peer("N1", "192.168.1.11")), nil, "peers[0]: N1 differs from this node's name, n1, by case only; write one of them as the other"},

		"no underlay":               {cluster(Peer{Name: "n2"}), nil, "peer n2: underlay is missing; write the address where its tunnels end"},
		"no underlay of the family": {cluster(peer("n3", "fd00::3")), nil, "peer n3: no underlay address of the tunnels' family (this node's is 192.168.1.11)"},
		"multicast underlay":        {cluster(peer("n3", "224.0.0.3")), nil, "node n3: underlay 224.0.0.3 is no unicast address that other nodes can reach"},
		"link-local underlay":       {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13", "fe80::1%eth0")}), nil, "node n3: underlay fe80::1%eth0 is no unicast address that other nodes can reach"},
		"same underlay":             {cluster(n2, peer("n3", "192.168.1.12")), nil, "node n3: underlay 192.168.1.12 is that of n2 already"},
		"our underlay":              {cluster(peer("n3", "192.168.1.11")), nil, "node n3: underlay 192.168.1.11 is that of n1 (this node) already"},
		"a second underlay":         {cluster(n2also6, n3also6), nil, "node n3: underlay fd00::9 is that of n2 already"},
		"underlay twice":            {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13", "192.168.1.13")}), nil, "node n3: underlay 192.168.1.13 is listed twice"},
		"an address in both families": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13", "::ffff:192.168.1.13")}), nil,
			"node n3: underlay ::ffff:192.168.1.13 is an IPv4 address; write 192.168.1.13"},

		"group mac": {cluster(mac(n2, wire.MAC{1, 0, 0, 0, 0, 1})), nil, "peer n2: mac 01:00:00:00:00:01 is a group address; write the one that the peer's router has"},
		"same mac": {cluster(mac(n2, wire.MAC{2, 9}), mac(peer("n3", "192.168.1.13"), wire.MAC{2, 9})), nil,
			"peer n3: router MAC 02:09:00:00:00:00 is that of n2 already; set mac: to another one, or rename a node whose MAC comes from its name"},
		"a derived mac": {cluster(n2, mac(peer("n3", "192.168.1.13"), wire.RouterMAC("n2"))), nil,
			"peer n3: router MAC " + derived2 + " is that of n2 already; set mac: to another one, or rename a node whose MAC comes from its name"},
		"our mac": {cluster(mac(n2, wire.RouterMAC("n1"))), nil,
			"peer n2: router MAC " + derived1 + " is that of n1 (this node) already; set mac: to another one, or rename a node whose MAC comes from its name"},

		"host bits":        {cluster(peer("n3", "192.168.1.13", "10.244.3.1/24")), nil, "peer n3: podSubnets: 10.244.3.1/24 has host bits set; write 10.244.3.0/24"},
		"empty subnet":     {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13"), PodSubnets: make([]netip.Prefix, 1)}), nil, "peer n3: podSubnets: an entry is empty"},
		"equal subnets":    {cluster(n2, peer("n3", "192.168.1.13", "10.244.2.0/24")), nil, "node n3: pod subnet 10.244.2.0/24 overlaps 10.244.2.0/24 of n2"},
		"subnet in subnet": {cluster(peer("n3", "192.168.1.13", "10.244.2.128/25"), n2), nil, "node n3: pod subnet 10.244.2.128/25 overlaps 10.244.2.0/24 of n2"},
		"three of them": {cluster(peer("n3", "192.168.1.13", "10.244.2.128/25"), n2, peer("n4", "192.168.1.14", "10.244.2.192/26")), nil,
			"node n3: pod subnet 10.244.2.128/25 overlaps 10.244.2.0/24 of n2\nnode n4: pod subnet 10.244.2.192/26 overlaps 10.244.2.128/25 of n3"},
		"this node's subnet":   {cluster(peer("n3", "192.168.1.13", "10.244.1.0/24")), nil, "node n3: pod subnet 10.244.1.0/24 overlaps 10.244.1.0/24 of n1 (this node)"},
		"this node's, IPv6":    {cluster(peer("n3", "192.168.1.13", "fd00:10:244:1:8000::/65")), nil, "node n3: pod subnet fd00:10:244:1:8000::/65 overlaps fd00:10:244:1::/64 of n1 (this node)"},
		"outside":              {cluster(peer("n3", "192.168.1.13", "10.9.3.0/24")), nil, "node n3: pod subnet 10.9.3.0/24 lies outside of clusterCIDRs [10.244.0.0/16 fd00:10:244::/48]; they hold the pod subnets of all nodes"},
		"this node is outside": {&State{ClusterCIDRs: prefixes("10.99.0.0/16", "fd00:10:244::/48")}, nil, "node n1 (this node): pod subnet 10.244.1.0/24 lies outside of clusterCIDRs [10.99.0.0/16 fd00:10:244::/48]; they hold the pod subnets of all nodes"},

		"no clusterCIDRs":       {&State{Peers: []Peer{n2}}, nil, "clusterCIDRs is missing; it holds the pod subnets of all nodes, for example [10.244.0.0/16]"},
		"clusterCIDRs nested":   {&State{ClusterCIDRs: prefixes("10.244.1.0/24", "10.244.0.0/16", "fd00:10:244::/48")}, nil, "clusterCIDRs: 10.244.1.0/24 lies inside of 10.244.0.0/16; remove it"},
		"clusterCIDRs repeated": {&State{ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48", "10.244.0.0/16")}, nil, "clusterCIDRs: 10.244.0.0/16 is listed twice; remove one"},
		"clusterCIDRs with host bits": {&State{ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48", "10.9.0.1/16")}, nil,
			"clusterCIDRs: 10.9.0.1/16 has host bits set; write 10.9.0.0/16"},

		"our pod as underlay":  {cluster(peer("n3", "10.244.1.5")), nil, "node n3: underlay 10.244.1.5 lies inside of pod subnet 10.244.1.0/24 of n1 (this node)"},
		"its own pod":          {cluster(peer("n3", "10.244.3.5", "10.244.3.0/24")), nil, "node n3: underlay 10.244.3.5 lies inside of pod subnet 10.244.3.0/24 of n3"},
		"a peer's pod":         {cluster(n2, peer("n3", "10.244.2.5")), nil, "node n3: underlay 10.244.2.5 lies inside of pod subnet 10.244.2.0/24 of n2"},
		"a future pod":         {cluster(peer("n3", "10.244.77.5")), nil, "node n3: underlay 10.244.77.5 lies inside of clusterCIDRs 10.244.0.0/16, which is the pods'"},
		"our underlay as pods": {&State{ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48", "192.168.0.0/16"), Peers: []Peer{peer("n3", "172.16.0.3", "192.168.1.0/24")}}, nil, "node n1 (this node): underlay 192.168.1.11 lies inside of pod subnet 192.168.1.0/24 of n3"},

		"clusterCIDRs cover a network": {&State{ClusterCIDRs: prefixes("10.0.0.0/8", "fd00:10:244::/48"), Peers: []Peer{n2}}, on("192.168.1.0/24", "10.9.0.0/24"),
			"clusterCIDRs: 10.0.0.0/8 covers 10.9.0.0/24, the network of this node's interface eth0; pods need addresses of their own"},
		"a network covers clusterCIDRs": {cluster(n2), on("10.0.0.0/8"),
			"clusterCIDRs: 10.244.0.0/16 lies inside of 10.0.0.0/8, the network of this node's interface eth0; pods need addresses of their own"},
		"clusterCIDRs are a network": {cluster(n2), on("10.244.0.0/16"),
			"clusterCIDRs: 10.244.0.0/16 covers 10.244.0.0/16, the network of this node's interface eth0; pods need addresses of their own"},
		"our pods cover a network": {&State{}, on("10.244.1.128/25"),
			"node n1 (this node): pod subnet 10.244.1.0/24 covers 10.244.1.128/25, the network of this node's interface eth0; pods need addresses of their own"},
		"a network covers our pods": {&State{}, on("10.244.0.0/16"),
			"node n1 (this node): pod subnet 10.244.1.0/24 lies inside of 10.244.0.0/16, the network of this node's interface eth0; pods need addresses of their own"},
		"a peer's pods cover a network": {cluster(n2), on("10.244.2.0/25"),
			"node n2: pod subnet 10.244.2.0/24 covers 10.244.2.0/25, the network of this node's interface eth0; pods need addresses of their own"},
		"loopback for pods": {&State{ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48", "127.9.0.0/16")}, nil,
			"clusterCIDRs: 127.9.0.0/16 lies inside of 127.0.0.0/8, which no router forwards to; pods need addresses of their own"},

		"a network's subnet in clusterCIDRs": {cluster(n2), with("10.244.2.128/25"),
			"network blue of this node: subnet 10.244.2.128/25 overlaps pod subnet 10.244.2.0/24 of n2; a pod in both could not tell them apart"},
		"a network's subnet among future pods": {cluster(n2), with("10.244.9.0/24"),
			"network blue of this node: subnet 10.244.9.0/24 overlaps clusterCIDRs 10.244.0.0/16; a pod in both could not tell them apart"},
		"a network's subnet around clusterCIDRs": {cluster(n2), with("10.0.0.0/8"),
			"network blue of this node: subnet 10.0.0.0/8 overlaps clusterCIDRs 10.244.0.0/16; a pod in both could not tell them apart"},
		"a network's subnet with nodes in it": {cluster(n2), with("192.168.1.0/24"), ""},

		"everything is reported": {cluster(peer("a", "fd00::3"), peer("b", "fd00::4")), nil,
			"peer a: no underlay address of the tunnels' family (this node's is 192.168.1.11)\npeer b: no underlay address of the tunnels' family (this node's is 192.168.1.11)"},
	} {
		node := c.node
		if node == nil {
			node = testNode()
		}
		got := ""
		if err := c.state.Validate(node); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// A slow model says for random claims, few enough to collide often, whether any two can't stand side by side.
func TestValidateFindsEveryOverlap(t *testing.T) {
	r := seed.Rand(t)
	for range 3000 {
		s := State{ClusterCIDRs: prefixes("10.0.0.0/8")}
		n := &Node{Name: "n0", Underlay: addrs("192.168.1.1")}
		var subnets []netip.Prefix
		var underlay []netip.Addr
		wrong := false
		for i := range 2 + r.IntN(6) {
			p, _ := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(4)), byte(r.IntN(256))}).Prefix(20 + r.IntN(13))
			a := netip.AddrFrom4([4]byte{byte(9 + r.IntN(8)/7), 0, byte(r.IntN(4)), byte(1 + i)})
			for _, other := range subnets {
				wrong = wrong || other.Overlaps(p)
			}
			subnets, underlay = append(subnets, p), append(underlay, a)
			s.Peers = append(s.Peers, Peer{Name: fmt.Sprint("p", i), Underlay: []netip.Addr{a}, PodSubnets: []netip.Prefix{p}})
		}
		for _, a := range underlay {
			wrong = wrong || s.ClusterCIDRs[0].Contains(a)
		}
		if err := s.Validate(n); (err != nil) != wrong {
			t.Fatalf("subnets %v, underlay %v: wrong %t, error %v", subnets, underlay, wrong, err)
		}
	}
}

// bigCluster has as many peers as the project is meant for, of both families.
func bigCluster() *State {
	s := &State{ClusterCIDRs: prefixes("10.0.0.0/8", "fd00:10::/32")}
	for i := range 5000 {
		hi, lo := byte(i>>8), byte(i)
		s.Peers = append(s.Peers, Peer{Name: fmt.Sprint("node-", i),
			Underlay: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, hi, lo})},
			PodSubnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, hi, lo, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, hi, lo}), 64)}})
	}
	return s
}

func BenchmarkValidate(b *testing.B) {
	s, n := bigCluster(), &Node{Name: "n0", Underlay: addrs("192.168.1.1")}
	for b.Loop() {
		if err := s.Validate(n); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidateEqualSubnets(b *testing.B) {
	s, n := bigCluster(), &Node{Name: "n0", Underlay: addrs("192.168.1.1")}
	for i := range s.Peers {
		s.Peers[i].PodSubnets = prefixes("10.0.0.0/24")
	}
	for b.Loop() {
		if err := s.Validate(n); err == nil {
			b.Fatal("accepted")
		}
	}
}
