package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
	"tapyard/switch/port"
	"tapyard/switch/wire"
)

// eui64 is RFC 4291 appendix A, by hand.
func eui64(m wire.MAC) string {
	a := [16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
	return netip.AddrFrom16(a).String()
}

func addressesOf(l ipLink) (addrs []string) {
	for _, a := range l.Addrs {
		addrs = append(addrs, fmt.Sprintf("%s/%d", a.Local, a.Length))
	}
	return addrs
}

// What the ip tool sees in the pod is what the architecture promises.
func TestAddConfiguresThePod(t *testing.T) { bothTypes(t, testAddConfiguresThePod) }

func testAddConfiguresThePod(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	// As some runtimes leave a new namespace.
	if out, err := ns.Command("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/addr_gen_mode; ip link set lo down").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a := n.add(t, ns, "c1")
	links := linksOf(t, ns)
	if len(links) != 2 || !slices.Contains(links["lo"].Flags, "UP") {
		t.Errorf("links %v; want eth0 and lo, which is up", links)
	}
	eth0 := links["eth0"]
	if eth0.MTU != 1430 || eth0.TxQLen != 1000 || !strings.HasPrefix(eth0.Alias, "tapyard:c1/eth0 ") || eth0.MAC != a.MAC.String() || a.MAC[0] != 0x0a {
		t.Errorf("eth0 is %+v, recorded as %+v", eth0, a)
	}
	isTAP := eth0.LinkInfo.Kind == "tun" && eth0.LinkInfo.Data.Type == "tap" && eth0.LinkInfo.Data.Persist
	isVeth := eth0.LinkInfo.Kind == "veth"
	if !slices.Contains(eth0.Flags, "UP") || !slices.Contains(eth0.Flags, "LOWER_UP") || !isTAP && portType == TAP || !isVeth && portType == Veth {
		t.Errorf("eth0 is %+v, want a persistent TAP or a veth end with carrier", eth0)
	}
	for deadline := time.Now().Add(10 * time.Second); len(eth0.Addrs) < 3 && time.Now().Before(deadline); { // the kernel adds its own by and by
		eth0 = linksOf(t, ns)["eth0"]
	}
	if want := []string{"10.244.1.3/24", "fd00:10:244:1::3/64", eui64(a.MAC) + "/64"}; !slices.Equal(addressesOf(eth0), want) {
		t.Errorf("addresses %v, want %v", addressesOf(eth0), want)
	}
	if !eth0.Addrs[1].NoDAD {
		t.Error("the IPv6 address waits for duplicate address detection")
	}
	if got, want := routesOf(t, ns), []string{"10.244.1.1 eth0", "fd00:10:244:1::1 eth0"}; !slices.Equal(got, want) {
		t.Errorf("default routes %v, want %v", got, want)
	}
	n.assertConnected(t, ns, a)
	if portType == TAP {
		assertOwnDevices(t, "lo")
		return
	}
	assertOwnDevices(t, "lo", a.HostIfName())
	if host := ownLink(t, a.HostIfName()); host.MTU != 1430 || host.Alias != eth0.Alias || host.MAC != a.hostMAC().String() ||
		host.TxQLen != 1000 || !slices.Contains(host.Flags, "LOWER_UP") || len(host.Addrs) > 0 {
		t.Errorf("the host's end is %+v", host)
	}
}

func TestAddL2(t *testing.T) { bothTypes(t, testAddL2) }

func testAddL2(t *testing.T, portType string) {
	n, ns := newNode(t, func(c *Config) { c.L2, c.Subnets, c.PortType = true, nil, portType }), nstest.New(t)
	a := n.add(t, ns, "c1")
	eth0 := linksOf(t, ns)["eth0"]
	if !slices.Contains(eth0.Flags, "LOWER_UP") || len(a.Addresses) > 0 || slices.ContainsFunc(addressesOf(eth0), func(s string) bool { return !strings.HasPrefix(s, "fe80:") }) {
		t.Errorf("eth0 is %+v, want it up and without addresses", eth0)
	}
	if r := routesOf(t, ns); len(r) > 0 {
		t.Errorf("default routes: %v", r)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// A second interface of a pod leaves the first one's default route alone.
func TestAddSecondInterface(t *testing.T) { bothTypes(t, testAddSecondInterface) }

func testAddSecondInterface(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	n.add(t, ns, "c1")
	second := reqFor(ns, "c1")
	second.IfName = "net1"
	a, err := n.Add(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if want := "c1/net1"; a.Name != want {
		t.Errorf("name %q, want %q", a.Name, want)
	}
	if r := routesOf(t, ns); !slices.Contains(r, "10.244.1.1 eth0") || slices.Contains(r, "10.244.1.1 net1") {
		t.Errorf("default routes %v", r)
	}
	n.del(t, second)
	if links := linksOf(t, ns); links["eth0"].Name == "" || links["net1"].Name != "" {
		t.Errorf("links %v, want eth0 alone", links)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

func TestPortNames(t *testing.T) {
	n := newNode(t, nil)
	const k8s = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=x"
	var reqs []Request
	for _, c := range []struct{ id, ifName, args, want string }{
		{strings.Repeat("0123456789abcdef", 4), "eth0", "", "0123456789ab"},
		{"short", "eth0", "IgnoreUnknown=1", "short"},
		{"sandbox1", "eth0", k8s, "default/web-0"},
		{"sandbox1", "net1", k8s, "default/web-0/net1"},
		{"sandbox2", "eth0", k8s, "default/web-0@sandbox2"},
	} {
		req := reqFor(nstest.New(t), c.id)
		req.IfName, req.Args = c.ifName, c.args
		a, err := n.Add(t.Context(), req)
		if err != nil || a.Name != c.want {
			t.Errorf("name %q, %v; want %q", a.Name, err, c.want)
		}
		reqs = append(reqs, req)
	}
	if got := n.List(); len(got) != 5 || got[2].Name != "default/web-0" || !slices.Equal(got[0].Addrs(), []netip.Addr{netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00:10:244:1::3")}) {
		t.Errorf("List: %+v", got)
	}
	for _, req := range reqs {
		n.del(t, req)
	}
	n.assertNothing(t)
}

func TestAddRefuses(t *testing.T) {
	n, ns, taken := newNode(t, nil), nstest.New(t), nstest.New(t)
	if out, err := taken.Command("ip", "tuntap", "add", "eth0", "mode", "tun").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n.add(t, nstest.New(t), "exists")
	for _, c := range []struct {
		name   string
		change func(*Request)
		want   []string
	}{
		{"no container", func(r *Request) { r.ContainerID = "" }, []string{"CNI_CONTAINERID"}},
		{"bad interface", func(r *Request) { r.IfName = "a/b" }, []string{"CNI_IFNAME"}},
		{"no descriptor", func(r *Request) { r.NetnsFD = -1 }, []string{"CNI_NETNS", ns.Path()}},
		{"no namespace", func(r *Request) { r.NetnsFD = int(null.Fd()) }, []string{"CNI_NETNS", ns.Path()}},
		{"the agent's namespace", func(r *Request) { r.NetnsFD = int(own.Fd()) }, []string{"CNI_NETNS", "own"}},
		{"args without value", func(r *Request) { r.Args = "A=1;B" }, []string{"CNI_ARGS", `"B"`}},
		{"args with a slash", func(r *Request) { r.Args = "K8S_POD_NAMESPACE=a/b" }, []string{"CNI_ARGS", "K8S_POD_NAMESPACE", "a/b"}},
		{"args with an escape", func(r *Request) { r.Args = "K8S_POD_NAME=\x1b[2J" }, []string{"CNI_ARGS", "K8S_POD_NAME"}},
		{"an interface of that name", func(r *Request) { r.NetnsPath, r.NetnsFD = taken.Path(), taken.FD() }, []string{"CNI_IFNAME", "eth0", taken.Path()}},
		{"an attachment of that name", func(r *Request) { r.ContainerID = "exists" }, []string{"CNI_CONTAINERID", "DEL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := reqFor(ns, "c1")
			c.change(&req)
			_, err := n.Add(t.Context(), req)
			if err == nil || podapi.AsError(err).Code != podapi.CodeEnvironment {
				t.Fatalf("error %v, want code %d", err, podapi.CodeEnvironment)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
	if links := linksOf(t, taken); len(links) != 2 || links["eth0"].LinkInfo.Data.Type != "tun" {
		t.Errorf("the foreign eth0 is gone: %v", links)
	}
	n.del(t, Request{ContainerID: "exists", IfName: "eth0", NetnsFD: -1})
	n.assertNothing(t, ns)
}

// countdown is a context that ends when it is asked for the nth time.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// An ADD that fails before any of its steps, or in one, leaves nothing and can be repeated.
func TestFailedAddLeavesNothing(t *testing.T) { bothTypes(t, testFailedAddLeavesNothing) }

func testFailedAddLeavesNothing(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	const many = 1000
	probe := &countdown{t.Context(), many}
	if _, err := n.Add(probe, reqFor(ns, "c1")); err != nil {
		t.Fatal(err)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
	steps := many - probe.left
	if steps < 8 {
		t.Fatalf("an ADD asks its context %d times; this test needs it before each step", steps)
	}
	for i := range steps {
		_, err := n.Add(&countdown{t.Context(), i}, reqFor(ns, "c1"))
		if !errors.Is(err, context.Canceled) || podapi.AsError(err).Code != podapi.CodeTryAgain {
			t.Errorf("interrupted at %d: %v", i, err)
		}
		n.assertNothing(t, ns)
	}
	for name, c := range map[string]struct {
		begin, end func()
		want       string
	}{
		"MTU that the device refuses": {func() { n.cfg.MTU = func() int { return 1 << 20 } }, func() { n.cfg.MTU = func() int { return 1430 } }, "MTU 1048576"},
		"MTU too small for IPv6":      {func() { n.cfg.MTU = func() int { return 1279 } }, func() { n.cfg.MTU = func() int { return 1430 } }, "1280"},
		"publish":                     {func() { n.fail = errors.New("no more ports") }, func() { n.fail = nil }, "no more ports"},
	} {
		c.begin()
		_, err := n.Add(t.Context(), reqFor(ns, "c1"))
		c.end()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		n.assertNothing(t, ns)
	}
	n.add(t, ns, "c1")
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// The last steps, with what they depend on taken away.
func TestFailedRecordLeavesNothing(t *testing.T) { bothTypes(t, testFailedRecordLeavesNothing) }

func testFailedRecordLeavesNothing(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	path := n.store.db.Path()
	if err := n.store.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(t.Context(), reqFor(ns, "c1")); err == nil || !strings.Contains(err.Error(), "write the record") {
		t.Errorf("error %v", err)
	}
	var err error
	if n.store, err = openStore(path, lockWait); err != nil {
		t.Fatal(err)
	}
	n.assertNothing(t, ns)
}

func TestExhaustion(t *testing.T) {
	small := netip.MustParsePrefix("10.9.0.0/29")
	n := newNode(t, func(c *Config) { c.Subnets = []netip.Prefix{dualStack[1], small} })
	for i := range 4 {
		n.add(t, nstest.New(t), fmt.Sprint("c", i))
	}
	ns := nstest.New(t)
	_, err := n.Add(t.Context(), reqFor(ns, "c4"))
	if podapi.AsError(err).Code != podapi.CodeTryAgain || !strings.Contains(err.Error(), small.String()) {
		t.Errorf("error %v", err)
	}
	// The other family's address was given back: with one pod less, the next gets both.
	n.del(t, Request{ContainerID: "c0", IfName: "eth0", NetnsFD: -1})
	if a := n.add(t, ns, "c4"); len(a.Addresses) != 2 || a.Addresses[1].Addr().String() != "10.9.0.3" {
		t.Errorf("addresses %v", a.Addresses)
	}
	for i := range 5 {
		n.del(t, Request{ContainerID: fmt.Sprint("c", i), IfName: "eth0", NetnsFD: -1})
	}
	if r := n.records(t); len(r) > 0 {
		t.Errorf("records: %v", r)
	}
}

func TestConcurrentAddsAndDels(t *testing.T) { bothTypes(t, testConcurrentAddsAndDels) }

func testConcurrentAddsAndDels(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	pods := make([]*nstest.NS, 32)
	for i := range pods {
		pods[i] = nstest.New(t)
	}
	var mu sync.Mutex
	owner := map[string]string{}
	var wg sync.WaitGroup
	for i, ns := range pods {
		wg.Go(func() {
			a, err := n.Add(t.Context(), reqFor(ns, fmt.Sprint("c", i)))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, thing := range []string{a.Addresses[0].String(), a.Addresses[1].String(), a.MAC.String(), a.Name} {
				if owner[thing] != "" {
					t.Errorf("%s went to %s and %s", thing, owner[thing], a.Key())
				}
				owner[thing] = a.Key()
			}
		})
	}
	wg.Wait()
	for i, ns := range pods {
		a, _ := n.get(fmt.Sprintf("c%d/eth0", i))
		if got := addressesOf(linksOf(t, ns)["eth0"]); len(got) < 2 || got[0] != a.a.Addresses[0].String() {
			t.Errorf("pod %d has %v, its record says %v", i, got, a.a.Addresses)
		}
	}
	for i, ns := range pods {
		wg.Go(func() { n.del(t, reqFor(ns, fmt.Sprint("c", i))) })
		wg.Go(func() { n.del(t, reqFor(ns, fmt.Sprint("c", i))) })
	}
	wg.Wait()
	n.assertNothing(t, pods...)
}

// Of several ADDs of one attachment exactly one succeeds.
func TestConcurrentAddsOfOne(t *testing.T) {
	n, ns := newNode(t, nil), nstest.New(t)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = n.Add(t.Context(), reqFor(ns, "c1")) })
	}
	wg.Wait()
	if failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil }); len(failed) != 7 {
		t.Errorf("%d failed, want 7: %v", len(failed), failed)
	}
	n.del(t, reqFor(ns, "c1"))
	n.assertNothing(t, ns)
}

// A pod's namespace ends when its other users have gone, though its TAP's descriptors are in it, and with it whatever else is
// there: also after a restart, whose descriptors are opened anew.
func TestNamespaceEndsWithItsUsers(t *testing.T) {
	for _, kind := range []string{TAP, TAP + withQueues, Veth} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %t", kind, restarted), func(t *testing.T) { testNamespaceEnds(t, kind, restarted) })
		}
	}
}

func testNamespaceEnds(t *testing.T, kind string, restarted bool) {
	portType, queued := strings.CutSuffix(kind, withQueues)
	n := newNode(t, func(c *Config) {
		if c.PortType = portType; queued {
			c.Queues, c.Steering = 2, port.NewSteering(2)
			t.Cleanup(func() { c.Steering.Close() })
		}
	})
	const canary = "canary0" // its other end is in the pod
	t.Run("pod", func(t *testing.T) {
		ns := nstest.New(t)
		n.add(t, ns, "c1")
		if out, err := exec.Command("ip", "link", "add", canary, "type", "veth", "peer", "name", "canary1", "netns", ns.Name()).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if restarted {
			n.restart(t)
		}
		if n.sweep(t.Context()); len(n.List()) != 1 {
			t.Fatal("the pod was swept while its namespace was there")
		}
	})
	// The kernel ends namespaces in the background.
	for deadline := time.Now().Add(10 * time.Second); slices.Contains(ownDevices(t), canary) || len(n.List()) > 0; time.Sleep(5 * time.Millisecond) {
		if n.sweep(t.Context()); time.Now().After(deadline) {
			t.Fatalf("devices %q, pods %q: something keeps the namespace alive", ownDevices(t), n.listed())
		}
	}
	n.assertNothing(t)
}
