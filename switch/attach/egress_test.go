package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
)

// world is a node between a pod and the rest of the world. A veth pair stands for tapyard0: whatever the
// node sends there arrives at the pod.
type world struct{ internet, node, pod *nstest.NS }

var (
	nodeAddrs  = addrs("203.0.113.11", "2001:db8::11")
	peerAddrs  = addrs("203.0.113.12", "2001:db8::12") // held by the internet, so that it is reached without a tunnel
	worldAddrs = addrs("198.51.100.1", "2001:db8:ffff::1")
	strayAddrs = addrs("10.244.9.9", "fd00:10:244:9::9") // of the cluster, and yet routed out of the node's eth0
	podAddrs   = addrs("10.244.1.10", "fd00:10:244:1::a")
	gateways   = addrs("10.244.1.1", "fd00:10:244:1::1")
)

func addrs(text ...string) (out []netip.Addr) {
	for _, s := range text {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var egress = EgressConfig{
	PodSubnets:   dualStack,
	ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	Nodes:        append(append([]netip.Addr(nil), nodeAddrs...), peerAddrs...),
	TunnelPort:   4789,
}

// newWorld has strict reverse path filters everywhere on the node.
func newWorld(t *testing.T) world {
	t.Helper()
	w := world{nstest.New(t), nstest.New(t), nstest.New(t)}
	ipBatch(t, w.node,
		"link add eth0 type veth peer name eth0 netns "+w.internet.Name(),
		"link add tapyard0 type veth peer name eth0 address 02:00:00:00:00:02 netns "+w.pod.Name(),
		"link set eth0 up", "link set tapyard0 up")
	ipBatch(t, w.internet, "link set eth0 up",
		"addr add 203.0.113.1/24 dev eth0", "addr add 203.0.113.12/24 dev eth0", "addr add 198.51.100.1/32 dev lo", "addr add 10.244.9.9/32 dev lo",
		"addr add 2001:db8::1/64 dev eth0 nodad", "addr add 2001:db8::12/64 dev eth0 nodad",
		"addr add 2001:db8:ffff::1/128 dev lo nodad", "addr add fd00:10:244:9::9/128 dev lo nodad",
		"route add 10.244.1.0/24 via 203.0.113.11", "route add fd00:10:244:1::/64 via 2001:db8::11")
	ipBatch(t, w.pod, "link set eth0 up", "addr add 10.244.1.10/24 dev eth0", "addr add fd00:10:244:1::a/64 dev eth0 nodad",
		"route add default via 10.244.1.1", "route add default via fd00:10:244:1::1")
	ipBatch(t, w.node, "addr add 203.0.113.11/24 dev eth0", "addr add 2001:db8::11/64 dev eth0 nodad",
		"route add default via 203.0.113.1", "route add default via 2001:db8::1",
		"route add 10.244.9.9 via 203.0.113.1", "route add fd00:10:244:9::9 via 2001:db8::1",
		"addr add 10.244.1.1/32 dev tapyard0", "addr add fd00:10:244:1::1/128 dev tapyard0 nodad",
		"neigh add 10.244.1.2 lladdr 02:00:00:00:00:02 dev tapyard0", "neigh add fd00:10:244:1::2 lladdr 02:00:00:00:00:02 dev tapyard0",
		"route add 10.244.0.0/16 via 10.244.1.2 dev tapyard0 onlink src 10.244.1.1",
		"route add fd00:10:244::/48 via fd00:10:244:1::2 dev tapyard0 onlink src fd00:10:244:1::1")
	sysctl(t, w.node, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.tapyard0.rp_filter=1")
	return w
}

func ipBatch(t *testing.T, ns *nstest.NS, lines ...string) {
	t.Helper()
	output(t, ns, strings.Join(lines, "\n"), "ip", "-batch", "-")
}

func sysctl(t *testing.T, ns *nstest.NS, settings ...string) {
	t.Helper()
	output(t, ns, "", "sysctl", append([]string{"-qw"}, settings...)...)
}

// nft is the independent reader, and the hand that meddles.
func nft(t *testing.T, ns *nstest.NS, script string) string {
	t.Helper()
	return output(t, ns, script, "nft", "-f", "-")
}

func output(t *testing.T, ns *nstest.NS, stdin, name string, args ...string) string {
	t.Helper()
	cmd := ns.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, stdin, out)
	}
	return string(out)
}

func (w world) set(t *testing.T, cfg EgressConfig) {
	t.Helper()
	w.node.Do(t, func() {
		if err := SetEgress(cfg); err != nil {
			t.Fatal(err)
		}
	})
}

// seen sends from one namespace to an address of another, from a source address if that is valid, and
// returns who the receiver saw; the answer has to come back.
func seen(t *testing.T, proto string, from, to *nstest.NS, src, dst netip.Addr) (who netip.Addr) {
	t.Helper()
	server, target := answer(t, proto, to, dst)
	from.Do(t, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: local(proto, src)}
		conn, err := d.Dial(networkFor(proto, dst), target)
		if err != nil {
			t.Fatalf("%s to %s: %v", proto, target, err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write(echoRequest(dst)); err != nil {
			t.Fatalf("%s to %s: %v", proto, target, err)
		}
		if _, err := conn.Read(make([]byte, 100)); err != nil {
			t.Fatalf("%s: answer of %s: %v", proto, target, err)
		}
	})
	return <-server
}

func networkFor(proto string, dst netip.Addr) string {
	switch {
	case proto != "icmp":
		return proto
	case dst.Is4():
		return "ip4:icmp"
	}
	return "ip6:ipv6-icmp"
}

func local(proto string, src netip.Addr) net.Addr {
	if !src.IsValid() {
		return nil
	}
	switch proto {
	case "tcp":
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	case "udp":
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	return &net.IPAddr{IP: src.AsSlice()}
}

// echoRequest is one of ICMP; for TCP and UDP it is any 8 bytes. The kernel sums those of ICMPv6 itself.
func echoRequest(dst netip.Addr) []byte {
	if dst.Is4() {
		return []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // 0xffff - 0x0800
	}
	return []byte{128, 0, 0, 0, 0, 0, 0, 0}
}

// answer serves one exchange at the address, and names the peer that it was with. Echo requests are
// answered by the kernel, while a raw socket sees them.
func answer(t *testing.T, proto string, ns *nstest.NS, at netip.Addr) (who chan netip.Addr, target string) {
	t.Helper()
	who = make(chan netip.Addr, 1)
	ns.Do(t, func() {
		if proto == "tcp" {
			l, err := net.Listen(proto, netip.AddrPortFrom(at, 0).String())
			if err != nil {
				t.Fatal(err)
			}
			target = l.Addr().String()
			go serveTCP(l, who)
			return
		}
		host := at.String()
		if proto == "udp" {
			host = netip.AddrPortFrom(at, 0).String()
		}
		c, err := net.ListenPacket(networkFor(proto, at), host)
		if err != nil {
			t.Fatal(err)
		}
		target = c.LocalAddr().String()
		go serveDatagrams(c, proto, who)
	})
	return who, target
}

func serveTCP(l net.Listener, who chan netip.Addr) {
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	b := make([]byte, 8)
	if n, _ := conn.Read(b); n > 0 {
		_, _ = conn.Write(b) // the other side fails without it
	}
	who <- netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr()
}

func serveDatagrams(c net.PacketConn, proto string, who chan netip.Addr) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	for b := make([]byte, 100); ; {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if proto == "udp" {
			_, _ = c.WriteTo(b[:n], from) // as above
			who <- netip.MustParseAddrPort(from.String()).Addr()
			return
		}
		if b[0] == 8 || b[0] == 128 { // not what else ICMPv6 does
			who <- netip.MustParseAddr(from.String())
			return
		}
	}
}

func TestWhatLeavesTheClusterIsMasqueraded(t *testing.T) {
	w := newWorld(t)
	none := []netip.Addr{{}, {}}
	cases := []struct {
		name      string
		from, to  *nstest.NS
		src, dst  []netip.Addr // by family
		want, raw []netip.Addr // raw is without a table
	}{
		{"pod to the world", w.pod, w.internet, none, worldAddrs, nodeAddrs, podAddrs},
		{"gateway address to the world", w.node, w.internet, gateways, worldAddrs, nodeAddrs, gateways},
		{"node to the world", w.node, w.internet, none, worldAddrs, nodeAddrs, nodeAddrs},
		{"pod to its node", w.pod, w.node, none, nodeAddrs, podAddrs, podAddrs},
		{"pod to another node", w.pod, w.internet, none, peerAddrs, podAddrs, podAddrs},
		{"pod to a cluster address", w.pod, w.internet, none, strayAddrs, podAddrs, podAddrs},
		{"node to its pod", w.node, w.pod, none, podAddrs, gateways, gateways},
		{"node's own address to its pod", w.node, w.pod, nodeAddrs, podAddrs, nodeAddrs, nodeAddrs},
		{"world to a pod", w.internet, w.pod, worldAddrs, podAddrs, worldAddrs, worldAddrs},
	}
	check := func(stage string, want func(i int) []netip.Addr) {
		for i, c := range cases {
			for f := range c.dst {
				for _, proto := range []string{"tcp", "udp", "icmp"} {
					if got := seen(t, proto, c.from, c.to, c.src[f], c.dst[f]); got != want(i)[f] {
						t.Errorf("%s: %s, %s to %s: seen from %s, want %s", stage, c.name, proto, c.dst[f], got, want(i)[f])
					}
				}
			}
		}
	}
	check("without a table", func(i int) []netip.Addr { return cases[i].raw })
	w.set(t, egress)
	check("with it", func(i int) []netip.Addr { return cases[i].want })
	w.set(t, EgressConfig{PodSubnets: dualStack[:1], ClusterCIDRs: egress.ClusterCIDRs, Nodes: egress.Nodes})
	if got := seen(t, "tcp", w.pod, w.internet, netip.Addr{}, worldAddrs[1]); got != podAddrs[1] {
		t.Errorf("IPv6 on a node with pods in IPv4 only: seen from %s, want %s", got, podAddrs[1])
	}
	w.node.Do(t, func() {
		if err := RemoveEgress(); err != nil {
			t.Fatal(err)
		}
	})
	check("without a table again", func(i int) []netip.Addr { return cases[i].raw })
}

// datagrams is a pod's, or a node's, UDP socket towards one elsewhere.
type datagrams struct {
	from net.Conn
	to   *net.UDPConn
}

func dialDatagrams(t *testing.T, ns *nstest.NS, src netip.Addr, to *net.UDPConn) (d datagrams) {
	t.Helper()
	ns.Do(t, func() {
		dialer := net.Dialer{LocalAddr: local("udp", src)}
		conn, err := dialer.Dial("udp", to.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		d = datagrams{conn, to}
	})
	t.Cleanup(func() { d.from.Close() })
	return d
}

func listenDatagrams(t *testing.T, ns *nstest.NS, at netip.AddrPort) (conn *net.UDPConn) {
	t.Helper()
	ns.Do(t, func() {
		var err error
		if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (d datagrams) send(t *testing.T, what string) {
	t.Helper()
	if _, err := d.from.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
}

// arrives sends, and wants that to be the next datagram that the receiver sees, from that address.
func (d datagrams) arrives(t *testing.T, what string, from netip.Addr) {
	t.Helper()
	d.send(t, what)
	_ = d.to.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 65535)
	n, who, err := d.to.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != what || who.Addr() != from {
		t.Errorf("%s got %d bytes %.20q from %s (%v), want %.20q from %s", d.to.LocalAddr(), n, b[:n], who, err, what, from)
	}
}

// dropped waits until the family's rule has counted so many packets.
func (w world) dropped(t *testing.T, family string, want int) {
	t.Helper()
	counter := fmt.Sprintf("%s udp dport 4789 counter packets %d bytes", family, want)
	var got string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got = output(t, w.node, "", "nft", "list", "chain", "inet", "tapyard", "forward"); strings.Contains(got, counter) {
			return
		}
	}
	t.Errorf("no %q in\n%s", counter, got)
}

// A node that isn't among our peers may have us among its own: what a pod sends to its tunnel port must not
// arrive with our address, whole or in fragments, nor in a flow that began before the rule did.
func TestPodsReachNoTunnelOfOthers(t *testing.T) {
	w := newWorld(t)
	for f, other := range worldAddrs {
		family := []string{"ip saddr @pods4", "ip6 saddr @pods6"}[f]
		tunnel := listenDatagrams(t, w.internet, netip.AddrPortFrom(other, 4789))
		beside := listenDatagrams(t, w.internet, netip.AddrPortFrom(other, 4790))
		inject := dialDatagrams(t, w.pod, netip.Addr{}, tunnel)
		fragments := strings.Repeat("x", 4000) // at an MTU of 1500

		elsewhere := egress
		elsewhere.TunnelPort = 4788
		w.set(t, elsewhere)
		inject.arrives(t, "injected", nodeAddrs[f])
		inject.arrives(t, fragments, nodeAddrs[f])

		w.set(t, egress)
		inject.send(t, "injected")
		inject.send(t, fragments)
		dialDatagrams(t, w.pod, netip.Addr{}, tunnel).send(t, "of a new flow")
		w.dropped(t, family, 3)
		dialDatagrams(t, w.pod, netip.Addr{}, beside).arrives(t, "another port", nodeAddrs[f])
		dialDatagrams(t, w.node, netip.Addr{}, tunnel).arrives(t, "of the node", nodeAddrs[f])
		dialDatagrams(t, w.node, gateways[f], tunnel).arrives(t, "of the gateway address", nodeAddrs[f])
		dialDatagrams(t, w.internet, other, listenDatagrams(t, w.pod, netip.AddrPortFrom(podAddrs[f], 4789))).arrives(t, "to a pod", other)
		connects(t, w.pod, w.internet, netip.AddrPortFrom(other, 4789))
		w.dropped(t, family, 3)
	}
}

// connects wants a TCP handshake to succeed.
func connects(t *testing.T, from, to *nstest.NS, at netip.AddrPort) {
	t.Helper()
	to.Do(t, func() {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	})
	from.Do(t, func() {
		conn, err := net.DialTimeout("tcp", at.String(), 5*time.Second)
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
}

// A group has no address to answer from, and its members know the sender by its own.
func TestMulticastKeepsItsSource(t *testing.T) {
	w := newWorld(t)
	w.set(t, egress)
	for i, group := range addrs("239.1.1.1", "ff0e::1") {
		var members *net.UDPConn
		w.internet.Do(t, func() {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if members, err = net.ListenMulticastUDP("udp", eth0, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, 5000))); err != nil {
				t.Fatal(err)
			}
		})
		defer members.Close()
		w.node.Do(t, func() {
			d := net.Dialer{LocalAddr: local("udp", gateways[i]), Control: throughEth0}
			conn, err := d.Dial("udp", netip.AddrPortFrom(group, 5000).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		})
		_ = members.SetDeadline(time.Now().Add(5 * time.Second))
		_, from, err := members.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil || from.Addr() != gateways[i] {
			t.Errorf("%s is seen from %s, want %s (%v)", group, from, gateways[i], err)
		}
	}
}

// throughEth0 has the socket's multicast leave there, not through the device of its source address.
func throughEth0(network, _ string, c syscall.RawConn) (err error) {
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	controlErr := c.Control(func(fd uintptr) {
		if network == "udp4" {
			err = unix.SetsockoptIPMreqn(int(fd), unix.SOL_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(eth0.Index)})
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, eth0.Index)
		}
	})
	return errors.Join(controlErr, err)
}

const wantTable = `table inet tapyard {
	set pods4 {
		type ipv4_addr
		flags interval
		comment "pod subnets of this node; managed by tapyard; changes are overwritten"
		elements = { 10.244.1.0/24 }
	}

	set direct4 {
		type ipv4_addr
		flags interval
		comment "pods, nodes and multicast: reached without masquerading"
		elements = { 10.244.0.0/16, 203.0.113.11,
			     203.0.113.12, 224.0.0.0/4 }
	}

	set pods6 {
		type ipv6_addr
		flags interval
		comment "pod subnets of this node; managed by tapyard; changes are overwritten"
		elements = { fd00:10:244:1::/64 }
	}

	set direct6 {
		type ipv6_addr
		flags interval
		comment "pods, nodes and multicast: reached without masquerading"
		elements = { 2001:db8::11,
			     2001:db8::12,
			     fd00:10:244::/48,
			     ff00::/8 }
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr @pods4 udp dport 4789 counter packets 0 bytes 0 drop comment "managed by tapyard; changes are overwritten"
		ip6 saddr @pods6 udp dport 4789 counter packets 0 bytes 0 drop comment "managed by tapyard; changes are overwritten"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @pods4 ip daddr != @direct4 oifname != "tapyard0" masquerade fully-random comment "managed by tapyard; changes are overwritten"
		ip6 saddr @pods6 ip6 daddr != @direct6 oifname != "tapyard0" masquerade fully-random comment "managed by tapyard; changes are overwritten"
	}
}
`

// Whatever somebody made of our table, the next SetEgress makes it ours again, and touches no other.
func TestTableIsReconciled(t *testing.T) {
	w := newWorld(t)
	const others = `table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 masquerade
	}
}
table inet filter {
	set pods4 {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
	}
}
`
	nft(t, w.node, others)
	for _, meddling := range []string{
		"",
		"",
		"flush chain inet tapyard postrouting",
		"flush chain inet tapyard forward; add chain inet tapyard forward { policy drop; }",
		"insert rule inet tapyard forward accept",
		`add rule inet tapyard postrouting tcp dport 80 accept; insert rule inet tapyard postrouting drop`,
		"add element inet tapyard direct4 { 0.0.0.0-10.0.0.0 }",
		"flush set inet tapyard pods6",
		"add chain inet tapyard more; add set inet tapyard more { type inet_service; }; add rule inet tapyard postrouting tcp dport @more jump more",
		"delete table inet tapyard",
		"delete table inet tapyard; add table inet tapyard { flags dormant; }",
		"delete table inet tapyard; table inet tapyard { map pods4 { type inet_service : ipv4_addr; }; chain postrouting { type filter hook forward priority 0; policy drop; }; }",
	} {
		nft(t, w.node, meddling)
		w.set(t, egress)
		if got := output(t, w.node, "", "nft", "list", "table", "inet", "tapyard"); got != wantTable {
			t.Errorf("after %q the table is\n%s\nwant\n%s", meddling, got, wantTable)
		}
		if got := output(t, w.node, "", "nft", "list", "ruleset"); strings.Replace(got, wantTable, "", 1) != others {
			t.Errorf("after %q other tables are not as before:\n%s", meddling, got)
		}
	}
	for meddling, missed := range map[string]bool{
		"":                                     false,
		"flush ruleset":                        true,
		"flush chain inet tapyard postrouting": true,
		"flush chain inet tapyard forward":     true,
		"delete chain inet tapyard forward":    true,
		"flush chain inet tapyard forward; add rule inet tapyard forward ip saddr @pods4 udp dport 4789 drop":                  true,
		"flush chain inet tapyard forward; add rule inet tapyard postrouting accept; add rule inet tapyard postrouting accept": true,
		"delete table inet tapyard; add table inet tapyard {}":                                                                 true,
	} {
		nft(t, w.node, meddling)
		w.node.Do(t, func() {
			if restored, err := RestoreEgress(egress); err != nil || restored != missed {
				t.Errorf("after %q: restored %t, %v", meddling, restored, err)
			}
		})
		if got := output(t, w.node, "", "nft", "list", "table", "inet", "tapyard"); got != wantTable {
			t.Errorf("after %q and RestoreEgress the table is\n%s\nwant\n%s", meddling, got, wantTable)
		}
	}
	nft(t, w.node, "flush ruleset")
	nft(t, w.node, others)
	w.node.Do(t, func() {
		for range 2 {
			if err := RemoveEgress(); err != nil {
				t.Error(err)
			}
		}
	})
	if got := output(t, w.node, "", "nft", "list", "ruleset"); got != others {
		t.Errorf("after RemoveEgress:\n%s", got)
	}
}

// Sets may overlap, touch and reach the end of the address space.
func TestSetsOfAnyPrefixes(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(t, func() {
		err := SetEgress(EgressConfig{PodSubnets: dualStack[:1],
			ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.0.0/24"),
				netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("0.0.0.0/8")},
			Nodes: addrs("10.0.0.7", "10.0.2.0", "10.0.2.1", "10.0.2.1", "10.244.1.77")})
		if err != nil {
			t.Fatal(err)
		}
	})
	got := strings.Join(strings.Fields(output(t, ns, "", "nft", "list", "set", "inet", "tapyard", "direct4")), " ")
	if want := "elements = { 0.0.0.0/8, 10.0.0.0/24, 10.0.1.0/24, 10.0.2.0, 10.0.2.1, 10.244.1.0/24, 224.0.0.0/4, 240.0.0.0/4 }"; !strings.Contains(got, want) {
		t.Errorf("set %s, want %s", got, want)
	}
}

// 5,000 peers with an address in each family fit into one transaction, and are all there.
func TestManyPeers(t *testing.T) {
	ns := nstest.New(t)
	cfg := EgressConfig{PodSubnets: dualStack, ClusterCIDRs: egress.ClusterCIDRs}
	for i := range 5000 {
		cfg.Nodes = append(cfg.Nodes, addrs(fmt.Sprintf("172.16.%d.%d", i/200, i%200), fmt.Sprintf("2001:db8::%x", i*2))...)
	}
	ns.Do(t, func() {
		start := time.Now()
		if err := SetEgress(cfg); err != nil {
			t.Fatal(err)
		}
		t.Logf("10,000 addresses took %v", time.Since(start))
	})
	for _, set := range []string{"direct4", "direct6"} {
		got := output(t, ns, "", "nft", "list", "set", "inet", "tapyard", set)
		_, elements, _ := strings.Cut(got, "elements")
		if n := strings.Count(elements, ",") + 1; n != 5000+2 {
			t.Errorf("%s has %d elements, want 5,000 nodes, a cluster CIDR and multicast", set, n)
		}
	}
}

// The table is replaced under a connection again and again; its translation lives in conntrack.
func TestConnectionsOutliveTheTable(t *testing.T) {
	w := newWorld(t)
	w.set(t, egress)
	for _, dst := range worldAddrs {
		var l net.Listener
		var client, server net.Conn
		var err error
		w.internet.Do(t, func() { l, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String()) })
		if err != nil {
			t.Fatal(err)
		}
		w.pod.Do(t, func() { client, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second) })
		if err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		peer := server.RemoteAddr()
		exchange := func() {
			t.Helper()
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				_ = pair[1].SetDeadline(time.Now().Add(5 * time.Second))
				_, werr := pair[0].Write([]byte("x"))
				_, rerr := pair[1].Read(make([]byte, 1))
				if err := errors.Join(werr, rerr); err != nil {
					t.Fatalf("connection from %s: %v", peer, err)
				}
			}
		}
		exchange()
		for i := range 20 {
			cfg := egress
			cfg.Nodes = cfg.Nodes[:i%len(cfg.Nodes)]
			w.set(t, cfg)
			exchange()
		}
		cfg := egress
		cfg.Nodes = append(addrs(dst.String()), egress.Nodes...)
		w.set(t, cfg) // a new connection to dst would not be masqueraded
		exchange()
		client.Close()
		server.Close()
		l.Close()
	}
}

func TestErrorNamesWhatTheKernelLacks(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EOPNOTSUPP} { // no chain type nat, no nf_tables
		err := explain(fmt.Errorf("conn.Receive: %w", errno))
		if !errors.Is(err, errNoNAT) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "masquerade: false") {
			t.Errorf("error %v", err)
		}
	}
	if err := explain(unix.EBUSY); err != unix.EBUSY {
		t.Errorf("error %v", err)
	}
}
