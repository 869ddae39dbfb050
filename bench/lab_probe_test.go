package bench

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// probePair makes two namespaces joined by a veth pair, without any switch, and a lab description of them.
func probePair(t *testing.T) (lab *Lab, a, b *nstest.NS) {
	a, b = nstest.New(t), nstest.New(t)
	a.Do(t, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podDevice
		peer := &netlink.Veth{LinkAttrs: attrs, PeerName: podDevice, PeerNamespace: netlink.NsFd(b.FD())}
		if err := netlink.LinkAdd(peer); err != nil {
			t.Fatalf("make a veth pair: %v", err)
		}
	})
	addrs := map[*nstest.NS][]string{a: {"192.168.1.91/24", "192.168.1.92/24", "fd00:192:168:1::91/64"}, b: {"192.168.1.1/24", "fd00:192:168:1::1/64"}}
	for ns, list := range addrs {
		ns.Do(t, func() {
			if err := raise(podDevice); err != nil {
				t.Fatal(err)
			}
			link, err := netlink.LinkByName(podDevice)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range list {
				addr, err := netlink.ParseAddr(text)
				if err != nil {
					t.Fatal(err)
				}
				addr.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(link, addr); err != nil {
					t.Fatalf("add %s: %v", text, err)
				}
			}
		})
	}
	lab = &Lab{Pods: []LabPod{
		{Name: "a", Netns: labPrefix + "a", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.91"), netip.MustParseAddr("fd00:192:168:1::91")}},
		{Name: "b", Netns: labPrefix + "b", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fd00:192:168:1::1")}},
	}}
	probeAlias(t, a, "a")
	probeAlias(t, b, "b")
	for _, ns := range []*nstest.NS{a, b} {
		ns.Do(t, func() { awaitOperUp(t) })
	}
	return lab, a, b
}

// awaitOperUp waits until the kernel's link watch has seen the carrier: before, it drops what is sent
// without a word.
func awaitOperUp(t *testing.T) {
	for range 500 {
		link, err := netlink.LinkByName(podDevice)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is not operationally up after 5 s", podDevice)
}

// probeAlias binds a test's namespace to the name that a lab would give it.
func probeAlias(t *testing.T, ns *nstest.NS, name string) {
	path := netnsPath(labPrefix + name)
	if err := unix.Symlink(ns.Path(), path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unlink(path) })
}

// TestProbe asks over a veth pair: there the kernel alone decides what arrives, and from where.
func TestProbe(t *testing.T) {
	lab, a, b := probePair(t)
	ask := func(bind string) []Probe {
		t.Helper()
		r := ProbeRequest{From: "a", To: "b", Protos: probeProtos, Families: []int{4, 6}}
		if bind != "" {
			r.Bind = netip.MustParseAddr(bind)
		}
		probes, err := lab.Probe(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return probes
	}
	expect := func(probes []Probe, sources map[int]string) {
		t.Helper()
		if len(probes) != len(sources)*len(probeProtos) {
			t.Errorf("%d probes, want %d families of %v", len(probes), len(sources), probeProtos)
		}
		for _, p := range probes {
			if !p.OK || p.RTT <= 0 || p.Source.String() != sources[p.Family] {
				t.Errorf("want it to succeed from %s: %+v", sources[p.Family], p)
			}
		}
	}
	expect(ask(""), map[int]string{4: "192.168.1.91", 6: "fd00:192:168:1::91"})
	expect(ask("192.168.1.92"), map[int]string{4: "192.168.1.92"})

	// Replies get lost: questions arrive, no answer does.
	b.Do(t, func() { probeBlackhole(t, "192.168.1.91/32") })
	for _, p := range ask("192.168.1.91") {
		if p.OK || p.Error == "" {
			t.Errorf("the target can't answer, but: %+v", p)
		}
	}
	// Somebody else answers: what is local to the asker never reaches the target.
	a.Do(t, func() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("192.168.1.1"))}); err != nil {
			t.Fatal(err)
		}
	})
	for _, p := range ask("192.168.1.92") {
		if p.OK {
			t.Errorf("the target was never asked, but: %+v", p)
		}
		if p.Proto == "icmp" && !strings.Contains(p.Error, "nothing arrived there") {
			t.Errorf("the asker's own kernel answered; the probe says: %+v", p)
		}
	}
}

func probeBlackhole(t *testing.T, prefix string) {
	dst, err := netlink.ParseIPNet(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
		t.Fatalf("blackhole %s: %v", prefix, err)
	}
}

// TestMatrixJudges fails a probe that came from an address of somebody else, as a translated one does.
func TestMatrixJudges(t *testing.T) {
	lab, err := labPlan(LabConfig{Nodes: 2, Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	lab.Pods[0].Addresses = []netip.Addr{netip.MustParseAddr("10.244.1.3")}
	for _, c := range []struct {
		from, source string
		want         bool
	}{
		{"n1p1", "10.244.1.3", true},
		{"n1p1", "192.168.1.11", false}, // masqueraded
		{"n1", "10.244.1.1", true},
		{"n1", "192.168.1.11", true},
		{"n1", "10.244.2.1", false}, // another node's gateway
	} {
		p := Probe{From: c.from, To: "n2p1", OK: true, Source: netip.MustParseAddr(c.source)}
		if lab.judge(&p); p.OK != c.want {
			t.Errorf("%s seen as %s: ok is %v, want %v (%s)", c.from, c.source, p.OK, c.want, p.Error)
		}
	}
}
