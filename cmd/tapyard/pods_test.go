package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tapyard/bench/nstest"
	"tapyard/switch/observe"
	"tapyard/switch/port"
)

// configure adds lines to the node's configuration.
func (n *nodeRuntime) configure(lines string) {
	n.t.Helper()
	f, err := os.OpenFile(n.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(lines + "\n"); err != nil {
		n.t.Fatal(err)
	}
}

// Pods whose TAPs have a queue for each worker, steered by a program in the kernel, read and written by io_uring.
func TestPodWithRingsAndQueues(t *testing.T) {
	n := newChains(t)
	n.configure("workers: 2\npodQueues: 2\nio: io_uring")
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	clean, other := n.traces(), nstest.New(t)
	list := n.chain("pods", "")
	p, q := n.mustAdd(list, n.pod, "two", "eth0", nil), n.mustAdd(list, other, "three", "eth0", nil)
	check := func() {
		t.Helper()
		for i := range 2 {
			n.mustReach(other, n.pod, hostPort(p.addr(i), 80), netip.AddrPort{}, q.addr(i))
		}
		if out, err := n.pod.Command("ip", "-d", "link", "show", "eth0").Output(); err != nil || !strings.Contains(string(out), "multi_queue numqueues 2") {
			t.Errorf("the pod's device is %s, %v", out, err)
		}
		var offloads []observe.Offload
		out := n.onNode("", filepath.Join(n.dir, "tapyard"), "show", "offloads", "--socket", filepath.Join(n.runDir, "admin.sock"), "-o", "json")
		if err := json.Unmarshal([]byte(out), &offloads); err != nil || !slices.ContainsFunc(offloads, func(o observe.Offload) bool {
			return strings.HasPrefix(o.Port, "two") && o.Engine == port.IOUring && o.TSO4
		}) {
			t.Errorf("%v, offloads %+v", err, offloads)
		}
		if err := p.check(); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	}
	check()
	stop(syscall.SIGKILL)
	stop = n.start()
	check()
	p.del()
	q.del()
	n.assertTraces(t, clean)
}

// A pod on the LAN behind an interface of the node, of which the node's own stack sees nothing.
func TestPodOnAnUplink(t *testing.T) {
	n := newChains(t)
	lan := nstest.New(t)
	n.onNode("", "ip", "link", "set", "far1", "netns", lan.Name())
	in(t, lan, `ip address add 172.18.0.1/24 dev far1; ip link set far1 up`)
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	for _, portType := range []string{"tap", "veth"} {
		list := n.chain("lan", fmt.Sprintf(`, "network": "blue", "portType": %q, "ipam": {"type": "static", "addresses": [{"address": "172.18.0.5/24"}]}`, portType))
		p := n.mustAdd(list, n.pod, portType, "eth0", nil)
		station := netip.MustParseAddrPort("172.18.0.1:80")
		n.mustReach(n.pod, lan, station, netip.AddrPort{}, p.addr(0))
		n.mustReach(lan, n.pod, hostPort(p.addr(0), 80), netip.AddrPort{}, station.Addr())
		if err := p.check(); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		p.del()
	}
}

// What a pod sends beyond the cluster leaves with the node's address, and its gateway answers it.
func TestPodBeyondTheCluster(t *testing.T) {
	n := newChains(t)
	internet := nstest.New(t)
	n.onNode("", "sh", "-ec", "ip link add wan type veth peer name wan netns "+internet.Name()+"; ip address add 203.0.113.11/24 dev wan; ip link set wan up; "+
		"ip address add 2001:db8::11/64 dev wan nodad; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	in(t, internet, "ip address add 203.0.113.1/24 dev wan; ip address add 2001:db8::1/64 dev wan nodad; ip link set wan up")
	stop := n.start()
	defer func() { stop(syscall.SIGTERM) }()
	p := n.mustAdd(n.chain("pods", ""), n.pod, "client", "eth0", nil)
	for i, c := range []struct{ server, node, gateway string }{{"203.0.113.1", "203.0.113.11", "10.244.1.1"}, {"2001:db8::1", "2001:db8::11", "fd00:10:244:1::1"}} {
		n.mustReach(n.pod, internet, hostPort(netip.MustParseAddr(c.server), 80), netip.AddrPort{}, netip.MustParseAddr(c.node))
		in(t, n.pod, "ping -c1 -W5 "+c.gateway+"; ping -c1 -W5 "+c.server)
		n.onNode("", "ping", "-c1", "-W5", p.addr(i).String())
	}
	p.del()
}
