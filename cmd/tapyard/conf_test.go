package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/observe"
)

// nodeRuntime is a container runtime on an installed node: libcni, with the reference plugins beside ours.
type nodeRuntime struct {
	*installed
	cni *libcni.CNIConfig
}

func newChains(t *testing.T) *nodeRuntime {
	t.Helper()
	n := install(t)
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("networks: ["), []byte("networks: [{name: green, vni: 8, l2: local}, {name: red, vni: 9, l2: local}, "), 1)
	if err := os.WriteFile(n.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return &nodeRuntime{n, libcni.NewCNIConfigWithCacheDir([]string{n.dir, nstest.CNIPlugins(t)}, filepath.Join(n.dir, "cache"), nil)}
}

// pod is one interface that the runtime has attached.
type attached struct {
	*types100.Result
	n    *nodeRuntime
	ns   *nstest.NS
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

// chain makes a conflist of our plugin with further keys, and of others behind it.
func (n *nodeRuntime) chain(name, keys string, others ...string) *libcni.NetworkConfigList {
	n.t.Helper()
	plugins := append([]string{fmt.Sprintf(`{"type": "tapyard-cni", "socket": %q%s}`, filepath.Join(n.runDir, "cni.sock"), keys)}, others...)
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": %q, "plugins": [%s]}`, name, strings.Join(plugins, ",")))
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *nodeRuntime) add(list *libcni.NetworkConfigList, ns *nstest.NS, id, ifName string, caps map[string]any) (*attached, error) {
	n.t.Helper()
	p := &attached{n: n, ns: ns, list: list, conf: &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path(), IfName: ifName, CapabilityArgs: caps}}
	var err error
	n.node.Do(n.t, func() {
		r, addErr := n.cni.AddNetworkList(n.t.Context(), list, p.conf)
		if err = addErr; err == nil {
			p.Result, err = types100.NewResultFromResult(r)
		}
	})
	return p, err
}

func (n *nodeRuntime) mustAdd(list *libcni.NetworkConfigList, ns *nstest.NS, id, ifName string, caps map[string]any) *attached {
	n.t.Helper()
	p, err := n.add(list, ns, id, ifName, caps)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// check is a CHECK, which compares with the result that libcni has kept.
func (p *attached) check() (err error) {
	p.n.node.Do(p.n.t, func() { err = p.n.cni.CheckNetworkList(p.n.t.Context(), p.list, p.conf) })
	return err
}

func (p *attached) del() {
	p.n.t.Helper()
	p.n.node.Do(p.n.t, func() {
		if err := p.n.cni.DelNetworkList(p.n.t.Context(), p.list, p.conf); err != nil {
			p.n.t.Error(err)
		}
	})
}

// addr returns the i-th address.
func (p *attached) addr(i int) netip.Addr {
	a, _ := netip.AddrFromSlice(p.IPs[i].Address.IP)
	return a.Unmap()
}

// reach exchanges a message over TCP between a client in one namespace and a server at an address of another, and
// returns whom the server saw. The client dials via, if that is valid.
func reach(t *testing.T, from, to *nstest.NS, at, via netip.AddrPort) (who netip.Addr, err error) {
	t.Helper()
	var l net.Listener
	to.Do(t, func() {
		if l, err = net.Listen("tcp", at.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	seen := make(chan netip.Addr, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		seen <- netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap()
		c.Write([]byte("x"))
	}()
	if !via.IsValid() {
		via = at
	}
	from.Do(t, func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", via.String(), 3*time.Second); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		_, err = c.Read(make([]byte, 1))
	})
	if err == nil {
		who = <-seen
	}
	return who, err
}

func (n *nodeRuntime) mustReach(from, to *nstest.NS, at, via netip.AddrPort, want netip.Addr) {
	n.t.Helper()
	if who, err := reach(n.t, from, to, at, via); err != nil || who != want {
		n.t.Errorf("%v by %v: seen from %v, %v; want %v", at, via, who, err, want)
	}
}

func (n *nodeRuntime) ports() (ports []observe.Port) {
	n.t.Helper()
	out := n.onNode("", filepath.Join(n.dir, "tapyard"), "show", "ports", "--socket", filepath.Join(n.runDir, "admin.sock"), "-o", "json")
	if err := json.Unmarshal([]byte(out), &ports); err != nil {
		n.t.Fatalf("%v in %s", err, out)
	}
	return ports
}

func hostPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

var ownUnderlay = netip.MustParseAddr("192.168.1.11")

// The reference plugins before, behind and below ours do their work, and all is gone after DEL.
func TestChainsWithReferencePlugins(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	clean, dataDir := n.traces(), filepath.Join(n.dir, "host-local")
	ipam := fmt.Sprintf(`, "portType": "veth", "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.40"}], [{"subnet": "fd00:10:244:1::/64", "rangeStart": "fd00:10:244:1::40"}]]}`, dataDir)
	list := n.chain("chain", ipam,
		`{"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}`,
		`{"type": "bandwidth", "capabilities": {"bandwidth": true}}`,
		`{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400}`,
		`{"type": "sbr"}`)
	caps := map[string]any{
		"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
		"bandwidth":    map[string]any{"ingressRate": 8000000, "ingressBurst": 8000000},
	}
	p := n.mustAdd(list, n.pod, "chained", "eth0", caps)
	other := nstest.New(t)
	q := n.mustAdd(n.chain("plain", ""), other, "plain", "eth0", caps)
	if got := []string{p.addr(0).String(), p.addr(1).String()}; got[0] != "10.244.1.40" || got[1] != "fd00:10:244:1::40" {
		t.Errorf("host-local's addresses: %v", got)
	}
	for i := range 2 {
		n.mustReach(other, n.pod, hostPort(p.addr(i), 80), netip.AddrPort{}, q.addr(i))
	}
	n.mustReach(n.node, n.pod, hostPort(p.addr(0), 80), hostPort(ownUnderlay, 8080), ownUnderlay)
	for cmd, want := range map[string]string{"ip link show eth0": "mtu 1400", "cat /proc/sys/net/core/somaxconn": "500", "ip rule": "from 10.244.1.40"} {
		if out, err := n.pod.Command("sh", "-c", cmd).Output(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s in the pod: %s %v; want %q", cmd, out, err, want)
		}
	}
	if tbf := n.onNode("", "tc", "qdisc"); !strings.Contains(tbf, "tbf") {
		t.Errorf("no bucket of the bandwidth plugin: %s", tbf)
	}
	if rules := n.onNode("", "nft", "list", "table", "inet", "tapyard"); strings.Contains(rules, "dnat") {
		t.Errorf("mapped twice:\n%s", rules)
	}
	if err := p.check(); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	stop(syscall.SIGTERM)
	stop = n.start()
	defer stop(syscall.SIGTERM)
	n.mustReach(other, n.pod, hostPort(p.addr(0), 80), netip.AddrPort{}, q.addr(0))
	if err := p.check(); err != nil {
		t.Errorf("CHECK after a restart: %v", err)
	}
	addresses, aside := filepath.Join(dataDir, "chain"), filepath.Join(n.dir, "aside")
	if err := os.Rename(addresses, aside); err != nil {
		t.Fatal(err)
	}
	if err := p.check(); err == nil || !strings.Contains(err.Error(), "host-local") {
		t.Errorf("CHECK of addresses that host-local has lost: %v", err)
	}
	if err := errors.Join(os.RemoveAll(addresses), os.Rename(aside, addresses)); err != nil {
		t.Fatal(err)
	}
	p.del()
	q.del()
	if left, _ := filepath.Glob(filepath.Join(dataDir, "chain", "10.*")); len(left) > 0 {
		t.Errorf("host-local keeps %v", left)
	}
	n.onNode("", "sh", "-c", "nft delete table ip cni_hostport; nft delete table ip6 cni_hostport || true") // portmap's own leftovers
	n.assertTraces(t, clean)
}

// A port of the node leads to a pod through a running switch, until the pod goes; also after kill -9.
func TestMappedPortsThroughTheSwitch(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	clean := n.traces()
	list := n.chain("pods", `, "capabilities": {"portMappings": true}`)
	caps := map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}
	p := n.mustAdd(list, n.pod, "web", "eth0", caps)
	other := nstest.New(t)
	q := n.mustAdd(list, other, "client", "eth0", nil)
	check := func() {
		t.Helper()
		gateway, web := netip.MustParseAddr("10.244.1.1"), hostPort(p.addr(0), 80)
		n.mustReach(n.node, n.pod, web, netip.MustParseAddrPort("127.0.0.1:8080"), gateway)
		n.mustReach(n.node, n.pod, web, hostPort(ownUnderlay, 8080), gateway)
		n.mustReach(n.pod, n.pod, web, hostPort(ownUnderlay, 8080), gateway)
		n.mustReach(other, n.pod, web, hostPort(ownUnderlay, 8080), gateway)
		n.mustReach(other, n.pod, hostPort(p.addr(1), 80), netip.MustParseAddrPort("[fd00:10:244:1::1]:8080"), netip.MustParseAddr("fd00:10:244:1::1"))
	}
	check()
	stop(syscall.SIGKILL)
	stop = n.start()
	defer func() { stop(syscall.SIGTERM) }()
	check()
	p.del()
	if _, err := reach(t, other, n.node, netip.MustParseAddrPort("127.0.0.1:9"), hostPort(ownUnderlay, 8080)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("after DEL: %v, want a refusal", err)
	}
	q.del()
	n.assertTraces(t, clean)
}

// An address beside the pod subnets is reached on its node, by its own gateway; one that others have is refused.
func TestAddressBesideThePodSubnets(t *testing.T) {
	n := newChains(t)
	peers := "clusterCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']\npeers: [{name: n2, underlay: [192.168.1.12], podSubnets: [10.244.2.0/24]}]\n"
	if err := os.WriteFile(filepath.Join(n.dir, "peers.yaml"), []byte(peers), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	clean := n.traces()
	static := func(address string) *libcni.NetworkConfigList {
		return n.chain("static", `, "ipam": {"type": "static", "addresses": [`+address+`]}`)
	}
	for address, want := range map[string]string{
		"10.244.2.9/24": "peer n2", "10.244.9.9/24": "10.244.0.0/16", "192.168.1.12/24": "peer n2", "192.168.1.11/24": "this node's underlay", "10.244.1.9/16": "10.244.1.0/24",
	} {
		if _, err := n.add(static(`{"address": "`+address+`"}`), n.pod, "refused", "eth0", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", address, err, want)
		}
	}
	p := n.mustAdd(static(`{"address": "172.20.0.5/24", "gateway": "172.20.0.1"}, {"address": "fd20::5/64"}`), n.pod, "beside", "eth0", nil)
	other := nstest.New(t)
	q := n.mustAdd(n.chain("plain", ""), other, "plain", "eth0", nil)
	check := func() {
		t.Helper()
		for i, gateway := range []string{"10.244.1.1", "fd00:10:244:1::1"} {
			n.mustReach(other, n.pod, hostPort(p.addr(i), 80), netip.AddrPort{}, q.addr(i))
			n.mustReach(n.pod, other, hostPort(q.addr(i), 80), netip.AddrPort{}, p.addr(i))
			n.mustReach(n.node, n.pod, hostPort(p.addr(i), 80), netip.AddrPort{}, netip.MustParseAddr(gateway))
		}
		n.mustReach(n.pod, n.node, hostPort(ownUnderlay, 80), netip.AddrPort{}, p.addr(0))
	}
	check()
	stop(syscall.SIGTERM)
	stop = n.start()
	check()
	p.del()
	q.del()
	n.assertTraces(t, clean)
}

// A pod's bandwidth in each direction is what was asked for, by what a sender and a receiver of UDP count.
func TestBandwidthIsKept(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	const rate, burst = 40e6, 8e6 // in which the switch may be held up for 200 ms
	caps := map[string]any{"bandwidth": map[string]any{"ingressRate": int(rate), "ingressBurst": int(burst), "egressRate": int(rate / 2), "egressBurst": int(burst)}}
	p := n.mustAdd(n.chain("pods", `, "capabilities": {"bandwidth": true}`), n.pod, "limited", "eth0", caps)
	other := nstest.New(t)
	q := n.mustAdd(n.chain("pods", ""), other, "free", "eth0", nil)
	for _, c := range []struct {
		name     string
		from, to *nstest.NS
		at       netip.Addr
		rate     float64
		reason   string
	}{{"ingress", other, n.pod, p.addr(0), rate, "bandwidth_ingress"}, {"egress", n.pod, other, q.addr(0), rate / 2, "bandwidth_egress"}} {
		sent, got, took := flood(t, c.from, c.to, c.at, 3*c.rate)
		want := burst + took*c.rate
		if got < 0.9*want || got > 1.1*want || sent < 1.5*want {
			t.Errorf("%s: %.0f bits arrived of %.0f sent; the limit allows %.0f", c.name, got, sent, want)
		}
		if out := n.onNode("", filepath.Join(n.dir, "tapyard"), "show", "drops", "--socket", filepath.Join(n.runDir, "admin.sock"), "-o", "json"); !strings.Contains(out, c.reason) {
			t.Errorf("no %s among the drops: %s", c.reason, out)
		}
	}
	for _, port := range n.ports() {
		if b := port.Bandwidth; (b != nil) != strings.HasPrefix(port.Name, "limited") || b != nil && (b.IngressRate != rate || b.EgressRate != rate/2) {
			t.Errorf("port %s is shown with %+v", port.Name, b)
		}
	}
	if out := n.onNode("", filepath.Join(n.dir, "tapyard"), "show", "ports", "--socket", filepath.Join(n.runDir, "admin.sock")); !strings.Contains(out, "40 Mb/s/20 Mb/s") {
		t.Errorf("no limits in\n%s", out)
	}
}

// flood sends UDP for some 2 s at a rate in bits per second and counts the bits of frames at both ends.
func flood(t *testing.T, from, to *nstest.NS, at netip.Addr, rate float64) (sent, got, seconds float64) {
	t.Helper()
	const payload, frame = 1200, 14 + 20 + 8 + 1200
	var in *net.UDPConn
	var out net.Conn
	var err error
	to.Do(t, func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(hostPort(at, 0))) })
	if err == nil {
		defer in.Close()
		var raw syscall.RawConn
		if raw, err = in.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
		}
	}
	if err == nil {
		from.Do(t, func() { out, err = net.Dial("udp", in.LocalAddr().String()) })
	}
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	counted := make(chan int)
	go func() {
		frames, b := 0, make([]byte, payload)
		for {
			if _, err := in.Read(b); err != nil {
				counted <- frames
				return
			}
			frames++
		}
	}()
	frames, b, start := 0, make([]byte, payload), time.Now()
	for ; seconds < 2; seconds = time.Since(start).Seconds() {
		for ; 8*frame*float64(frames) < rate*seconds; frames++ {
			if _, err := out.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	in.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	return 8 * frame * float64(frames), 8 * frame * float64(<-counted), seconds
}

// One pod with an interface in each of three networks, two of which have the same addresses: what it sends in one
// arrives there and nowhere else.
func TestPodInSeveralNetworks(t *testing.T) {
	n := newChains(t)
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	clean := n.traces()
	static := func(network, address string) *libcni.NetworkConfigList {
		return n.chain(network, fmt.Sprintf(`, "network": %q, "ipam": {"type": "static", "addresses": [{"address": %q}]}`, network, address))
	}
	green, red := nstest.New(t), nstest.New(t)
	all := []*attached{
		n.mustAdd(n.chain("own", ""), n.pod, "many", "eth0", nil),
		n.mustAdd(static("green", "172.16.0.1/24"), n.pod, "many", "net1", nil),
		n.mustAdd(static("red", "172.17.0.1/24"), n.pod, "many", "net2", nil),
		n.mustAdd(static("green", "172.16.0.2/24"), green, "green", "eth0", nil),
		n.mustAdd(static("red", "172.16.0.2/24"), red, "red", "eth0", nil), // green's address
		n.mustAdd(static("red", "172.17.0.2/24"), red, "red", "net1", nil),
	}
	inGreen, inRed := netip.MustParseAddrPort("172.16.0.2:80"), netip.MustParseAddrPort("172.17.0.2:80")
	for range 2 {
		n.mustReach(n.pod, green, inGreen, netip.AddrPort{}, all[1].addr(0))
		n.mustReach(n.pod, red, inRed, netip.AddrPort{}, all[2].addr(0))
		n.mustReach(n.pod, n.node, hostPort(ownUnderlay, 80), netip.AddrPort{}, all[0].addr(0))
		stop(syscall.SIGKILL)
		stop = n.start()
	}
	var heard [2]net.PacketConn
	for i, ns := range []*nstest.NS{green, red} {
		ns.Do(t, func() {
			var err error
			if heard[i], err = net.ListenPacket("udp4", ":9"); err != nil {
				t.Fatal(err)
			}
		})
		defer heard[i].Close()
	}
	n.pod.Do(t, func() {
		out, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(172, 16, 0, 1)}, &net.UDPAddr{IP: net.IPv4(172, 16, 0, 255), Port: 9})
		if err == nil {
			defer out.Close()
			_, err = out.Write([]byte("to green"))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	for i, want := range []bool{true, false} {
		wait := 5 * time.Second
		if !want {
			wait = 300 * time.Millisecond // it would have come with the other one
		}
		heard[i].SetReadDeadline(time.Now().Add(wait))
		if _, _, err := heard[i].ReadFrom(make([]byte, 100)); (err == nil) != want {
			t.Errorf("network %d hears the broadcast in green: %v, want %t", i, err, want)
		}
	}
	// Green alone gone, red can't be mistaken for it.
	all[3].del()
	if _, err := reach(t, n.pod, red, inGreen, netip.AddrPort{}); err == nil {
		t.Error("a pod in red answers for an address in green")
	}
	for _, p := range append(all[:3:3], all[4:]...) {
		p.del()
	}
	n.assertTraces(t, clean)
}
