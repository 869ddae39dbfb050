package control

import (
	"net/netip"
	"strings"
	"testing"

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

func TestAWrongStateIsRefusedWithBothNames(t *testing.T) {
	n2 := Peer{Name: "n2", Underlay: addrs("192.168.1.12"), PodSubnets: prefixes("10.244.2.0/24")}
	for name, c := range map[string]struct {
		state *State
		parts []string // of the error; none: the state is right
	}{
		"right":             {cluster(n2), nil},
		"own entry listed":  {cluster(n2, Peer{Name: "n1", Underlay: addrs("192.168.1.11"), PodSubnets: prefixes("10.244.1.0/24")}), nil},
		"own entry differs": {cluster(Peer{Name: "n1", Underlay: addrs("192.168.1.99")}), []string{"n1", "192.168.1.99", "192.168.1.11"}},
		"own subnet differs": {cluster(Peer{Name: "n1", Underlay: addrs("192.168.1.11"), PodSubnets: prefixes("10.244.8.0/24")}),
			[]string{"n1", "10.244.8.0/24", "10.244.1.0/24"}},
		"no underlay":     {cluster(Peer{Name: "n2"}), []string{"n2", "underlay is missing"}},
		"no clusterCIDRs": {&State{Peers: []Peer{n2}}, []string{"clusterCIDRs is missing"}},
		"name twice":      {cluster(n2, n2), []string{"n2", "twice"}},
		"no name":         {cluster(Peer{}), []string{"peers[0]", "no name"}},
		"same underlay": {cluster(n2, Peer{Name: "n3", Underlay: addrs("192.168.1.12"), PodSubnets: prefixes("10.244.3.0/24")}),
			[]string{"n3", "192.168.1.12", "n2"}},
		"our underlay": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.11"), PodSubnets: prefixes("10.244.3.0/24")}),
			[]string{"n3", "192.168.1.11", "n1"}},
		"overlapping peers": {cluster(n2, Peer{Name: "n3", Underlay: addrs("192.168.1.13"), PodSubnets: prefixes("10.244.2.128/25")}),
			[]string{"n3", "10.244.2.128/25", "10.244.2.0/24", "n2"}},
		"overlaps this node": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13"), PodSubnets: prefixes("10.244.1.0/24")}),
			[]string{"n3", "10.244.1.0/24", "n1 (this node)"}},
		"outside of the cluster": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13"), PodSubnets: prefixes("10.9.3.0/24")}),
			[]string{"n3", "10.9.3.0/24", "clusterCIDRs"}},
		"host bits": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13"), PodSubnets: prefixes("10.244.3.1/24")}),
			[]string{"n3", "10.244.3.1/24", "10.244.3.0/24"}},
		"no underlay of the family": {cluster(Peer{Name: "n3", Underlay: addrs("fd00::3")}), []string{"n3", "family", "192.168.1.11"}},
		"multicast underlay":        {cluster(Peer{Name: "n3", Underlay: addrs("224.0.0.3")}), []string{"n3", "224.0.0.3"}},
		"a second underlay twice": {cluster(Peer{Name: "n2", Underlay: addrs("192.168.1.12", "fd00::9"), PodSubnets: prefixes("10.244.2.0/24")},
			Peer{Name: "n3", Underlay: addrs("192.168.1.13", "fd00::9"), PodSubnets: prefixes("10.244.3.0/24")}), []string{"n3", "fd00::9", "n2"}},
		"a pod's address as underlay":      {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13", "10.244.1.5")}), []string{"n3", "10.244.1.5", "clusterCIDRs"}},
		"mapped underlay":                  {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13", "::ffff:9.9.9.9")}), []string{"n3", "9.9.9.9"}},
		"this node outside of the cluster": {&State{ClusterCIDRs: prefixes("10.99.0.0/16")}, []string{"10.244.1.0/24", "10.99.0.0/16"}},
		"group mac": {cluster(Peer{Name: "n3", Underlay: addrs("192.168.1.13"), MAC: wire.MAC{1, 0, 0, 0, 0, 1}}),
			[]string{"n3", "01:00:00:00:00:01"}},
		"everything is reported": {cluster(Peer{Name: "a", Underlay: addrs("fd00::3")}, Peer{Name: "b", Underlay: addrs("fd00::4")}),
			[]string{"peer a", "peer b"}},
	} {
		err := c.state.Validate(testNode())
		if len(c.parts) == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		for _, part := range c.parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %v, want one that names %q", name, err, part)
			}
		}
	}
}
