package bench

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func TestLongestGapBelongsToOneWindow(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	answers := []time.Time{at(0), at(10), at(20), at(95), at(100), at(110), at(160)}
	for _, c := range []struct{ from, until, want int }{
		{0, 22, 10},    // the gap of 75 ms has begun, but belongs to where it ended
		{22, 105, 75},  // began before the kill: the last answer is always a little older
		{105, 200, 50}, // to the end
		{200, 300, 0},
	} {
		if got := longestGap(answers, at(c.from), at(c.until)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("longest gap from %d to %d: %v, want %d ms", c.from, c.until, got, c.want)
		}
	}
}

// twoPods are namespaces joined by a veth pair, as far as a mesh needs a lab.
func twoPods(t *testing.T) *Lab {
	t.Helper()
	lab := &Lab{}
	for _, name := range []string{"p1", "p2"} {
		addr := netip.MustParseAddr("10.9.0." + name[1:])
		lab.Pods = append(lab.Pods, LabPod{Name: name, Node: "n" + name[1:], Netns: benchPrefix + name, Addresses: []netip.Addr{addr}})
		if err := makeNetns(benchPrefix + name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := deleteNetns(benchPrefix + name); err != nil {
				t.Error(err)
			}
		})
	}
	err := inNetns(benchPrefix+"p1", func() error {
		other, err := netns.GetFromName(benchPrefix + "p2")
		if err != nil {
			return err
		}
		defer other.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podDevice
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: podDevice, PeerNamespace: netlink.NsFd(other)})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range lab.Pods {
		if err := (&pod{netns: p.Netns, addr: p.Addresses[0]}).setUp(); err != nil {
			t.Fatal(err)
		}
	}
	return lab
}

// setLink changes a pod's end of the wire.
func setLink(t *testing.T, netnsName string, set func(netlink.Link) error) {
	t.Helper()
	err := inNetns(netnsName, func() error {
		link, err := netlink.LinkByName(podDevice)
		if err != nil {
			return err
		}
		return set(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An outage of known length must show as a gap of that length, and a stream must survive it.
func TestMeshSeesAnOutage(t *testing.T) {
	lab := twoPods(t)
	m, err := startMesh(lab)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.awaitAnswers(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	k := kill{node: "n1", at: time.Now()}
	setLink(t, lab.Pods[1].Netns, netlink.LinkSetDown)
	const outage = 300 * time.Millisecond
	time.Sleep(outage)
	setLink(t, lab.Pods[1].Netns, netlink.LinkSetUp)
	if err := m.awaitAnswers(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	o := m.stop()
	hit, bystanders := m.gaps(k, o.ended)
	if len(hit) != 1 || len(bystanders) != 0 || hit[0].time < outage {
		t.Errorf("gaps %v and %v of bystanders, want one of at least %v", hit, bystanders, outage)
	}
	if o.survived != 1 {
		t.Errorf("the stream did not survive: %v, %v, sent %d, received %d", m.pairs[0].writeErr, m.pairs[0].broken, m.pairs[0].sent, m.pairs[0].received)
	}
}

// A stream that is cut must not count as survived.
func TestMeshSeesABrokenStream(t *testing.T) {
	m, err := startMesh(twoPods(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.awaitAnswers(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	m.pairs[0].in.SetLinger(0)
	m.pairs[0].in.Close() // sends a reset
	time.Sleep(5 * meshInterval)
	if o := m.stop(); o.survived != 0 {
		t.Error("a stream that was reset counts as survived")
	}
}
