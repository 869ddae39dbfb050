package attach

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tapyard/bench/nstest"
	"tapyard/cniplugin/podapi"
)

// setPorts maps ports of the world's node to its pod.
func (w world) setPorts(t *testing.T, cfg EgressConfig, ports ...PortMapping) {
	t.Helper()
	cfg.Ports = nil
	for _, p := range ports {
		cfg.Ports = append(cfg.Ports, Mapped{p, "default/web", podAddrs})
	}
	w.node.Do(t, func() {
		if err := SetPorts(cfg); err != nil {
			t.Fatal(err)
		}
	})
}

// dial exchanges one message with the address and says whether an answer came.
func dial(t *testing.T, proto string, from *nstest.NS, src netip.Addr, to netip.AddrPort, wait time.Duration) (err error) {
	t.Helper()
	from.Do(t, func() {
		d := net.Dialer{Timeout: wait, LocalAddr: local(proto, src)}
		var conn net.Conn
		if conn, err = d.Dial(proto, to.String()); err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(wait))
		if _, err = conn.Write([]byte("12345678")); err == nil {
			_, err = conn.Read(make([]byte, 100))
		}
	})
	return err
}

// Whoever asks a mapped port of the node reaches the pod: seen as himself where his answer comes back by the
// node, and as the gateway where the pod would answer past it.
func TestPortsLeadToPods(t *testing.T) {
	for _, masquerade := range []bool{true, false} {
		t.Run(fmt.Sprint("masquerade ", masquerade), func(t *testing.T) { testPortsLeadToPods(t, masquerade) })
	}
}

func testPortsLeadToPods(t *testing.T, masquerade bool) {
	w, cfg := newWorld(t), egress
	cfg.PortsOnly = !masquerade
	w.set(t, cfg)
	loopback := addrs("127.0.0.1", "::1")
	for _, proto := range []string{"tcp", "udp"} {
		for f, pod := range podAddrs {
			for _, c := range []struct {
				name   string
				from   *nstest.NS
				src    netip.Addr
				to     netip.Addr
				hostIP netip.Addr
				want   netip.Addr
			}{
				{"world", w.internet, worldAddrs[f], nodeAddrs[f], netip.Addr{}, worldAddrs[f]},
				{"world, to that address", w.internet, worldAddrs[f], nodeAddrs[f], nodeAddrs[f], worldAddrs[f]},
				{"another node", w.internet, peerAddrs[f], nodeAddrs[f], netip.Addr{}, gateways[f]},
				{"the node itself", w.node, netip.Addr{}, nodeAddrs[f], netip.Addr{}, gateways[f]},
				{"the pod itself", w.pod, netip.Addr{}, nodeAddrs[f], netip.Addr{}, gateways[f]},
				{"the pod itself, by its gateway", w.pod, netip.Addr{}, gateways[f], netip.Addr{}, gateways[f]},
				{"the node's loopback", w.node, netip.Addr{}, loopback[0], netip.Addr{}, gateways[0]},
				{"the node's loopback only", w.node, netip.Addr{}, loopback[0], loopback[0], gateways[0]},
			} {
				if c.to == loopback[0] && f > 0 {
					continue
				}
				who, target := answer(t, proto, w.pod, pod)
				at := netip.MustParseAddrPort(target)
				w.setPorts(t, cfg, PortMapping{HostPort: 8080, ContainerPort: at.Port(), Protocol: proto, HostIP: c.hostIP})
				if err := dial(t, proto, c.from, c.src, netip.AddrPortFrom(c.to, 8080), 5*time.Second); err != nil {
					t.Errorf("%s, %s to %s: %v", c.name, proto, c.to, err)
				} else if got := <-who; got != c.want {
					t.Errorf("%s, %s to %s: seen from %s, want %s", c.name, proto, c.to, got, c.want)
				}
			}
		}
	}
	// Of another address of the node, and of the node's own ::1, the mapping is none.
	w.setPorts(t, cfg, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: gateways[0]})
	if err := dial(t, "tcp", w.internet, netip.Addr{}, netip.AddrPortFrom(nodeAddrs[0], 8080), 5*time.Second); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("an address that isn't mapped: %v, want a refusal", err)
	}
	w.setPorts(t, cfg, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	if err := dial(t, "tcp", w.node, netip.Addr{}, netip.AddrPortFrom(loopback[1], 8080), 5*time.Second); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("::1: %v, want a refusal", err)
	}
}

// The rules are what nft says they are, the same when set twice or restored, and gone without leftovers.
func TestRulesOfPorts(t *testing.T) {
	w := newWorld(t)
	w.set(t, egress)
	list := func() string { return output(t, w.node, "", "nft", "list", "ruleset") }
	before := list()
	ports := []PortMapping{{8080, 80, "tcp", netip.Addr{}}, {53, 53, "udp", nodeAddrs[0]}, {3868, 3868, "sctp", netip.Addr{}}}
	w.setPorts(t, egress, ports...)
	with := list()
	for _, rule := range []string{
		"type nat hook prerouting priority dstnat; policy accept;\n\t\tfib daddr type local jump ports",
		"type nat hook output priority -100; policy accept;\n\t\tfib daddr type local jump ports",
		"meta nfproto ipv4 tcp dport 8080 dnat ip to 10.244.1.10:80 comment \"default/web; managed by tapyard\"",
		"tcp dport 8080 ip6 daddr != ::1 dnat ip6 to [fd00:10:244:1::a]:80",
		"udp dport 53 ip daddr 203.0.113.11 dnat ip to 10.244.1.10:53",
		"sctp dport 3868 dnat ip to 10.244.1.10:3868",
		"sctp dport 3868 ip6 daddr != ::1 dnat ip6 to [fd00:10:244:1::a]:3868",
		"sctp dport 3868 ip daddr 10.244.1.10 ct status dnat ip saddr @direct4 masquerade",
		"sctp dport 3868 ip6 daddr fd00:10:244:1::a ct status dnat ip6 saddr @direct6 masquerade",
		"tcp dport 80 ip daddr 10.244.1.10 ct status dnat ip saddr 127.0.0.0/8 masquerade",
	} {
		if !strings.Contains(with, rule) {
			t.Errorf("no rule %q in\n%s", rule, with)
		}
	}
	if strings.Contains(with, "dport 53 ip6") {
		t.Errorf("a mapping of an IPv4 address in IPv6:\n%s", with)
	}
	w.setPorts(t, egress, ports...)
	if again := list(); again != with {
		t.Errorf("set twice, the rules are\n%s\nwhich were\n%s", again, with)
	}
	cfg := egress
	for _, p := range ports {
		cfg.Ports = append(cfg.Ports, Mapped{p, "default/web", podAddrs})
	}
	for _, meddle := range []string{"flush ruleset", "flush chain inet tapyard ports", "flush chain inet tapyard hairpin", ""} {
		nft(t, w.node, meddle)
		w.node.Do(t, func() {
			if restored, err := RestoreEgress(cfg); restored != (meddle != "") || err != nil {
				t.Errorf("after %q: restored %v, %v", meddle, restored, err)
			}
		})
		if again := list(); len(again) != len(with) { // the chains' order may differ
			t.Errorf("after %q and restored, the rules are\n%s\nwhich were\n%s", meddle, again, with)
		}
	}
	w.setPorts(t, egress)
	if after := list(); after != before {
		t.Errorf("leftovers:\n%s\nwhere there was\n%s", after, before)
	}
	cfg.PortsOnly, cfg.Ports = true, cfg.Ports[:1]
	w.node.Do(t, func() {
		if err := SetEgress(cfg); err != nil {
			t.Fatal(err)
		}
	})
	if only := list(); strings.Contains(only, "fully-random") || strings.Contains(only, "4789") || !strings.Contains(only, "dnat ip to") {
		t.Errorf("ports without masquerading:\n%s", only)
	}
	w.setPorts(t, EgressConfig{PodSubnets: dualStack, PortsOnly: true})
	if after := list(); after != "" {
		t.Errorf("leftovers:\n%s", after)
	}
}

// A sender of UDP that never pauses finds the pod when its port is mapped, and finds it gone after.
func TestFlowingUDPFollowsTheMapping(t *testing.T) {
	w := newWorld(t)
	w.set(t, egress)
	pod := listenDatagrams(t, w.pod, netip.AddrPortFrom(podAddrs[0], 0))
	node := listenDatagrams(t, w.node, netip.AddrPortFrom(nodeAddrs[0], 5353))
	d := dialDatagrams(t, w.internet, worldAddrs[0], node)
	d.arrives(t, "to the node", worldAddrs[0])
	n := newNode(t, nil)
	for range 2 {
		p := PortMapping{HostPort: 5353, ContainerPort: uint16(pod.LocalAddr().(*net.UDPAddr).Port), Protocol: "udp"}
		for _, ports := range [][]PortMapping{{p}, nil} {
			n.cfg.MapPorts = func() error { w.setPorts(t, egress, ports...); return nil }
			w.node.Do(t, func() {
				if err := n.portsChanged([]PortMapping{p}); err != nil {
					t.Fatal(err)
				}
			})
			if d.to = node; ports != nil {
				d.to = pod
			}
			d.arrives(t, fmt.Sprint("mapped ", ports), worldAddrs[0])
		}
	}
}

const mapping = `, "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [
	{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"}, {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.168.1.11"}]}`

// What is mapped is what pods have that are there: through failures, restarts and DEL.
func TestMappingsOfPods(t *testing.T) {
	var told [][]Mapped
	var fail error
	var n *node
	n = newNode(t, func(c *Config) {
		c.Networks = []Network{{Name: "blue", VNI: 7}}
		c.MapPorts = func() error { told = append(told, n.Mapped()); return fail }
	})
	a := n.addWith(t, nstest.New(t), "a", conf(t, mapping, ""))
	want := fmt.Sprintf("*:8080->80/tcp %[1]s %[2]v, 192.168.1.11:53->53/udp %[1]s %[2]v, ", a.Name, a.Addrs())
	text := func(ports []Mapped) (s string) {
		for _, p := range ports {
			s += fmt.Sprintf("%v %s %v, ", p.PortMapping, p.Pod, p.Addrs)
		}
		return s
	}
	if len(told) != 1 || text(told[0]) != want {
		t.Fatalf("mapped %v, want %s", told, want)
	}
	n.refuse(t, conf(t, mapping, ""), podapi.CodeTryAgain, "8080->80/tcp", a.Name)
	n.refuse(t, conf(t, `, "network": "blue"`+mapping, ""), podapi.CodeInvalidConf, "portMappings", "routed")
	if got := conf(t, strings.Replace(mapping, "true", "false", 1), "").PortMappings; got != nil {
		t.Errorf("mappings for another plugin of the chain: %v", got)
	}
	n.restart(t)
	if text(n.Mapped()) != want || len(told) != 1 {
		t.Errorf("after a restart %v is mapped, want %s; told %d times", n.Mapped(), want, len(told))
	}
	fail = os.ErrPermission
	n.refuse(t, conf(t, strings.NewReplacer("8080", "8081", "53,", "54,").Replace(mapping), ""), podapi.CodeInternal, "map ports", "permission")
	if text(n.Mapped()) != want {
		t.Errorf("after a failure %v is mapped, want %s", n.Mapped(), want)
	}
	if err := n.Del(t.Context(), Request{ContainerID: "a", IfName: "eth0", NetnsFD: -1}); err == nil {
		t.Error("DEL succeeds and leaves the mapping")
	}
	fail = nil
	n.del(t, Request{ContainerID: "a", IfName: "eth0", NetnsFD: -1})
	if last := told[len(told)-1]; len(last) != 0 || len(n.Mapped()) != 0 {
		t.Errorf("after DEL %v is mapped", last)
	}
	n.assertNothing(t)
}
