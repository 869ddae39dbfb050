package attach

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/bench/seed"
)

func (n *node) listed() (keys []string) {
	for _, a := range n.List() {
		keys = append(keys, a.Key())
	}
	return keys
}

// copyIn returns the record that eth0's alias has.
func copyIn(t *testing.T, ns *nstest.NS) Attachment {
	t.Helper()
	_, c, err := parseAlias(linksOf(t, ns)["eth0"].Alias)
	if err != nil {
		t.Fatal(err)
	}
	return c.a
}

func TestRestore(t *testing.T) { bothTypes(t, testRestore) }

func testRestore(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	kept, stripped := nstest.New(t), nstest.New(t)
	a, b := n.add(t, kept, "kept"), n.add(t, stripped, "stripped")
	caps := n.port(t, a).Caps()
	var gone Attachment
	t.Run("pod", func(t *testing.T) { gone = n.add(t, nstest.New(t), "gone") })
	before := addressesOf(linksOf(t, kept)["eth0"])
	if out, err := stripped.Command("sh", "-c", "ip address flush dev eth0; ip route flush all; ip -6 route flush all; ip link set eth0 alias tapyard:stripped/eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.restart(t)
	if want := []string{"kept/eth0", "stripped/eth0"}; !slices.Equal(n.listed(), want) || len(n.records(t)) != 2 {
		t.Errorf("restored %v, recorded %v; want %v", n.listed(), n.records(t), want)
	}
	if got := addressesOf(linksOf(t, kept)["eth0"]); !slices.Equal(got, before) {
		t.Errorf("addresses were %v and are %v", before, got)
	}
	if got := addressesOf(linksOf(t, stripped)["eth0"]); !slices.Contains(got, b.Addresses[0].String()) || !slices.Contains(got, b.Addresses[1].String()) {
		t.Errorf("addresses %v, want %v again", got, b.Addresses)
	}
	for _, ns := range []*nstest.NS{kept, stripped} {
		if got, want := routesOf(t, ns), []string{"10.244.1.1 eth0", "fd00:10:244:1::1 eth0"}; !slices.Equal(got, want) {
			t.Errorf("default routes %v, want %v", got, want)
		}
	}
	if got := n.port(t, a).Caps(); got != caps {
		t.Errorf("offloads were %b and are %b", caps, got)
	}
	n.assertConnected(t, kept, a)
	n.assertConnected(t, stripped, b)
	for _, a := range []Attachment{a, b} { // with the copies of their records
		want, got := placed(a), copyIn(t, map[string]*nstest.NS{"kept": kept, "stripped": stripped}[a.ContainerID])
		want.Created = want.Created.Truncate(time.Millisecond)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the alias says %+v, want %+v", got, want)
		}
	}
	// The gone pod's address is free, but comes last.
	if err := n.networks[0].pools[0].Claim(gone.Addrs()[0], "probe"); err != nil {
		t.Error(err)
	}
	n.networks[0].pools[0].Release("probe")
	n.del(t, reqFor(kept, "kept"))
	n.del(t, reqFor(stripped, "stripped"))
	n.assertNothing(t, kept, stripped)
}

// Records whose namespace or device is another's by now are forgotten, and nothing of others is touched.
func TestRestoreForgets(t *testing.T) { bothTypes(t, testRestoreForgets) }

func testRestoreForgets(t *testing.T, portType string) {
	for name, change := range map[string]func(*testing.T, *nstest.NS, *Attachment){
		"another boot":                  func(_ *testing.T, _ *nstest.NS, a *Attachment) { a.BootID = "00000000-0000-0000-0000-000000000000" },
		"another namespace at the path": func(_ *testing.T, _ *nstest.NS, a *Attachment) { a.NetnsIno++ },
		"another file system":           func(_ *testing.T, _ *nstest.NS, a *Attachment) { a.NetnsDev++ },
		"no namespace at the path":      func(_ *testing.T, _ *nstest.NS, a *Attachment) { a.NetnsPath, a.NetnsIno = "/etc/passwd", 1 },
		"nothing at the path":           func(_ *testing.T, _ *nstest.NS, a *Attachment) { a.NetnsPath, a.NetnsIno = a.NetnsPath+"x", 1 },
		"another namespace of that number": func(t *testing.T, _ *nstest.NS, a *Attachment) {
			a.NetnsPath, a.NetnsIno = a.NetnsPath+"x", inode(t, nstest.New(t).Path())
		},
		"a foreign device of that name": func(t *testing.T, ns *nstest.NS, _ *Attachment) {
			run(t, ns, "ip link del eth0 && ip tuntap add eth0 mode tap && ip link set eth0 alias mine")
		},
		"a device that the pod took off": func(t *testing.T, ns *nstest.NS, _ *Attachment) { run(t, ns, "ip link del eth0") },
	} {
		t.Run(name, func(t *testing.T) {
			n, ns := newNode(t, ofType(portType)), nstest.New(t)
			a := n.add(t, ns, "c1")
			change(t, ns, &a)
			before := linksOf(t, ns)
			if err := n.store.put(a); err != nil {
				t.Fatal(err)
			}
			n.restart(t)
			n.assertNothing(t)
			if after := linksOf(t, ns); len(after) != len(before) && portType == TAP {
				t.Errorf("devices before %v, after %v", before, after)
			}
		})
	}
}

func run(t *testing.T, ns *nstest.NS, script string) {
	t.Helper()
	if out, err := ns.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// Reopen publishes pods before anything of them was looked at: Restore gives them what they lack, or takes them out again.
func TestReopenPublishesAtOnce(t *testing.T) { bothTypes(t, testReopenPublishesAtOnce) }

func testReopenPublishesAtOnce(t *testing.T, portType string) {
	n := newNode(t, ofType(portType))
	kept, left := nstest.New(t), nstest.New(t)
	a, b := n.add(t, kept, "kept"), n.add(t, left, "left")
	var gone Attachment
	t.Run("pod", func(t *testing.T) { gone = n.add(t, nstest.New(t), "gone") })
	for deadline := time.Now().Add(10 * time.Second); slices.Contains(ownDevices(t), gone.HostIfName()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) { // the kernel ends namespaces in the background, and a pair with them
			t.Fatalf("%s outlives the pod", gone.HostIfName())
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	clear(n.ports)
	run(t, kept, "ip address flush dev eth0")
	n.open(t)
	n.Reopen()
	if want := []string{"kept/eth0", "left/eth0"}; !slices.Equal(n.listed(), want) {
		t.Fatalf("published %v, want %v", n.listed(), want)
	}
	n.assertConnected(t, left, b)
	run(t, left, "ip link del eth0")
	if err := n.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"kept/eth0"}; !slices.Equal(n.listed(), want) || len(n.records(t)) != 1 {
		t.Errorf("published %v, recorded %v; want %v: left has no device any more, and %s no namespace", n.listed(), n.records(t), want, gone.Key())
	}
	n.assertConnected(t, kept, a)
}

// What can't be restored stays recorded, so that its DEL finds the device.
func TestRestoreKeepsWhatItCantRestore(t *testing.T) { bothTypes(t, testRestoreKeepsWhatItCantRestore) }

func testRestoreKeepsWhatItCantRestore(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	n.add(t, ns, "c1")
	var log bytes.Buffer
	n.start.Log = slog.New(slog.NewTextHandler(&log, nil))
	n.start.Subnets = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}
	n.restart(t)
	if len(n.listed()) > 0 || len(n.records(t)) != 1 || !strings.Contains(log.String(), "10.244.1.3/24") {
		t.Errorf("published %v, recorded %v, log %s", n.listed(), n.records(t), &log)
	}
	n.del(t, Request{ContainerID: "c1", IfName: "eth0", NetnsFD: -1})
	n.assertNothing(t, ns)
}

func TestOpenExcludesASecondAgent(t *testing.T) {
	n := newNode(t, nil)
	if m, err := Open(n.start); err == nil || !strings.Contains(err.Error(), "stateDir") {
		t.Errorf("a second Open: %v, %v", m, err)
	}
}

func TestOpenRefusesSubnets(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")
	for _, c := range []struct {
		l2      bool
		subnets []netip.Prefix
	}{{false, nil}, {true, []netip.Prefix{v4}}, {false, []netip.Prefix{v4, netip.MustParsePrefix("10.1.0.0/24")}}, {false, []netip.Prefix{v6, v4, v6}}, {false, []netip.Prefix{{}}}} {
		if _, err := Open(Config{StateDir: t.TempDir(), L2: c.l2, Subnets: c.subnets, Log: slog.Default()}); err == nil {
			t.Errorf("Open took L2 %t with subnets %v", c.l2, c.subnets)
		}
	}
}

// A kill leaves devices with temporary names; those of an agent with other state are not ours.
func TestOpenRemovesItsTemporaryDevices(t *testing.T) {
	n, outside := newNode(t, nil), nstest.New(t)
	foreign := "tytmpzzzz000001"
	home, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	for _, name := range []string{n.prefix + "000001", n.prefix + "ffffff", foreign} {
		run(t, outside, fmt.Sprintf("ip tuntap add %s mode tap && ip link set %s netns %d", name, name, os.Getpid()))
	}
	n.restart(t)
	if d := ownDevices(t); !slices.Equal(d, []string{"lo", foreign}) {
		t.Errorf("devices %v, want lo and %s", d, foreign)
	}
	if err := removeTemporary(foreign); err != nil {
		t.Error(err)
	}
	n.assertNothing(t)
}

// churn is a pod that is attached and detached until the agent dies, and what its runtime knows then.
type churn struct {
	ns       *nstest.NS
	attached bool // the last answer said so
	certain  bool // no request was under way when it died
}

func (c *churn) run(t *testing.T, dir, id string, rng *rand.Rand) {
	for ; ; c.attached = !c.attached {
		time.Sleep(time.Duration(rng.IntN(40_000)) * time.Microsecond)
		command := "ADD"
		if c.attached {
			command = "DEL"
		}
		resp, err := call(dir, command, id, c.ns)
		if err != nil {
			c.certain = errors.Is(err, unix.ECONNREFUSED)
			return
		}
		if resp.Error != nil {
			t.Errorf("%s %s: %v", command, id, resp.Error)
			return
		}
	}
}

// Whenever an agent is killed, the next one has every pod whose ADD was answered, and the runtime's DEL
// leaves nothing of any pod.
func TestKilledAgent(t *testing.T) {
	bothTypes(t, testKilledAgent)
	t.Run("queues", func(t *testing.T) { testKilledAgent(t, TAP+withQueues) })
}

func testKilledAgent(t *testing.T, portType string) {
	rng, rounds := seed.Rand(t), 12
	if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	pods := make([]churn, 4)
	for i := range pods {
		pods[i].ns = nstest.New(t)
	}
	for range rounds {
		agent := startAgent(t, dir, portType)
		var wg sync.WaitGroup
		for i := range pods {
			podRNG := rand.New(rand.NewPCG(rng.Uint64(), 0))
			wg.Go(func() { pods[i].run(t, dir, fmt.Sprint("c", i), podRNG) })
		}
		time.Sleep(time.Duration(rng.IntN(120_000)) * time.Microsecond)
		agent.Process.Kill()
		agent.Wait()
		wg.Wait()
		agent = startAgent(t, dir, portType)
		assertAftermath(t, dir, pods)
		agent.Process.Kill()
		agent.Wait()
		assertNoRecords(t, dir)
		if t.Failed() {
			return
		}
	}
}

func assertAftermath(t *testing.T, dir string, pods []churn) {
	t.Helper()
	for i := range pods {
		c, id := &pods[i], fmt.Sprint("c", i)
		links := linksOf(t, c.ns)
		up := slices.Contains(links["eth0"].Flags, "LOWER_UP")
		if c.certain && c.attached != up || c.certain && !c.attached && len(links) != 1 {
			t.Errorf("%s was attached: %t; now it has %v", id, c.attached, links)
		}
		if resp, err := call(dir, "DEL", id, c.ns); err != nil || resp.Error != nil {
			t.Errorf("DEL %s: %v, %v", id, err, resp.Error)
		}
		if links := linksOf(t, c.ns); len(links) != 1 {
			t.Errorf("%s after its DEL: %v", id, links)
		}
		c.attached = false
	}
	assertOwnDevices(t, "lo")
}

func assertNoRecords(t *testing.T, dir string) {
	t.Helper()
	s, err := openStore(dir+"/tapyard.db", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if records, err := s.load(); err != nil || len(records) > 0 {
		t.Errorf("records %v, %v", records, err)
	}
}

// A start where nothing has changed writes nothing: each record would cost an fsync, all of them before the first
// frame is forwarded.
func TestRestoreWritesNothing(t *testing.T) { bothTypes(t, testRestoreWritesNothing) }

func testRestoreWritesNothing(t *testing.T, portType string) {
	n, ns := newNode(t, ofType(portType)), nstest.New(t)
	n.add(t, ns, "c1")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	clear(n.ports)
	n.open(t)
	before := n.store.db.Stats()
	n.Reopen()
	if err := n.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := n.store.db.Stats(); after.TxStats.GetWrite() != before.TxStats.GetWrite() || len(n.List()) != 1 {
		t.Errorf("%d writes, %d pods", after.TxStats.GetWrite()-before.TxStats.GetWrite(), len(n.List()))
	}
}
