package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/bench/nstest"
	"tapyard/switch/wire"
)

// Two nodes on one underlay: `node` runs Tapyard, `foreign` something else. Their ends of the veth pair
// are called under.
const (
	nodeName  = "node"
	nodeCIDR4 = "10.244.1.0/24"
	nodeCIDR6 = "fd00:10:244:1::/64"

	foreignCIDR4 = "10.244.9.0/24"
	foreignCIDR6 = "fd00:10:244:9::/64"
)

// foreignMAC is what Tapyard addresses the foreign node's frames to: `mac:` of its peers entry.
var foreignMAC = wire.MAC{0x02, 0x09, 0x09, 0x09, 0x09, 0x09}

// underlay is the two nodes, and which family the tunnels between them are of.
type underlay struct {
	name                  string // of the foreign node
	node, foreign         *nstest.NS
	nodeAddr, foreignAddr netip.Addr // where the tunnels end
	mtu                   int        // of the overlay
}

// place is where traffic begins and ends: a namespace with an address of each family, IPv4 first.
type place struct {
	name  string
	ns    *nstest.NS
	addrs []netip.Addr
}

// shell runs a script inside a namespace.
func shell(t *testing.T, ns *nstest.NS, format string, args ...any) {
	t.Helper()
	script := fmt.Sprintf(format, args...)
	if out, err := ns.Command("sh", "-euc", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
}

// newUnderlay joins two nodes. Without offloads the pair behaves as a NIC that has none: every frame is
// segmented and summed by its sender. With them a datagram of 64 KiB crosses whole, its sums still partial.
func newUnderlay(t *testing.T, family int, offloads bool) *underlay {
	t.Helper()
	u := &underlay{name: "foreign", node: nstest.New(t), foreign: nstest.New(t), mtu: 1500 - 50,
		nodeAddr: netip.MustParseAddr("192.168.1.11"), foreignAddr: netip.MustParseAddr("192.168.1.12")}
	shell(t, u.node, "ip link add under type veth peer name under netns %s", u.foreign.Name())
	for host, ns := range map[int]*nstest.NS{11: u.node, 12: u.foreign} {
		shell(t, ns, `ip addr add 192.168.1.%[1]d/24 dev under
			ip addr add fd00:192:168:1::%[1]d/64 dev under nodad
			ip link set under up`, host)
		if !offloads {
			withoutOffloads(t, ns, "under")
		}
	}
	if family == 6 {
		u.mtu = 1500 - 70
		u.nodeAddr, u.foreignAddr = netip.MustParseAddr("fd00:192:168:1::11"), netip.MustParseAddr("fd00:192:168:1::12")
	}
	return u
}

// third joins one more foreign node to the same Tapyard node, over IPv4 and by a pair of its own.
func (u *underlay) third(t *testing.T) *underlay {
	t.Helper()
	third := &underlay{name: "third", node: u.node, foreign: nstest.New(t), mtu: u.mtu, nodeAddr: u.nodeAddr, foreignAddr: netip.MustParseAddr("192.168.1.13")}
	shell(t, u.node, `ip link add under3 type veth peer name under netns %[1]s
		ip addr add %[2]s peer %[3]s dev under3
		ip link set under3 up`, third.foreign.Name(), u.nodeAddr, third.foreignAddr)
	shell(t, third.foreign, `ip addr add %[2]s peer %[1]s dev under
		ip link set under up`, u.nodeAddr, third.foreignAddr)
	return third
}

func withoutOffloads(t *testing.T, ns *nstest.NS, device string) {
	t.Helper()
	shell(t, ns, "ethtool -K %s tx off gso off tso off tx-udp-segmentation off", device)
}

// tapyardNode is a node's agent, as a user has it.
type tapyardNode struct {
	*cli
	home  string // its configuration, state and sockets
	agent *exec.Cmd
}

// blueVNI is the stretched network's.
const blueVNI = 200

// startNode starts the agent with the foreign nodes as its peers: the first one has a subnet that is routed
// to it, and all of them are in the stretched network "blue". The agent is stopped when the test ends, and
// its ledger must balance then.
func startNode(t *testing.T, c *cli, us ...*underlay) *tapyardNode {
	t.Helper()
	home, err := os.MkdirTemp("/run", "interop") // a short path: a unix socket's has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	n := &tapyardNode{cli: &cli{t, c.dir}, home: home}
	n.write("tapyard.yaml", map[string]any{"name": nodeName, "podSubnets": []string{nodeCIDR4, nodeCIDR6}, "underlay": []netip.Addr{us[0].nodeAddr},
		"peersFile": n.path("peers.yaml"), "runDir": home, "stateDir": n.path("state"), "workers": 2,
		"networks": []any{map[string]any{"name": "blue", "vni": blueVNI, "l2": "stretched",
			"subnets": []string{"10.50.0.0/24", "fd00:50::/64"}, "ranges": []string{"10.50.0.64/26", "fd00:50::1:0/112"}}}})
	var peers []map[string]any
	for _, u := range us {
		peers = append(peers, map[string]any{"name": u.name, "underlay": u.foreignAddr})
	}
	peers[0]["podSubnets"], peers[0]["mac"] = []string{foreignCIDR4, foreignCIDR6}, foreignMAC.String()
	n.write("peers.yaml", map[string]any{"clusterCIDRs": []string{"10.244.0.0/16", "fd00:10:244::/48"}, "peers": peers})
	n.start(us[0].node)
	return n
}

func (n *tapyardNode) path(file string) string { return filepath.Join(n.home, file) }

// write writes a file as JSON, which is YAML.
func (n *tapyardNode) write(file string, v any) {
	n.t.Helper()
	text, err := json.Marshal(v)
	if err := errors.Join(err, os.WriteFile(n.path(file), text, 0o600)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *tapyardNode) start(ns *nstest.NS) {
	n.t.Helper()
	var log bytes.Buffer
	n.agent = ns.Command(filepath.Join(n.dir, "tapyard"), "agent", "--config", n.path("tapyard.yaml"))
	n.agent.Stderr = &log
	if err := n.agent.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		drops, _ := n.run("show", "drops", "--socket", n.path("admin.sock"))
		_ = n.agent.Process.Signal(unix.SIGTERM)
		if err := n.agent.Wait(); err != nil {
			n.t.Errorf("the agent ended with %v", err)
		}
		if n.t.Failed() {
			n.t.Logf("%s\n%s", &log, drops)
		}
		os.RemoveAll(n.home)
	})
	eventually(n.t, "the agent is ready", func() bool {
		_, err := n.run("show", "config", "--socket", n.path("admin.sock"))
		return err == nil
	})
}

// attach makes a pod and has the plugin attach it, as a container runtime does; keys go into its
// network configuration.
func (n *tapyardNode) attach(name string, keys map[string]string) place {
	n.t.Helper()
	p := place{name: name, ns: nstest.New(n.t)}
	conf := map[string]string{"cniVersion": "1.0.0", "name": "interop", "type": "tapyard-cni", "socket": n.path("cni.sock")}
	for k, v := range keys {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(n.dir, "tapyard-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+name, "CNI_IFNAME=eth0", "CNI_PATH="+n.dir, "CNI_NETNS="+p.ns.Path())
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := errors.Join(err, json.Unmarshal(out, &result)); err != nil {
		n.t.Fatalf("attach %s: %v: %s", name, err, out)
	}
	for _, ip := range result.IPs {
		p.addrs = append(p.addrs, ip.Address.Addr())
	}
	if len(p.addrs) != 2 || !p.addrs[0].Is4() {
		n.t.Fatalf("attach %s: %s; want an IPv4 and an IPv6 address", name, out)
	}
	return p
}

// routedPlace gives a device of the foreign node the addresses of one of its pods, and the route to
// Tapyard's pods by way of the router MAC, which nobody there answers for.
func routedPlace(t *testing.T, ns *nstest.NS, device string) place {
	t.Helper()
	shell(t, ns, `ip link set %[1]s up
		ip addr add 10.244.9.2/24 dev %[1]s
		ip addr add fd00:10:244:9::2/64 dev %[1]s nodad
		ip neigh replace 10.244.1.1 lladdr %[2]s dev %[1]s nud permanent
		ip neigh replace fd00:10:244:1::1 lladdr %[2]s dev %[1]s nud permanent
		ip route add %[3]s via 10.244.1.1 dev %[1]s onlink
		ip route add %[4]s via fd00:10:244:1::1 dev %[1]s onlink`, device, wire.RouterMAC(nodeName), nodeCIDR4, nodeCIDR6)
	return place{"foreign", ns, []netip.Addr{netip.MustParseAddr("10.244.9.2"), netip.MustParseAddr("fd00:10:244:9::2")}}
}

// kernelVXLAN gives the foreign node a vxlan device towards Tapyard; options are ip-link(8)'s.
func kernelVXLAN(t *testing.T, u *underlay, vni int, options string) {
	t.Helper()
	shell(t, u.foreign, "ip link add vx address %s mtu %d type vxlan id %d local %s remote %s dev under dstport 4789 %s",
		foreignMAC, u.mtu, vni, u.foreignAddr, u.nodeAddr, options)
}

// bridged returns a namespace behind a bridge that joins it with the node's vxlan device.
func bridged(t *testing.T, u *underlay) *nstest.NS {
	t.Helper()
	pod := nstest.New(t)
	shell(t, u.foreign, `ip link add name br0 type bridge
		ip link add fpod mtu %[1]d type veth peer name eth0 mtu %[1]d netns %[2]s
		for d in vx fpod; do ip link set $d master br0 up; done
		ip link set br0 up`, u.mtu, pod.Name())
	return pod
}

// stretchedPlace gives a namespace addresses of the stretched network; host is their last byte.
func stretchedPlace(t *testing.T, name string, ns *nstest.NS, host byte) place {
	t.Helper()
	p := place{name, ns, []netip.Addr{netip.AddrFrom4([4]byte{10, 50, 0, host}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x50, 15: host})}}
	shell(t, ns, `ip link set eth0 up
		ip addr add %s/24 brd + dev eth0
		ip addr add %s/64 dev eth0 nodad`, p.addrs[0], p.addrs[1])
	return p
}

// openVSwitch is an Open vSwitch of the test's own with the userspace datapath.
type openVSwitch struct {
	t   *testing.T
	ns  *nstest.NS
	dir string
}

// startOVS starts the database and the daemon in the foreign node, where they see and make devices, with
// every file and socket of theirs in one directory of this test.
func startOVS(t *testing.T, ns *nstest.NS) *openVSwitch {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "ovs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := &openVSwitch{t, ns, dir}
	o.must("ovsdb-tool", "create", filepath.Join(dir, "conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
	o.daemon("ovsdb-server", "--remote=punix:"+filepath.Join(dir, "db.sock"), filepath.Join(dir, "conf.db"))
	eventually(t, "ovsdb-server answers", func() bool {
		_, err := os.Stat(filepath.Join(dir, "db.sock"))
		return err == nil
	})
	o.vsctl("--no-wait", "init")
	o.daemon("ovs-vswitchd", "unix:"+filepath.Join(dir, "db.sock"))
	return o
}

func (o *openVSwitch) command(program string, args ...string) *exec.Cmd {
	cmd := o.ns.Command(program, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir, "OVS_SYSCONFDIR="+o.dir)
	return cmd
}

func (o *openVSwitch) must(program string, args ...string) {
	o.t.Helper()
	if out, err := o.command(program, args...).CombinedOutput(); err != nil {
		o.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// daemon starts a program that is ended, by its process, when the test ends.
func (o *openVSwitch) daemon(program string, args ...string) {
	o.t.Helper()
	var log bytes.Buffer
	cmd := o.command(program, append([]string{"--pidfile"}, args...)...)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // by a signal
		timer.Stop()
		if o.t.Failed() {
			o.t.Logf("%s: %s", program, &log)
		}
	})
}

func (o *openVSwitch) vsctl(args ...string) {
	o.t.Helper()
	o.must("ovs-vsctl", append([]string{"--timeout=20", "--db=unix:" + filepath.Join(o.dir, "db.sock")}, args...)...)
}

// bridges makes the two bridges that tunnels of the userspace datapath need (Open vSwitch's "Connecting
// VMs Using Tunnels (Userspace)"): br-phy holds the underlay device and its addresses, and br-int the vxlan
// port and the pods. A netdev datapath reads the devices itself, so their addresses would never see a frame.
func (o *openVSwitch) bridges(u *underlay, vni int) {
	o.t.Helper()
	o.vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev",
		"--", "add-port", "br-phy", "under",
		"--", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev",
		"--", "add-port", "br-int", "vx", "--", "set", "interface", "vx", "type=vxlan",
		fmt.Sprintf("options:key=%d", vni), fmt.Sprintf(`options:remote_ip="%s"`, u.nodeAddr))
	shell(o.t, o.ns, `ip addr flush dev under
		ip addr add 192.168.1.12/24 dev br-phy
		ip addr add fd00:192:168:1::12/64 dev br-phy nodad
		ip link set br-phy up
		ip link set br-int up`)
}

// pod returns a namespace behind br-int. Its offloads are off: this Open vSwitch passes frames of a veth on
// as they are, and neither segments them nor completes their sums.
func (o *openVSwitch) pod(name string, mtu int) *nstest.NS {
	o.t.Helper()
	pod := nstest.New(o.t)
	shell(o.t, o.ns, "ip link add %[1]s up mtu %[2]d type veth peer name eth0 address %[3]s mtu %[2]d netns %[4]s", name, mtu, foreignMAC, pod.Name())
	withoutOffloads(o.t, pod, "eth0")
	o.vsctl("add-port", "br-int", name)
	return pod
}
