package attach

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/port"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentEnv); dir != "" {
		agentMain(dir)
		return
	}
	if os.Getenv(pluginEnv) != "" {
		pluginMain()
	}
	nstest.Main(m)
}

var dualStack = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}

// node is a Manager with a switch that only remembers, or a real one behind that.
type node struct {
	*Manager
	start  Config // of the next open
	kind   kind
	served realSwitch // nil: none
	given  string     // where host-local keeps what it has given to pods of this node; "": it is not asked

	mu    sync.Mutex
	ports map[string]port.Port
	fail  error // what Publish answers
}

func newNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	return newNodeFor(t, kind{}, change)
}

// newNodeFor makes a node with what pods of the kind need.
func newNodeFor(t *testing.T, k kind, change func(*Config)) *node {
	t.Helper()
	n := &node{kind: k, ports: map[string]port.Port{}}
	n.start = Config{
		StateDir: t.TempDir(), Subnets: dualStack, VNI: 1, MTU: func() int { return 1430 },
		Log: slog.New(slog.DiscardHandler), Publish: n.publish, Withdraw: n.withdraw,
	}
	k.configure(&n.start, func() *Manager { return n.Manager })
	if k.whole {
		n.given = t.TempDir()
		n.start.Probe = func(ctx context.Context, a Attachment, addrs []netip.Addr) error {
			return n.served.ProbePod(ctx, a, addrs)
		}
	}
	if change != nil {
		change(&n.start)
	}
	n.open(t)
	t.Cleanup(func() {
		if n.Manager == nil {
			return // it could not be opened again
		}
		for _, e := range n.snapshot() { // devices in the agent's namespace would outlive the test
			if err := n.Del(context.Background(), Request{ContainerID: e.a.ContainerID, IfName: e.a.IfName, NetnsFD: -1}); err != nil {
				t.Errorf("Del at the end: %v", err)
			}
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

func (n *node) open(t *testing.T) {
	t.Helper()
	var err error
	if n.kind.whole {
		if n.served, err = newSwitch(n.start); err != nil {
			t.Fatal(err)
		}
	}
	if n.Manager, err = Open(n.start); err != nil {
		t.Fatal(err)
	}
}

// Close stops the switch before its ports are closed.
func (n *node) Close() (err error) {
	if n.served != nil {
		err = n.served.Stop()
		n.served = nil
	}
	return errors.Join(err, n.Manager.Close())
}

// restart is an orderly stop and the next start.
func (n *node) restart(t *testing.T) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.reopen(t)
}

// reopen is the next start.
func (n *node) reopen(t *testing.T) {
	t.Helper()
	clear(n.ports)
	n.open(t)
	n.Reopen()
	if err := n.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (n *node) publish(a Attachment, p port.Port) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	if n.ports[a.Key()] != nil {
		return errors.New("published twice")
	}
	if n.served != nil {
		if err := n.served.AddPod(a, p); err != nil {
			return err
		}
	}
	n.ports[a.Key()] = p
	return nil
}

func (n *node) withdraw(ctx context.Context, a Attachment) error {
	if n.served != nil {
		if err := n.served.RemovePod(ctx, a); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports[a.Key()] == nil {
		return errors.New("withdrawn, but not published")
	}
	delete(n.ports, a.Key())
	return nil
}

func (n *node) port(t *testing.T, a Attachment) port.Port {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports[a.Key()] == nil {
		t.Fatalf("%s is not published", a.Key())
	}
	return n.ports[a.Key()]
}

func reqFor(ns *nstest.NS, id string) Request {
	return Request{ContainerID: id, IfName: "eth0", NetnsPath: ns.Path(), NetnsFD: ns.FD()}
}

func (n *node) add(t *testing.T, ns *nstest.NS, id string) Attachment {
	t.Helper()
	a, err := n.Add(t.Context(), reqFor(ns, id))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (n *node) del(t *testing.T, req Request) {
	t.Helper()
	if err := n.Del(t.Context(), req); err != nil {
		t.Error(err)
	}
}

// ip asks the ip tool, which is independent of how the devices were made.
func ip(t *testing.T, ns *nstest.NS, out any, args ...string) {
	t.Helper()
	text, err := ns.Command("ip", append([]string{"-j", "-d"}, args...)...).Output()
	if err != nil {
		t.Fatalf("ip %s: %v", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal(text, out); err != nil {
		t.Fatalf("ip %s: %v in %s", strings.Join(args, " "), err, text)
	}
}

type ipLink struct {
	Name     string   `json:"ifname"`
	Flags    []string `json:"flags"`
	MTU      int      `json:"mtu"`
	TxQLen   int      `json:"txqlen"`
	Alias    string   `json:"ifalias"`
	MAC      string   `json:"address"`
	LinkInfo struct {
		Kind string `json:"info_kind"`
		Data struct {
			Type    string `json:"type"`
			Persist bool   `json:"persist"`
		} `json:"info_data"`
	} `json:"linkinfo"`
	Addrs []struct {
		Local  string `json:"local"`
		Length int    `json:"prefixlen"`
		NoDAD  bool   `json:"nodad"`
	} `json:"addr_info"`
}

func linksOf(t *testing.T, ns *nstest.NS) map[string]ipLink {
	t.Helper()
	var links []ipLink
	ip(t, ns, &links, "address")
	byName := map[string]ipLink{}
	for _, l := range links {
		byName[l.Name] = l
	}
	return byName
}

// routesOf returns the default routes as "gateway dev".
func routesOf(t *testing.T, ns *nstest.NS) (defaults []string) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		var routes []struct{ Dst, Gateway, Dev string }
		ip(t, ns, &routes, family, "route")
		for _, r := range routes {
			if r.Dst == "default" {
				defaults = append(defaults, r.Gateway+" "+r.Dev)
			}
		}
	}
	return defaults
}

// bothTypes runs a test for pods with a TAP and with a veth pair.
func bothTypes(t *testing.T, test func(*testing.T, string)) {
	for _, portType := range []string{TAP, Veth} {
		t.Run(portType, func(t *testing.T) { test(t, portType) })
	}
}

func ofType(portType string) func(*Config) {
	return func(c *Config) { c.PortType = portType }
}

// assertOwnDevices compares the devices of the agent's namespace, and the nftables tables, which are there
// for the same veth pairs.
func assertOwnDevices(t *testing.T, want ...string) {
	t.Helper()
	var tables string
	soon(func() bool { return slices.Equal(ownDevices(t), want) })
	if d := ownDevices(t); !slices.Equal(d, want) {
		t.Errorf("devices in the agent's namespace: %v, want %v", d, want)
	}
	for _, d := range want[1:] {
		tables += "table netdev tapyard-" + d + "\n"
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err != nil || string(out) != tables {
		t.Errorf("nftables has %q, %v; want %q", out, err, tables)
	}
}

// ownLink asks the ip tool for a device of the agent's namespace.
func ownLink(t *testing.T, name string) ipLink {
	t.Helper()
	var links []ipLink
	out, err := exec.Command("ip", "-j", "-d", "address", "show", "dev", name).Output()
	if err == nil {
		err = json.Unmarshal(out, &links)
	}
	if err != nil || len(links) != 1 {
		t.Fatalf("ip address show dev %s: %v, %v", name, err, links)
	}
	return links[0]
}

// ownDevices lists the devices of the agent's namespace.
func ownDevices(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// records reads the database's keys.
func (n *node) records(t *testing.T) (keys []string) {
	t.Helper()
	records, err := n.store.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range records {
		keys = append(keys, a.Key())
	}
	return keys
}

// assertNothing says that no trace of any attachment is left on the node and in the pods.
func (n *node) assertNothing(t *testing.T, pods ...*nstest.NS) {
	t.Helper()
	assertOwnDevices(t, "lo")
	n.assertNotServed(t)
	if r := n.records(t); len(r) > 0 {
		t.Errorf("records: %v", r)
	}
	if len(n.entries) > 0 || len(n.ports) > 0 || len(n.locks.byKey) > 0 {
		t.Errorf("entries %v, published %v, locks %v", n.entries, n.ports, n.locks.byKey)
	}
	for _, p := range n.networks[0].pools {
		n.assertAllFree(t, p.Subnet())
	}
	for _, ns := range pods {
		assertEmpty(t, ns)
	}
}

// assertAllFree claims the subnet's first addresses, which are refused if somebody has them.
func (n *node) assertAllFree(t *testing.T, subnet netip.Prefix) {
	t.Helper()
	a := subnet.Addr().Next().Next()
	for range 64 {
		a = a.Next()
		p := n.networks[0].pool(a)
		if err := p.Claim(a, "probe"); err != nil {
			t.Error(err)
		}
		p.Release("probe")
	}
}

// assertConnected makes the pod ask for its gateway and takes the question from the TAP.
func (n *node) assertConnected(t *testing.T, ns *nstest.NS, a Attachment) {
	t.Helper()
	if out, err := ns.Command("ip", "neigh", "flush", "dev", a.IfName).CombinedOutput(); err != nil {
		t.Fatalf("ip neigh flush: %v: %s", err, out)
	}
	ns.Do(t, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 1}}); err != nil {
			t.Fatalf("send by the default route: %v", err)
		}
	})
	const vnetHdr = 10
	want := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, a.MAC[:]...)
	want = append(want, 0x08, 0x06) // an ARP request
	fd, buf := n.port(t, a).Rx()[0].FD(), make([]byte, 70000)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		got, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if frame := buf[vnetHdr:max(got, vnetHdr)]; len(frame) >= 42 && string(frame[:14]) == string(want) {
			if target := netip.AddrFrom4([4]byte(frame[38:42])); target != a.Gateways[0] {
				t.Errorf("the pod asks for %v, its gateway is %v", target, a.Gateways[0])
			}
			return
		}
	}
	t.Error("no ARP request came out of the TAP")
}
