package attach

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/switch/wire"
)

// recordedMTU reads the database.
func (n *node) recordedMTU(t *testing.T, key string) int {
	t.Helper()
	records, err := n.store.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range records {
		if a.Key() == key {
			return a.MTU
		}
	}
	t.Fatalf("no record of %s", key)
	return 0
}

func (n *node) assertMTU(t *testing.T, ns *nstest.NS, a Attachment, want int) {
	t.Helper()
	at := map[string]int{"the pod's device": linksOf(t, ns)[a.IfName].MTU, "the record": n.recordedMTU(t, a.Key())}
	if a.PortType == Veth {
		at["the agent's end"] = ownLink(t, a.HostIfName()).MTU
	}
	for _, listed := range n.List() {
		if listed.Key() == a.Key() {
			at["the list"] = listed.MTU
		}
	}
	for where, mtu := range at {
		if mtu != want {
			t.Errorf("%s: MTU %d in %s, want %d", a.Name, mtu, where, want)
		}
	}
}

// All pods follow, except one that can't be reached, which is named, and one that is gone, which isn't.
func TestSetMTU(t *testing.T) { bothTypes(t, testSetMTU) }

func testSetMTU(t *testing.T, portType string) {
	var mtu atomic.Int64
	mtu.Store(1430)
	n := newNode(t, func(c *Config) { c.PortType, c.MTU = portType, func() int { return int(mtu.Load()) } })
	var gone Attachment
	t.Run("pod", func(t *testing.T) { gone = n.add(t, nstest.New(t), "gone") })
	first, broken, last := nstest.New(t), nstest.New(t), nstest.New(t)
	a, b, c := n.add(t, first, "first"), n.add(t, broken, "broken"), n.add(t, last, "last")
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	n.entries[b.Key()].a.NetnsPath = loop
	mtu.Store(1330)
	err := n.SetMTU(t.Context(), 1330)
	if err == nil || !strings.Contains(err.Error(), "pod broken: set MTU 1330") || strings.Contains(err.Error(), gone.Name) {
		t.Errorf("error %v, want that the pod broken has it not", err)
	}
	n.assertMTU(t, first, a, 1330)
	n.assertMTU(t, last, c, 1330)
	n.assertMTU(t, broken, b, 1430)
	if err := n.SetMTU(t.Context(), 1279); err == nil || !strings.Contains(err.Error(), "1279") || !strings.Contains(err.Error(), "1280") {
		t.Errorf("below IPv6's least: %v", err)
	}
	n.assertMTU(t, first, a, 1330)
	if addrs := addressesOf(linksOf(t, first)["eth0"]); len(addrs) != 3 {
		t.Errorf("addresses %v, want IPv4, IPv6 and link-local", addrs)
	}
	n.entries[b.Key()].a.NetnsPath = b.NetnsPath
	mtu.Store(1500)
	n.restart(t) // which the pods follow too, as after a kill in the middle of SetMTU
	n.assertMTU(t, first, a, 1500)
	n.assertMTU(t, broken, b, 1500)
	mtu.Store(1000)
	n.restart(t) // which they can't
	n.assertMTU(t, first, a, 1500)
}

// A pod that is added meanwhile has the new MTU in the end, whatever it began with.
func TestSetMTUMissesNoPod(t *testing.T) {
	var mtu atomic.Int64
	mtu.Store(1430)
	n := newNode(t, func(c *Config) { c.MTU = func() int { return int(mtu.Load()) } })
	pods, attachments := make([]*nstest.NS, 16), make([]Attachment, 16)
	var wg sync.WaitGroup
	for i := range pods {
		pods[i] = nstest.New(t)
		wg.Go(func() {
			var err error
			if attachments[i], err = n.Add(t.Context(), reqFor(pods[i], fmt.Sprint("c", i))); err != nil {
				t.Error(err)
			}
		})
	}
	mtu.Store(1330)
	if err := n.SetMTU(t.Context(), 1330); err != nil {
		t.Error(err)
	}
	wg.Wait()
	for i, ns := range pods {
		n.assertMTU(t, ns, attachments[i], 1330)
	}
}

func TestHostSetMTU(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(t, func() {
		h, err := OpenHost(HostConfig{Subnets: dualStack, RouterMAC: wire.RouterMAC("n1"), MTU: 1430})
		if err == nil {
			err = h.SetUp()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer h.TAP.Remove()
		cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
		if err := h.SetRoutes(cidrs); err != nil {
			t.Fatal(err)
		}
		assertHost := func(mtu int) {
			t.Helper()
			if got := linksOf(t, ns)[HostDevice].MTU; got != mtu {
				t.Errorf("device MTU %d, want %d", got, mtu)
			}
			for _, family := range []string{"-4", "-6"} {
				out, err := ns.Command("ip", family, "route", "show", "proto", "static").CombinedOutput()
				if lines := strings.Count(string(out), "\n"); err != nil || lines != 1 || !strings.Contains(string(out), fmt.Sprint("mtu ", mtu)) {
					t.Errorf("routes %s, %v, want one with mtu %d", out, err, mtu)
				}
			}
		}
		assertHost(1430)
		if err := h.SetMTU(1330); err != nil {
			t.Error(err)
		}
		assertHost(1330)
		if err := h.SetMTU(1279); err == nil || !strings.Contains(err.Error(), "1279") {
			t.Errorf("below IPv6's least: %v", err)
		}
		if err := h.SetMTU(1 << 20); err == nil || !strings.Contains(err.Error(), "1048576") {
			t.Errorf("above the device's most: %v", err)
		}
		assertHost(1330)
		if err := h.SetMTU(1480); err != nil {
			t.Error(err)
		}
		assertHost(1480)
	})
}

// The present MTU comes first, then each change of it: of the interface, and when the address moves to another
// one. What happens elsewhere, and while nobody has the address, is no change.
func TestWatchMTU(t *testing.T) {
	sh(t, "ip link add w1 mtu 1450 type veth peer name w2 && ip link set w2 mtu 1350 && ip addr add 192.0.2.1/24 dev w1")
	defer sh(t, "ip link del w1")
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan int, 100)
	ended := make(chan error)
	go func() {
		ended <- WatchMTU(ctx, netip.MustParseAddr("192.0.2.1"), func(mtu int) { seen <- mtu })
	}()
	var got []int
	for _, step := range []string{
		"true",
		"ip link set w1 mtu 1400",
		"ip link set w2 mtu 1300; ip link set lo mtu 60000; ip link set w1 mtu 1500",
		"ip addr del 192.0.2.1/24 dev w1; ip link set w1 mtu 9000; ip addr add 192.0.2.1/24 dev w2",
	} {
		sh(t, step)
		select {
		case mtu := <-seen:
			got = append(got, mtu)
		case <-time.After(10 * time.Second):
			t.Fatalf("no news after %q", step)
		}
	}
	if want := []int{1450, 1400, 1500, 1300}; !slices.Equal(got, want) {
		t.Errorf("seen %v, want %v", got, want)
	}
	cancel()
	if err := <-ended; err != nil || len(seen) > 0 {
		t.Errorf("ended with %v, %d more calls", err, len(seen))
	}
}
