package bench

import (
	"net/netip"
	"slices"
	"testing"
)

// The large node's subnets are as many as are said, none another's or the node's own, and 5,000 peers have them alike.
func TestScalePeers(t *testing.T) {
	own := netip.MustParsePrefix("10.244.0.0/16")
	seen := map[netip.Prefix]bool{}
	underlays := map[string]bool{}
	for _, p := range scalePeers(scaleLarge.peers, scaleLarge.routes) {
		underlays[p.Underlay[0]] = true
		if len(p.PodSubnets) != scaleLarge.routes/scaleLarge.peers {
			t.Fatalf("%s has %d subnets", p.Name, len(p.PodSubnets))
		}
		for _, s := range p.PodSubnets {
			prefix := netip.MustParsePrefix(s)
			if prefix != prefix.Masked() || own.Overlaps(prefix) || !netip.MustParsePrefix(scaleCluster).Contains(prefix.Addr()) {
				t.Fatalf("%s has %s", p.Name, prefix)
			}
			seen[prefix] = true
		}
	}
	if len(seen) != scaleLarge.routes || len(underlays) != scaleLarge.peers {
		t.Errorf("%d subnets of %d addresses, want %d and %d", len(seen), len(underlays), scaleLarge.routes, scaleLarge.peers)
	}
}

// Nodes of two sizes, switching and routing between pods that take turns, balance and are compared.
func TestScaleOfSmallNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of traffic")
	}
	ownTempDir(t)
	s, err := prepare(Config{Executable: buildTapyard(t), Progress: t.Output(), Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	rows, err := s.scaled(t.Context(), scaleSize{"large", 6, 10, 200}, scaleSmall)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(rows, func(r Row) bool { return r.Name == "scale" }); i < 0 || rows[i].Value <= 0 || rows[i].Peer != "small" {
		t.Errorf("rows %+v", rows)
	}
	if len(s.subjects) > 0 {
		t.Error("the nodes are still up")
	}
}
